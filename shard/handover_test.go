package shard

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// audit watches what no sequence of events may break.
type audit struct {
	epoch   Epoch
	attempt int64
	owner   map[Epoch]string
}

func newAudit(r Record) *audit {
	return &audit{epoch: r.Epoch, attempt: r.Attempt, owner: map[Epoch]string{}}
}

func (a *audit) check(h Handover, out Outcome, before Record, now time.Time) error {
	r := h.Record
	switch {
	case r.Epoch < a.epoch:
		return fmt.Errorf("epoch goes back from %d to %d", a.epoch, r.Epoch)
	case r.Attempt < a.attempt:
		return fmt.Errorf("attempt goes back from %d to %d", a.attempt, r.Attempt)
	case out.Write != (r != before):
		return fmt.Errorf("write is %v: %+v, %+v", out.Write, before, r)
	case out.Ignored != "" && out != (Outcome{Ignored: out.Ignored}):
		return fmt.Errorf("ignored, and yet %+v", out)
	case r != r.normalised():
		return fmt.Errorf("%+v is not normal, that is %+v", r, r.normalised())
	}
	a.epoch, a.attempt = r.Epoch, r.Attempt
	if r.Owner != "" {
		if other, ok := a.owner[r.Epoch]; ok && other != r.Owner {
			return fmt.Errorf("epoch %d has the owners %s and %s", r.Epoch, other, r.Owner)
		}
		a.owner[r.Epoch] = r.Owner
	}
	resting := r.Phase == PhaseOwned || r.Phase == PhaseRetired
	if resting != h.Wake().IsZero() {
		return fmt.Errorf("in %s to be woken at %v", r.Phase, h.Wake())
	}
	if !resting && h.Wake().After(now.Add(10*time.Minute)) {
		return fmt.Errorf("in %s not to be woken before %v", r.Phase, h.Wake())
	}
	return nil
}

var eventKinds = []EventKind{
	EventTick, EventMove, EventCancel, EventPin, EventReady, EventUnready, EventReleased,
	EventHolds, EventBehind, EventLost, EventRetire, EventRevive, "nonsense",
}

// decode makes one event and a step of time of four bytes; fields are near what
// the record says, so that many of them fit.
func decode(b []byte, r Record) (Event, time.Duration) {
	names := []string{"a", "b", "c", "", r.Owner, r.Next, r.Former}
	reasons := Reasons()
	e := Event{
		Kind:    eventKinds[int(b[0])%len(eventKinds)],
		Replica: names[int(b[1])%len(names)],
		Reason:  reasons[int(b[2])%len(reasons)],
		Epoch:   r.Epoch + Epoch(int8(b[2]))/32,
		Attempt: r.Attempt + int64(int8(b[2]))/64,
	}
	if b[2] == 127 {
		e.Epoch = 1<<63 - 1
	}
	if e.Kind == EventPin {
		e.Pin.Replica = names[int(b[2])%3]
	}
	return e, time.Duration(b[3]) * 200 * time.Millisecond
}

func run(events []byte) error {
	now := t0
	h := Resume(Record{}, Limits{}, now)
	a := newAudit(h.Record)
	for i := 0; i+4 <= len(events); i += 4 {
		e, pass := decode(events[i:i+4], h.Record)
		now = now.Add(pass)
		before := h.Record
		next, out := h.Step(e, now)
		if err := a.check(next, out, before, now); err != nil {
			return fmt.Errorf("%+v in %+v: %w", e, before, err)
		}
		h = next
		if pass == 0 {
			// Another leader takes over.
			h = Resume(h.Record, Limits{}, now)
			if h.Record != next.Record {
				return fmt.Errorf("%+v is resumed as %+v", next.Record, h.Record)
			}
		}
	}
	// With nothing but time and a willing replica it always comes to rest.
	if h.Record.Phase == PhaseRetired {
		return nil
	}
	for range 20 {
		if h.Record.Phase == PhaseOwned {
			return nil
		}
		now = h.Wake()
		before := h.Record
		e := Event{Kind: EventTick}
		switch before.Phase {
		case PhaseUnowned:
			e = Event{Kind: EventMove, Replica: "c", Reason: ReasonOrphan}
		case PhaseRaise:
			e = Event{Kind: EventHolds, Replica: before.Owner, Epoch: before.Epoch}
			if before.Epoch > maxEpoch {
				return nil
			}
		}
		next, out := h.Step(e, now)
		if err := a.check(next, out, before, now); err != nil {
			return fmt.Errorf("%+v in %+v: %w", e, before, err)
		}
		h = next
	}
	return fmt.Errorf("%+v does not come to rest", h.Record)
}

func FuzzHandover(f *testing.F) {
	f.Add([]byte{1, 0, 0, 1, 7, 4, 0, 1, 1, 1, 3, 1, 4, 5, 0, 1, 6, 4, 0, 1, 7, 4, 0, 1})
	f.Add([]byte{1, 0, 0, 1, 9, 4, 0, 1, 1, 1, 0, 9, 0, 0, 0, 200, 8, 4, 64, 1})
	f.Add([]byte{1, 0, 0, 1, 7, 4, 0, 1, 10, 0, 0, 1, 6, 4, 0, 1, 11, 0, 0, 1})
	f.Fuzz(func(t *testing.T, events []byte) {
		if err := run(events); err != nil {
			t.Fatal(err)
		}
	})
}

func TestHandoverInAnyOrder(t *testing.T) {
	reached := map[Phase]bool{}
	for seed := range 20_000 {
		r := rand.New(rand.NewPCG(uint64(seed), 5))
		events := make([]byte, 4*(1+r.IntN(60)))
		for i := range events {
			events[i] = byte(r.UintN(256))
		}
		if err := run(events); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		h := Resume(Record{}, Limits{}, t0)
		for i := 0; i+4 <= len(events); i += 4 {
			e, _ := decode(events[i:i+4], h.Record)
			h, _ = h.Step(e, t0)
			reached[h.Record.Phase] = true
		}
	}
	for _, p := range Phases() {
		if !reached[p] {
			t.Errorf("no event led to %s", p)
		}
	}
}

// Records that nobody should have written are mended, not believed.
func TestResumeMends(t *testing.T) {
	for _, c := range []struct{ stored, want Record }{
		{Record{}, Record{Phase: PhaseUnowned}},
		{Record{Phase: "LATER", Owner: "a", Epoch: 4}, Record{Phase: PhaseOwned, Owner: "a", Epoch: 4}},
		{Record{Phase: PhaseOwned, Epoch: 4}, Record{Phase: PhaseUnowned, Epoch: 4}},
		{Record{Phase: PhasePrepare, Owner: "a"}, Record{Phase: PhaseOwned, Owner: "a"}},
		{Record{Phase: PhaseRelease, Owner: "a", Next: "a"}, Record{Phase: PhaseOwned, Owner: "a"}},
		{Record{Phase: PhaseRaise, Owner: "a", Next: "b", Former: "a"}, Record{Phase: PhaseRaise, Owner: "a"}},
		{Record{Phase: PhaseRetired, Owner: "a"}, Record{Phase: PhaseRetired}},
		{Record{Phase: PhaseUnowned, Epoch: -1, Attempt: -1}, Record{Phase: PhaseUnowned}},
	} {
		if got := Resume(c.stored, Limits{}, t0).Record; got != c.want {
			t.Errorf("%+v is resumed as %+v, want %+v", c.stored, got, c.want)
		}
	}
}

func TestStepOnZeroValue(t *testing.T) {
	h, out := Handover{}.Step(Event{Kind: EventMove, Replica: "a", Reason: ReasonNew}, t0)
	if h.Record.Owner != "a" || h.Record.Epoch != 1 || !out.Write || h.Wake().IsZero() {
		t.Errorf("%+v %+v", h, out)
	}
}

// Failures wait longer and longer, up to a limit, and success ends that.
func TestBackoff(t *testing.T) {
	now := t0
	h := Resume(Record{Phase: PhaseOwned, Owner: "a", Epoch: 1}, Limits{}, now)
	last := time.Duration(0)
	for i := range 20 {
		h, _ = h.Step(Event{Kind: EventMove, Replica: "b", Reason: ReasonPin}, now)
		if h.Record.Phase != PhasePrepare {
			t.Fatalf("attempt %d: %s", i, h.Record.Phase)
		}
		now = h.Wake()
		h, _ = h.Step(Event{Kind: EventTick}, now)
		sh := h.Shard(Whole("c"), 1)
		wait := sh.Hold.Sub(now)
		if wait < last || wait <= 0 || wait > time.Minute || sh.Avoid != "b" {
			t.Fatalf("attempt %d: waits %v after %v, avoids %q", i, wait, last, sh.Avoid)
		}
		if _, out := h.Step(Event{Kind: EventMove, Replica: "b"}, now); out.Ignored != IgnoredHeld {
			t.Fatalf("attempt %d: %+v", i, out)
		}
		last, now = wait, sh.Hold
	}
	if last != time.Minute {
		t.Errorf("waits %v in the end", last)
	}
}

// One reslice among lost owners, slow ones and new leaders: it ends either with
// the new shards, after the database has ended the old generation, or with all
// the old ones.
func TestResliceInAnyOrder(t *testing.T) {
	ends := map[ReslicePhase]int{}
	for seed := range 3000 {
		r := rand.New(rand.NewPCG(uint64(seed), 23))
		now := t0
		from, to := 1+r.IntN(4), 1+r.IntN(4)
		old := map[ID]Handover{}
		for _, id := range Slices("c", from) {
			old[id] = Resume(Record{Phase: PhaseOwned, Owner: "a", Epoch: 3}, Limits{}, now)
		}
		rs := NewReslice("c", from, to, 7, now)
		asked, fenced := false, false
		slow := r.IntN(4) == 0
		for range 2000 {
			now = now.Add(time.Duration(r.IntN(3000)) * time.Millisecond)
			records := map[ID]Record{}
			for id, h := range old {
				records[id] = h.Record
			}
			var out ResliceOutcome
			before := rs.Phase
			rs, out = rs.Step(records, fenced, now)
			asked = asked || out.Fence
			if out.Write == (rs.Phase == before) && rs.Phase != before {
				t.Fatalf("seed %d: %s to %s is not written", seed, before, rs.Phase)
			}
			if len(out.Create) > 0 {
				for _, h := range old {
					if h.Record.Phase != PhaseRetired {
						t.Fatalf("seed %d: new shards beside %+v", seed, h.Record)
					}
				}
				if !fenced || len(out.Create) != to || len(out.Remove) != from {
					t.Fatalf("seed %d: fenced %v, %+v", seed, fenced, out)
				}
			}
			if rs.Phase == ResliceDone || rs.Phase == ResliceAborted {
				break
			}
			if rs.Due.IsZero() {
				t.Fatalf("seed %d: %s waits for ever", seed, rs.Phase)
			}
			for kind, ids := range map[EventKind][]ID{EventRetire: out.Retire, EventCancel: out.Cancel, EventRevive: out.Revive} {
				for _, id := range ids {
					old[id], _ = old[id].Step(Event{Kind: kind}, now)
				}
			}
			for id, h := range old {
				e := Event{Kind: EventTick}
				switch x := r.IntN(10); {
				case h.Record.Phase == PhaseUnowned:
					e = Event{Kind: EventMove, Replica: "b", Reason: ReasonOrphan}
				case h.Record.Phase == PhaseRaise:
					e = Event{Kind: EventHolds, Replica: h.Record.Owner, Epoch: h.Record.Epoch}
				case x == 0:
					e = Event{Kind: EventLost, Replica: h.Record.Owner}
				case x < 6 && !slow:
					e = Event{Kind: EventReleased, Replica: h.Record.Owner, Attempt: h.Record.Attempt}
				}
				old[id], _ = h.Step(e, now)
			}
			fenced = fenced || asked && r.IntN(3) == 0
		}
		ends[rs.Phase]++
		if rs.Phase == ResliceAborted {
			for id, h := range old {
				if h.Record.Phase == PhaseRetired {
					t.Fatalf("seed %d: %s is left retired", seed, id)
				}
			}
		}
	}
	if len(ends) != 2 || ends[ResliceDone] == 0 || ends[ResliceAborted] == 0 {
		t.Errorf("ended as %v", ends)
	}
}

// describe is a handover and an outcome in one line of a transcript.
func describe(h Handover, out Outcome, now time.Time) string {
	if out.Ignored != "" {
		return "ignored: " + string(out.Ignored)
	}
	r := h.Record
	var b strings.Builder
	fmt.Fprintf(&b, "%s epoch %d", r.Phase, r.Epoch)
	for _, f := range []struct{ name, value string }{
		{"owner", r.Owner}, {"next", r.Next}, {"former", r.Former}, {"reason", string(r.Reason)}, {"pin", r.Pin.Replica},
	} {
		if f.value != "" {
			fmt.Fprintf(&b, " %s %s", f.name, f.value)
		}
	}
	fmt.Fprintf(&b, " attempt %d", r.Attempt)
	for _, f := range []struct {
		name string
		on   bool
	}{{"write", out.Write}, {"plan", out.Plan}, {"sweep", out.Sweep}} {
		if f.on {
			b.WriteString(", " + f.name)
		}
	}
	if out.Aborted != "" {
		b.WriteString(", aborted: " + string(out.Aborted))
	}
	if !h.Wake().IsZero() {
		fmt.Fprintf(&b, ", wake in %v", h.Wake().Sub(now))
	}
	return b.String()
}

// The next owner goes by the record that the coordinator is about to store, and
// the coordinator hears its claim whether it has stored that or not.
func TestSucceeded(t *testing.T) {
	move := Event{Kind: EventMove, Replica: "b", Reason: ReasonUpgrade}
	ready := Event{Kind: EventReady, Replica: "b", Attempt: 1}
	h := Resume(Record{Phase: PhaseOwned, Owner: "a", Epoch: 4, Generation: 2}, Limits{}, t0)
	for _, e := range []Event{move, ready} {
		if got := h.Record.Succeeded(h.Record.Attempt); got != h.Record {
			t.Errorf("%+v is taken for released: %+v", h.Record, got)
		}
		h, _ = h.Step(e, t0)
	}
	if got := h.Record.Succeeded(0); got != h.Record {
		t.Errorf("released in another attempt, and taken for released: %+v", got)
	}
	read := h.Record.Succeeded(1)
	released, _ := h.Step(Event{Kind: EventReleased, Replica: "a", Attempt: 1}, t0)
	if read != released.Record || read.Owner != "b" || read.Epoch != 5 || !read.Handed {
		t.Errorf("the next owner reads %+v, and the coordinator writes %+v", read, released.Record)
	}
	holds := Event{Kind: EventHolds, Replica: "b", Epoch: 5}
	late, _ := released.Step(holds, t0)
	early, out := h.Step(holds, t0)
	if early != late || early.Record.Phase != PhaseOwned || early.Record.Reason != ReasonUpgrade || out.Aborted != "" || out.Sweep {
		t.Errorf("heard first, the claim leads to %+v (%+v), else to %+v", early, out, late)
	}
	retiring := Record{Phase: PhaseRelease, Owner: "a", Epoch: 4, Attempt: 1}
	if got := retiring.Succeeded(1); got != retiring {
		t.Errorf("a shard that nobody is to have next goes on as %+v", got)
	}
}

// Whether a shard was released in order is known until its new owner holds it,
// also if the one before is gone by then.
func TestHanded(t *testing.T) {
	owned := Resume(Record{Phase: PhaseOwned, Owner: "a", Epoch: 1}, Limits{}, t0)
	move := Event{Kind: EventMove, Replica: "b", Reason: ReasonUpgrade}
	ready := Event{Kind: EventReady, Replica: "b", Attempt: 1}
	released := Event{Kind: EventReleased, Replica: "a", Attempt: 1}
	lost := func(replica string) Event { return Event{Kind: EventLost, Replica: replica} }
	for _, c := range []struct {
		name   string
		events []Event
		want   bool
	}{
		{"released", []Event{move, ready, released}, true},
		{"released, and gone", []Event{move, ready, released, lost("a")}, true},
		{"released, and the database is ahead", []Event{move, ready, released, {Kind: EventBehind, Replica: "b", Epoch: 5}}, true},
		{"lost before the release", []Event{move, ready, lost("a")}, false},
		{"lost", []Event{lost("a"), {Kind: EventMove, Replica: "b", Reason: ReasonOrphan}}, false},
		{"the next owner is lost", []Event{move, ready, released, lost("b")}, false},
		{"nobody takes it", []Event{move, ready, released, lost("a"), lost("b"), {Kind: EventMove, Replica: "c", Reason: ReasonPin}}, false},
	} {
		h := owned
		for _, e := range c.events {
			h, _ = h.Step(e, t0)
		}
		if h.Record.Phase != PhaseRaise || h.Record.Handed != c.want {
			t.Errorf("%s: %+v", c.name, h.Record)
		}
		h, _ = h.Step(Event{Kind: EventHolds, Replica: h.Record.Owner, Epoch: h.Record.Epoch}, t0)
		if h.Record.Phase != PhaseOwned || h.Record.Handed {
			t.Errorf("%s, then held: %+v", c.name, h.Record)
		}
	}
}
