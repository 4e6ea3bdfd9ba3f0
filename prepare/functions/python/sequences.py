"""Lists and other sequences."""

import random
from collections import Counter, deque
from itertools import zip_longest


def split_by(items, predicate):
    """Split a list into the items for which the predicate is true and the others.

    >>> split_by([1, -2, 3, -4], lambda n: n > 0)
    ([1, 3], [-2, -4])
    """
    chosen, others = [], []
    for item in items:
        (chosen if predicate(item) else others).append(item)
    return chosen, others


def first_match(items, predicate, default=None):
    """Return the first item for which the predicate is true, or default if there is none."""
    return next((item for item in items if predicate(item)), default)


def sliding_windows(items, size):
    """Return all runs of size items that stand next to each other.

    >>> sliding_windows([1, 2, 3, 4], 3)
    [[1, 2, 3], [2, 3, 4]]
    """
    return [items[i : i + size] for i in range(len(items) - size + 1)]


def neighbours(items):
    """Return the pairs of items that follow each other.

    >>> neighbours([1, 2, 3])
    [(1, 2), (2, 3)]
    """
    return list(zip(items, items[1:]))


def interleave(first, second):
    """Take items from both lists in turn; what is left of the longer one comes last.

    >>> interleave([1, 2, 3], ["a"])
    [1, 'a', 2, 3]
    """
    missing = object()
    pairs = zip_longest(first, second, fillvalue=missing)
    return [item for pair in pairs for item in pair if item is not missing]


def without(items, unwanted):
    """Return the items that are not among the unwanted ones.

    >>> without([3, 1, 2, 3], [3])
    [1, 2]
    """
    unwanted = set(unwanted)
    return [item for item in items if item not in unwanted]


def split_at(items, separator):
    """Cut a list at each item equal to separator, which is left out.

    >>> split_at([1, 0, 2, 3, 0], 0)
    [[1], [2, 3], []]
    """
    parts = [[]]
    for item in items:
        if item == separator:
            parts.append([])
        else:
            parts[-1].append(item)
    return parts


def pad_right(items, length, fill=None):
    """Return the list with fill appended until it has the given length.

    >>> pad_right([1], 3, fill=0), pad_right([1, 2], 1)
    ([1, 0, 0], [1, 2])
    """
    missing = max(0, length - len(items))
    return list(items) + [fill] * missing


def repeated_items(items):
    """Return the set of the items that occur more than once."""
    seen, repeated = set(), set()
    for item in items:
        if item in seen:
            repeated.add(item)
        seen.add(item)
    return repeated


def divide_evenly(items: list, parts: int) -> list[list]:
    """Divide a list into parts whose lengths differ by at most one.

    >>> divide_evenly([1, 2, 3, 4, 5], 3)
    [[1, 2], [3, 4], [5]]
    """
    size, larger = divmod(len(items), parts)
    result, start = [], 0
    for number in range(parts):
        end = start + size + (number < larger)
        result.append(items[start:end])
        start = end
    return result


def move_item(items, old, new):
    """Return a copy of the list in which the item at index old stands at index new."""
    result = list(items)
    result.insert(new, result.pop(old))
    return result


def run_lengths(items):
    """Return each run of equal items as a pair of the item and the length of the run.

    >>> run_lengths("aabccc")
    [('a', 2), ('b', 1), ('c', 3)]
    """
    runs = []
    for item in items:
        if runs and runs[-1][0] == item:
            runs[-1] = (item, runs[-1][1] + 1)
        else:
            runs.append((item, 1))
    return runs


def shuffled(items, seed):
    """Return the items in a random order that depends only on the seed."""
    result = list(items)
    random.Random(seed).shuffle(result)
    return result


def same_items(first, second):
    """Return True if both lists hold the same items equally often, in any order.

    >>> same_items([1, 2, 2], [2, 1, 2]), same_items([1, 2], [1, 1, 2])
    (True, False)
    """
    return Counter(first) == Counter(second)


def differences(values):
    """Return the difference between each number and the one before it.

    >>> differences([1, 4, 9])
    [3, 5]
    """
    return [after - before for before, after in zip(values, values[1:])]


def most_frequent(items):
    """Return the item that occurs most often, None for an empty list.

    >>> most_frequent(["x", "y", "y"]), most_frequent([])
    ('y', None)
    """
    counts = Counter(items)
    return max(counts, key=counts.get, default=None)


def round_robin(teams):
    """Return the rounds of a tournament in which each team meets every other one once.

    >>> round_robin(["a", "b", "c", "d"])[0]
    [('a', 'd'), ('b', 'c')]
    """
    fixed, *rest = teams if len(teams) % 2 == 0 else [*teams, None]
    others, rounds = deque(rest), []
    for _ in range(len(rest)):
        order = [fixed, *others]
        pairs = zip(order, reversed(order[len(order) // 2 :]))
        rounds.append([pair for pair in pairs if None not in pair])
        others.rotate(1)
    return rounds


__test__ = {
    "first_match": """
    >>> first_match(["a", "bb", "cc"], lambda s: len(s) == 2)
    'bb'
    >>> first_match([], bool, default="none")
    'none'
    """,
    "repeated_items": """
    >>> sorted(repeated_items([1, 2, 1, 3, 2, 1]))
    [1, 2]
    """,
    "move_item": """
    >>> move_item(["a", "b", "c"], 0, 2)
    ['b', 'c', 'a']
    """,
    "shuffled": """
    >>> numbers = list(range(20))
    >>> shuffled(numbers, 1) == shuffled(numbers, 1) != numbers
    True
    >>> sorted(shuffled(numbers, 1)) == numbers
    True
    """,
    "round_robin": """
    >>> rounds = round_robin(list("abcde"))
    >>> games = [frozenset(game) for games in rounds for game in games]
    >>> len(games), len(set(games))
    (10, 10)
    """,
}
