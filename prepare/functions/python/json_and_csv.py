"""JSON, CSV and similar texts."""

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator
from datetime import date, datetime
from pathlib import Path


def load_json(path, default=None):
    """Return the content of a JSON file, or default if the file is missing or no JSON."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, json.JSONDecodeError):
        return default


def save_json(path, data):
    """Write data to a JSON file that people can read and compare."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=2, sort_keys=True, ensure_ascii=False)
        file.write("\n")


def read_json_lines(lines: Iterable[str]) -> Iterator[dict]:
    """Yield the objects of a file with one JSON object a line; empty lines are passed over.

    >>> list(read_json_lines(['{"a": 1}', "", '{"a": 2}']))
    [{'a': 1}, {'a': 2}]
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is no JSON: {error}") from None


def to_json_lines(rows):
    """Return a text with each row as a line of JSON."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_csv_rows(path):
    """Read a CSV file with a header into a list of dicts."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv_rows(path, rows):
    """Write a list of dicts to a CSV file; the first one's keys make the header."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def csv_column(text, name):
    """Return the values of one column of a CSV text with a header.

    >>> csv_column("city,people\\nRome,3\\nOslo,1\\n", "people")
    ['3', '1']
    """
    reader = csv.DictReader(io.StringIO(text))
    if name not in (reader.fieldnames or []):
        raise KeyError(f"no column {name!r}")
    return [row[name] for row in reader]


def csv_line(values):
    """Return the values as a line of CSV, quoted where that is needed.

    >>> csv_line(["a", "b,c", 3])
    'a,"b,c",3'
    """
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(values)
    return buffer.getvalue()


def guess_delimiter(line):
    """Return which of comma, semicolon, tab and bar is the most frequent in a line of CSV.

    >>> guess_delimiter("name;price,net;date")
    ';'
    """
    return max([",", ";", "\t", "|"], key=line.count)


def convert_types(row: dict[str, str]) -> dict[str, object]:
    """Turn the values of a CSV row into numbers where they are some, and empty ones into None.

    >>> convert_types({"name": "Ada", "age": "36", "height": "1.65", "email": ""})
    {'name': 'Ada', 'age': 36, 'height': 1.65, 'email': None}
    """
    converted = {}
    for key, value in row.items():
        converted[key] = value if value else None
        for number in (int, float):
            try:
                converted[key] = number(value)
                break
            except ValueError:
                pass
    return converted


def to_jsonable(value):
    """Turn dates, paths, sets and dataclasses into what JSON knows, at any depth.

    >>> to_jsonable({"when": date(2024, 5, 1), "tags": {"b", "a"}, "at": Path("x")})
    {'when': '2024-05-01', 'tags': ['a', 'b'], 'at': 'x'}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, set):
        return sorted(to_jsonable(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [to_jsonable(item) for item in value]
    if isinstance(value, (date, datetime)):
        return value.isoformat()
    return str(value) if isinstance(value, Path) else value


def json_path(data, path):
    """Return what a path such as "users.0.name" leads to in decoded JSON."""
    for part in path.split("."):
        data = data[int(part)] if isinstance(data, list) else data[part]
    return data


def same_json(first, second):
    """Return True if two JSON texts mean the same, whatever their spaces and order of keys.

    >>> same_json('{"a": 1, "b": [2]}', '{"b":[2],"a":1}'), same_json("[1, 2]", "[2, 1]")
    (True, False)
    """
    return json.loads(first) == json.loads(second)


__test__ = {
    "load_json": """
    >>> from tempfile import mkdtemp
    >>> path = Path(mkdtemp(), "settings.json")
    >>> load_json(path, default={})
    {}
    >>> path.write_text("{broken")
    7
    >>> load_json(path, default={})
    {}
    """,
    "save_json": """
    >>> from tempfile import mkdtemp
    >>> path = Path(mkdtemp(), "city.json")
    >>> save_json(path, {"name": "Köln", "id": 1})
    >>> print(path.read_text(encoding="utf-8"), end="")
    {
      "id": 1,
      "name": "Köln"
    }
    """,
    "read_json_lines": """
    >>> list(read_json_lines(["{}", "oops"]))
    Traceback (most recent call last):
    ValueError: line 2 is no JSON: Expecting value: line 1 column 1 (char 0)
    """,
    "to_json_lines": r"""
    >>> to_json_lines([{"a": 1}, {"b": None}])
    '{"a": 1}\n{"b": null}\n'
    """,
    "read_csv_rows": r"""
    >>> from tempfile import mkdtemp
    >>> path = Path(mkdtemp(), "a.csv")
    >>> path.write_text("id,name\n1,Ada\n")
    14
    >>> read_csv_rows(path)
    [{'id': '1', 'name': 'Ada'}]
    """,
    "write_csv_rows": """
    >>> from tempfile import mkdtemp
    >>> path = Path(mkdtemp(), "a.csv")
    >>> write_csv_rows(path, [{"id": 1, "name": "Ada"}, {"id": 2, "name": "Bo, jr."}])
    >>> path.read_text().splitlines()
    ['id,name', '1,Ada', '2,"Bo, jr."']
    """,
    "json_path": """
    >>> json_path({"users": [{"name": "Ada"}]}, "users.0.name")
    'Ada'
    """,
}
