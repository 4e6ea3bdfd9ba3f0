"""Decorators, generators and other functions around functions."""

import functools
import random
import time
from collections import OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from itertools import chain


def retry(times, wait=0.0, errors=(Exception,)):
    """Call the decorated function again if it fails, each time after twice the wait in seconds."""

    def decorate(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            for attempt in range(times):
                try:
                    return function(*args, **kwargs)
                except errors:
                    if attempt == times - 1:
                        raise
                    time.sleep(wait * 2**attempt)

        return wrapper

    return decorate


def timed(function):
    """Make the decorated function return its result and the seconds that it took."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        start = time.perf_counter()
        result = function(*args, **kwargs)
        return result, time.perf_counter() - start

    return wrapper


def remember_last(size):
    """Keep the results of the last size different calls of the decorated function.

    >>> calls = []
    >>> @remember_last(2)
    ... def double(n):
    ...     calls.append(n)
    ...     return 2 * n
    >>> [double(n) for n in (1, 2, 1, 3, 1, 2)], calls
    ([2, 4, 2, 6, 2, 4], [1, 2, 3, 2])
    """

    def decorate(function):
        results = OrderedDict()

        @functools.wraps(function)
        def wrapper(*args):
            if args in results:
                result = results.pop(args)
            else:
                result = function(*args)
            results[args] = result
            if len(results) > size:
                results.popitem(last=False)
            return result

        return wrapper

    return decorate


def compose(*functions):
    """Return a function that applies the functions one after the other, the first one first.

    >>> compose(str.strip, str.upper, len)("  abc ")
    3
    """

    def composed(value):
        for function in functions:
            value = function(value)
        return value

    return composed


def call_or_default(function, default, *errors):
    """Call a function without arguments; return default if it raises one of the errors."""
    try:
        return function()
    except errors:
        return default


def peek(items, default=None):
    """Return the first item, and an iterator that still yields all items.

    >>> first, numbers = peek(iter([1, 2, 3]))
    >>> first, list(numbers)
    (1, [1, 2, 3])
    """
    items = iter(items)
    try:
        first = next(items)
    except StopIteration:
        return default, items
    return first, chain([first], items)


def take_last(items, count):
    """Return the last items of an iterator, holding no more than count of them.

    >>> take_last(iter(range(100)), 3)
    [97, 98, 99]
    """
    return list(deque(items, maxlen=count))


def pairwise_merge(first, second):
    """Yield the items of two sorted iterables in ascending order."""
    first, second = iter(first), iter(second)
    done = object()
    a, b = next(first, done), next(second, done)
    while a is not done and b is not done:
        if b < a:
            yield b
            b = next(second, done)
        else:
            yield a
            a = next(first, done)
    rest, iterator = (b, second) if a is done else (a, first)
    if rest is not done:
        yield rest
        yield from iterator


def random_sample(items, count, seed=None):
    """Draw count items from an iterator of unknown length, each equally likely.

    >>> sorted(random_sample(iter(range(5)), 9))
    [0, 1, 2, 3, 4]
    >>> len(random_sample(iter(range(1000)), 3, seed=1))
    3
    """
    rng = random.Random(seed)
    sample = []
    for seen, item in enumerate(items):
        if seen < count:
            sample.append(item)
        elif (place := rng.randrange(seen + 1)) < count:
            sample[place] = item
    return sample


def walk_tree(tree, children):
    """Yield a tree's nodes, each before its children; children(node) gives those.

    >>> parts = {"car": ["engine", "wheel"], "engine": ["piston"]}
    >>> list(walk_tree("car", lambda part: parts.get(part, [])))
    ['car', 'engine', 'piston', 'wheel']
    """
    yield tree
    for child in children(tree):
        yield from walk_tree(child, children)


def map_in_threads(function, items, workers=4):
    """Return function(item) for each item, in order, computed in several threads.

    >>> map_in_threads(str.upper, ["a", "b", "c"], workers=2)
    ['A', 'B', 'C']
    """
    with ThreadPoolExecutor(max_workers=workers) as pool:
        return list(pool.map(function, items))


__test__ = {
    "retry": """
    >>> attempts = []
    >>> @retry(3, errors=(ValueError,))
    ... def unsteady():
    ...     attempts.append(1)
    ...     if len(attempts) < 3:
    ...         raise ValueError("not yet")
    ...     return "done"
    >>> unsteady(), len(attempts)
    ('done', 3)
    """,
    "timed": """
    >>> result, seconds = timed(sum)([1, 2])
    >>> result, 0 <= seconds < 1
    (3, True)
    """,
    "call_or_default": """
    >>> call_or_default(lambda: int("x"), 0, ValueError), call_or_default(lambda: 7, 0)
    (0, 7)
    """,
    "pairwise_merge": """
    >>> list(pairwise_merge([1, 4, 9], [2, 3, 10, 11]))
    [1, 2, 3, 4, 9, 10, 11]
    >>> list(pairwise_merge([], [1])), list(pairwise_merge([1], []))
    ([1], [1])
    """,
}
