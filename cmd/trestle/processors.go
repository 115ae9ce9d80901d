package main

import (
	"math"
	"os"
	"runtime"
	"syscall"
	"time"
)

const (
	// useEvery is how often is looked at how much of the processors the process
	// uses, and calmLooks over how many looks fewer must have been enough until
	// it gives some up.
	useEvery  = 100 * time.Millisecond
	calmLooks = 20
	// scarce is the share in use of the processors it has at which it takes all,
	// enough the share of fewer that may be in use.
	scarce, enough = 0.85, 0.7
)

// spareProcessors has the scheduler run goroutines on as few processors as carry
// the load, until stop is called. An update goes through half a dozen goroutines
// that do little each: on several processors each of them wakes a thread of the
// kernel, which takes more time than the work. Whoever sets GOMAXPROCS has
// decided by themselves.
func spareProcessors() (stop func()) {
	if os.Getenv("GOMAXPROCS") != "" || runtime.GOMAXPROCS(0) == 1 {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(useEvery)
		defer tick.Stop()
		var s sparing
		for at, used := time.Now(), processorTime(); ; {
			select {
			case <-quit:
				runtime.SetDefaultGOMAXPROCS()
				return
			case <-tick.C:
			}
			now, usedNow := time.Now(), processorTime()
			have := runtime.GOMAXPROCS(0)
			switch want := s.look(have, float64(usedNow-used)/float64(now.Sub(at))); {
			case want == all:
				runtime.SetDefaultGOMAXPROCS() // nothing, if it has them
			case want < have:
				runtime.GOMAXPROCS(want)
			}
			at, used = now, usedNow
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

// all is as many processors as there are for the process.
const all = math.MaxInt

// sparing decides how many processors the process needs.
type sparing struct {
	calm int     // looks since it last needed all
	used float64 // processors in use at them, in all
}

// look takes how many processors were in use of those it has, since the last
// look, and gives how many it should have.
func (s *sparing) look(have int, used float64) int {
	if used >= scarce*float64(have) {
		*s = sparing{}
		return all
	}
	s.calm++
	s.used += used
	if s.calm < calmLooks {
		return have
	}
	want := max(int(math.Ceil(s.used/calmLooks/enough)), 1)
	*s = sparing{}
	return min(want, have)
}

// processorTime is the time that the process has had on processors.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0 // it knows no other error than a bad address
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
