"""Dicts: choose, rename, count, combine."""

from collections import Counter, defaultdict
from collections.abc import Mapping


def pick(mapping, keys):
    """Return a new dict with only these keys, as far as they are there.

    >>> pick({"id": 1, "name": "Ada", "born": 1815}, ["id", "name"])
    {'id': 1, 'name': 'Ada'}
    """
    return {key: mapping[key] for key in keys if key in mapping}


def omit(mapping, keys):
    """Return a new dict without these keys.

    >>> omit({"name": "Ada", "password": "x"}, ["password"])
    {'name': 'Ada'}
    """
    return {key: value for key, value in mapping.items() if key not in keys}


def rename_keys(mapping, names):
    """Return a new dict whose keys are renamed as names says; other keys stay.

    >>> rename_keys({"fname": "Ada", "id": 1}, {"fname": "first_name"})
    {'first_name': 'Ada', 'id': 1}
    """
    return {names.get(key, key): value for key, value in mapping.items()}


def drop_none(mapping):
    """Return a new dict without the items whose value is None.

    >>> drop_none({"a": None, "b": 0, "c": ""})
    {'b': 0, 'c': ''}
    """
    return {key: value for key, value in mapping.items() if value is not None}


def deep_update(base: dict, changes: Mapping) -> dict:
    """Return a copy of base with the changes, nested dicts being updated item by item.

    >>> deep_update({"db": {"host": "a", "port": 1}}, {"db": {"port": 2}})
    {'db': {'host': 'a', 'port': 2}}
    """
    result = dict(base)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), dict):
            result[key] = deep_update(result[key], value)
        else:
            result[key] = value
    return result


def dotted_keys(data, prefix=""):
    """Turn nested dicts into one dict whose keys are paths with dots.

    >>> dotted_keys({"a": {"b": 1, "c": {"d": 2}}, "e": 3})
    {'a.b': 1, 'a.c.d': 2, 'e': 3}
    """
    result = {}
    for key, value in data.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            result.update(dotted_keys(value, path + "."))
        else:
            result[path] = value
    return result


def nest_keys(flat):
    """Turn a dict whose keys are paths with dots into nested dicts."""
    result = {}
    for path, value in flat.items():
        *parents, last = path.split(".")
        node = result
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return result


def group_rows(rows, key):
    """Group dicts by the value that they have for a key.

    >>> group_rows([{"city": "Rome", "n": 1}, {"city": "Rome", "n": 2}], "city")
    {'Rome': [{'city': 'Rome', 'n': 1}, {'city': 'Rome', 'n': 2}]}
    """
    groups = defaultdict(list)
    for row in rows:
        groups[row[key]].append(row)
    return dict(groups)


def index_by(rows, key):
    """Return a dict from the value of a key to the row that has it; the last row wins.

    >>> index_by([{"id": 7, "name": "Ada"}], "id")[7]["name"]
    'Ada'
    """
    return {row[key]: row for row in rows}


def count_by(items, key):
    """Count the items for each result of the key function.

    >>> count_by(["apple", "avocado", "plum"], lambda word: word[0])
    {'a': 2, 'p': 1}
    """
    return dict(Counter(key(item) for item in items))


def total_by(pairs):
    """Add up the amounts of each name in a list of pairs of name and amount."""
    totals = defaultdict(float)
    for name, amount in pairs:
        totals[name] += amount
    return dict(totals)


def changed_keys(old: dict, new: dict) -> dict[str, list]:
    """Say which keys of a dict were added, removed or changed.

    >>> changed_keys({"a": 1, "b": 2}, {"b": 3, "c": 4})
    {'added': ['c'], 'removed': ['a'], 'changed': ['b']}
    """
    return {
        "added": [key for key in new if key not in old],
        "removed": [key for key in old if key not in new],
        "changed": [key for key in old if key in new and old[key] != new[key]],
    }


def key_of_largest(mapping):
    """Return the key with the largest value, None if there are no items."""
    if not mapping:
        return None
    return max(mapping, key=mapping.get)


def sort_by_value(mapping, reverse=False):
    """Return a dict with the same items in the order of their values.

    >>> list(sort_by_value({"a": 2, "b": 1}))
    ['b', 'a']
    """
    items = sorted(mapping.items(), key=lambda item: item[1], reverse=reverse)
    return dict(items)


def collect_pairs(pairs):
    """Turn pairs into a dict from each key to the list of its values.

    >>> collect_pairs([("fruit", "plum"), ("nut", "hazel"), ("fruit", "pear")])
    {'fruit': ['plum', 'pear'], 'nut': ['hazel']}
    """
    result = {}
    for key, value in pairs:
        result.setdefault(key, []).append(value)
    return result


def add_counts(*counts):
    """Add several dicts of counts up, key by key."""
    total = Counter()
    for part in counts:
        total.update(part)
    return dict(total)


def map_values(mapping, function):
    """Return a dict with the same keys and function(value) in place of each value.

    >>> map_values({"a": "1", "b": "2"}, int)
    {'a': 1, 'b': 2}
    """
    return {key: function(value) for key, value in mapping.items()}


__test__ = {
    "nest_keys": """
    >>> nest_keys({"a.b": 1, "a.c.d": 2, "e": 3})
    {'a': {'b': 1, 'c': {'d': 2}}, 'e': 3}
    """,
    "total_by": """
    >>> total_by([("rent", 800), ("food", 20.5), ("food", 9.5)])
    {'rent': 800.0, 'food': 30.0}
    """,
    "key_of_largest": """
    >>> key_of_largest({"a": 3, "b": 9, "c": 5}), key_of_largest({})
    ('b', None)
    """,
    "add_counts": """
    >>> add_counts({"a": 1}, {"a": 2, "b": 1})
    {'a': 3, 'b': 1}
    """,
}
