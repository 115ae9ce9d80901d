package app

import (
	"testing"
)

// Everything that clusters say, odd things among it, ends up in the tables and
// is published, an update at a time or folded.
func TestEverythingHeardIsWrittenAndPublished(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{clusters: 2, instances: 120, odd: 0.8})
	s := w.serve()
	w.heard(2)
	w.sendAll(every)
	verdict := w.settle(false)
	if verdict.Exact == 0 {
		t.Error("no instance was held against every update")
	}
	s.stop()
}

// A change in every moment around the first subscription is heard: on the
// stream, or in a snapshot that is taken after it.
func TestNothingIsLostBetweenSnapshotAndSubscription(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{instances: 40})
	w.serve()
	// An instance more with each moment, so that each has its last words then.
	for n := range w.plan.instances {
		w.send(n, 1+n%5)
	}
	w.settle(false)
}
