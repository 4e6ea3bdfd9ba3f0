package handmade

import (
	"bufio"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Retry calls a function until it succeeds, at most times times, with twice the wait each time.
func Retry(times int, wait time.Duration, function func() error) error {
	var err error
	for attempt := 0; attempt < times; attempt++ {
		if attempt > 0 {
			time.Sleep(wait)
			wait *= 2
		}
		if err = function(); err == nil {
			return nil
		}
	}
	return fmt.Errorf("failed %d times: %w", times, err)
}

// ParallelMap returns convert(item) for each item, in order, computed by several workers at a time.
func ParallelMap[T, U any](items []T, workers int, convert func(T) U) []U {
	results := make([]U, len(items))
	jobs := make(chan int)
	var group sync.WaitGroup
	for w := 0; w < workers; w++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for i := range jobs {
				results[i] = convert(items[i])
			}
		}()
	}
	for i := range items {
		jobs <- i
	}
	close(jobs)
	group.Wait()
	return results
}

// Merge sends the values of all channels to one, which is closed after the last.
func Merge[T any](channels ...<-chan T) <-chan T {
	merged := make(chan T)
	var group sync.WaitGroup
	group.Add(len(channels))
	for _, channel := range channels {
		go func(values <-chan T) {
			defer group.Done()
			for value := range values {
				merged <- value
			}
		}(channel)
	}
	go func() {
		group.Wait()
		close(merged)
	}()
	return merged
}

// GetenvOr returns an environment variable, or fallback if it is not set.
func GetenvOr(name, fallback string) string {
	if value, ok := os.LookupEnv(name); ok {
		return value
	}
	return fallback
}

// ParseEnvFile reads the lines NAME=value of an .env file; comments are passed over.
func ParseEnvFile(text string) (map[string]string, error) {
	values := make(map[string]string)
	scanner := bufio.NewScanner(strings.NewReader(text))
	for number := 1; scanner.Scan(); number++ {
		line := strings.TrimSpace(scanner.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, found := strings.Cut(line, "=")
		if !found {
			return nil, fmt.Errorf("line %d has no =: %q", number, line)
		}
		values[strings.TrimSpace(name)] = strings.Trim(strings.TrimSpace(value), `"'`)
	}
	return values, scanner.Err()
}

// CountLevels counts the lines of a log by their level.
func CountLevels(log string) map[string]int {
	level := regexp.MustCompile(`\b(DEBUG|INFO|WARN|ERROR)\b`)
	counts := make(map[string]int)
	for _, line := range strings.Split(log, "\n") {
		if found := level.FindString(line); found != "" {
			counts[found]++
		}
	}
	return counts
}

// ShortestPath returns the shortest way through a graph of neighbours, nil if there is none.
func ShortestPath(graph map[string][]string, start, goal string) []string {
	before := map[string]string{start: start}
	for queue := []string{start}; len(queue) > 0; queue = queue[1:] {
		node := queue[0]
		if node == goal {
			path := []string{node}
			for node != start {
				node = before[node]
				path = append([]string{node}, path...)
			}
			return path
		}
		for _, next := range graph[node] {
			if _, seen := before[next]; !seen {
				before[next] = node
				queue = append(queue, next)
			}
		}
	}
	return nil
}

// ProgressBar returns a bar of characters that shows how much is done.
func ProgressBar(done, total, width int) string {
	filled := width
	if total > 0 {
		filled = width * done / total
	}
	return "[" + strings.Repeat("#", filled) + strings.Repeat("-", width-filled) + "]"
}
