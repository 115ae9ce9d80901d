package sim

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A Fault is how a cluster fails a call.
type Fault int

// Faults of any call, and two that only a snapshot can have.
const (
	// None: the call works.
	None Fault = iota
	// Refuse ends the call at once with codes.Unavailable.
	Refuse
	// Hang leaves the call without an answer until its caller gives up or the
	// cluster's faults change; then it goes on under the new ones.
	Hang
	// Empty answers a snapshot with an empty list.
	Empty
	// Half answers a snapshot with every other instance left out.
	Half
)

// Faults are what is wrong with a cluster. The zero value is a healthy one.
type Faults struct {
	Subscribe Fault
	Snapshot  Fault
	Describe  Fault
	// Delay comes before each of them. For Subscribe it is the time in which
	// the stream seems open but is not heard yet.
	Delay time.Duration
}

// SetFaults changes what is wrong from now on. Subscriptions that stand are not
// touched: see CutStreams and Stop.
func (c *Cluster) SetFaults(f Faults) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = f
	c.notify()
}

// pass applies the fault that pick chooses, and returns those that the caller
// has to apply itself (Empty and Half).
func (c *Cluster) pass(ctx context.Context, pick func(Faults) Fault) (Fault, error) {
	c.mu.Lock()
	delay := c.faults.Delay
	c.mu.Unlock()
	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return None, status.FromContextError(ctx.Err()).Err()
		}
	}
	for {
		c.mu.Lock()
		fault, changed := pick(c.faults), c.changed
		c.mu.Unlock()
		switch fault {
		case Refuse:
			return fault, status.Errorf(codes.Unavailable, "cluster %s refuses calls", c.cfg.Name)
		case Hang:
			select {
			case <-changed:
			case <-ctx.Done():
				return fault, status.FromContextError(ctx.Err()).Err()
			}
		default:
			return fault, nil
		}
	}
}
