package handmade

import (
	"math/rand"
	"sort"
	"strings"
)

// Filter returns the items for which keep is true.
func Filter[T any](items []T, keep func(T) bool) []T {
	var kept []T
	for _, item := range items {
		if keep(item) {
			kept = append(kept, item)
		}
	}
	return kept
}

// Map returns convert(item) for each item.
func Map[T, U any](items []T, convert func(T) U) []U {
	converted := make([]U, len(items))
	for i, item := range items {
		converted[i] = convert(item)
	}
	return converted
}

// Reduce combines the items, from the left, with a start value.
func Reduce[T, U any](items []T, start U, combine func(U, T) U) U {
	result := start
	for _, item := range items {
		result = combine(result, item)
	}
	return result
}

// GroupBy returns the items by their key, in order.
func GroupBy[T any, K comparable](items []T, key func(T) K) map[K][]T {
	groups := make(map[K][]T)
	for _, item := range items {
		k := key(item)
		groups[k] = append(groups[k], item)
	}
	return groups
}

// Partition splits the items into those for which the predicate is true and the others.
func Partition[T any](items []T, predicate func(T) bool) (yes, no []T) {
	for _, item := range items {
		if predicate(item) {
			yes = append(yes, item)
		} else {
			no = append(no, item)
		}
	}
	return yes, no
}

// DivideEvenly divides the items into parts whose lengths differ by at most one.
func DivideEvenly[T any](items []T, parts int) [][]T {
	divided := make([][]T, 0, parts)
	for left := parts; left > 0; left-- {
		size := (len(items) + left - 1) / left
		divided = append(divided, items[:size])
		items = items[size:]
	}
	return divided
}

// Windows returns all runs of size items that stand next to each other.
func Windows[T any](items []T, size int) [][]T {
	var windows [][]T
	for i := 0; i+size <= len(items); i++ {
		windows = append(windows, items[i:i+size])
	}
	return windows
}

// Interleave takes items from both slices in turn; what is left of the longer one comes last.
func Interleave[T any](a, b []T) []T {
	result := make([]T, 0, len(a)+len(b))
	for i := 0; i < len(a) || i < len(b); i++ {
		if i < len(a) {
			result = append(result, a[i])
		}
		if i < len(b) {
			result = append(result, b[i])
		}
	}
	return result
}

// MergeSorted merges two slices in ascending order into one.
func MergeSorted(a, b []int) []int {
	merged := make([]int, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if a[0] <= b[0] {
			merged, a = append(merged, a[0]), a[1:]
		} else {
			merged, b = append(merged, b[0]), b[1:]
		}
	}
	merged = append(merged, a...)
	return append(merged, b...)
}

// Difference returns the items of a that are not in b.
func Difference(a, b []string) []string {
	unwanted := make(map[string]bool, len(b))
	for _, item := range b {
		unwanted[item] = true
	}
	var kept []string
	for _, item := range a {
		if !unwanted[item] {
			kept = append(kept, item)
		}
	}
	return kept
}

// Repeated returns the items that occur more than once, sorted.
func Repeated(items []string) []string {
	counts := make(map[string]int)
	var repeated []string
	for _, item := range items {
		counts[item]++
		if counts[item] == 2 {
			repeated = append(repeated, item)
		}
	}
	sort.Strings(repeated)
	return repeated
}

// SameItems reports whether both slices hold the same items equally often, in any order.
func SameItems(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	counts := make(map[string]int)
	for _, item := range a {
		counts[item]++
	}
	for _, item := range b {
		counts[item]--
		if counts[item] < 0 {
			return false
		}
	}
	return true
}

// InsertSorted returns a copy of a sorted slice with value in its place.
func InsertSorted(values []int, value int) []int {
	i := sort.SearchInts(values, value)
	result := make([]int, 0, len(values)+1)
	result = append(result, values[:i]...)
	result = append(result, value)
	return append(result, values[i:]...)
}

// RemoveAt returns a copy of the items without the one at index i.
func RemoveAt[T any](items []T, i int) []T {
	result := make([]T, 0, len(items)-1)
	result = append(result, items[:i]...)
	return append(result, items[i+1:]...)
}

// Shuffled returns the items in a random order that depends only on the seed.
func Shuffled[T any](items []T, seed int64) []T {
	result := append([]T(nil), items...)
	source := rand.New(rand.NewSource(seed))
	source.Shuffle(len(result), func(i, j int) {
		result[i], result[j] = result[j], result[i]
	})
	return result
}

// FirstMatch returns the first item for which the predicate is true, and whether there is one.
func FirstMatch[T any](items []T, predicate func(T) bool) (T, bool) {
	for _, item := range items {
		if predicate(item) {
			return item, true
		}
	}
	var none T
	return none, false
}

// RenameKeys returns a map whose keys are renamed as names says; other keys stay.
func RenameKeys(m, names map[string]string) map[string]string {
	renamed := make(map[string]string, len(m))
	for key, value := range m {
		if name, ok := names[key]; ok {
			key = name
		}
		renamed[key] = value
	}
	return renamed
}

// Pick returns a map with only these keys, as far as they are there.
func Pick(m map[string]string, keys ...string) map[string]string {
	picked := make(map[string]string)
	for _, key := range keys {
		if value, ok := m[key]; ok {
			picked[key] = value
		}
	}
	return picked
}

// KeyOfLargest returns the key with the largest value, the alphabetically first of equals.
func KeyOfLargest(m map[string]int) string {
	best, found := "", false
	for key, value := range m {
		if !found || value > m[best] || value == m[best] && key < best {
			best, found = key, true
		}
	}
	return best
}

// FlattenKeys turns nested maps into one whose keys are paths with dots.
func FlattenKeys(data map[string]any) map[string]any {
	flat := make(map[string]any)
	for key, value := range data {
		nested, ok := value.(map[string]any)
		if !ok {
			flat[key] = value
			continue
		}
		for below, inner := range FlattenKeys(nested) {
			flat[strings.Join([]string{key, below}, ".")] = inner
		}
	}
	return flat
}
