package handmade

import (
	"fmt"
	"sort"
	"strings"
	"time"
)

// DaysBetween returns the number of days from one date, such as 2024-02-28, to another.
func DaysBetween(start, end string) (int, error) {
	first, err := time.Parse("2006-01-02", start)
	if err != nil {
		return 0, err
	}
	last, err := time.Parse("2006-01-02", end)
	if err != nil {
		return 0, err
	}
	return int(last.Sub(first).Hours() / 24), nil
}

// AddWorkdays returns the date that many working days, Monday to Friday, after a day.
func AddWorkdays(day time.Time, count int) time.Time {
	for count > 0 {
		day = day.AddDate(0, 0, 1)
		if day.Weekday() != time.Saturday && day.Weekday() != time.Sunday {
			count--
		}
	}
	return day
}

// AgeOn returns the age in whole years, on a given day, of a person with this birthday.
func AgeOn(birthday, day time.Time) int {
	age := day.Year() - birthday.Year()
	if day.Month() < birthday.Month() ||
		day.Month() == birthday.Month() && day.Day() < birthday.Day() {
		age--
	}
	return age
}

// ParseDate reads a date in one of the usual numeric forms.
func ParseDate(text string) (time.Time, error) {
	for _, layout := range []string{"2006-01-02", "2.1.2006", "1/2/2006"} {
		if day, err := time.Parse(layout, strings.TrimSpace(text)); err == nil {
			return day, nil
		}
	}
	return time.Time{}, fmt.Errorf("no date: %q", text)
}

// TimeAgo says in words how long ago a moment was.
func TimeAgo(then, now time.Time) string {
	passed := now.Sub(then)
	switch {
	case passed < time.Minute:
		return "just now"
	case passed < time.Hour:
		return fmt.Sprintf("%d min ago", int(passed.Minutes()))
	case passed < 24*time.Hour:
		return fmt.Sprintf("%d h ago", int(passed.Hours()))
	}
	return fmt.Sprintf("%d d ago", int(passed.Hours()/24))
}

// StartOfWeek returns the midnight that begins the Monday of a moment's week.
func StartOfWeek(moment time.Time) time.Time {
	days := (int(moment.Weekday()) + 6) % 7
	year, month, day := moment.Date()
	return time.Date(year, month, day-days, 0, 0, 0, 0, moment.Location())
}

// Quarter returns the quarter of a date, such as 2024-Q3.
func Quarter(day time.Time) string {
	return fmt.Sprintf("%d-Q%d", day.Year(), (int(day.Month())+2)/3)
}

// DaysInMonth returns how many days a month has.
func DaysInMonth(year int, month time.Month) int {
	return time.Date(year, month+1, 0, 0, 0, 0, 0, time.UTC).Day()
}

// Backoff returns how long to wait before each attempt, twice as long every time, up to a limit.
func Backoff(first, limit time.Duration, attempts int) []time.Duration {
	waits := make([]time.Duration, 0, attempts)
	for wait := first; len(waits) < attempts; wait *= 2 {
		if wait > limit {
			wait = limit
		}
		waits = append(waits, wait)
	}
	return waits
}

// LongestGap returns the longest time between two moments that follow each other.
func LongestGap(moments []time.Time) time.Duration {
	ordered := append([]time.Time(nil), moments...)
	sort.Slice(ordered, func(i, j int) bool { return ordered[i].Before(ordered[j]) })
	var longest time.Duration
	for i := 1; i < len(ordered); i++ {
		if gap := ordered[i].Sub(ordered[i-1]); gap > longest {
			longest = gap
		}
	}
	return longest
}
