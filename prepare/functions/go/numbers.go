package handmade

import (
	"errors"
	"fmt"
	"math"
	"sort"
	"strconv"
	"strings"
)

// Percentile returns the value below which that percentage of the values lies, interpolated.
func Percentile(values []float64, percent float64) float64 {
	ordered := append([]float64(nil), values...)
	sort.Float64s(ordered)
	position := float64(len(ordered)-1) * percent / 100
	lower, share := math.Modf(position)
	i := int(lower)
	if i+1 == len(ordered) {
		return ordered[i]
	}
	return ordered[i]*(1-share) + ordered[i+1]*share
}

// StandardDeviation returns the standard deviation of a sample of at least two values.
func StandardDeviation(values []float64) float64 {
	n := float64(len(values))
	total := 0.0
	for _, value := range values {
		total += value
	}
	average, squares := total/n, 0.0
	for _, value := range values {
		squares += (value - average) * (value - average)
	}
	return math.Sqrt(squares / (n - 1))
}

// WeightedAverage returns the average of the values, each counted as its weight says.
func WeightedAverage(values, weights []float64) (float64, error) {
	var total, weight float64
	for i, value := range values {
		total += value * weights[i]
		weight += weights[i]
	}
	if weight == 0 {
		return 0, errors.New("the weights add up to zero")
	}
	return total / weight, nil
}

// MovingAverage returns the average of each run of window values.
func MovingAverage(values []float64, window int) []float64 {
	var averages []float64
	total := 0.0
	for i, value := range values {
		total += value
		if i >= window {
			total -= values[i-window]
		}
		if i >= window-1 {
			averages = append(averages, total/float64(window))
		}
	}
	return averages
}

// PercentChange returns by how many percent a value grew from before to after.
func PercentChange(before, after float64) float64 {
	return (after - before) / before * 100
}

// RoundTo rounds a value to a number of decimal places.
func RoundTo(value float64, places int) float64 {
	factor := math.Pow(10, float64(places))
	return math.Round(value*factor) / factor
}

// SplitBill divides an amount of cents so that the shares differ by one cent at most.
func SplitBill(cents, people int) []int {
	shares := make([]int, people)
	for i := range shares {
		shares[i] = cents / people
		if i < cents%people {
			shares[i]++
		}
	}
	return shares
}

// FormatCents formats an amount of cents such as 1234567 as 12,345.67.
func FormatCents(cents int) string {
	sign := ""
	if cents < 0 {
		sign, cents = "-", -cents
	}
	whole := strconv.Itoa(cents / 100)
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	return fmt.Sprintf("%s%s.%02d", sign, whole, cents%100)
}

// ParseCents reads an amount such as "1,234.5" as cents.
func ParseCents(text string) (int, error) {
	amount, err := strconv.ParseFloat(strings.ReplaceAll(text, ",", ""), 64)
	if err != nil {
		return 0, fmt.Errorf("no amount of money: %q", text)
	}
	return int(math.Round(amount * 100)), nil
}

// CompoundInterest returns what an amount grows to with a yearly interest rate in percent.
func CompoundInterest(amount, rate float64, years int) float64 {
	for year := 0; year < years; year++ {
		amount += amount * rate / 100
	}
	return amount
}

// FormatBytes formats a number of bytes for people.
func FormatBytes(size int64) string {
	if size < 1000 {
		return fmt.Sprintf("%d B", size)
	}
	value, units := float64(size), []string{"B", "kB", "MB", "GB", "TB"}
	i := 0
	for value >= 1000 && i < len(units)-1 {
		value /= 1000
		i++
	}
	return fmt.Sprintf("%.1f %s", value, units[i])
}

// ParseSize returns the number of bytes in a text such as "10MB" or "512".
func ParseSize(text string) (int64, error) {
	factors := map[string]int64{"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}
	upper := strings.ToUpper(strings.TrimSpace(text))
	digits := strings.TrimRight(upper, "KMGB ")
	factor, ok := factors[strings.TrimSpace(upper[len(digits):])]
	number, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || !ok {
		return 0, fmt.Errorf("no size: %q", text)
	}
	return number * factor, nil
}

// Ordinal returns a number with its ending, such as 1st, 2nd, 3rd or 11th.
func Ordinal(n int) string {
	ending := "th"
	if n%100 < 11 || n%100 > 13 {
		switch n % 10 {
		case 1:
			ending = "st"
		case 2:
			ending = "nd"
		case 3:
			ending = "rd"
		}
	}
	return strconv.Itoa(n) + ending
}

// ColumnLetters returns the letters of a spreadsheet's column, counted from 1.
func ColumnLetters(n int) string {
	letters := ""
	for n > 0 {
		n--
		letters = string(rune('A'+n%26)) + letters
		n /= 26
	}
	return letters
}

// CountInBins counts how many values lie in each bin, from one edge up to but without the next.
func CountInBins(values, edges []float64) []int {
	counts := make([]int, len(edges)-1)
	for _, value := range values {
		for i := range counts {
			if edges[i] <= value && value < edges[i+1] {
				counts[i]++
			}
		}
	}
	return counts
}

// DistanceKm returns the distance in km along the Earth's surface between two places in degrees.
func DistanceKm(lat1, lon1, lat2, lon2 float64) float64 {
	const radius, degree = 6371.0, math.Pi / 180
	lat := math.Sin((lat2 - lat1) * degree / 2)
	lon := math.Sin((lon2 - lon1) * degree / 2)
	half := lat*lat + math.Cos(lat1*degree)*math.Cos(lat2*degree)*lon*lon
	return 2 * radius * math.Asin(math.Sqrt(half))
}

// MultiplyMatrices returns the product of two matrices, given as rows.
func MultiplyMatrices(a, b [][]float64) [][]float64 {
	product := make([][]float64, len(a))
	for i := range a {
		product[i] = make([]float64, len(b[0]))
		for j := range b[0] {
			for k := range b {
				product[i][j] += a[i][k] * b[k][j]
			}
		}
	}
	return product
}
