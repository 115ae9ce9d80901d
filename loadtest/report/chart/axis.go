package chart

import (
	"fmt"
	"math"
	"strings"
)

// Tick is a mark on an axis.
type Tick struct {
	// Percent is its place, from 0 to 100.
	Percent float64
	Label   string
	// Minor ones are left out where there is little room.
	Minor bool
}

// Scale places values from bottom (0) to top (1).
type Scale struct {
	// Low and High are the values at the bottom and at the top.
	Low, High float64
	// Log is for values over many powers of ten; Low is above 0 then.
	Log   bool
	Ticks []Tick
}

// Place is where a value is. What is beyond an end is at that end.
func (s Scale) Place(v float64) float64 {
	if math.IsNaN(v) {
		return v
	}
	if s.Log {
		if v <= s.Low {
			return 0
		}
		return min(math.Log(v/s.Low)/math.Log(s.High/s.Low), 1)
	}
	return min(max((v-s.Low)/(s.High-s.Low), 0), 1)
}

// Linear is a scale from 0 to a round number that is not below most, with about
// n ticks.
func Linear(most float64, n int, format func(float64) string) Scale {
	return Stepped(most, n, 10, format)
}

// Stepped is as Linear; round are 1, 2 and 5 times powers of base. Powers of two
// suit bytes.
func Stepped(most float64, n int, base float64, format func(float64) string) Scale {
	if !(most > 0) || math.IsInf(most, 0) {
		most = 1
	}
	step := niceStep(most/float64(max(n, 1)), base)
	count := int(math.Ceil(most/step - 1e-9))
	s := Scale{High: step * float64(count)}
	for i := range count + 1 {
		s.Ticks = append(s.Ticks, Tick{Percent: 100 * float64(i) / float64(count), Label: format(step * float64(i)), Minor: i%2 == 1 && count%2 == 0})
	}
	return s
}

// niceStep is the smallest round number that is not below v.
func niceStep(v, base float64) float64 {
	factors := []float64{1, 2, 5, 10}
	if base != 10 {
		factors = []float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024}
	}
	power := math.Pow(base, math.Floor(math.Log(v)/math.Log(base)+1e-9))
	for _, f := range factors {
		if f*power >= v*(1-1e-9) {
			return f * power
		}
	}
	return base * power
}

// Logarithmic is a scale over whole powers of ten that holds all from least to
// most, and at least two.
func Logarithmic(least, most float64, format func(float64) string) Scale {
	if !(least > 0) {
		least = 1
	}
	most = max(most, least)
	low := math.Floor(math.Log10(least) + 1e-9)
	high := max(math.Ceil(math.Log10(most)-1e-9), low+2)
	s := Scale{Low: math.Pow(10, low), High: math.Pow(10, high), Log: true}
	for p := low; p <= high; p++ {
		s.Ticks = append(s.Ticks, Tick{Percent: 100 * (p - low) / (high - low), Label: format(math.Pow(10, p)), Minor: high-low > 4 && int(p-low)%2 == 1})
	}
	return s
}

// Time has about n ticks over a run, at round moments.
func Time(duration float64, n int) (ticks []Tick) {
	if !(duration > 0) {
		return nil
	}
	step := 24 * 3600.0
	for _, s := range []float64{1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 4 * 3600, 8 * 3600} {
		if duration/s <= float64(n) {
			step = s
			break
		}
	}
	for i := 0; float64(i)*step <= duration; i++ {
		at := float64(i) * step
		ticks = append(ticks, Tick{Percent: 100 * at / duration, Label: Clock(at), Minor: i%2 == 1})
	}
	return ticks
}

// Clock writes a moment as m:ss, or h:mm:ss from an hour on.
func Clock(seconds float64) string {
	s := int(seconds)
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}

// box is what paths are drawn into.
const (
	boxWidth  = 1000.0
	boxHeight = 100.0
)

// Line is the path of values in columns.
func (c Columns) Line(values []float64, s Scale) string {
	var path strings.Builder
	c.runs(values, func(from, to int) {
		command := "M"
		c.points(values, s, from, to, func(x, y float64) {
			fmt.Fprintf(&path, "%s%s %s", command, number(x), number(y))
			command = "L"
		})
	})
	return path.String()
}

// Area is the path of the area below values.
func (c Columns) Area(values []float64, s Scale) string {
	return c.Band(make([]float64, len(values)), values, s)
}

// Band is the path of the area between two rows of values, where both are known.
func (c Columns) Band(lower, upper []float64, s Scale) string {
	both := make([]float64, len(upper))
	for i := range both {
		both[i] = lower[i] + upper[i]
	}
	var path strings.Builder
	c.runs(both, func(from, to int) {
		command := "M"
		c.points(upper, s, from, to, func(x, y float64) {
			fmt.Fprintf(&path, "%s%s %s", command, number(x), number(y))
			command = "L"
		})
		var back []string
		c.points(lower, s, from, to, func(x, y float64) {
			back = append(back, fmt.Sprintf("L%s %s", number(x), number(y)))
		})
		for i := len(back) - 1; i >= 0; i-- {
			path.WriteString(back[i])
		}
		path.WriteString("Z")
	})
	return path.String()
}

// runs calls f for each run of known values.
func (c Columns) runs(values []float64, f func(from, to int)) {
	for from := 0; from < len(values); from++ {
		if math.IsNaN(values[from]) {
			continue
		}
		to := from
		for to+1 < len(values) && !math.IsNaN(values[to+1]) {
			to++
		}
		f(from, to)
		from = to
	}
}

// points calls f for the points of a run: the middles of the columns, and its
// ends, so that a single column is seen as well.
func (c Columns) points(values []float64, s Scale, from, to int, f func(x, y float64)) {
	x := func(at float64) float64 { return boxWidth * min(at/c.Duration, 1) }
	y := func(i int) float64 { return boxHeight * (1 - s.Place(values[i])) }
	f(x(c.Start(from)), y(from))
	for i := from; i <= to; i++ {
		f(x(c.Middle(i)), y(i))
	}
	f(x(c.Start(to+1)), y(to))
}

// number writes a coordinate: two digits are more than can be seen.
func number(v float64) string {
	text := fmt.Sprintf("%.2f", v)
	text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	if text == "-0" {
		return "0"
	}
	return text
}
