package pipeline

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/pipeline/trace"
	"github.com/trestle-bridge/trestle/shard"
)

var decisionNames = map[trace.Decision]string{
	trace.Applied: "applied", trace.Unchanged: "unchanged", trace.Repeat: "repeat", trace.Stale: "stale", trace.Unknown: "unknown",
	trace.Foreign: "foreign", trace.Fenced: "fenced", trace.Quarantined: "quarantined", trace.Invalid: "invalid", trace.Forgotten: "forgotten",
}

// told is what the trace tells of an instance: a line for each decision, with
// the version before, the version of the update, and how many there were.
func (b *bench) told(t testing.TB, id status.InstanceID) string {
	t.Helper()
	decided, _ := b.Why(id)
	var lines []string
	for _, d := range decided {
		from := "?"
		if d.KnowsStored {
			from = fmt.Sprint(d.Stored)
		}
		if d.At.IsZero() {
			t.Errorf("%s of version %d has no time", decisionNames[d.Decision], d.Version)
		}
		lines = append(lines, fmt.Sprintf("%s %s>%d x%d %s@%d", decisionNames[d.Decision], from, d.Version, d.Updates, d.Shard, d.Epoch))
	}
	return strings.Join(lines, ", ")
}

func (b *bench) tells(t testing.TB, what string, id status.InstanceID, want string) {
	t.Helper()
	if got := b.told(t, id); got != want {
		t.Errorf("%s:\n%s\nwant\n%s", what, got, want)
	}
}

// held keeps the lane of a bench busy with a batch of another shard until free
// is called, so that what is offered meanwhile waits.
func (b *bench) held(t testing.TB, version uint64) (free func()) {
	t.Helper()
	db := b.store
	other := b.own(t, fmt.Sprint("block", version))
	db.entered, db.gate = make(chan struct{}), make(chan struct{})
	db.insert(instance(900))
	offer(t, other, heard(t, instance(900), version, fmt.Sprint("block", version)))
	<-db.entered
	return func() { b.openGate(t) }
}

// openGate opens the gate of the store for good.
func (b *bench) openGate(t testing.TB) {
	ended := make(chan struct{})
	go func() {
		for {
			select {
			case <-b.store.entered:
			case <-ended:
				return
			}
		}
	}()
	close(b.store.gate)
	t.Cleanup(func() { b.stop(); close(ended) })
}

// sayer gives a function that says something of an instance, and waits until that
// is decided.
func sayer(t testing.TB, in *Intake, id status.InstanceID) func(version uint64, text string) {
	return func(version uint64, text string) {
		t.Helper()
		offer(t, in, heard(t, id, version, text))
		awaitIdle(t, in)
	}
}

func TestTraceOfAnInstance(t *testing.T) {
	t.Parallel()
	db := newFakeStore()
	b := newBench(t, db, &fakePublisher{}, Config{Lanes: 1})
	in := b.own(t, "eu01")
	id := instance(1)
	db.insert(id)
	say := sayer(t, in, id)
	b.tells(t, "of what was never heard", id, "")
	say(5, "a")
	b.tells(t, "the first", id, "applied ?>5 x1 eu01@1")
	say(6, "b")
	b.tells(t, "the second", id, "applied ?>5 x1 eu01@1, applied 5>6 x1 eu01@1")
	say(7, "b")
	say(8, "b")
	say(9, "b")
	b.tells(t, "repeats in a row are one", id, "applied ?>5 x1 eu01@1, applied 5>6 x1 eu01@1, repeat 6>9 x3 eu01@1")
	say(4, "c")
	b.tells(t, "a stale one", id, "applied ?>5 x1 eu01@1, applied 5>6 x1 eu01@1, repeat 6>9 x3 eu01@1, stale 6>4 x1 eu01@1")
	say(10, "d")
	b.tells(t, "the oldest goes", id, "applied 5>6 x1 eu01@1, repeat 6>9 x3 eu01@1, stale 6>4 x1 eu01@1, applied 6>10 x1 eu01@1")
	decided, _ := b.Why(id)
	if last := decided[len(decided)-1]; last.Phase != status.PhaseRunning {
		t.Errorf("the phase of what was written is %q", last.Phase)
	}

	// Stale by what the row holds, as somebody else has written it.
	other := instance(2)
	db.insert(other)
	db.mu.Lock()
	db.rows[other].version = 50
	db.mu.Unlock()
	offer(t, in, heard(t, other, 20, "x"))
	awaitIdle(t, in)
	b.tells(t, "stale by the row", other, "stale 50>20 x1 eu01@1")

	// No row has it.
	offer(t, in, heard(t, instance(3), 1, "x"))
	awaitIdle(t, in)
	offer(t, in, heard(t, instance(3), 2, "y"))
	awaitIdle(t, in)
	b.tells(t, "an unknown one", instance(3), "unknown ?>2 x2 eu01@1")

	// A sweep has stopped its row.
	in.Forget([]status.InstanceID{id})
	decided, _ = b.Why(id)
	if last := decided[len(decided)-1]; last.Decision != trace.Forgotten {
		t.Errorf("after a sweep: %s", b.told(t, id))
	}
	say(10, "d")
	if decided, _ = b.Why(id); decided[len(decided)-1].Decision == trace.Repeat {
		t.Errorf("what a sweep has forgotten is a repeat: %s", b.told(t, id))
	}
}

func TestTraceOfFoldedUpdates(t *testing.T) {
	t.Parallel()
	db := newFakeStore()
	b := newBench(t, db, &fakePublisher{}, Config{Lanes: 1})
	in := b.own(t, "eu01")
	id := instance(1)
	db.insert(id)
	offer(t, in, heard(t, id, 1, "a"))
	awaitIdle(t, in)
	free := b.held(t, 1)
	for version := uint64(2); version <= 6; version++ {
		offer(t, in, heard(t, id, version, fmt.Sprint("v", version)))
	}
	offer(t, in, heard(t, id, 7, "v6")) // a repeat of what waits
	_, waiting := b.Why(id)
	if len(waiting) != 1 || waiting[0].Version != 6 || waiting[0].Updates != 5 || waiting[0].InFlight || waiting[0].Shard != in.Shard() || waiting[0].Epoch != 1 || waiting[0].Since.IsZero() {
		t.Errorf("what waits is %+v", waiting)
	}
	free()
	awaitIdle(t, in)
	b.tells(t, "folded", id, "applied ?>1 x1 eu01@1, repeat 1>7 x1 eu01@1, applied 1>6 x5 eu01@1")
	if _, waiting := b.Why(id); len(waiting) != 0 {
		t.Errorf("after the commit %+v waits", waiting)
	}
}

// What is under way when another owner raises the fence, and what waits behind
// it, is that one's; each says so, under the epoch that was lost.
func TestTraceOfAFencedShard(t *testing.T) {
	t.Parallel()
	db := newFakeStore()
	b := newBench(t, db, &fakePublisher{}, Config{Lanes: 1})
	in := b.own(t, "eu01")
	written, behind := instance(1), instance(2)
	db.insert(written, behind)
	offer(t, in, heard(t, written, 1, "a"))
	awaitIdle(t, in)
	db.entered, db.gate = make(chan struct{}), make(chan struct{})
	offer(t, in, heard(t, written, 2, "b"))
	<-db.entered
	offer(t, in, heard(t, behind, 1, "x"))
	offer(t, in, heard(t, behind, 2, "y"))
	_, waiting := b.Why(written)
	if len(waiting) != 1 || !waiting[0].InFlight || waiting[0].Version != 2 {
		t.Errorf("under way is %+v", waiting)
	}
	db.raise(in.Shard(), "another")
	b.openGate(t)
	<-in.Fenced()
	drain(t, in)
	in.Close()
	b.tells(t, "what was under way", written, "applied ?>1 x1 eu01@1, fenced 1>2 x1 eu01@1")
	b.tells(t, "what waited", behind, "fenced ?>2 x2 eu01@1")

	// The next term, here again, has its own story, and the old one is kept.
	again := b.own(t, "eu01")
	offer(t, again, heard(t, written, 3, "c"))
	awaitIdle(t, again)
	b.tells(t, "the next term", written, "applied ?>1 x1 eu01@1, fenced 1>2 x1 eu01@1, applied ?>3 x1 eu01@3")
}

// awaitRetried gives what became of a retry.
func awaitRetried(t testing.TB, in *Intake, id status.InstanceID) (Decided, bool) {
	t.Helper()
	d, heard, err := in.Retried(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return d, heard
}

func TestTraceOfQuarantine(t *testing.T) {
	t.Parallel()
	db := newFakeStore()
	db.poison["bad"], db.poison["worse"] = true, true
	b := newBench(t, db, &fakePublisher{}, Config{Lanes: 1})
	in := b.own(t, "eu01")
	id := instance(1)
	db.insert(id)
	say := sayer(t, in, id)
	say(1, "good")
	say(2, "bad")
	b.tells(t, "refused", id, "applied ?>1 x1 eu01@1, quarantined 1>2 x1 eu01@1")
	say(3, "bad")
	b.tells(t, "the same once more", id, "applied ?>1 x1 eu01@1, quarantined 1>2 x1 eu01@1, repeat 1>3 x1 eu01@1")
	if len(db.quarantine) != 1 {
		t.Fatalf("in quarantine: %+v", db.quarantine)
	}

	// A retry that finds it as it was is refused again, and one after the cause
	// was mended is written.
	in.Retry(id)
	if d, heard := awaitRetried(t, in, id); heard {
		t.Errorf("before it is heard again, the retry ends with %+v", d)
	}
	say(3, "bad")
	if d, heard := awaitRetried(t, in, id); !heard || d.Decision != trace.Quarantined || d.Version != 3 || d.Epoch != 1 {
		t.Errorf("the retry ends with %+v, %v", d, heard)
	}
	if len(db.quarantine) != 2 {
		t.Errorf("in quarantine: %+v", db.quarantine)
	}
	in.Retry(id)
	db.mu.Lock()
	db.poison = map[string]bool{}
	db.mu.Unlock()
	say(3, "bad")
	if d, heard := awaitRetried(t, in, id); !heard || d.Decision != trace.Applied || d.Version != 3 || d.Shard != shard.Whole("eu01") {
		t.Errorf("the retry ends with %+v, %v", d, heard)
	}
	if got := db.row(id); got != (fakeRow{3, "bad"}) {
		t.Errorf("the row is %v", got)
	}
	// What comes after a retry and changes nothing does not hide its end.
	say(4, "bad")
	if d, heard := awaitRetried(t, in, id); !heard || d.Decision != trace.Applied || d.Version != 3 {
		t.Errorf("after a repeat the retry ends with %+v, %v", d, heard)
	}
}

// Of several updates in quarantine, the newest is what the cluster says, so
// that is what a retry takes: the older ones are not brought back.
func TestRetryTakesTheNewest(t *testing.T) {
	t.Parallel()
	db := newFakeStore()
	db.poison["bad"], db.poison["worse"] = true, true
	b := newBench(t, db, &fakePublisher{}, Config{Lanes: 1})
	in := b.own(t, "eu01")
	id := instance(1)
	db.insert(id)
	first, newest := heard(t, id, 1, "bad"), heard(t, id, 2, "worse")
	for _, h := range []status.Heard{first, newest} {
		offer(t, in, h)
		awaitIdle(t, in)
	}
	b.tells(t, "both", id, "quarantined ?>1 x1 eu01@1, quarantined ?>2 x1 eu01@1")
	db.mu.Lock()
	db.poison = map[string]bool{}
	db.mu.Unlock()
	in.Retry(id)
	offer(t, in, newest) // as a snapshot has it
	awaitIdle(t, in)
	if d, heard := awaitRetried(t, in, id); !heard || d.Decision != trace.Applied || d.Version != 2 {
		t.Errorf("the retry ends with %+v, %v", d, heard)
	}
	offer(t, in, first)
	awaitIdle(t, in)
	if got := db.row(id); got != (fakeRow{2, "worse"}) {
		t.Errorf("the row is %v", got)
	}
	if got := len(db.applied); got != 1 {
		t.Errorf("%d writes", got)
	}
}

// The newest of what an earlier process has put into quarantine is what is
// skipped, until a retry.
func TestRetryOfRememberedPoison(t *testing.T) {
	t.Parallel()
	db := newFakeStore()
	b := newBench(t, db, &fakePublisher{}, Config{Lanes: 1})
	in, err := b.Open(shard.Whole("eu01"))
	if err != nil {
		t.Fatal(err)
	}
	id := instance(1)
	db.insert(id)
	newest, older := heard(t, id, 7, "worse"), heard(t, id, 5, "bad")
	// As the store gives them: the last refused first.
	in.Remember([]store.Poison{
		{Instance: id, Hash: newest.Hash, Version: newest.Version}, {Instance: id, Hash: older.Hash, Version: older.Version},
	})
	in.Subscribed()
	if err := in.Own(db.raise(in.Shard(), b.Pipeline.Owner())); err != nil {
		t.Fatal(err)
	}
	offer(t, in, newest)
	awaitIdle(t, in)
	if db.attempts != 0 {
		t.Errorf("what was refused is tried again: %s", b.told(t, id))
	}
	in.Retry(id)
	offer(t, in, newest)
	awaitIdle(t, in)
	if d, heard := awaitRetried(t, in, id); !heard || d.Decision != trace.Applied || d.Version != 7 || db.row(id) != (fakeRow{7, "worse"}) {
		t.Errorf("the retry ends with %+v, %v; the row is %v", d, heard, db.row(id))
	}
}

// Retried waits for what is under way, and for no longer than its context.
func TestRetriedWaits(t *testing.T) {
	t.Parallel()
	db := newFakeStore()
	b := newBench(t, db, &fakePublisher{}, Config{Lanes: 1})
	in := b.own(t, "eu01")
	id := instance(1)
	db.insert(id)
	free := b.held(t, 1)
	in.Retry(id)
	offer(t, in, heard(t, id, 1, "a"))
	gone, leave := context.WithCancel(t.Context())
	leave()
	if _, _, err := in.Retried(gone, id); !errors.Is(err, context.Canceled) {
		t.Errorf("while it waits: %v", err)
	}
	type end struct {
		decided Decided
		heard   bool
		err     error
	}
	ended := make(chan end, 1) // read once, below
	go func() {
		d, heard, err := in.Retried(t.Context(), id)
		ended <- end{d, heard, err}
	}()
	free()
	if e := <-ended; e.err != nil || !e.heard || e.decided.Decision != trace.Applied || e.decided.Version != 1 {
		t.Errorf("it ends with %+v", e)
	}
}
