package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/loadtest"
	"github.com/trestle-bridge/trestle/loadtest/ledger"
)

// event is something that was done to the replicas, and what was seen of it.
type event struct {
	name, note string
	// longest is the longest that an update took from being sent to being
	// published, of those that were published until all was calm again.
	longest time.Duration
}

// aftermath is how long after an event latencies still count as its doing.
const aftermath = 2 * time.Second

// story is what happens to the replicas during a demo: at parts of its time one
// is killed, one is upgraded, and a cluster drops its subscriber.
type story struct {
	d     *dev
	r     *running
	began chan struct{}
	// events belong to tell until it has ended.
	events []event

	// mu guards lines, which progress shows.
	mu    sync.Mutex
	lines []string
}

func newStory(d *dev, r *running) *story { return &story{d: d, r: r, began: make(chan struct{})} }

// begin is called when the first update is about to be sent.
func (s *story) begin() { close(s.began) }

func (s *story) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, "  "+fmt.Sprintf(format, args...))
}

// news are the lines since it was called last.
func (s *story) news() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines := s.lines
	s.lines = nil
	return lines
}

// tell makes it all happen. It ends early, without an error, if ctx does.
func (s *story) tell(ctx context.Context, test *loadtest.Test) error {
	select {
	case <-s.began:
	case <-ctx.Done():
		return nil
	}
	begun := time.Now()
	for _, chapter := range []struct {
		at float64 // of the whole time
		do func(context.Context, *loadtest.Test) error
	}{{0.3, s.kill}, {0.55, s.upgrade}, {0.8, s.drop}} {
		if !sleep(ctx, time.Until(begun.Add(time.Duration(chapter.at*float64(s.d.duration))))) {
			return nil
		}
		if err := chapter.do(ctx, test); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("%w: %w", errStory, err)
		}
	}
	return nil
}

// watch notes what updates suffer from an event until a moment after do.
func (s *story) watch(ctx context.Context, test *loadtest.Test, name, note string, do func() error) error {
	before := test.Ledger().Latency()
	if err := do(); err != nil {
		return err
	}
	sleep(ctx, aftermath)
	after := test.Ledger().Latency()
	s.events = append(s.events, event{name: name, note: note, longest: longestSince(&after, &before)})
	return nil
}

func longestSince(after, before *ledger.Histogram) time.Duration {
	since := after.Since(before)
	return since.Quantile(1)
}

// kill ends a replica as a crash does; it starts again as a container would.
func (s *story) kill(ctx context.Context, test *loadtest.Test) error {
	victim := s.r.named(replicaName(s.d.replicas))
	if s.d.replicas == 1 || victim == nil {
		return nil
	}
	return s.watch(ctx, test, "crash of "+victim.Name, "found dead, its clusters taken over", func() error {
		s.r.leave(victim)
		if err := victim.Kill(); err != nil {
			return err
		}
		s.say("%s is killed (kill -9), and starts again", victim.Name)
		_, err := s.r.launch(ctx, victim.Name, victim.Revision)
		return err
	})
}

// upgrade replaces a replica by one of another revision, as a rollout does: the
// new one is ready before the old one is told to go.
func (s *story) upgrade(ctx context.Context, test *loadtest.Test) error {
	old := s.r.named(replicaName(1))
	if old == nil {
		return nil
	}
	return s.watch(ctx, test, "upgrade of "+old.Name, "its clusters moved, one subscription before the other ends", func() error {
		next, err := s.r.launch(ctx, replicaName(s.d.replicas+1), "v2")
		if err != nil {
			return err
		}
		s.say("%s, of the next revision, is ready; %s hands over and stops (SIGTERM)", next.Name, old.Name)
		s.r.leave(old)
		begun := time.Now()
		if err := old.Stop(ctx); err != nil {
			return err
		}
		s.say("%s has handed everything over in %s", old.Name, short(time.Since(begun)))
		return nil
	})
}

// drop ends a stream as a cluster does whose subscriber is too slow.
func (s *story) drop(_ context.Context, test *loadtest.Test) error {
	victim := test.Clusters()[s.d.clusters/2]
	victim.Drop()
	s.say("%s drops its subscriber, as if its buffer were full", victim.Name())
	return nil
}

// sleep returns false if ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
