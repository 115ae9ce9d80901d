// Package pace waits for a moment more exactly than timers do. The timers of
// an idle Go process are late by up to a millisecond, which is as long as what
// is measured here takes: an open loop that is paced by them measures its own
// lateness.
//
// Both sides of a comparison are paced by it; it has no state.
package pace

import (
	"context"
	"time"
)

// margin is what timers may be late; the rest is slept by the kernel.
const margin = 3 * time.Millisecond

// Until waits for a moment; if it has passed, not at all. It returns ctx's
// error if that ends before. Near the end it does not look at ctx.
func Until(ctx context.Context, at time.Time) error {
	if wait := time.Until(at) - margin; wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	// Signals, of which the Go runtime sends itself many, end a sleep early.
	for wait := time.Until(at); wait > 0; wait = time.Until(at) {
		sleep(wait)
	}
	return nil
}
