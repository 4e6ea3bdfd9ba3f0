"""Dates, times and periods."""

import calendar
import re
from datetime import date, datetime, timedelta, timezone


def days_between(start: str, end: str) -> int:
    """Return the number of days from one ISO date to another.

    >>> days_between("2024-02-28", "2024-03-01")
    2
    """
    return (date.fromisoformat(end) - date.fromisoformat(start)).days


def weekday_name(day):
    """Return the English name of the day of the week.

    >>> weekday_name(date(2024, 7, 4))
    'Thursday'
    """
    names = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
    return names[day.weekday()]


def add_months(day: date, months: int) -> date:
    """Return the date so many months later, or the month's last day if it has no such day.

    >>> add_months(date(2024, 1, 31), 1)
    datetime.date(2024, 2, 29)
    """
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    last = calendar.monthrange(year, month + 1)[1]
    return date(year, month + 1, min(day.day, last))


def date_range(start, end):
    """Return all dates from start to end, both included.

    >>> [str(day) for day in date_range(date(2023, 12, 31), date(2024, 1, 1))]
    ['2023-12-31', '2024-01-01']
    """
    days = (end - start).days
    return [start + timedelta(days=n) for n in range(days + 1)]


def is_weekend(day):
    """Return True if the day is a Saturday or a Sunday.

    >>> is_weekend(date(2024, 6, 1)), is_weekend(date(2024, 6, 3))
    (True, False)
    """
    return day.weekday() >= 5


def add_workdays(day, count):
    """Return the date that many working days, Monday to Friday, after a day.

    >>> add_workdays(date(2024, 5, 3), 2)
    datetime.date(2024, 5, 7)
    """
    while count > 0:
        day += timedelta(days=1)
        if day.weekday() < 5:
            count -= 1
    return day


def age_on(birthday, day):
    """Return the age in whole years, on a given day, of a person with this birthday."""
    age = day.year - birthday.year
    if (day.month, day.day) < (birthday.month, birthday.day):
        age -= 1
    return age


def parse_date(text: str) -> date | None:
    """Read a date in one of the usual numeric forms; None if it has none of them.

    >>> parse_date("31.12.2024") == parse_date("2024-12-31") == date(2024, 12, 31)
    True
    >>> parse_date("tomorrow") is None
    True
    """
    for form in ("%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y"):
        try:
            return datetime.strptime(text.strip(), form).date()
        except ValueError:
            continue
    return None


def parse_time_span(text):
    """Return the seconds in a text such as "1h 30m" or "45s".

    >>> parse_time_span("1h 30m"), parse_time_span("2d")
    (5400, 172800)
    """
    seconds = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    found = re.findall(r"(\d+)\s*([dhms])", text)
    if not found:
        raise ValueError(f"no time span: {text!r}")
    return sum(int(number) * seconds[unit] for number, unit in found)


def time_ago(then, now):
    """Say in words how long ago a moment was.

    >>> time_ago(datetime(2024, 1, 1, 12, 0), datetime(2024, 1, 1, 14, 5))
    '2 hours ago'
    """
    seconds = (now - then).total_seconds()
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = int(seconds // size)
        if count >= 1:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def start_of_week(day):
    """Return the Monday of the week that a day belongs to.

    >>> start_of_week(date(2024, 7, 4)), start_of_week(date(2024, 7, 1))
    (datetime.date(2024, 7, 1), datetime.date(2024, 7, 1))
    """
    return day - timedelta(days=day.weekday())


def quarter(day):
    """Return the quarter of a date as text, such as 2024-Q3.

    >>> quarter(date(2024, 9, 30)), quarter(date(2024, 10, 1))
    ('2024-Q3', '2024-Q4')
    """
    return f"{day.year}-Q{(day.month - 1) // 3 + 1}"


def to_utc(moment):
    """Return the moment in UTC; one without a time zone is taken to be in UTC already."""
    if moment.tzinfo is None:
        return moment.replace(tzinfo=timezone.utc)
    return moment.astimezone(timezone.utc)


def overlap_in_days(first: tuple[date, date], second: tuple[date, date]) -> int:
    """Return how many days two periods share; the last day of a period belongs to it.

    >>> may = (date(2024, 5, 1), date(2024, 5, 31))
    >>> overlap_in_days(may, (date(2024, 5, 30), date(2024, 6, 2)))
    2
    """
    start = max(first[0], second[0])
    end = min(first[1], second[1])
    return max((end - start).days + 1, 0)


__test__ = {
    "age_on": """
    >>> age_on(date(2000, 5, 20), date(2024, 5, 19))
    23
    >>> age_on(date(2000, 5, 20), date(2024, 5, 20))
    24
    """,
    "to_utc": """
    >>> summer = timezone(timedelta(hours=2))
    >>> to_utc(datetime(2024, 7, 1, 9, 0, tzinfo=summer)).isoformat()
    '2024-07-01T07:00:00+00:00'
    >>> to_utc(datetime(2024, 7, 1, 9, 0)).hour
    9
    """,
}
