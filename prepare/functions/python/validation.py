"""Checks of what people type."""

import ipaddress
import re
import string
from urllib.parse import urlparse


def looks_like_email(text):
    """Return True if the text has the form of an e-mail address.

    >>> looks_like_email("ada@mail.example"), looks_like_email("ada@mail")
    (True, False)
    """
    return re.fullmatch(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)+", text) is not None


def is_web_address(text):
    """Return True if the text is an http or https address with a host.

    >>> is_web_address("https://python.org/doc"), is_web_address("python.org")
    (True, False)
    """
    parts = urlparse(text)
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def is_ip_address(text):
    """Return True if the text is an IPv4 or an IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def has_valid_checksum(number: str) -> bool:
    """Check the last digit of a card number by Luhn's rule.

    >>> has_valid_checksum("4012 8888 8888 1881"), has_valid_checksum("4012 8888 8888 1882")
    (True, False)
    """
    digits = [int(c) for c in number if c.isdigit()]
    total = 0
    for position, digit in enumerate(reversed(digits)):
        if position % 2 == 1:
            digit *= 2
        total += digit - 9 if digit > 9 else digit
    return bool(digits) and total % 10 == 0


def is_valid_isbn(isbn):
    """Return True if a 13-digit ISBN, with or without hyphens, has the right last digit."""
    digits = [int(c) for c in isbn if c.isdigit()]
    if len(digits) != 13:
        return False
    total = sum(digit * (3 if i % 2 else 1) for i, digit in enumerate(digits))
    return total % 10 == 0


def password_problems(password: str) -> list[str]:
    """Return what is wrong with a new password; an empty list if nothing is.

    >>> password_problems("abcdefgh")
    ['no capital letter', 'no digit']
    """
    problems = []
    if len(password) < 8:
        problems.append("shorter than 8 characters")
    if not any(c.isupper() for c in password):
        problems.append("no capital letter")
    if not any(c.isdigit() for c in password):
        problems.append("no digit")
    return problems


def missing_fields(form, required):
    """Return the required fields that a form lacks or has left empty.

    >>> missing_fields({"name": "Ada", "city": ""}, ["name", "city", "zip"])
    ['city', 'zip']
    """
    return [name for name in required if form.get(name) in (None, "")]


def parse_bool(text):
    """Return the truth value that a text such as "yes" or "off" stands for.

    >>> parse_bool("Yes"), parse_bool("0")
    (True, False)
    """
    value = text.strip().lower()
    if value in ("1", "true", "yes", "on"):
        return True
    if value in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"neither true nor false: {text!r}")


def parse_number(text, low=None, high=None):
    """Read a number that a person typed; ValueError if it is none or out of range."""
    value = float(text.replace(",", "."))
    if low is not None and value < low:
        raise ValueError(f"{text} is below {low}")
    if high is not None and value > high:
        raise ValueError(f"{text} is above {high}")
    return value


def parse_range_list(text):
    """Return the numbers in a list of pages such as "1-3, 7".

    >>> parse_range_list("1-3, 7, 9-10")
    [1, 2, 3, 7, 9, 10]
    """
    numbers = []
    for part in text.split(","):
        first, hyphen, last = part.strip().partition("-")
        numbers.extend(range(int(first), int(last if hyphen else first) + 1))
    return numbers


def is_identifier(text):
    """Return True if the text can be a name: ASCII letters, digits and _, no digit first.

    >>> [is_identifier(text) for text in ("max_1", "1max", "größe", "")]
    [True, False, False, False]
    """
    allowed = set(string.ascii_letters + string.digits + "_")
    return bool(text) and not text[0].isdigit() and set(text) <= allowed


def compare_versions(first: str, second: str) -> int:
    """Return -1, 0 or 1 as the first version is older than, equal to or newer than the second.

    >>> compare_versions("1.9", "1.10.2"), compare_versions("2.0", "2")
    (-1, 0)
    """
    left = [int(part) for part in first.split(".")]
    right = [int(part) for part in second.split(".")]
    length = max(len(left), len(right))
    left += [0] * (length - len(left))
    right += [0] * (length - len(right))
    return (left > right) - (left < right)


def check_types(row, types):
    """Return a message for each field of a row that is missing or has another type.

    >>> check_types({"id": "7"}, {"id": int, "name": str})
    ['id must be int, not str', 'name is missing']
    """
    messages = []
    for name, wanted in types.items():
        if name not in row:
            messages.append(f"{name} is missing")
        elif not isinstance(row[name], wanted):
            found = type(row[name]).__name__
            messages.append(f"{name} must be {wanted.__name__}, not {found}")
    return messages


__test__ = {
    "is_ip_address": """
    >>> [is_ip_address(text) for text in ("127.0.0.1", "::1", "256.1.1.1")]
    [True, True, False]
    """,
    "is_valid_isbn": """
    >>> is_valid_isbn("978-0-306-40615-7"), is_valid_isbn("978-0-306-40615-8")
    (True, False)
    """,
    "parse_number": """
    >>> parse_number("2,5")
    2.5
    >>> parse_number("130", high=120)
    Traceback (most recent call last):
    ValueError: 130 is above 120
    """,
}
