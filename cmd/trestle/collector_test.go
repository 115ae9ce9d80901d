package main

import (
	"runtime"
	"runtime/debug"
	"testing"
)

func TestGrowth(t *testing.T) {
	for _, c := range []struct {
		live uint64
		want int
	}{
		{0, 900}, {1 << 20, 900}, {16 << 20, 300}, {32 << 20, 100}, {48 << 20, 33}, {64 << 20, 25}, {96 << 20, 50}, {1 << 40, 99},
	} {
		if got := growth(c.live); got != c.want {
			t.Errorf("with %d bytes in use: %d %%, want %d", c.live, got, c.want)
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
	stop := relaxCollector()
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
	relaxCollector()()
	if got := percent(); got != 77 {
		t.Errorf("%d %% though GOGC is set", got)
	}
}
