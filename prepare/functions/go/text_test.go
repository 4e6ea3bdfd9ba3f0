package handmade

import (
	"reflect"
	"testing"
)

// check fails the test unless a function returned what it should.
func check(t *testing.T, name string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %#v, want %#v", name, got, want)
	}
}

func TestText(t *testing.T) {
	check(t, "Slugify", Slugify("  What's new in 1.19? "), "what-s-new-in-1-19")
	check(t, "SqueezeSpaces", SqueezeSpaces(" two \t words\n"), "two words")
	check(t, "Initials", Initials("ada élise lovelace"), "AÉL")
	check(t, "WrapWords", WrapWords("a bb ccc dddddd e", 4), []string{"a bb", "ccc", "dddddd", "e"})
	check(t, "Pluralize", Pluralize(1, "entry", "entries"), "1 entry")
	check(t, "Pluralize", Pluralize(0, "entry", "entries"), "0 entries")
	check(t, "JoinWithAnd", JoinWithAnd([]string{"tea", "milk", "rum"}), "tea, milk and rum")
	check(t, "JoinWithAnd", JoinWithAnd([]string{"tea"}), "tea")
	check(t, "PadLeft", PadLeft("é7", 4, '0'), "00é7")
	check(t, "PadLeft", PadLeft("12345", 4, '0'), "12345")
	check(t, "MaskMiddle", MaskMiddle("abcdefgh", 2), "ab****gh")
	check(t, "MaskMiddle", MaskMiddle("abc", 2), "***")
	check(t, "NonEmptyLines", NonEmptyLines(" a\n\n  \nb\n"), []string{"a", "b"})
	check(t, "Indent", Indent("a\n\nb", "  "), "  a\n\n  b")
	check(t, "NumberLines", NumberLines([]string{"x", "y"}), []string{"1: x", "2: y"})
	inner, found := Between("f(x, y) = 2", "(", ")")
	check(t, "Between", []any{inner, found}, []any{"x, y", true})
	_, found = Between("f(x", "(", ")")
	check(t, "Between", found, false)
	words := map[string]string{"red": "blue"}
	check(t, "ReplaceWords", ReplaceWords("red, redder", words), "blue, redder")
	check(t, "ExtractNumbers", ExtractNumbers("3 of 42 files"), []string{"3", "42"})
	counts := WordFrequencies("The cat. A dog, the end!")
	check(t, "WordFrequencies", counts["the"], 2)
	check(t, "WordFrequencies", len(counts), 5)
	check(t, "TopWords", TopWords(counts, 2), []string{"the", "a"})
	check(t, "Hashtags", Hashtags("Sun! #Beach, #holiday # 1#2"), []string{"beach", "holiday"})
	check(t, "EditDistance", EditDistance("kitten", "sitting"), 3)
	check(t, "EditDistance", EditDistance("", "abc"), 3)
}
