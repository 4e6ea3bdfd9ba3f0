package handmade

import (
	"math"
	"testing"
)

func TestStatistics(t *testing.T) {
	values := []float64{40, 10, 30, 20}
	check(t, "Percentile", Percentile(values, 50), 25.0)
	check(t, "Percentile", Percentile(values, 100), 40.0)
	check(t, "StandardDeviation", StandardDeviation([]float64{1, 3}), math.Sqrt2)
	average, err := WeightedAverage([]float64{80, 90}, []float64{1, 3})
	check(t, "WeightedAverage", []any{average, err}, []any{87.5, nil})
	if _, err := WeightedAverage([]float64{1}, []float64{0}); err == nil {
		t.Error("WeightedAverage: no error")
	}
	check(t, "MovingAverage", MovingAverage([]float64{1, 2, 3, 8}, 2), []float64{1.5, 2.5, 5.5})
	check(t, "PercentChange", PercentChange(80, 100), 25.0)
	check(t, "RoundTo", RoundTo(3.14159, 2), 3.14)
	check(t, "CountInBins", CountInBins([]float64{1, 5, 10, 99}, []float64{0, 10, 20}), []int{2, 1})
	check(t, "DistanceKm", math.Round(DistanceKm(52.52, 13.405, 48.857, 2.352)), 877.0)
	product := MultiplyMatrices([][]float64{{1, 2}, {3, 4}}, [][]float64{{0, 1}, {1, 0}})
	check(t, "MultiplyMatrices", product, [][]float64{{2, 1}, {4, 3}})
}

func TestMoneyAndSizes(t *testing.T) {
	check(t, "SplitBill", SplitBill(1000, 3), []int{334, 333, 333})
	check(t, "FormatCents", FormatCents(123456789), "1,234,567.89")
	check(t, "FormatCents", FormatCents(-5), "-0.05")
	cents, err := ParseCents("1,234.5")
	check(t, "ParseCents", []any{cents, err}, []any{123450, nil})
	if _, err := ParseCents("much"); err == nil {
		t.Error("ParseCents: no error")
	}
	check(t, "CompoundInterest", RoundTo(CompoundInterest(100, 10, 2), 6), 121.0)
	check(t, "FormatBytes", FormatBytes(999), "999 B")
	check(t, "FormatBytes", FormatBytes(2_300_000), "2.3 MB")
	size, err := ParseSize("10 MB")
	check(t, "ParseSize", []any{size, err}, []any{int64(10_000_000), nil})
	if _, err := ParseSize("big"); err == nil {
		t.Error("ParseSize: no error")
	}
	for n, want := range map[int]string{1: "1st", 12: "12th", 22: "22nd", 103: "103rd", 40: "40th"} {
		check(t, "Ordinal", Ordinal(n), want)
	}
	for n, want := range map[int]string{1: "A", 26: "Z", 27: "AA", 703: "AAA"} {
		check(t, "ColumnLetters", ColumnLetters(n), want)
	}
}
