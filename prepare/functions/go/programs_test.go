package handmade

import (
	"errors"
	"sort"
	"testing"
	"time"
)

func TestCalls(t *testing.T) {
	calls, broken := 0, errors.New("broken")
	unsteady := func() error {
		calls++
		if calls < 3 {
			return broken
		}
		return nil
	}
	check(t, "Retry", Retry(3, time.Microsecond, unsteady), nil)
	check(t, "Retry", calls, 3)
	err := Retry(2, 0, func() error { return broken })
	check(t, "Retry", errors.Is(err, broken), true)
	squares := ParallelMap([]int{1, 2, 3, 4, 5}, 2, func(n int) int { return n * n })
	check(t, "ParallelMap", squares, []int{1, 4, 9, 16, 25})
	a, b := make(chan int, 2), make(chan int, 1)
	a <- 1
	a <- 2
	b <- 3
	close(a)
	close(b)
	var values []int
	for value := range Merge[int](a, b) {
		values = append(values, value)
	}
	sort.Ints(values)
	check(t, "Merge", values, []int{1, 2, 3})
}

func TestSettingsAndLogs(t *testing.T) {
	t.Setenv("HANDMADE_HOST", "here")
	check(t, "GetenvOr", GetenvOr("HANDMADE_HOST", "there"), "here")
	check(t, "GetenvOr", GetenvOr("HANDMADE_PORT", "80"), "80")
	values, err := ParseEnvFile("# server\nHOST=a\n\nNAME = 'my app'\n")
	check(t, "ParseEnvFile", values, map[string]string{"HOST": "a", "NAME": "my app"})
	check(t, "ParseEnvFile", err, nil)
	if _, err := ParseEnvFile("HOST"); err == nil {
		t.Error("ParseEnvFile: no error")
	}
	counts := CountLevels("1 INFO a\n2 ERROR b\n3 INFO c\n--")
	check(t, "CountLevels", counts, map[string]int{"INFO": 2, "ERROR": 1})
	check(t, "ProgressBar", ProgressBar(3, 4, 8), "[######--]")
}

func TestShortestPath(t *testing.T) {
	roads := map[string][]string{"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": {"e"}}
	check(t, "ShortestPath", ShortestPath(roads, "a", "e"), []string{"a", "b", "d", "e"})
	if path := ShortestPath(roads, "e", "a"); path != nil {
		t.Errorf("ShortestPath: got %v, want none", path)
	}
}
