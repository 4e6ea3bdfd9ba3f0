"""Orders, searches and graphs."""

import bisect
import heapq
import re
from collections import deque
from operator import itemgetter


def natural_sort(names):
    """Sort names so that numbers in them count as numbers.

    >>> natural_sort(["img12.png", "img2.png", "img1.png"])
    ['img1.png', 'img2.png', 'img12.png']
    """

    def key(name):
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

    return sorted(names, key=key)


def sort_rows(rows, *keys):
    """Sort dicts by several keys, the first one counting most; -key means descending.

    >>> rows = [{"n": 1, "c": "b"}, {"n": 2, "c": "a"}, {"n": 2, "c": "b"}]
    >>> [row["n"] for row in sort_rows(rows, "c", "-n")]
    [2, 2, 1]
    """
    result = list(rows)
    for key in reversed(keys):
        result.sort(key=itemgetter(key.removeprefix("-")), reverse=key.startswith("-"))
    return result


def top_scores(scores, count):
    """Return the names with the highest scores, the best one first.

    >>> top_scores({"Ada": 9, "Bo": 3, "Cy": 7}, 2)
    ['Ada', 'Cy']
    """
    return heapq.nlargest(count, scores, key=scores.get)


def insert_sorted(items, item):
    """Return the sorted list with one more item in its place.

    >>> insert_sorted([1, 4, 9], 5)
    [1, 4, 5, 9]
    """
    position = bisect.bisect_right(items, item)
    return items[:position] + [item] + items[position:]


def bracket_for(income, limits, rates):
    """Return the rate of the bracket that an income falls into; limits are in ascending order.

    >>> bracket_for(25_000, limits=[10_000, 40_000], rates=[0, 20, 40])
    20
    """
    return rates[bisect.bisect_right(limits, income)]


def nearest_value(ordered, value):
    """Return the number of a sorted list that is nearest to value."""
    after = bisect.bisect_left(ordered, value)
    nearby = ordered[max(after - 1, 0) : after + 1]
    return min(nearby, key=lambda candidate: abs(candidate - value))


def rank(scores):
    """Return each name's place; equal scores share one.

    >>> rank({"Ada": 9, "Bo": 7, "Cy": 9, "Di": 1})
    {'Ada': 1, 'Cy': 1, 'Bo': 3, 'Di': 4}
    """
    places = {}
    ordered = sorted(scores, key=scores.get, reverse=True)
    for number, name in enumerate(ordered, 1):
        before = ordered[number - 2] if number > 1 else None
        tied = before is not None and scores[before] == scores[name]
        places[name] = places[before] if tied else number
    return places


def shortest_path(graph: dict[str, list[str]], start: str, goal: str) -> list[str] | None:
    """Return the shortest way through a graph of neighbours, None if there is none."""
    before = {start: None}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        if node == goal:
            path = []
            while node is not None:
                path.append(node)
                node = before[node]
            return path[::-1]
        for neighbour in graph.get(node, []):
            if neighbour not in before:
                before[neighbour] = node
                queue.append(neighbour)
    return None


def dependency_order(needs):
    """Return the tasks in an order in which each comes after all that it needs.

    >>> dependency_order({"test": ["build"], "build": ["fetch"], "fetch": []})
    ['fetch', 'build', 'test']
    """
    order, active = [], set()

    def visit(task):
        if task in order:
            return
        if task in active:
            raise ValueError(f"{task} needs itself")
        active.add(task)
        for needed in needs.get(task, []):
            visit(needed)
        order.append(task)

    for task in needs:
        visit(task)
    return order


def merge_periods(periods):
    """Join the periods, given as pairs of start and end, that overlap or touch."""
    merged = []
    for start, end in sorted(periods):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


__test__ = {
    "nearest_value": """
    >>> [nearest_value([1, 5, 10], value) for value in (0, 4, 8, 99)]
    [1, 5, 10, 10]
    """,
    "shortest_path": """
    >>> roads = {"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": ["e"]}
    >>> shortest_path(roads, "a", "e"), shortest_path(roads, "e", "a")
    (['a', 'b', 'd', 'e'], None)
    """,
    "dependency_order": """
    >>> dependency_order({"a": ["b"], "b": ["a"]})
    Traceback (most recent call last):
    ValueError: a needs itself
    """,
    "merge_periods": """
    >>> merge_periods([(9, 12), (14, 15), (11, 13)])
    [(9, 13), (14, 15)]
    """,
}
