"""Web addresses, headers and requests."""

import base64
import html
import mimetypes
import re
from http import HTTPStatus
from urllib.parse import parse_qsl, quote, urlencode, urljoin, urlsplit, urlunsplit


def parse_query(query: str) -> dict[str, list[str]]:
    """Return the values of each name in the query of a web address.

    >>> parse_query("?q=a+b&tag=x&tag=y")
    {'q': ['a b'], 'tag': ['x', 'y']}
    """
    values = {}
    for name, value in parse_qsl(query.lstrip("?"), keep_blank_values=True):
        values.setdefault(name, []).append(value)
    return values


def with_query(url, **parameters):
    """Return the address with these parameters in its query, in place of old ones.

    >>> with_query("https://a.example/list?page=1&sort=name", page=2)
    'https://a.example/list?page=2&sort=name'
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    query.update(parameters)
    return urlunsplit(parts._replace(query=urlencode(query)))


def without_tracking(url):
    """Return the address without the parameters that only serve advertising."""
    parts = urlsplit(url)
    kept = [
        (name, value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
        if not name.startswith("utm_") and name not in ("fbclid", "gclid")
    ]
    return urlunsplit(parts._replace(query=urlencode(kept)))


def domain(url):
    """Return the host of an address in lower case, without www. in front.

    >>> domain("https://www.Python.org:443/about"), domain("no address")
    ('python.org', '')
    """
    host = urlsplit(url).hostname or ""
    return host.removeprefix("www.")


def join_url(base, *parts):
    """Join the parts of an address with exactly one slash between them."""
    pieces = [base.rstrip("/")]
    for part in parts:
        pieces.append(quote(str(part).strip("/")))
    return "/".join(pieces)


def links_in(page, base):
    """Return the full addresses of all links in a page of HTML.

    >>> links_in('<a href="/help">Help</a> <a href="b.html">B</a>', "https://a.example/x/")
    ['https://a.example/help', 'https://a.example/x/b.html']
    """
    targets = re.findall(r"""<a\s[^>]*href=["']([^"']+)["']""", page, re.IGNORECASE)
    return [urljoin(base, html.unescape(target)) for target in targets]


def parse_headers(text):
    """Read lines such as "Name: value" into a dict with names in lower case."""
    headers = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return headers


def parse_cookies(header):
    """Return the cookies in a Cookie header as a dict.

    >>> parse_cookies("theme=dark; lang=en")
    {'theme': 'dark', 'lang': 'en'}
    """
    pairs = (part.strip().partition("=") for part in header.split(";"))
    return {name: value for name, equals, value in pairs if equals}


def status_text(code):
    """Return an HTTP status code with its meaning."""
    try:
        return f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        return f"{code} unknown"


def basic_auth_header(user, password):
    """Return the header that logs a user in by HTTP's basic authentication.

    >>> basic_auth_header("ada", "open")
    {'Authorization': 'Basic YWRhOm9wZW4='}
    """
    credentials = f"{user}:{password}".encode()
    return {"Authorization": "Basic " + base64.b64encode(credentials).decode("ascii")}


def content_type(name):
    """Return the MIME type that a file name's suffix stands for.

    >>> content_type("photo.png"), content_type("data.unknown-suffix")
    ('image/png', 'application/octet-stream')
    """
    kind, _ = mimetypes.guess_type(name)
    return kind or "application/octet-stream"


def strip_tags(page):
    """Return the text of a piece of HTML, without tags, scripts and styles."""
    page = re.sub(r"(?is)<(script|style)\b.*?</\1>", " ", page)
    text = re.sub(r"<[^>]+>", " ", page)
    return " ".join(html.unescape(text).split())


def preferred_language(header: str, offered: list[str]) -> str:
    """Return the offered language that an Accept-Language header likes best.

    >>> preferred_language("fr;q=0.5, de, en;q=0.8", ["en", "fr"])
    'en'
    """
    weights = {}
    for part in header.split(","):
        name, _, quality = part.strip().partition(";q=")
        weights[name.split("-")[0].lower()] = float(quality or 1)
    return max(offered, key=lambda language: weights.get(language, 0.0))


__test__ = {
    "without_tracking": """
    >>> without_tracking("https://a.example/p?id=7&utm_source=mail&gclid=x")
    'https://a.example/p?id=7'
    """,
    "join_url": """
    >>> join_url("https://a.example/", "/users/", 7, "my file")
    'https://a.example/users/7/my%20file'
    """,
    "parse_headers": r"""
    >>> parse_headers("Host: a.example\nContent-Type: text/html; charset=utf-8\n\n")
    {'host': 'a.example', 'content-type': 'text/html; charset=utf-8'}
    """,
    "status_text": """
    >>> status_text(404), status_text(799)
    ('404 Not Found', '799 unknown')
    """,
    "strip_tags": """
    >>> strip_tags("<p>Fish &amp; <b>chips</b></p><script>run()</script>")
    'Fish & chips'
    """,
}
