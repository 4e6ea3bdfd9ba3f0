package handmade

import "testing"

func TestSlices(t *testing.T) {
	even := func(n int) bool { return n%2 == 0 }
	check(t, "Filter", Filter([]int{1, 2, 3, 4}, even), []int{2, 4})
	check(t, "Map", Map([]string{"a", "bcd"}, func(s string) int { return len(s) }), []int{1, 3})
	product := Reduce([]int{2, 3, 4}, 1, func(a, b int) int { return a * b })
	check(t, "Reduce", product, 24)
	groups := GroupBy([]int{1, 2, 3}, func(n int) bool { return n%2 == 0 })
	check(t, "GroupBy", groups, map[bool][]int{true: {2}, false: {1, 3}})
	yes, no := Partition([]int{1, 2, 4}, even)
	check(t, "Partition", [][]int{yes, no}, [][]int{{2, 4}, {1}})
	check(t, "DivideEvenly", DivideEvenly([]int{1, 2, 3, 4}, 3), [][]int{{1, 2}, {3}, {4}})
	check(t, "Windows", Windows([]int{1, 2, 3}, 2), [][]int{{1, 2}, {2, 3}})
	check(t, "Interleave", Interleave([]int{1, 3, 4}, []int{2}), []int{1, 2, 3, 4})
	check(t, "MergeSorted", MergeSorted([]int{1, 4}, []int{2, 3, 9}), []int{1, 2, 3, 4, 9})
	check(t, "Difference", Difference([]string{"a", "b", "c"}, []string{"b"}), []string{"a", "c"})
	check(t, "Repeated", Repeated([]string{"b", "a", "b", "a", "b", "c"}), []string{"a", "b"})
	check(t, "SameItems", SameItems([]string{"a", "b", "a"}, []string{"a", "a", "b"}), true)
	check(t, "SameItems", SameItems([]string{"a", "b", "b"}, []string{"a", "a", "b"}), false)
	check(t, "InsertSorted", InsertSorted([]int{1, 5}, 3), []int{1, 3, 5})
	items := []int{7, 8, 9}
	check(t, "RemoveAt", RemoveAt(items, 1), []int{7, 9})
	check(t, "RemoveAt", items, []int{7, 8, 9})
	numbers := []int{1, 2, 3, 4, 5, 6, 7, 8}
	shuffled := Shuffled(numbers, 1)
	check(t, "Shuffled", Shuffled(numbers, 1), shuffled)
	sum := Reduce(shuffled, 0, func(a, b int) int { return a + b })
	check(t, "Shuffled", sum, 36)
	first, found := FirstMatch([]int{3, 4, 6}, even)
	check(t, "FirstMatch", []any{first, found}, []any{4, true})
	_, found = FirstMatch([]int{3}, even)
	check(t, "FirstMatch", found, false)
}

func TestMaps(t *testing.T) {
	a := map[string]string{"x": "1", "y": "2"}
	renamed := RenameKeys(a, map[string]string{"y": "z"})
	check(t, "RenameKeys", renamed, map[string]string{"x": "1", "z": "2"})
	check(t, "Pick", Pick(a, "x", "z"), map[string]string{"x": "1"})
	check(t, "KeyOfLargest", KeyOfLargest(map[string]int{"a": 1, "c": 5, "b": 5}), "b")
	check(t, "KeyOfLargest", KeyOfLargest(map[string]int{"a": -1}), "a")
	nested := map[string]any{"a": map[string]any{"b": 1, "c": 2}, "d": 3}
	check(t, "FlattenKeys", FlattenKeys(nested), map[string]any{"a.b": 1, "a.c": 2, "d": 3})
}
