package chart

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

var nan = math.NaN()

func plain(v float64) string { return fmt.Sprintf("%g", v) }

func same(a, b []float64) bool {
	return slices.EqualFunc(a, b, func(x, y float64) bool { return x == y || math.IsNaN(x) && math.IsNaN(y) })
}

func TestColumns(t *testing.T) {
	for _, c := range []struct {
		duration    float64
		most        int
		n, width    int
		middleOfEnd float64
	}{
		{0, 100, 0, 0, 0}, {10, 0, 0, 0, 0}, {0.5, 100, 1, 1, 0.25}, {10, 100, 10, 1, 9.5}, {10.5, 100, 11, 1, 10.25},
		{100, 100, 100, 1, 99.5}, {101, 100, 51, 2, 100.5}, {3600, 600, 600, 6, 3597}, {3601, 600, 515, 7, 3599.5},
	} {
		got := NewColumns(c.duration, c.most)
		if got.N != c.n || got.Seconds != c.width {
			t.Errorf("%g s in %d columns: %+v", c.duration, c.most, got)
		}
		if got.N > 0 && got.Middle(got.N-1) != c.middleOfEnd {
			t.Errorf("%g s: the middle of the last column is %g", c.duration, got.Middle(got.N-1))
		}
	}
}

func TestGather(t *testing.T) {
	c := NewColumns(7, 4)
	values := []float64{1, 9, nan, 3, nan, nan, 5}
	for name, got := range map[string][]float64{
		"max":  c.Gather(values, Max),
		"min":  c.Gather(values, Min),
		"mean": c.Mean(values),
	} {
		want := map[string][]float64{"max": {9, 3, nan, 5}, "min": {1, 3, nan, 5}, "mean": {5, 3, nan, 5}}[name]
		if !same(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	outside := c.GatherAt(3, func(i int) (float64, float64) { return []float64{-1, 7.01, nan}[i], 1 }, Max)
	if !same(outside, []float64{nan, nan, nan, nan}) {
		t.Errorf("what is outside of the run is in %v", outside)
	}
	atEnd := c.GatherAt(1, func(int) (float64, float64) { return 7, 1 }, Max)
	if !same(atEnd, []float64{nan, nan, nan, 1}) {
		t.Errorf("the last moment is in %v", atEnd)
	}
}

// A peak of one second is seen however long the run is.
func TestMaximaStay(t *testing.T) {
	for _, duration := range []int{1, 59, 601, 3600, 86400} {
		c := NewColumns(float64(duration), 600)
		values := make([]float64, duration)
		values[duration/3] = 42
		if got := slices.Max(c.Gather(values, Max)); got != 42 {
			t.Errorf("%d s: the peak is %g", duration, got)
		}
		if c.N > 600 {
			t.Errorf("%d s: %d columns", duration, c.N)
		}
	}
}

func TestSteps(t *testing.T) {
	c := NewColumns(4, 4)
	last, highest := c.Steps([]Step{{0, 1}, {1.2, 5}, {1.4, -5}, {2, 1}, {3.9, -2}, {10, 1}})
	if !same(last, []float64{1, 1, 2, 0}) || !same(highest, []float64{1, 6, 2, 2}) {
		t.Errorf("last %v, highest %v", last, highest)
	}
}

func labels(ticks []Tick) string {
	var all []string
	for _, tick := range ticks {
		all = append(all, tick.Label)
	}
	return strings.Join(all, " ")
}

func TestScales(t *testing.T) {
	for _, c := range []struct {
		s    Scale
		want string
		high float64
	}{
		{Linear(0, 4, plain), "0 0.5 1", 1},
		{Linear(nan, 4, plain), "0 0.5 1", 1},
		{Linear(math.Inf(1), 4, plain), "0 0.5 1", 1},
		{Linear(1, 4, plain), "0 0.5 1", 1},
		{Linear(10, 4, plain), "0 5 10", 10},
		{Linear(10.1, 4, plain), "0 5 10 15", 15},
		{Linear(4012, 4, plain), "0 2000 4000 6000", 6000},
		{Linear(0.034, 4, plain), "0 0.01 0.02 0.03 0.04", 0.04},
		{Stepped(150<<20, 3, 1024, func(v float64) string { return plain(v / (1 << 20)) }), "0 64 128 192", 192 << 20},
		{Stepped(1<<30, 2, 1024, func(v float64) string { return plain(v / (1 << 20)) }), "0 512 1024", 1 << 30},
		{Logarithmic(1.5, 340, plain), "1 10 100 1000", 1000},
		{Logarithmic(1, 10, plain), "1 10 100", 100},
		{Logarithmic(0, 0, plain), "1 10 100", 100},
		{Logarithmic(0.2, 0.3, plain), "0.1 1 10", 10},
	} {
		if got := labels(c.s.Ticks); got != c.want || math.Abs(c.s.High-c.high) > 1e-9*c.high {
			t.Errorf("ticks %q up to %g, want %q up to %g", got, c.s.High, c.want, c.high)
		}
		if first, last := c.s.Ticks[0], c.s.Ticks[len(c.s.Ticks)-1]; first.Percent != 0 || last.Percent != 100 {
			t.Errorf("%q: ticks from %g to %g %%", c.want, first.Percent, last.Percent)
		}
	}
	linear, log := Linear(10, 2, plain), Logarithmic(1, 100, plain)
	for _, c := range []struct{ got, want float64 }{
		{linear.Place(5), 0.5}, {linear.Place(-5), 0}, {linear.Place(50), 1},
		{log.Place(10), 0.5}, {log.Place(0), 0}, {log.Place(1000), 1},
	} {
		if math.Abs(c.got-c.want) > 1e-9 {
			t.Errorf("placed at %g, want %g", c.got, c.want)
		}
	}
	if !math.IsNaN(log.Place(nan)) {
		t.Error("the unknown has a place")
	}
}

func TestTime(t *testing.T) {
	for _, c := range []struct {
		duration float64
		want     string
	}{
		{0, ""}, {0.5, "0:00"}, {10, "0:00 0:01 0:02 0:03 0:04 0:05 0:06 0:07 0:08 0:09 0:10"},
		{60, "0:00 0:05 0:10 0:15 0:20 0:25 0:30 0:35 0:40 0:45 0:50 0:55 1:00"}, {600, "0:00 1:00 2:00 3:00 4:00 5:00 6:00 7:00 8:00 9:00 10:00"},
		{3600, "0:00 5:00 10:00 15:00 20:00 25:00 30:00 35:00 40:00 45:00 50:00 55:00 1:00:00"},
		{1e6, "0:00 24:00:00 48:00:00 72:00:00 96:00:00 120:00:00 144:00:00 168:00:00 192:00:00 216:00:00 240:00:00 264:00:00"},
	} {
		if got := labels(Time(c.duration, 12)); got != c.want {
			t.Errorf("%g s: %q", c.duration, got)
		}
	}
}

func TestPaths(t *testing.T) {
	c, s := NewColumns(4, 4), Linear(10, 2, plain)
	for name, got := range map[string]string{
		"line": c.Line([]float64{0, 10, nan, 5}, s),
		"area": c.Area([]float64{nan, 10, nan, nan}, s),
		"band": c.Band([]float64{0, nan, 0, 0}, []float64{10, 10, nan, 5}, s),
		"none": c.Line([]float64{nan, nan, nan, nan}, s),
	} {
		want := map[string]string{
			"line": "M0 100L125 100L375 0L500 0M750 50L875 50L1000 50",
			"area": "M250 0L375 0L500 0L500 100L375 100L250 100Z",
			"band": "M0 0L125 0L250 0L250 100L125 100L0 100ZM750 50L875 50L1000 50L1000 100L875 100L750 100Z",
			"none": "",
		}[name]
		if got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	// The last column of a run that ends within it ends with the run.
	if got := NewColumns(1.5, 2).Line([]float64{0, 0}, s); got != "M0 100L333.33 100L833.33 100L1000 100" {
		t.Errorf("a part of a column: %s", got)
	}
}
