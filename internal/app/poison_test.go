package app

import (
	"fmt"
	"testing"

	"github.com/trestle-bridge/trestle/internal/config"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

// poisoned makes a world whose database refuses rows with the message
// "poison".
func poisoned(t *testing.T, instances int) *world {
	w := newWorld(t, plan{instances: instances})
	w.exec(`ALTER TABLE workspace_instance ADD CONSTRAINT no_poison CHECK (status ->> 'message' IS DISTINCT FROM 'poison')`)
	return w
}

func poison(s *wsman.WorkspaceStatus) { s.Message = "poison" }

// What the database refuses for its own sake goes to quarantine alone, and is
// not tried again, not even by a later process; a good update is.
func TestPoisonIsQuarantinedAlone(t *testing.T) {
	t.Parallel()
	w := poisoned(t, 40)
	s := w.serve(func(c *config.Config) { c.Pipeline.Lanes = 1 })
	w.heard(2) // no more of them changes the counts

	// One batch of all: the lane is held up by the first while they gather.
	unlock := w.lock(0)
	w.say(0, w.status(0, 1, nil))
	w.blocked()
	const bad = 7
	for n := 1; n < w.plan.instances; n++ {
		if n == bad {
			w.say(n, w.status(n, 10, poison))
		} else {
			w.say(n, w.status(n, 10, nil))
		}
	}
	w.until("all are heard", func() bool { return s.metric(startedTotal) == float64(w.plan.instances) })
	unlock()
	w.until("all are done with", func() bool { return s.metric(completedTotal) == float64(w.plan.instances) })
	for n := 1; n < w.plan.instances; n++ {
		want := int64(10)
		if n == bad {
			want = 0
		}
		if got := w.version(n); got != want {
			t.Errorf("instance %d is at version %d, want %d", n, got, want)
		}
	}
	if n := s.metric(completedTotal, "outcome=error"); n != 1 {
		t.Errorf("%v updates ended as errors, want 1", n)
	}
	quarantine := func() string {
		return ask[string](w, `SELECT coalesce(string_agg(instance_id || ' ' || status_version || ' ' || sqlstate || ' ' || reason || ' ' || times, ', '), 'nothing') FROM trestle_quarantine`)
	}
	id := ask[string](w, `SELECT $1::uuid::text`, w.subject(bad).ID.Instance)
	want := fmt.Sprintf("%s 10 23514 table workspace_instance: constraint no_poison: ", id)
	if got := quarantine(); len(got) < len(want) || got[:len(want)] != want {
		t.Errorf("in quarantine is\n%s\nwant\n%s…", got, want)
	}
	before := quarantine()

	// Again, under another version: a repeat of what was refused.
	w.say(bad, w.status(bad, 11, poison))
	w.until("the repeat is skipped", func() bool { return s.metric("trestle_pipeline_heard_total", "verdict=repeat") == 1 })
	s.stop()

	// The next process finds it in the snapshot.
	s = w.serve(func(c *config.Config) { c.Pipeline.Lanes = 1 })
	w.heard(2)
	w.until("the snapshot is done with", func() bool { return s.metric(startedTotal) >= float64(w.plan.instances) })
	w.until("the snapshot is done with", func() bool { return s.metric(startedTotal) == s.metric(completedTotal) })
	if after := quarantine(); after != before {
		t.Errorf("in quarantine was\n%s\nand is\n%s", before, after)
	}
	if n := s.metric(quarantinedTotal); n != 0 {
		t.Errorf("it was tried again: %v", n)
	}
	if got := w.version(bad); got != 0 {
		t.Errorf("it is at version %d", got)
	}

	w.say(bad, w.status(bad, 12, nil))
	w.until("the good update is written", func() bool { return w.version(bad) == 12 })
	s.stop()
}

// Poison in a fold: what is good after it is written.
func TestPoisonInAFold(t *testing.T) {
	t.Parallel()
	w := poisoned(t, 3)
	s := w.serve(func(c *config.Config) { c.Pipeline.Lanes = 1 })
	w.heard(2) // no more of them changes the counts
	// The phase of the first update is what this constraint refuses; it stays
	// in the fold as an effect.
	w.exec(`ALTER TABLE workspace_instance ADD CONSTRAINT no_node CHECK (status ->> 'nodeName' IS DISTINCT FROM 'bad')`)
	unlock := w.lock(0)
	w.say(0, w.status(0, 1, nil))
	w.blocked()
	w.say(1, w.status(1, 1, func(s *wsman.WorkspaceStatus) { s.Runtime = &wsman.WorkspaceRuntimeInfo{NodeName: "bad"} }))
	w.say(1, w.status(1, 2, func(s *wsman.WorkspaceStatus) { s.Runtime = &wsman.WorkspaceRuntimeInfo{NodeName: "good"} }))
	w.say(2, w.status(2, 1, poison))
	w.say(2, w.status(2, 2, nil))
	w.until("all are heard", func() bool { return s.metric(startedTotal) == 5 })
	unlock()
	w.until("all are done with", func() bool { return s.metric(completedTotal) == 5 })
	for n := range 3 {
		if want, got := int64(min(n, 1)+1), w.version(n); got != want {
			t.Errorf("instance %d is at version %d, want %d", n, got, want)
		}
	}
	if got := w.text(1, `status ->> 'nodeName'`); got != "good" {
		t.Errorf("the node is %s", got)
	}
	s.stop()
}
