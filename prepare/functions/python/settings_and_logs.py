"""Settings, command lines and logs."""

import argparse
import configparser
import logging
import re
import shlex
from collections import Counter
from string import Template


def parse_env_file(text: str) -> dict[str, str]:
    """Read the lines NAME=value of an .env file; comments and empty lines are passed over.

    >>> parse_env_file("# the server\\nHOST=localhost\\nNAME='my app'\\n")
    {'HOST': 'localhost', 'NAME': 'my app'}
    """
    values = {}
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, _, value = line.partition("=")
        values[name.strip()] = value.strip().strip("'\"")
    return values


def read_ini(text):
    """Read the text of an INI file into a dict of sections."""
    parser = configparser.ConfigParser()
    parser.read_string(text)
    return {name: dict(parser[name]) for name in parser.sections()}


def settings_from_env(environment, prefix, defaults):
    """Return the defaults, overridden by environment variables with a prefix.

    >>> settings_from_env({"APP_PORT": "81"}, "APP_", {"port": 80, "host": "here"})
    {'port': 81, 'host': 'here'}
    """
    settings = {}
    for name, default in defaults.items():
        text = environment.get(prefix + name.upper())
        settings[name] = default if text is None else type(default)(text)
    return settings


def first_set(*values):
    """Return the first value that is not None, None if there is none."""
    for value in values:
        if value is not None:
            return value
    return None


def fill_template(template, values):
    """Put values into a text with placeholders such as $name; unknown ones stay.

    >>> fill_template("Dear $name, pay $amount.", {"name": "Ada"})
    'Dear Ada, pay $amount.'
    """
    return Template(template).safe_substitute(values)


def make_parser():
    """Return a parser for the command line of a small tool.

    >>> make_parser().parse_args(["a.txt", "--count", "3", "-v"])
    Namespace(file='a.txt', count=3, verbose=True)
    """
    parser = argparse.ArgumentParser(description="Show the first lines of a file.")
    parser.add_argument("file", help="the file to read")
    parser.add_argument("--count", type=int, default=10, help="number of lines")
    parser.add_argument("-v", "--verbose", action="store_true", help="say more")
    return parser


def parse_command(line):
    """Split a command line into the command, its options and its other arguments.

    >>> parse_command("copy --force 'my file' target")
    ('copy', ['--force'], ['my file', 'target'])
    """
    command, *words = shlex.split(line)
    options = [word for word in words if word.startswith("-")]
    others = [word for word in words if not word.startswith("-")]
    return command, options, others


def get_logger(name, level=logging.INFO):
    """Return a logger that writes time, level and message to standard error, only once."""
    logger = logging.getLogger(name)
    logger.setLevel(level)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
    return logger


def parse_log_line(line: str) -> dict[str, str] | None:
    """Return time, level and message of a line of a log; None if it has another form.

    >>> parse_log_line("2024-05-01 12:00:00 ERROR disk full")
    {'time': '2024-05-01 12:00:00', 'level': 'ERROR', 'message': 'disk full'}
    """
    match = re.match(r"(?P<time>\S+ \S+) (?P<level>[A-Z]+) (?P<message>.*)", line)
    return match.groupdict() if match else None


def count_levels(lines):
    """Count the lines of a log by their level."""
    levels = Counter()
    for line in lines:
        found = re.search(r"\b(DEBUG|INFO|WARNING|ERROR)\b", line)
        if found:
            levels[found[1]] += 1
    return dict(levels)


def parse_access_log(line):
    """Return client, method, path and status of a line of a web server's log.

    >>> parse_access_log('1.2.3.4 - - [01/May/2024:10:00:00] "GET /a HTTP/1.1" 200 512')
    ('1.2.3.4', 'GET', '/a', 200)
    """
    match = re.match(r'(\S+) \S+ \S+ \[[^\]]*\] "(\S+) (\S+)[^"]*" (\d{3})', line)
    if match is None:
        raise ValueError(f"not a line of an access log: {line!r}")
    client, method, path, status = match.groups()
    return client, method, path, int(status)


def progress_bar(done, total, width=20):
    """Return a bar of characters that shows how much is done.

    >>> progress_bar(3, 4, width=8)
    '[######--]  75%'
    """
    share = done / total if total else 1.0
    filled = int(width * share)
    return f"[{'#' * filled}{'-' * (width - filled)}] {share:4.0%}"


__test__ = {
    "read_ini": r"""
    >>> read_ini("[server]\nport = 80\nname = main\n")
    {'server': {'port': '80', 'name': 'main'}}
    """,
    "first_set": """
    >>> first_set(None, 0, 5), first_set(None)
    (0, None)
    """,
    "get_logger": """
    >>> logger = get_logger("nanoneox.example", logging.DEBUG)
    >>> get_logger("nanoneox.example") is logger, len(logger.handlers), logger.level
    (True, 1, 20)
    """,
    "count_levels": """
    >>> count_levels(["12:00 INFO start", "12:01 ERROR full", "12:02 INFO end", "--"])
    {'INFO': 2, 'ERROR': 1}
    """,
}
