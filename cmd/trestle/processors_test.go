package main

import (
	"runtime"
	"slices"
	"testing"
)

func TestSparing(t *testing.T) {
	calm := func(used float64) []float64 { return slices.Repeat([]float64{used}, calmLooks) }
	for name, c := range map[string]struct {
		have int
		used []float64
		want int
	}{
		"idle":                      {8, calm(0), 1},
		"not for long":              {8, calm(0)[1:], 8},
		"a little":                  {2, calm(0.5), 1},
		"more than one":             {2, calm(0.8), 2},
		"some of many":              {8, calm(2), 3},
		"a little in the mean":      {2, append(calm(0)[1:], 1.6), 1},
		"all of one":                {1, []float64{0.9}, all},
		"all of several":            {4, []float64{3.5}, all},
		"enough of one":             {1, calm(0.8), 1},
		"begins anew after a storm": {2, slices.Concat(calm(0)[1:], []float64{1.9}, calm(0)[1:]), 2},
	} {
		var s sparing
		got := c.have
		for _, used := range c.used {
			got = s.look(c.have, used)
		}
		if got != c.want {
			t.Errorf("%s: %d processors, want %d", name, got, c.want)
		}
	}
}

func TestProcessorsAreSparedAndRestored(t *testing.T) {
	t.Setenv("GOMAXPROCS", "")
	defer runtime.SetDefaultGOMAXPROCS()
	const many = 8
	runtime.GOMAXPROCS(many)
	stop := spareProcessors()
	for runtime.GOMAXPROCS(0) == many { // until it was calm for long enough; this loop needs one
		runtime.Gosched()
	}
	if got := runtime.GOMAXPROCS(0); got > many {
		t.Errorf("%d processors", got)
	}
	stop()
	restored := runtime.GOMAXPROCS(0)
	runtime.SetDefaultGOMAXPROCS()
	if got := runtime.GOMAXPROCS(0); restored != got {
		t.Errorf("%d processors afterwards, want %d", restored, got)
	}

	t.Setenv("GOMAXPROCS", "3")
	runtime.GOMAXPROCS(3)
	spareProcessors()()
	if got := runtime.GOMAXPROCS(0); got != 3 {
		t.Errorf("%d processors though GOMAXPROCS is set", got)
	}
}
