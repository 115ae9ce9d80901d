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
	heapGoal = 40 << 20
	// breathing is how much garbage there may be whatever is in use, so that the
	// memory of a process that remembers all it may stays within its bounds, and
	// spared what a large heap may not add to itself.
	breathing, spared = 16 << 20, 48 << 20
	// waitingBytes is about what an instance takes whose updates wait to be
	// written, and fewWaiting how many of them there are at a pace that the
	// database keeps. What more of them take is given back when they are written,
	// so the heap may grow by as much again meanwhile.
	waitingBytes, fewWaiting = 3 << 10, 4000
	// leastGrowth and mostGrowth bound by how much, in percent of what is in
	// use, the heap may grow.
	leastGrowth, mostGrowth = 20, 900
)

// relaxCollector lets the collector work more seldom while little memory is in
// use, until stop is called. Waiting says of how many instances updates wait.
// Whoever sets GOGC has decided by themselves.
//
// It looks at each collection, not at the clock. Up to the goal the heap grows
// as it likes; beyond it by some breathing space, and the more is in use the more
// of that, up to once its size: what costs much to look through is looked through
// seldom.
func relaxCollector(waiting func() int) (stop func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	before := debug.SetGCPercent(leastGrowth)
	var stopped atomic.Bool
	var heap heap
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
			if g := heap.growth(live[0].Value.Uint64(), waiting()); max(g-now, now-g) > now/10 {
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

// heap is how far the heap may grow, from one collection to the next.
type heap struct{ goal float64 }

// growth is by how much it may grow, in percent, if so much is in use and of so
// many instances updates wait. A goal falls slowly, unless far too high: what is
// given back to the system in between has to be had, and cleared, anew.
func (h *heap) growth(live uint64, waiting int) int {
	if live == 0 {
		return mostGrowth
	}
	in := float64(live)
	passing := min(float64(max(waiting-fewWaiting, 0)*waitingBytes), in)
	goal := max(heapGoal, in+breathing+passing, 2*in-spared)
	h.goal = max(goal, min(h.goal*15/16, goal*3/2))
	return int(min(max((h.goal/in-1)*100, leastGrowth), mostGrowth))
}
