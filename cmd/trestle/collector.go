package main

import (
	"os"
	"runtime"
	"runtime/debug"
	stats "runtime/metrics"
	"sync/atomic"
)

const (
	// heapGoal is the size up to which the heap may grow before garbage is
	// collected, however little of it is in use. Each update leaves some
	// kilobytes of garbage, and by itself the runtime would begin a collection
	// at twice what is in use, which for a small installation is dozens of
	// times a second.
	heapGoal = 64 << 20
	// breathing is how much garbage there may be whatever is in use, so that the
	// memory of a process that remembers all it may stays within its bounds, and
	// spared what a large heap may not add to itself.
	breathing, spared = 16 << 20, 48 << 20
	// leastGrowth and mostGrowth bound by how much, in percent of what is in
	// use, the heap may grow.
	leastGrowth, mostGrowth = 20, 900
)

// relaxCollector lets the collector work more seldom while little memory is in
// use, until stop is called. Whoever sets GOGC has decided by themselves.
//
// It looks at each collection, not at the clock. Up to the goal the heap grows
// as it likes; beyond it by some breathing space, and the more is in use the more
// of that, up to once its size: what costs much to look through is looked through
// seldom.
func relaxCollector() (stop func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	before := debug.SetGCPercent(leastGrowth)
	var stopped atomic.Bool
	now := leastGrowth
	live := []stats.Sample{{Name: "/gc/heap/live:bytes"}}
	var next func()
	next = func() {
		if stopped.Load() {
			return
		}
		stats.Read(live)
		if live[0].Value.Kind() == stats.KindUint64 {
			// To set it stops all goroutines for a moment.
			if g := growth(live[0].Value.Uint64()); max(g-now, now-g) > now/10 {
				now = g
				debug.SetGCPercent(g)
			}
		}
		watchCollection(next)
	}
	watchCollection(next)
	return func() {
		stopped.Store(true)
		debug.SetGCPercent(before)
	}
}

// watchCollection calls f, from a goroutine of the runtime's, once after the
// next collection.
func watchCollection(f func()) {
	// Big enough to be an allocation of its own, with a pointer: tiny ones
	// share their fate with others.
	type sentinel struct{ _ *byte }
	runtime.AddCleanup(&sentinel{}, func(f func()) { f() }, f)
}

// growth is by how much the heap may grow, in percent, if so much is in use.
func growth(live uint64) int {
	if live == 0 {
		return mostGrowth
	}
	in := float64(live)
	goal := max(heapGoal, in+breathing, 2*in-spared)
	return int(min(max((goal/in-1)*100, leastGrowth), mostGrowth))
}
