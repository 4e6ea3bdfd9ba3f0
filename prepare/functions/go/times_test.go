package handmade

import (
	"testing"
	"time"
)

func date(year int, month time.Month, day int) time.Time {
	return time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
}

func TestDates(t *testing.T) {
	days, err := DaysBetween("2024-02-28", "2024-03-01")
	check(t, "DaysBetween", []any{days, err}, []any{2, nil})
	if _, err := DaysBetween("2024-02-28", "soon"); err == nil {
		t.Error("DaysBetween: no error")
	}
	check(t, "AddWorkdays", AddWorkdays(date(2024, 5, 3), 2), date(2024, 5, 7))
	check(t, "AgeOn", AgeOn(date(2000, 5, 20), date(2024, 5, 19)), 23)
	check(t, "AgeOn", AgeOn(date(2000, 5, 20), date(2024, 5, 20)), 24)
	for _, text := range []string{"2024-12-31", "31.12.2024", " 12/31/2024 "} {
		day, err := ParseDate(text)
		check(t, "ParseDate", []any{day, err}, []any{date(2024, 12, 31), nil})
	}
	if _, err := ParseDate("tomorrow"); err == nil {
		t.Error("ParseDate: no error")
	}
	check(t, "StartOfWeek", StartOfWeek(date(2024, 7, 7).Add(time.Hour)), date(2024, 7, 1))
	check(t, "StartOfWeek", StartOfWeek(date(2024, 7, 1)), date(2024, 7, 1))
	check(t, "Quarter", Quarter(date(2024, 9, 30)), "2024-Q3")
	check(t, "Quarter", Quarter(date(2024, 10, 1)), "2024-Q4")
	check(t, "DaysInMonth", DaysInMonth(2024, time.February), 29)
	check(t, "DaysInMonth", DaysInMonth(2023, time.December), 31)
}

func TestDurations(t *testing.T) {
	now := date(2024, 1, 2)
	check(t, "TimeAgo", TimeAgo(now.Add(-time.Second), now), "just now")
	check(t, "TimeAgo", TimeAgo(now.Add(-90*time.Minute), now), "1 h ago")
	check(t, "TimeAgo", TimeAgo(now.Add(-72*time.Hour), now), "3 d ago")
	s := time.Second
	check(t, "Backoff", Backoff(s, 5*s, 4), []time.Duration{s, 2 * s, 4 * s, 5 * s})
	moments := []time.Time{date(2024, 1, 9), date(2024, 1, 1), date(2024, 1, 2)}
	check(t, "LongestGap", LongestGap(moments), 7*24*time.Hour)
}
