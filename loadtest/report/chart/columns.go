// Package chart is the arithmetic of pictures over time: which columns a run is
// drawn in, where ticks are, how a line becomes a path.
//
// All pictures of a page have the same columns, so that one moment is at the same
// place in each. Paths are drawn into a box 1000 wide and 100 high, which the
// page stretches. A value that is not known is NaN, and leaves a gap.
package chart

import "math"

// Columns divide the time of a run. The zero value has none.
type Columns struct {
	// N is how many there are.
	N int
	// Seconds is the width of each, a whole number; the last one may reach beyond
	// the end.
	Seconds int
	// Duration is that of the run, in seconds.
	Duration float64
}

// NewColumns divides a run into at most so many columns.
func NewColumns(duration float64, most int) Columns {
	seconds := int(math.Ceil(duration))
	if seconds <= 0 || most <= 0 {
		return Columns{}
	}
	width := (seconds + most - 1) / most
	return Columns{N: (seconds + width - 1) / width, Seconds: width, Duration: duration}
}

// Start is when a column begins, in seconds.
func (c Columns) Start(i int) float64 { return float64(i * c.Seconds) }

// Middle is the moment in the middle of what a column has of the run.
func (c Columns) Middle(i int) float64 {
	return (c.Start(i) + min(c.Start(i+1), c.Duration)) / 2
}

// of is the column of a moment; moments outside of the run belong to none.
func (c Columns) of(at float64) (int, bool) {
	if c.N == 0 || !(at >= 0 && at <= c.Duration) {
		return 0, false
	}
	return min(int(at)/c.Seconds, c.N-1), true
}

// Percent is where a moment is, from 0 at the beginning to 100 at the end.
func (c Columns) Percent(at float64) float64 {
	if c.Duration <= 0 {
		return 0
	}
	return min(max(at/c.Duration, 0), 1) * 100
}

// Combine makes one value of two.
type Combine func(a, b float64) float64

// Max and Min keep what is most and least.
func Max(a, b float64) float64 { return math.Max(a, b) }

// Min keeps what is least.
func Min(a, b float64) float64 { return math.Min(a, b) }

// Gather combines values, number i of which is of second i.
func (c Columns) Gather(values []float64, combine Combine) []float64 {
	return c.GatherAt(len(values), func(i int) (at, value float64) { return float64(i), values[i] }, combine)
}

// GatherAt combines n values, each of a moment.
func (c Columns) GatherAt(n int, value func(i int) (at, value float64), combine Combine) []float64 {
	columns := c.unknown()
	for i := range n {
		at, v := value(i)
		column, ok := c.of(at)
		switch {
		case !ok || math.IsNaN(v):
		case math.IsNaN(columns[column]):
			columns[column] = v
		default:
			columns[column] = combine(columns[column], v)
		}
	}
	return columns
}

// Mean averages values, number i of which is of second i.
func (c Columns) Mean(values []float64) []float64 {
	counts := make([]float64, c.N)
	sums := c.Gather(values, func(a, b float64) float64 { return a + b })
	for i, v := range values {
		if column, ok := c.of(float64(i)); ok && !math.IsNaN(v) {
			counts[column]++
		}
	}
	for i := range sums {
		sums[i] /= counts[i] // NaN stays
	}
	return sums
}

// Step is a change of a value that holds until the next one.
type Step struct{ At, Change float64 }

// Steps adds changes up, which are in the order of time, from 0 on: the last
// value of each column and the highest within it.
func (c Columns) Steps(steps []Step) (last, highest []float64) {
	last, highest = make([]float64, c.N), make([]float64, c.N)
	value, next := 0.0, 0
	for i := range c.N {
		end := c.Start(i + 1)
		// What ends just where the column begins is not in it.
		for next < len(steps) && steps[next].At <= c.Start(i) {
			value += steps[next].Change
			next++
		}
		highest[i] = value
		for next < len(steps) && steps[next].At < end {
			value += steps[next].Change
			highest[i] = max(highest[i], value)
			next++
		}
		last[i] = value
	}
	return last, highest
}

func (c Columns) unknown() []float64 {
	columns := make([]float64, c.N)
	for i := range columns {
		columns[i] = math.NaN()
	}
	return columns
}
