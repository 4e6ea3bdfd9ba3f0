"""Grids, points and small classes."""

import math
from collections import namedtuple
from dataclasses import dataclass, field


def make_grid(rows, columns, fill=0):
    """Return a list of rows that are independent lists of the same value."""
    return [[fill] * columns for _ in range(rows)]


def multiply_matrices(a, b):
    """Return the product of two matrices, given as lists of rows.

    >>> multiply_matrices([[1, 2], [3, 4]], [[0, 1], [1, 0]])
    [[2, 1], [4, 3]]
    """
    columns = list(zip(*b))
    return [[sum(x * y for x, y in zip(row, column)) for column in columns] for row in a]


def turn_clockwise(grid):
    """Return the grid turned by a quarter to the right.

    >>> turn_clockwise([[1, 2], [3, 4], [5, 6]])
    [[5, 3, 1], [6, 4, 2]]
    """
    return [list(row) for row in zip(*reversed(grid))]


def grid_neighbours(grid, row, column):
    """Return the values of the up to four cells beside a cell: above, below, left and right."""
    values = []
    for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
        if 0 <= r < len(grid) and 0 <= c < len(grid[r]):
            values.append(grid[r][c])
    return values


def print_grid(grid):
    """Return the grid as text, one row a line, with cells as wide as the widest.

    >>> print(print_grid([[1, 20], [300, 4]]))
      1  20
    300   4
    """
    width = max(len(str(cell)) for row in grid for cell in row)
    return "\n".join(" ".join(f"{cell:>{width}}" for cell in row) for row in grid)


def distance_km(first, second):
    """Return the distance along the Earth's surface between two places.

    Places are pairs of latitude and longitude in degrees.

    >>> round(distance_km((52.52, 13.405), (48.857, 2.352)))
    877
    """
    lat1, lon1, lat2, lon2 = map(math.radians, (*first, *second))
    half = math.sin((lat2 - lat1) / 2) ** 2
    half += math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * 6371 * math.asin(math.sqrt(half))


def bounding_box(points):
    """Return the smallest rectangle around some points, by its sides.

    >>> bounding_box([(1, 5), (3, 2)])
    Box(left=1, bottom=2, right=3, top=5)
    """
    Box = namedtuple("Box", "left bottom right top")
    xs, ys = zip(*points)
    return Box(min(xs), min(ys), max(xs), max(ys))


def make_inventory():
    """Return an empty inventory, to which articles can be added and from which they are taken."""

    @dataclass
    class Inventory:
        stock: dict[str, int] = field(default_factory=dict)

        def add(self, name, count=1):
            self.stock[name] = self.stock.get(name, 0) + count

        def take(self, name, count=1):
            if self.stock.get(name, 0) < count:
                raise ValueError(f"not enough of {name}")
            self.stock[name] -= count

    return Inventory()


def make_events():
    """Return two functions: one subscribes to an event by name, the other one fires it.

    >>> subscribe, fire = make_events()
    >>> subscribe("saved", lambda name: name + " is saved")
    >>> fire("saved", "a.txt"), fire("closed")
    (['a.txt is saved'], [])
    """
    handlers = {}

    def subscribe(event, handler):
        handlers.setdefault(event, []).append(handler)

    def fire(event, *args):
        return [handler(*args) for handler in handlers.get(event, [])]

    return subscribe, fire


__test__ = {
    "make_grid": """
    >>> grid = make_grid(2, 3)
    >>> grid[0][1] = 7
    >>> grid
    [[0, 7, 0], [0, 0, 0]]
    """,
    "grid_neighbours": """
    >>> grid = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    >>> grid_neighbours(grid, 1, 1), grid_neighbours(grid, 0, 0)
    ([2, 8, 4, 6], [4, 2])
    """,
    "make_inventory": """
    >>> inventory = make_inventory()
    >>> inventory.add("nail", 10)
    >>> inventory.take("nail", 3)
    >>> inventory.stock
    {'nail': 7}
    >>> inventory.take("screw")
    Traceback (most recent call last):
    ValueError: not enough of screw
    """,
}
