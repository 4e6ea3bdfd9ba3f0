"""Names, keys and identifiers."""

import hashlib
import itertools
import re
import uuid


def slugify(title):
    """Turn a title into the last part of a web address.

    >>> slugify("  What's new in 3.13? ")
    'what-s-new-in-3-13'
    """
    return "-".join(re.findall(r"[a-z0-9]+", title.lower()))


def title_from_slug(slug):
    """Turn the last part of a web address back into a title.

    >>> title_from_slug("how-to_bake-bread")
    'How to bake bread'
    """
    words = slug.replace("_", "-").split("-")
    return " ".join(words).strip().capitalize()


def to_constant_name(text: str) -> str:
    """Return the text as the name of a constant.

    >>> to_constant_name("max. retry count")
    'MAX_RETRY_COUNT'
    """
    return "_".join(re.findall(r"\w+", text)).upper()


def mentioned_names(text):
    """Return the names behind an @ in a message, in lower case and without repetition."""
    names = []
    for name in re.findall(r"(?<!\w)@(\w+)", text.lower()):
        if name not in names:
            names.append(name)
    return names


def unique_name(name, taken):
    """Return the name or, if it is taken, the name with the first free number behind it.

    >>> unique_name("report", {"report", "report_2"})
    'report_3'
    """
    if name not in taken:
        return name
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def safe_file_name(name, replacement="_"):
    """Replace the characters that file names cannot have on every system.

    >>> safe_file_name("a/b: c?.txt")
    'a_b_ c_.txt'
    """
    cleaned = re.sub(r'[<>:"/\\|?*\x00-\x1f]', replacement, name)
    return cleaned.strip(" .") or "unnamed"


def short_id(text, length=8):
    """Return a short id that is always the same for the same text.

    >>> short_id("hello"), len(short_id("hello", length=12))
    ('2cf24dba', 12)
    """
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    return digest[:length]


def mask_middle(value: str, shown: int = 2) -> str:
    """Hide all but the first and the last characters of a value, for logs.

    >>> mask_middle("4012888888881881", shown=4)
    '4012********1881'
    >>> mask_middle("abc")
    '***'
    """
    if len(value) <= 2 * shown:
        return "*" * len(value)
    hidden = len(value) - 2 * shown
    return value[:shown] + "*" * hidden + value[-shown:]


def is_uuid(text):
    """Return True if the text is a UUID in its usual form with hyphens."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def split_qualified_name(name):
    """Split a name such as package.module.thing into its parent and its last part.

    >>> split_qualified_name("os.path.join")
    ('os.path', 'join')
    >>> split_qualified_name("open")
    ('', 'open')
    """
    parent, _, last = name.rpartition(".")
    return parent, last


def column_letter(number):
    """Return the letters of a spreadsheet's column, counted from 1."""
    letters = ""
    while number > 0:
        number, remainder = divmod(number - 1, 26)
        letters = chr(ord("A") + remainder) + letters
    return letters


def number_with_suffix(n):
    """Return an ordinal number such as 1st, 2nd, 3rd or 11th.

    >>> [number_with_suffix(n) for n in (1, 2, 3, 4, 11, 22, 113)]
    ['1st', '2nd', '3rd', '4th', '11th', '22nd', '113th']
    """
    if n % 100 in (11, 12, 13):
        return f"{n}th"
    endings = {1: "st", 2: "nd", 3: "rd"}
    return f"{n}{endings.get(n % 10, 'th')}"


def make_counter(prefix):
    """Return a function that gives a new id, with this prefix, at each call."""
    numbers = itertools.count(1)

    def next_id():
        return f"{prefix}-{next(numbers):04d}"

    return next_id


__test__ = {
    "mentioned_names": """
    >>> mentioned_names("@Ada, ask @bo_2; not me@work. Thanks @ada!")
    ['ada', 'bo_2']
    """,
    "is_uuid": """
    >>> is_uuid("12345678-1234-5678-1234-567812345678")
    True
    >>> is_uuid("12345678123456781234567812345678"), is_uuid("no")
    (False, False)
    """,
    "column_letter": """
    >>> [column_letter(n) for n in (1, 26, 27, 703)]
    ['A', 'Z', 'AA', 'AAA']
    """,
    "make_counter": """
    >>> next_id = make_counter("job")
    >>> next_id(), next_id()
    ('job-0001', 'job-0002')
    """,
}
