// Package handmade holds everyday functions to fine-tune a model on.
package handmade

import (
	"bufio"
	"fmt"
	"regexp"
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Slugify turns a title into the last part of a web address.
func Slugify(title string) string {
	words := strings.FieldsFunc(strings.ToLower(title), func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9')
	})
	return strings.Join(words, "-")
}

// SqueezeSpaces replaces each run of whitespace by one space and trims the ends.
func SqueezeSpaces(text string) string {
	return strings.Join(strings.Fields(text), " ")
}

// Initials returns the first letters of a person's names in upper case.
func Initials(name string) string {
	var b strings.Builder
	for _, part := range strings.Fields(name) {
		r, _ := utf8.DecodeRuneInString(part)
		b.WriteRune(unicode.ToUpper(r))
	}
	return b.String()
}

// WrapWords breaks a text into lines of at most width bytes; a longer word gets a line of its own.
func WrapWords(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}

// Pluralize returns the count with the noun in the form that fits it.
func Pluralize(count int, singular, plural string) string {
	if count == 1 {
		return fmt.Sprintf("%d %s", count, singular)
	}
	return fmt.Sprintf("%d %s", count, plural)
}

// JoinWithAnd joins words as in a sentence, with commas and a final "and".
func JoinWithAnd(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " and " + words[last]
}

// PadLeft puts pad in front of the text until it has the given number of characters.
func PadLeft(text string, length int, pad rune) string {
	missing := length - utf8.RuneCountInString(text)
	if missing <= 0 {
		return text
	}
	return strings.Repeat(string(pad), missing) + text
}

// MaskMiddle hides all but the first and last shown bytes of a value, for logs.
func MaskMiddle(value string, shown int) string {
	if len(value) <= 2*shown {
		return strings.Repeat("*", len(value))
	}
	hidden := len(value) - 2*shown
	return value[:shown] + strings.Repeat("*", hidden) + value[len(value)-shown:]
}

// NonEmptyLines returns the trimmed lines of a text that hold more than whitespace.
func NonEmptyLines(text string) []string {
	lines := []string{}
	scanner := bufio.NewScanner(strings.NewReader(text))
	for scanner.Scan() {
		if line := strings.TrimSpace(scanner.Text()); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// Indent puts a prefix in front of each line that is not empty.
func Indent(text, prefix string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if line != "" {
			lines[i] = prefix + line
		}
	}
	return strings.Join(lines, "\n")
}

// NumberLines puts its number, counted from 1, in front of each line.
func NumberLines(lines []string) []string {
	numbered := make([]string, len(lines))
	for i, line := range lines {
		numbered[i] = fmt.Sprintf("%d: %s", i+1, line)
	}
	return numbered
}

// Between returns what stands between the first left and the next right, and whether both exist.
func Between(text, left, right string) (string, bool) {
	_, rest, found := strings.Cut(text, left)
	if !found {
		return "", false
	}
	inner, _, found := strings.Cut(rest, right)
	if !found {
		return "", false
	}
	return inner, true
}

// ReplaceWords replaces whole words as the map says and leaves all others.
func ReplaceWords(text string, replacements map[string]string) string {
	word := regexp.MustCompile(`\w+`)
	return word.ReplaceAllStringFunc(text, func(found string) string {
		if replacement, ok := replacements[found]; ok {
			return replacement
		}
		return found
	})
}

// ExtractNumbers returns all runs of digits in the text.
func ExtractNumbers(text string) []string {
	return regexp.MustCompile(`\d+`).FindAllString(text, -1)
}

// WordFrequencies counts the words of a text in lower case, without punctuation around them.
func WordFrequencies(text string) map[string]int {
	counts := make(map[string]int)
	for _, word := range strings.Fields(strings.ToLower(text)) {
		word = strings.TrimFunc(word, unicode.IsPunct)
		if word != "" {
			counts[word]++
		}
	}
	return counts
}

// TopWords returns the most frequent words, the alphabetically first of equals first.
func TopWords(counts map[string]int, n int) []string {
	words := make([]string, 0, len(counts))
	for word := range counts {
		words = append(words, word)
	}
	sort.Slice(words, func(i, j int) bool {
		if counts[words[i]] != counts[words[j]] {
			return counts[words[i]] > counts[words[j]]
		}
		return words[i] < words[j]
	})
	if len(words) > n {
		words = words[:n]
	}
	return words
}

// Hashtags returns the words of a text that begin with #, in lower case and without it.
func Hashtags(text string) []string {
	var tags []string
	for _, word := range strings.Fields(text) {
		tag := strings.TrimRight(word, ".,;:!?")
		if strings.HasPrefix(tag, "#") && len(tag) > 1 {
			tags = append(tags, strings.ToLower(tag[1:]))
		}
	}
	return tags
}

// EditDistance returns how many letters must be changed, added or removed to turn a into b.
func EditDistance(a, b string) int {
	previous := make([]int, len(b)+1)
	for j := range previous {
		previous[j] = j
	}
	for i := 1; i <= len(a); i++ {
		current := make([]int, len(b)+1)
		current[0] = i
		for j := 1; j <= len(b); j++ {
			best := previous[j-1]
			if a[i-1] != b[j-1] {
				best++
			}
			if previous[j]+1 < best {
				best = previous[j] + 1
			}
			if current[j-1]+1 < best {
				best = current[j-1] + 1
			}
			current[j] = best
		}
		previous = current
	}
	return previous[len(b)]
}
