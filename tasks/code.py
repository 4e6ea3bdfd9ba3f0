"""Source code: its documents, its classes of token, its lines and functions. Python and Go."""

import ast
import keyword
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from parts.tokenizer import Tokenizer

# Comments include Python's docstrings.
CLASSES = ("identifier", "keyword", "operator", "literal", "whitespace", "comment")
GO_KEYWORDS = """break case chan const continue default defer else fallthrough for func go goto if
    import interface map package range return select struct switch type var"""
KEYWORDS = {"python": set(keyword.kwlist), "go": set(GO_KEYWORDS.split())}
PYTHON = rb"""
    (?P<comment> \#[^\n]*)
    | (?P<string> (?:[rRbBuUfF]{1,2})? (?:
        \"\"\"(?:\\.|[^\\])*?\"\"\" | '''(?:\\.|[^\\])*?'''
        | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*'))"""
GO = rb"""
    (?P<comment> //[^\n]* | /\*.*?\*/)
    | (?P<string> "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])+' | `[^`]*`)"""
REST = rb"""
    | (?P<literal> (?:\d|\.\d)(?:[eEpP][+-]\d|[\w.])*)
    | (?P<word> [A-Za-z_\x80-\xff][\w\x80-\xff]*)
    | (?P<whitespace> \s+)
    | (?P<operator> := | [-+*/%&|^<>=!~]+ | .)"""
LEXERS = {
    "python": re.compile(PYTHON + REST, re.X | re.S),
    "go": re.compile(GO + REST, re.X | re.S),
}


class Excerpt(NamedTuple):
    """The part of a text that answers the question, and whether the text reached its end."""

    text: str
    ended: bool


def lex(source: bytes, language: str) -> Iterator[tuple[str, int, int]]:
    """(class, begin, end) of each piece of the source, in bytes. A triple-quoted string that is a
    statement after a colon, or the first of the file, is a docstring, and so a comment."""
    before, fresh = None, True  # the last piece of code; whether a new line has begun since
    for match in LEXERS[language].finditer(source):
        kind, text = match.lastgroup, match[0]
        if kind == "word":
            known = text.decode(errors="replace") in KEYWORDS[language]
            kind = "keyword" if known else "identifier"
        if kind == "string":
            opens = language == "python" and before in (None, b":") and fresh
            kind = "comment" if opens and text[-3:] in (b'"""', b"'''") else "literal"
        yield kind, match.start(), match.end()
        if kind == "whitespace":
            fresh = fresh or b"\n" in text
        elif kind != "comment":
            before, fresh = text, False


def documents(tokens: np.ndarray, tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """(begin, end) of each document, without its end-of-text token."""
    ends = np.zeros(0, np.int64)
    if tokenizer.eot is not None:
        ends = np.flatnonzero(tokens == tokenizer.eot)
    if not len(ends) or ends[-1] != len(tokens) - 1:
        ends = np.r_[ends, len(tokens)]
    return list(zip(np.r_[0, ends[:-1] + 1].tolist(), ends.tolist()))


def token_classes(tokens: np.ndarray, tokenizer: Tokenizer, language: str) -> np.ndarray:
    """The index in CLASSES of each token, int8: that of its first byte that is not whitespace, or
    of its first byte if all are; -1 for end of text."""
    special = set(tokenizer.special.values())
    texts = {i: tokenizer.token_bytes(i) for i in np.unique(tokens).tolist() if i not in special}
    classes = np.full(len(tokens), -1, np.int8)
    for begin, end in documents(tokens, tokenizer):
        pieces = [texts.get(i, b"") for i in tokens[begin:end].tolist()]
        of_byte = [np.zeros(0, np.int8)]
        for kind, first, last in lex(b"".join(pieces), language):
            of_byte.append(np.full(last - first, CLASSES.index(kind), np.int8))
        of_byte, at = np.concatenate(of_byte), 0
        for number, piece in enumerate(pieces, begin):
            skip = len(piece) - len(piece.lstrip())
            if piece:
                classes[number] = of_byte[at + (skip if skip < len(piece) else 0)]
            at += len(piece)
    return classes


def detect_language(tokens: np.ndarray, tokenizer: Tokenizer) -> str:
    """python, go or "": what most of the first 20 documents are written in."""
    if tokenizer.eot is None:
        return ""
    spans = documents(tokens, tokenizer)[:20]
    texts = [tokenizer.decode(tokens[begin:end].tolist()) for begin, end in spans]
    signs = {
        "go": r"(?m)^package \w+",
        "python": r"(?m)^\s*(def \w+\(|import \w+|from [\w.]+ import )",
    }
    for language, sign in signs.items():
        if 2 * sum(bool(re.search(sign, text)) for text in texts) > len(texts):
            return language
    return ""


def parse(source: str) -> ast.Module | None:
    """The syntax tree of a Python text, None if it has none. Nothing in the text is run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in sampled strings are no news
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def parses(source: str, language: str) -> bool | None:
    """Whether the text is a file of the language: by Python's parser, or by gofmt, without which
    the answer is None."""
    if language == "python":
        return parse(source) is not None
    if not shutil.which("gofmt"):
        return None
    return subprocess.run(["gofmt"], input=source.encode(), capture_output=True).returncode == 0


def functions(text: str, language: str) -> list[tuple[int, int]]:
    """(first line, line after the last) of each function's header: its signature, with the
    docstring if there is one. Lines are numbered from 0."""
    if language == "go":
        lines = enumerate(text.split("\n"))
        return [(n, n + 1) for n, line in lines if line.startswith("func ") and line.endswith("{")]
    found = []
    for node in ast.walk(parse(text) or ast.Module([])):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            documented = ast.get_docstring(node, clean=False) is not None
            last = node.body[0].end_lineno if documented else node.body[0].lineno - 1
            on_one_line = last < node.lineno
            if not on_one_line and len(node.body) > documented:  # more than its docstring
                found.append((node.lineno - 1, last))
    return found


def rest_of_line(text: str) -> Excerpt:
    line, newline, _ = text.partition("\n")
    return Excerpt(line, bool(newline))


def next_line(text: str) -> Excerpt:
    """The next line that is not empty, with the newlines before it."""
    ended = re.search(r"\n\s*\S[^\n]*\n", text)
    return Excerpt(re.match(r"\s*[^\n]*", text)[0], bool(ended))


def body(text: str, indentation: str, language: str) -> Excerpt:
    """The body at the beginning of a text that continues a function's header: whole lines, up to
    the first that is no deeper than the header, and Go's closing brace."""
    lines = text.split("\n")
    for number, line in enumerate(lines[1:], 1):
        if line.strip() and len(line) - len(line.lstrip()) <= len(indentation):
            kept = lines[:number]
            if language == "go" and line.startswith(indentation + "}"):
                kept.append(indentation + "}")
            return Excerpt("\n".join(kept), True)
    return Excerpt("\n".join(lines[:-1]), False)
