"""Lines, columns and tables of text."""

import difflib
import re
import textwrap
from itertools import groupby


def number_lines(text, start=1):
    """Return the text with a line number in front of each line."""
    lines = text.splitlines()
    width = len(str(start + len(lines) - 1))
    numbered = []
    for number, line in enumerate(lines, start):
        numbered.append(f"{number:>{width}}  {line}")
    return "\n".join(numbered)


def non_empty_lines(text):
    """Return the lines of a text that hold more than whitespace, stripped."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line]


def grep(pattern: str, lines: list[str]) -> list[tuple[int, str]]:
    """Return the number, counted from 1, and the text of each line that matches a pattern.

    >>> grep(r"err(or)?:", ["ok", "error: no disk", "err: no net"])
    [(2, 'error: no disk'), (3, 'err: no net')]
    """
    regex = re.compile(pattern)
    return [(number, line) for number, line in enumerate(lines, 1) if regex.search(line)]


def last_lines(text, count):
    """Return the last lines of a text, at most count of them."""
    lines = text.splitlines()
    return lines[-count:] if count > 0 else []


def longest_line_length(text):
    """Return the length of the longest line, tabs counting as four columns.

    >>> longest_line_length("ab\\n\\tcd\\n")
    6
    """
    return max((len(line.expandtabs(4)) for line in text.splitlines()), default=0)


def format_table(rows: list[list[str]]) -> str:
    """Format rows as a table whose columns are as wide as their widest cell.

    >>> print(format_table([["name", "size"], ["a.txt", "12"]]))
    name   size
    a.txt  12
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(header, rows):
    """Format a header and rows as a table in Markdown.

    >>> print(markdown_table(["fruit", "price"], [["apple", 3], ["plum", 5]]))
    | fruit | price |
    | --- | --- |
    | apple | 3 |
    | plum | 5 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def indent_block(text, spaces=4):
    """Indent all lines of a text that are not empty."""
    prefix = " " * spaces
    lines = [prefix + line if line.strip() else line for line in text.split("\n")]
    return "\n".join(lines)


def unindent(text):
    """Remove the indentation that all lines share, and empty lines at both ends."""
    return textwrap.dedent(text).strip("\n")


def split_fixed_width(line, widths):
    """Cut a line into columns of fixed widths and strip each of them.

    >>> split_fixed_width("Ada     1815London", [8, 4, 6])
    ['Ada', '1815', 'London']
    """
    fields, position = [], 0
    for width in widths:
        fields.append(line[position : position + width].strip())
        position += width
    return fields


def wrap_comment(text, width=60, prefix="# "):
    """Wrap a text into comment lines that are no longer than width.

    >>> print(wrap_comment("This explains why the cache is cleared here.", width=24))
    # This explains why the
    # cache is cleared here.
    """
    lines = textwrap.wrap(text, width - len(prefix))
    return "\n".join(prefix + line for line in lines)


def squeeze_blank_lines(text):
    """Replace each run of empty lines by a single one."""
    result = []
    for blank, lines in groupby(text.split("\n"), key=lambda line: not line.strip()):
        result += [""] if blank else list(lines)
    return "\n".join(result)


def changed_lines(old: str, new: str) -> list[str]:
    """Return the lines that were removed, marked with -, and those that were added, with +.

    >>> changed_lines("a\\nb\\nc", "a\\nx\\nc")
    ['- b', '+ x']
    """
    difference = difflib.ndiff(old.splitlines(), new.splitlines())
    return [line for line in difference if line[0] in "-+"]


def join_continued_lines(text):
    """Join each line that ends with a backslash with the line after it."""
    joined, pending = [], ""
    for line in text.splitlines():
        if line.endswith("\\"):
            pending += line[:-1]
        else:
            joined.append(pending + line)
            pending = ""
    if pending:
        joined.append(pending)
    return joined


__test__ = {
    "number_lines": r"""
    >>> print(number_lines("first\nsecond", start=9))
     9  first
    10  second
    """,
    "non_empty_lines": r"""
    >>> non_empty_lines("a\n\n  b \n")
    ['a', 'b']
    """,
    "last_lines": r"""
    >>> last_lines("a\nb\nc", 2)
    ['b', 'c']
    >>> last_lines("a", 0)
    []
    """,
    "indent_block": r"""
    >>> indent_block("if x:\n\n  y", 2)
    '  if x:\n\n    y'
    """,
    "unindent": r"""
    >>> unindent("\n    a\n      b\n")
    'a\n  b'
    """,
    "squeeze_blank_lines": r"""
    >>> squeeze_blank_lines("a\n\n\n\nb\nc")
    'a\n\nb\nc'
    """,
    "join_continued_lines": r"""
    >>> join_continued_lines("gcc \\\n  -O2\nls")
    ['gcc   -O2', 'ls']
    """,
}
