package bubbletest

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

// TestExpiredTimers asks the channels of expired timers on all processors, for
// which the race detector dies in a bubble that may use more than one.
func TestExpiredTimers(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	for range 20 {
		Test(t, func(t *testing.T) {
			var askers sync.WaitGroup
			for range 4 {
				askers.Go(func() {
					for range 100 {
						askExpired(t, 50)
					}
				})
			}
			askers.Wait()
		})
	}
	if after := runtime.GOMAXPROCS(0); after != before {
		t.Errorf("%d processors after the bubbles, %d before", after, before)
	}
}

func askExpired(t *testing.T, timers int) {
	channels := make([]<-chan time.Time, timers)
	for i := range channels {
		channels[i] = time.NewTimer(time.Millisecond).C
	}
	time.Sleep(time.Millisecond)
	for i, c := range channels {
		select {
		case <-c:
		default:
			t.Errorf("timer %d has not fired", i)
		}
	}
}
