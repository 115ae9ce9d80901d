// Package bubbletest runs tests in bubbles of package testing/synctest, under
// the race detector too.
package bubbletest

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
)

// one keeps bubbles of parallel tests apart: processors are the process's.
var one sync.Mutex

// Test is synctest.Test, on one processor if the race detector looks on: it
// knows all timers of a bubble as one thread, but the runtime (up to Go 1.26.8
// at least) runs an expired one on the processor that asks its channel. Two at
// once break the detector's memory, mostly with a SIGSEGV in its SlotLock.
//
// It is safe for parallel tests, which then wait for each other.
func Test(t *testing.T, test func(*testing.T)) {
	t.Helper()
	if raced {
		one.Lock()
		defer one.Unlock()
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	}
	synctest.Test(t, test)
}
