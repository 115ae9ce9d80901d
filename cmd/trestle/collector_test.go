package main

import (
	"runtime"
	"runtime/debug"
	"testing"
)

func TestGrowth(t *testing.T) {
	for _, c := range []struct {
		live    uint64
		waiting int
		want    int
	}{
		{live: 0, want: 900},
		{live: 1 << 20, want: 900},
		{live: 16 << 20, want: 150},
		{live: 32 << 20, want: 50},
		{live: 48 << 20, want: 33},
		{live: 64 << 20, want: 25},
		{live: 96 << 20, want: 50},
		{live: 1 << 40, want: 99},
		{live: 64 << 20, waiting: fewWaiting, want: 25},
		{live: 64 << 20, waiting: fewWaiting + 8<<10, want: 62}, // 24 MiB more
		{live: 64 << 20, waiting: 1 << 20, want: 125},
	} {
		if got := new(heap).growth(c.live, c.waiting); got != c.want {
			t.Errorf("with %d bytes in use, %d waiting: %d %%, want %d", c.live, c.waiting, got, c.want)
		}
	}
}

// The goal falls slowly after it has been high, from half above what is needed.
func TestGrowthFallsSlowly(t *testing.T) {
	var h heap
	h.growth(400<<20, 0)
	for _, want := range []int{125, 110, 97, 85, 73, 62, 52, 50, 50} {
		if got := h.growth(32<<20, 0); got != want {
			t.Errorf("%d %%, want %d", got, want)
		}
	}
}

func TestCollectorIsRelaxedAndRestored(t *testing.T) {
	t.Setenv("GOGC", "")
	before := debug.SetGCPercent(77)
	defer debug.SetGCPercent(before)
	percent := func() int {
		p := debug.SetGCPercent(77)
		debug.SetGCPercent(p)
		return p
	}
	stop := relaxCollector(func() int { return 0 })
	for percent() == leastGrowth { // until the runtime has told of a collection
		runtime.GC()
		runtime.Gosched()
	}
	if got := percent(); got <= leastGrowth || got > mostGrowth {
		t.Errorf("%d %%", got)
	}
	stop()
	if got := percent(); got != 77 {
		t.Errorf("%d %% afterwards", got)
	}
	t.Setenv("GOGC", "50")
	relaxCollector(func() int { return 0 })()
	if got := percent(); got != 77 {
		t.Errorf("%d %% though GOGC is set", got)
	}
}
