"""Words, sentences and spaces."""

import difflib
import re
import string
import textwrap
import unicodedata
from collections import Counter


def squeeze_spaces(text):
    """Return the text with each run of whitespace replaced by one space, and none at its ends.

    >>> squeeze_spaces("  two   words  ")
    'two words'
    """
    return " ".join(text.split())


def initials(name):
    """Return the first letters of a person's names, in upper case.

    >>> initials("ada king lovelace")
    'AKL'
    """
    return "".join(part[0] for part in name.split()).upper()


def shorten_middle(text: str, width: int) -> str:
    """Cut characters out of the middle of a text so that it is no wider than width.

    >>> shorten_middle("a very long file name.txt", 15)
    'a very...me.txt'
    """
    if len(text) <= width:
        return text
    kept = max(width - 3, 0)
    head = (kept + 1) // 2
    tail = kept - head
    return text[:head] + "..." + (text[-tail:] if tail else "")


def most_common_words(text, count):
    """Return the words that occur most often in the text, in lower case, with their counts.

    >>> most_common_words("The cat saw the dog. The dog ran.", 2)
    [('the', 3), ('dog', 2)]
    """
    words = re.findall(r"[a-z']+", text.lower())
    return Counter(words).most_common(count)


def replace_all(text, replacements):
    """Replace each key of the dict that occurs in the text by its value, all in one pass.

    >>> replace_all("red and blue", {"red": "blue", "blue": "red"})
    'blue and red'
    """
    if not replacements:
        return text
    pattern = "|".join(re.escape(key) for key in sorted(replacements, key=len, reverse=True))
    return re.sub(pattern, lambda match: replacements[match[0]], text)


def strip_accents(text: str) -> str:
    """Return the text without accents, so that it can be searched for more easily.

    >>> strip_accents("café à Zürich")
    'cafe a Zurich'
    """
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def split_sentences(text):
    """Split a text into sentences, which end with a dot, an exclamation or a question mark."""
    sentences = re.split(r"(?<=[.!?])\s+", text.strip())
    return [sentence for sentence in sentences if sentence]


def pluralize(count, singular, plural=None):
    """Return the count with the noun in the form that fits it.

    >>> pluralize(1, "file")
    '1 file'
    >>> pluralize(3, "entry", "entries")
    '3 entries'
    """
    if count == 1:
        return f"{count} {singular}"
    return f"{count} {plural or singular + 's'}"


def join_with_and(items):
    """Join words as in a sentence, with commas and a final "and".

    >>> join_with_and(["tea", "coffee", "milk"])
    'tea, coffee and milk'
    """
    if len(items) < 2:
        return "".join(items)
    return ", ".join(items[:-1]) + " and " + items[-1]


def highlight(text, words, mark="**"):
    """Put the mark before and after each of the words, whatever their case."""
    for word in words:
        pattern = rf"\b({re.escape(word)})\b"
        text = re.sub(pattern, rf"{mark}\1{mark}", text, flags=re.IGNORECASE)
    return text


def remove_punctuation(text):
    """Return the text without any ASCII punctuation.

    >>> remove_punctuation("Well, it's done!")
    'Well its done'
    """
    return text.translate(str.maketrans("", "", string.punctuation))


def closest_word(word, candidates):
    """Return the candidate that looks most like the word, or None if none is similar.

    >>> closest_word("lenght", ["width", "length", "height"])
    'length'
    """
    matches = difflib.get_close_matches(word, candidates, n=1)
    return matches[0] if matches else None


def paragraphs(text):
    """Return the paragraphs of a text, which are separated by empty lines, each on one line."""
    result = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in block.splitlines()]
        if any(lines):
            result.append(" ".join(line for line in lines if line))
    return result


def as_bullets(items, width=40):
    """Format texts as a bullet list whose lines are no longer than width.

    >>> print(as_bullets(["buy bread", "call the plumber about the kitchen"], width=24))
    - buy bread
    - call the plumber about
      the kitchen
    """
    bullets = []
    for item in items:
        bullets.append(textwrap.fill(item, width, initial_indent="- ", subsequent_indent="  "))
    return "\n".join(bullets)


__test__ = {
    "split_sentences": """
    >>> split_sentences("It works. Does it? Yes!")
    ['It works.', 'Does it?', 'Yes!']
    >>> split_sentences("  ")
    []
    """,
    "highlight": """
    >>> highlight("Save the file, then close the File.", ["file"])
    'Save the **file**, then close the **File**.'
    """,
    "paragraphs": r"""
    >>> paragraphs("One\ntwo.\n\n\n  Three.\n")
    ['One two.', 'Three.']
    """,
}
