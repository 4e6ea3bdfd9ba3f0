"""Numbers, money and statistics."""

import math
import random
from decimal import ROUND_HALF_UP, Decimal


def weighted_average(values, weights):
    """Return the average of the values, each counted as its weight says."""
    total = sum(weights)
    if total == 0:
        raise ValueError("the weights add up to zero")
    return sum(value * weight for value, weight in zip(values, weights)) / total


def percentile(values, percent):
    """Return the value below which that percentage of the values lies, interpolated.

    >>> percentile([10, 20, 30, 40], 50)
    25.0
    """
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    lower = math.floor(position)
    upper = math.ceil(position)
    share = position - lower
    return ordered[lower] * (1 - share) + ordered[upper] * share


def standard_deviation(values):
    """Return the standard deviation of a sample of at least two numbers."""
    average = sum(values) / len(values)
    squares = sum((value - average) ** 2 for value in values)
    return math.sqrt(squares / (len(values) - 1))


def moving_average(values, window):
    """Return the average of each run of window values.

    >>> moving_average([1, 2, 3, 4, 8], 2)
    [1.5, 2.5, 3.5, 6.0]
    """
    averages = []
    total = sum(values[:window])
    for i in range(window, len(values) + 1):
        averages.append(total / window)
        if i < len(values):
            total += values[i] - values[i - window]
    return averages


def percent_change(old, new):
    """Return by how many percent a value grew from old to new.

    >>> percent_change(80, 100), percent_change(100, 80)
    (25.0, -20.0)
    """
    return (new - old) / old * 100


def safe_divide(numerator, denominator, default=0.0):
    """Return the quotient, or default if the denominator is zero."""
    try:
        return numerator / denominator
    except ZeroDivisionError:
        return default


def round_to(value, step):
    """Round a value to the nearest multiple of step.

    >>> round_to(17, 5), round_to(0.37, 0.25)
    (15, 0.25)
    """
    return round(value / step) * step


def round_money(amount: str) -> Decimal:
    """Round an amount to cents, halves upwards, without the errors of floats.

    >>> round_money("2.675")
    Decimal('2.68')
    """
    return Decimal(amount).quantize(Decimal("0.01"), rounding=ROUND_HALF_UP)


def split_bill(cents, people):
    """Divide an amount of cents so that the shares differ by one cent at most.

    >>> split_bill(1000, 3)
    [334, 333, 333]
    """
    share, left = divmod(cents, people)
    return [share + 1] * left + [share] * (people - left)


def compound_interest(amount, rate, years):
    """Return what an amount grows to with a yearly interest rate in percent."""
    for _ in range(years):
        amount += amount * rate / 100
    return round(amount, 2)


def monthly_payment(loan: float, yearly_rate: float, months: int) -> float:
    """Return the constant payment that pays a loan back; the yearly rate is a share such as 0.05.

    >>> round(monthly_payment(200_000, 0.06, 360), 2)
    1199.1
    """
    if yearly_rate == 0:
        return loan / months
    rate = yearly_rate / 12
    return loan * rate / (1 - (1 + rate) ** -months)


def interpolate(x, points):
    """Return y at x on the lines that join (x, y) points in ascending order of x.

    >>> interpolate(2.5, [(0, 0), (2, 10), (3, 20)])
    15.0
    """
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    raise ValueError(f"{x} is outside of the points")


def correlation(xs, ys):
    """Return Pearson's correlation of two equally long lists of numbers."""
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys))
    spread_x = sum((x - mean_x) ** 2 for x in xs)
    spread_y = sum((y - mean_y) ** 2 for y in ys)
    return covariance / math.sqrt(spread_x * spread_y)


def count_in_bins(values, edges):
    """Count how many values lie in each bin, from one edge up to but without the next.

    >>> count_in_bins([1, 5, 10, 12, 99], [0, 10, 20])
    [2, 2]
    """
    counts = [0] * (len(edges) - 1)
    for value in values:
        for i in range(len(counts)):
            if edges[i] <= value < edges[i + 1]:
                counts[i] += 1
                break
    return counts


def format_count(number):
    """Format a large number briefly.

    >>> [format_count(n) for n in (950, 1200, 3_400_000)]
    ['950', '1.2k', '3.4M']
    """
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return str(number)


def weighted_choice(weights, seed=None):
    """Return a random key of a dict; a key with twice the weight comes twice as often."""
    rng = random.Random(seed)
    point = rng.random() * sum(weights.values())
    for key, weight in weights.items():
        point -= weight
        if point < 0:
            return key
    return key


__test__ = {
    "weighted_average": """
    >>> weighted_average([80, 90], [1, 3])
    87.5
    >>> weighted_average([1], [0])
    Traceback (most recent call last):
    ValueError: the weights add up to zero
    """,
    "standard_deviation": """
    >>> standard_deviation([2, 4, 4, 4, 5, 5, 7, 9]) == math.sqrt(32 / 7)
    True
    """,
    "safe_divide": """
    >>> safe_divide(1, 4), safe_divide(1, 0), safe_divide(1, 0, default=None)
    (0.25, 0.0, None)
    """,
    "compound_interest": """
    >>> compound_interest(100, 10, 2)
    121.0
    """,
    "correlation": """
    >>> correlation([1, 2, 3], [2, 4, 6]), correlation([1, 2, 3], [3, 2, 1])
    (1.0, -1.0)
    """,
    "weighted_choice": """
    >>> drawn = [weighted_choice({"a": 3, "b": 1, "c": 0}, seed) for seed in range(1000)]
    >>> 650 < drawn.count("a") < 850, set(drawn) == {"a", "b"}
    (True, True)
    """,
}
