package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/trestle-bridge/trestle/internal/bubbletest"
	"github.com/trestle-bridge/trestle/internal/publish"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/internal/upstream"
	"github.com/trestle-bridge/trestle/shard"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func mustUnmarshal(data []byte, to any) {
	if err := json.Unmarshal(data, to); err != nil {
		panic(err)
	}
}

func TestWritesAndPublishesInOrder(t *testing.T) {
	db, publisher := newFakeStore(), &fakePublisher{}
	b := newBench(t, db, publisher, Config{})
	in := b.own(t, "eu01")
	var ids []status.InstanceID
	for n := range 200 {
		ids = append(ids, instance(n))
	}
	db.insert(ids...)
	for v := range 5 {
		for _, id := range ids {
			offer(t, in, heard(t, id, uint64(v+1), fmt.Sprint("v", v+1)))
		}
	}
	drain(t, in)
	for _, id := range ids {
		if got := db.row(id); got != (fakeRow{5, "v5"}) {
			t.Fatalf("row of %s = %v, want version 5", id, got)
		}
		contents := publisher.contents(id)
		if !slices.IsSorted(contents) || contents[len(contents)-1] != "v5" {
			t.Fatalf("published of %s: %v, want ascending to v5", id, contents)
		}
	}
	if len(db.outbox) != 0 {
		t.Errorf("%d rows are left in the outbox after the drain", len(db.outbox))
	}
	if err := in.Offer(heard(t, ids[0], 9, "late")); !errors.Is(err, ErrClosed) {
		t.Errorf("Offer after Drain: %v, want ErrClosed", err)
	}
}

// TestDedup tells what is skipped, by what was heard before.
func TestDedup(t *testing.T) {
	type say struct {
		version uint64
		text    string
		// held keeps what was said before unwritten until this was offered.
		held bool
	}
	for _, test := range []struct {
		name    string
		says    []say
		row     fakeRow
		applied int
	}{
		{"a repeat writes nothing", []say{{1, "a", false}, {2, "a", false}, {3, "a", false}}, fakeRow{1, "a"}, 1},
		{"a stale one changes nothing", []say{{5, "a", false}, {4, "b", false}}, fakeRow{5, "a"}, 1},
		{"stale against a repeat's version", []say{{1, "a", false}, {5, "a", false}, {4, "b", false}}, fakeRow{1, "a"}, 1},
		{"back to what was written while another waits", []say{{1, "a", false}, {2, "b", true}, {3, "a", true}}, fakeRow{3, "a"}, 2},
		{"a repeat of what waits", []say{{1, "a", true}, {2, "a", true}}, fakeRow{1, "a"}, 1},
		{"unversioned counts while nothing is versioned", []say{{0, "a", false}, {0, "b", false}}, fakeRow{0, "b"}, 2},
		{"unversioned after versioned is stale", []say{{1, "a", false}, {0, "b", false}}, fakeRow{1, "a"}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			db, publisher := newFakeStore(), &fakePublisher{}
			b := newBench(t, db, publisher, Config{Lanes: 1})
			in := b.own(t, "eu01")
			other := b.own(t, "eu02")
			id, blocker := instance(1), instance(2)
			db.insert(id, blocker)
			held := false
			for i, say := range test.says {
				if say.held && !held {
					// A batch in flight keeps the lane busy.
					held = true
					db.entered, db.gate = make(chan struct{}), make(chan struct{})
					offer(t, other, heard(t, blocker, uint64(i+1), fmt.Sprint("block", i)))
					<-db.entered
				}
				offer(t, in, heard(t, id, say.version, say.text))
				if !held {
					awaitIdle(t, in)
				}
			}
			if held {
				go func() {
					for range db.entered {
					}
				}()
				close(db.gate)
			}
			awaitIdle(t, in)
			awaitIdle(t, other)
			if held {
				drain(t, in)
				b.stop()
				close(db.entered)
			}
			if got := db.row(id); got != test.row {
				t.Errorf("row = %v, want %v", got, test.row)
			}
			if got := len(slices.DeleteFunc(db.applied, func(other status.InstanceID) bool { return other != id })); got != test.applied {
				t.Errorf("%d writes, want %d", got, test.applied)
			}
		})
	}
}

// awaitIdle waits until nothing of the intake waits or is in flight.
func awaitIdle(t testing.TB, in *Intake) {
	t.Helper()
	err := in.await(t.Context(), func() bool {
		return in.waiting.Load() == 0 && in.unpublished == 0 && in.publishing == 0 && !in.behind
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFoldsWhatWaits(t *testing.T) {
	db, publisher := newFakeStore(), &fakePublisher{}
	db.entered, db.gate = make(chan struct{}), make(chan struct{})
	b := newBench(t, db, publisher, Config{Lanes: 1})
	in := b.own(t, "eu01")
	id := instance(1)
	db.insert(id)
	offer(t, in, heard(t, id, 1, "first"))
	<-db.entered
	for v := uint64(2); v <= 1000; v++ {
		offer(t, in, heard(t, id, v, fmt.Sprint("v", v)))
	}
	if got := in.Waiting(); got != 1 {
		t.Errorf("%d instances wait, want 1", got)
	}
	db.gate <- struct{}{}
	<-db.entered
	db.gate <- struct{}{}
	awaitIdle(t, in)
	if got := publisher.contents(id); !slices.Equal(got, []string{"first", "v1000"}) {
		t.Errorf("published %v, want the first and the last", got)
	}
	if got := db.batches[1].Entries[0].Change.Updates; got != 999 {
		t.Errorf("the second change carries %d updates, want 999", got)
	}
}

// TestFloodDelaysNoOther fills a lane with one cluster's instances: another
// cluster's update goes with the next batch all the same.
func TestFloodDelaysNoOther(t *testing.T) {
	db, publisher := newFakeStore(), &fakePublisher{}
	db.entered, db.gate = make(chan struct{}), make(chan struct{})
	b := newBench(t, db, publisher, Config{Lanes: 1, BatchLimit: 10})
	flood, quiet := b.own(t, "flood"), b.own(t, "quiet")
	offer(t, flood, heard(t, instance(0), 1, "x"))
	<-db.entered
	for n := 1; n <= 1000; n++ {
		offer(t, flood, heard(t, instance(n), 1, "x"))
	}
	db.insert(instance(5000))
	offer(t, quiet, heard(t, instance(5000), 1, "x"))
	db.gate <- struct{}{}
	<-db.entered
	db.gate <- struct{}{}
	<-db.entered
	if got := db.row(instance(5000)).version; got != 1 {
		t.Errorf("the quiet cluster's update was not in the next batch")
	}
}

func TestPoisonIsIsolated(t *testing.T) {
	db, publisher := newFakeStore(), &fakePublisher{}
	db.entered, db.gate = make(chan struct{}), make(chan struct{})
	db.poison["bad"] = true
	b := newBench(t, db, publisher, Config{Lanes: 1})
	in := b.own(t, "eu01")
	offer(t, in, heard(t, instance(0), 1, "x"))
	<-db.entered
	for n := 1; n <= 100; n++ {
		db.insert(instance(n))
		text := "good"
		if n == 42 {
			text = "bad"
		}
		offer(t, in, heard(t, instance(n), 1, text))
	}
	go func() {
		for range db.entered {
		}
	}()
	close(db.gate)
	awaitIdle(t, in)
	for n := 1; n <= 100; n++ {
		want := fakeRow{1, "good"}
		if n == 42 {
			want = fakeRow{}
		}
		if got := db.row(instance(n)); got != want {
			t.Errorf("row %d = %v, want %v", n, got, want)
		}
	}
	if len(db.quarantine) != 1 || db.quarantine[0].Instance != instance(42) || db.quarantine[0].SQLState != "23514" {
		t.Fatalf("quarantine = %v, want the one bad instance", db.quarantine)
	}

	attempts := db.attempts
	offer(t, in, heard(t, instance(42), 2, "bad"))
	awaitIdle(t, in)
	if db.attempts != attempts {
		t.Errorf("the same poison was tried again")
	}
	offer(t, in, heard(t, instance(42), 3, "good"))
	awaitIdle(t, in)
	if got := db.row(instance(42)); got != (fakeRow{3, "good"}) {
		t.Errorf("row after a good update = %v", got)
	}
	b.stop()
	close(db.entered)
}

// TestRememberedPoison: what an earlier process has put into quarantine is not
// tried again either.
func TestRememberedPoison(t *testing.T) {
	db, publisher := newFakeStore(), &fakePublisher{}
	db.poison["bad"] = true
	b := newBench(t, db, publisher, Config{})
	in, err := b.Open(shard.Whole("eu01"))
	if err != nil {
		t.Fatal(err)
	}
	bad := heard(t, instance(1), 7, "bad")
	db.insert(instance(1))
	in.Remember([]store.Poison{{Instance: bad.ID, Hash: bad.Hash, Version: bad.Version}})
	if err := in.Own(db.raise(in.Shard(), b.Pipeline.Owner())); err != nil {
		t.Fatal(err)
	}
	offer(t, in, bad)
	drain(t, in)
	if db.attempts != 0 {
		t.Errorf("the poison was tried again")
	}
}

// TestOutageLosesNothing lets the store fail, before and after its commits,
// and the publisher in the middle: all rows are right in the end, each is
// published after its last write, in order, and nothing is in quarantine.
func TestOutageLosesNothing(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			bubbletest.Test(t, func(t *testing.T) {
				random := rand.New(rand.NewPCG(seed, 1))
				db, publisher := newFakeStore(), &fakePublisher{}
				fails := random.IntN(30)
				failing := rand.New(rand.NewPCG(seed, 2))
				db.fail = func(attempt int) failure {
					if attempt > fails {
						return succeed
					}
					return failure(failing.IntN(3))
				}
				publishFails := random.IntN(10)
				publisher.fail = func(attempt int) bool { return attempt <= publishFails }
				b := newBench(t, db, publisher, Config{Lanes: 1 + random.IntN(8), BatchLimit: 1 + random.IntN(20)})
				in := b.own(t, "eu01")
				want := make(map[status.InstanceID]fakeRow)
				for n := range 50 {
					db.insert(instance(n))
				}
				for range 500 {
					id := instance(random.IntN(50))
					version := want[id].version + 1
					text := fmt.Sprintf("v%04d", version)
					offer(t, in, heard(t, id, version, text))
					want[id] = fakeRow{version, text}
					if random.IntN(20) == 0 {
						time.Sleep(time.Duration(random.IntN(int(100 * time.Millisecond))))
					}
				}
				drain(t, in)
				for id, row := range want {
					if got := db.row(id); got != row {
						t.Errorf("row of %s = %v, want %v", id, got, row)
					}
					contents := publisher.contents(id)
					if len(contents) == 0 || contents[len(contents)-1] != row.message {
						t.Errorf("published of %s: %v, want it to end with %s", id, contents, row.message)
					}
				}
				if len(db.quarantine) != 0 {
					t.Errorf("an outage put %d updates into quarantine", len(db.quarantine))
				}
				if len(db.outbox) != 0 {
					t.Errorf("%d rows are left in the outbox", len(db.outbox))
				}
				b.stop()
			})
		})
	}
}

// TestNothingDoubledWhenNothingFails is the other half: as long as nothing
// fails, there is one publish for each applied change.
func TestNothingDoubledWhenNothingFails(t *testing.T) {
	db, publisher := newFakeStore(), &fakePublisher{}
	b := newBench(t, db, publisher, Config{BatchLimit: 7})
	in := b.own(t, "eu01")
	for n := range 100 {
		db.insert(instance(n))
	}
	for v := range 20 {
		for n := range 100 {
			offer(t, in, heard(t, instance(n), uint64(v+1), fmt.Sprint(v)))
		}
	}
	drain(t, in)
	if len(publisher.published) != len(db.applied) {
		t.Errorf("%d publishes of %d applied changes", len(publisher.published), len(db.applied))
	}
}

// TestOrphanedOutboxGoesFirst: what a dead owner committed and did not publish
// is published before anything of the successor.
func TestOrphanedOutboxGoesFirst(t *testing.T) {
	db, publisher := newFakeStore(), &fakePublisher{}
	publisher.fail = func(int) bool { return true }
	dead := newBench(t, db, publisher, Config{})
	id := instance(1)
	db.insert(id)
	in := dead.own(t, "eu01")
	offer(t, in, heard(t, id, 1, "orphan"))
	if err := in.await(t.Context(), func() bool { return in.waiting.Load() == 0 }); err != nil {
		t.Fatal(err)
	}
	dead.stop()
	publisher.published = nil
	publisher.fail = nil

	b := newBench(t, db, publisher, Config{})
	successor, err := b.Open(shard.Whole("eu01"))
	if err != nil {
		t.Fatal(err)
	}
	offer(t, successor, heard(t, id, 2, "successor"))
	if err := successor.Own(db.raise(successor.Shard(), b.Pipeline.Owner())); err != nil {
		t.Fatal(err)
	}
	drain(t, successor)
	if got := publisher.contents(id); !slices.Equal(got, []string{"orphan", "successor"}) {
		t.Errorf("published %v, want the orphan first", got)
	}
}

// TestClosedShardPublishesNoMore: a shard that was given up while Redis was
// away leaves its outbox to the successor, untouched.
// TestRemovedMeanwhileIsNotToldAgain: a recovery has read a row that was published
// already, and before it looks, the lane removes it.
func TestRemovedMeanwhileIsNotToldAgain(t *testing.T) {
	bubbletest.Test(t, func(t *testing.T) {
		db, publisher := newFakeStore(), &fakePublisher{}
		b := newBench(t, db, publisher, Config{})
		in := b.own(t, "eu01")
		synctest.Wait()
		db.insert(instance(1))
		offer(t, in, heard(t, instance(1), 1, "a"))
		synctest.Wait() // published, and not removed yet
		db.mu.Lock()
		left := len(db.outbox)
		db.read = func() {
			err := in.await(t.Context(), func() bool { return len(in.published) == 0 })
			if err != nil {
				t.Errorf("wait for the removal: %v", err)
			}
		}
		db.mu.Unlock()
		if left != 1 {
			t.Fatalf("%d rows in the outbox", left)
		}
		in.fallBehind()
		drain(t, in)
		if got := publisher.contents(instance(1)); !slices.Equal(got, []string{"a"}) {
			t.Errorf("published %q", got)
		}
		b.stop()
	})
}

// TestRecoveredMeanwhileIsNotToldAgain: a recovery finds a row, publishes it and
// ends before the lane has heard that it is committed.
func TestRecoveredMeanwhileIsNotToldAgain(t *testing.T) {
	db, publisher := newFakeStore(), &fakePublisher{}
	b := newBench(t, db, publisher, Config{})
	in := b.own(t, "eu01")
	recovered := func() {
		if err := in.await(t.Context(), func() bool { return !in.behind }); err != nil {
			t.Errorf("wait for the recovery: %v", err)
		}
	}
	recovered()
	db.insert(instance(1), instance(2))
	db.mu.Lock()
	db.committed = func() {
		in.fallBehind()
		recovered()
	}
	db.mu.Unlock()
	offer(t, in, heard(t, instance(1), 1, "a"))
	awaitIdle(t, in)
	recovered()
	db.mu.Lock()
	db.committed = nil
	db.mu.Unlock()
	offer(t, in, heard(t, instance(2), 1, "b"))
	drain(t, in)
	for n, want := range map[int]string{1: "a", 2: "b"} {
		if got := publisher.contents(instance(n)); !slices.Equal(got, []string{want}) {
			t.Errorf("of instance %d was published %q", n, got)
		}
	}
	b.stop()
}

func TestClosedShardPublishesNoMore(t *testing.T) {
	bubbletest.Test(t, func(t *testing.T) {
		db, publisher := newFakeStore(), &fakePublisher{}
		publisher.fail = func(int) bool { return true }
		b := newBench(t, db, publisher, Config{})
		in := b.own(t, "eu01")
		db.insert(instance(1))
		offer(t, in, heard(t, instance(1), 1, "left behind"))
		if err := in.await(t.Context(), func() bool { return in.waiting.Load() == 0 }); err != nil {
			t.Fatal(err)
		}
		in.Close()
		publisher.mu.Lock()
		publisher.fail, publisher.published = nil, nil
		publisher.mu.Unlock()
		time.Sleep(time.Minute)
		if got := publisher.contents(instance(1)); len(got) != 0 {
			t.Errorf("published %v after Close", got)
		}
		b.stop()
		if len(db.outbox) != 1 {
			t.Errorf("%d rows in the outbox, want the one for the successor", len(db.outbox))
		}
	})
}

// TestPhantomPublishesNoMore: a replica is held between a commit and its publish,
// and replaced meanwhile. What it has to tell the successor has told, with
// something newer after it.
func TestPhantomPublishesNoMore(t *testing.T) {
	bubbletest.Test(t, func(t *testing.T) {
		db, publisher := newFakeStore(), &fakePublisher{}
		b := newBench(t, db, publisher, Config{Lanes: 1})
		in := b.own(t, "eu01")
		db.insert(instance(1), instance(2))
		// The first publish hangs, and with it what is committed after it.
		hangs := make(chan struct{})
		publisher.fail = func(attempt int) bool {
			if attempt == 1 {
				<-hangs
			}
			return false
		}
		offer(t, in, heard(t, instance(1), 1, "under way"))
		synctest.Wait()
		offer(t, in, heard(t, instance(2), 1, "building"))
		synctest.Wait()
		db.raise(in.Shard(), "the successor")
		time.Sleep(publish.Trust + time.Millisecond)
		close(hangs)
		<-in.Fenced()
		b.stop()
		if got := publisher.contents(instance(2)); len(got) != 0 {
			t.Errorf("published %v though it was replaced", got)
		}
	})
}

// TestPhantomOfACommitPublishesNoMore: it is held while the answer to its commit is
// on the way.
func TestPhantomOfACommitPublishesNoMore(t *testing.T) {
	bubbletest.Test(t, func(t *testing.T) {
		db, publisher := newFakeStore(), &fakePublisher{}
		b := newBench(t, db, publisher, Config{})
		in := b.own(t, "eu01")
		db.insert(instance(1))
		db.committed = func() {
			db.raise(in.Shard(), "the successor")
			time.Sleep(publish.Trust + time.Millisecond)
		}
		offer(t, in, heard(t, instance(1), 1, "building"))
		<-in.Fenced()
		b.stop()
		if got := publisher.contents(instance(1)); len(got) != 0 {
			t.Errorf("published %v though it was replaced", got)
		}
	})
}

// TestSlowCommitIsPublishedAtOnce: who is only slow asks whether it holds the fence,
// and publishes what it has without the outbox.
func TestSlowCommitIsPublishedAtOnce(t *testing.T) {
	bubbletest.Test(t, func(t *testing.T) {
		db, publisher := newFakeStore(), &fakePublisher{}
		b := newBench(t, db, publisher, Config{})
		in := b.own(t, "eu01")
		synctest.Wait()
		read := recoveries(db)
		db.insert(instance(1))
		db.committed = func() { time.Sleep(10 * publish.Trust) }
		offer(t, in, heard(t, instance(1), 1, "building"))
		drain(t, in)
		b.stop()
		if got := publisher.contents(instance(1)); !slices.Equal(got, []string{"building"}) || read.Load() > 0 {
			t.Errorf("published %q, and read the outbox %d times", got, read.Load())
		}
	})
}

// TestRefusedShardLosesItsOwnOnly raises the fence of one of two shards.
func TestRefusedShardLosesItsOwnOnly(t *testing.T) {
	db, publisher := newFakeStore(), &fakePublisher{}
	db.entered, db.gate = make(chan struct{}), make(chan struct{})
	b := newBench(t, db, publisher, Config{Lanes: 1})
	lost, kept := b.own(t, "lost"), b.own(t, "kept")
	db.insert(instance(1), instance(2), instance(3))
	offer(t, kept, heard(t, instance(3), 1, "block"))
	<-db.entered
	offer(t, lost, heard(t, instance(1), 1, "x"))
	offer(t, kept, heard(t, instance(2), 1, "x"))
	db.raise(lost.Shard(), "another")
	go func() {
		for range db.entered {
		}
	}()
	close(db.gate)
	<-lost.Fenced()
	awaitIdle(t, kept)
	if got := db.row(instance(1)).version; got != 0 {
		t.Errorf("the fenced shard wrote version %d", got)
	}
	if got := db.row(instance(2)).version; got != 1 {
		t.Errorf("its batch mate was not written")
	}
	if err := lost.Offer(heard(t, instance(1), 2, "y")); !errors.Is(err, ErrClosed) {
		t.Errorf("Offer to a fenced shard: %v, want ErrClosed", err)
	}
	if n := lost.Waiting(); n != 0 {
		t.Errorf("%d instances of the fenced shard wait", n)
	}
	drain(t, lost)
	b.stop()
	close(db.entered)
}

func TestUnknownIsAskedForAgainAfterAWhile(t *testing.T) {
	bubbletest.Test(t, func(t *testing.T) {
		db, publisher := newFakeStore(), &fakePublisher{}
		b := newBench(t, db, publisher, Config{})
		in := b.own(t, "eu01")
		offer(t, in, heard(t, instance(1), 1, "a"))
		awaitIdle(t, in)
		db.insert(instance(1))
		offer(t, in, heard(t, instance(1), 2, "b"))
		awaitIdle(t, in)
		if db.attempts != 1 {
			t.Errorf("%d queries within the time of ignorance, want 1", db.attempts)
		}
		time.Sleep(ignorance)
		offer(t, in, heard(t, instance(1), 2, "b"))
		awaitIdle(t, in)
		if got := db.row(instance(1)); got != (fakeRow{2, "b"}) {
			t.Errorf("row = %v, want the update heard after the row was created", got)
		}
		b.stop()
	})
}

func TestFloodEndsTheStream(t *testing.T) {
	db, publisher := newFakeStore(), &fakePublisher{}
	db.entered, db.gate = make(chan struct{}), make(chan struct{})
	b := newBench(t, db, publisher, Config{MaxWaiting: 100})
	in := b.own(t, "eu01")
	var err error
	taken := 0
	for n := 0; err == nil; n++ {
		if err = in.Offer(heard(t, instance(n), 1, "x")); err == nil {
			taken++
		}
	}
	if !errors.Is(err, upstream.ErrFull) || taken != 100 {
		t.Fatalf("%d instances taken, then %v; want 100, then ErrFull", taken, err)
	}
	// One that waits already folds, whatever the limit.
	offer(t, in, heard(t, instance(0), 2, "y"))
	go func() {
		for range db.entered {
		}
	}()
	close(db.gate)
	if err := in.Drained(t.Context()); err != nil {
		t.Fatal(err)
	}
	offer(t, in, heard(t, instance(1000), 1, "x"))
	drain(t, in)
	b.stop()
	close(db.entered)
}

// TestSnapshotLeavesRoom: however large a snapshot is, only a part of it waits,
// and the stream is heard meanwhile.
func TestSnapshotLeavesRoom(t *testing.T) {
	db, publisher := newFakeStore(), &fakePublisher{}
	db.entered, db.gate = make(chan struct{}), make(chan struct{})
	b := newBench(t, db, publisher, Config{Lanes: 2, BatchLimit: 10, MaxWaiting: 1000})
	in := b.own(t, "eu01")
	entry := func(n int) status.Heard {
		h := heard(t, instance(n), 1, "x")
		h.Snapshot = true
		return h
	}
	taken, err := 0, error(nil)
	for ; err == nil; taken++ {
		err = in.Offer(entry(taken))
	}
	if taken--; !errors.Is(err, upstream.ErrFull) || taken != 40 {
		t.Fatalf("%d entries taken, then %v; want two batches for each of two lanes, then ErrFull", taken, err)
	}
	for n := range 100 {
		offer(t, in, heard(t, instance(1000+n), 1, "y"))
	}
	none, cancel := context.WithCancel(t.Context())
	cancel()
	if err := in.Room(none); !errors.Is(err, context.Canceled) {
		t.Errorf("there is room while nothing is written: %v", err)
	}
	go func() {
		for range db.entered {
		}
	}()
	close(db.gate)
	for n := taken; n < 200; n++ {
		for err := in.Offer(entry(n)); err != nil; err = in.Offer(entry(n)) {
			if !errors.Is(err, upstream.ErrFull) || in.Room(t.Context()) != nil {
				t.Fatal(err)
			}
		}
	}
	drain(t, in)
	if in.Partial() {
		t.Error("an entry was left out")
	}
	if waiting, entries := b.Waiting(), b.entries.Load(); waiting != 0 || entries != 0 {
		t.Errorf("%d wait in the end, %d of snapshots", waiting, entries)
	}
	b.stop()
	close(db.entered)
}

// TestPreparedShardHearsALargeSnapshotToItsEnd: nothing makes room before it is
// owned, so what finds none is left out and has to be asked for again.
func TestPreparedShardHearsALargeSnapshotToItsEnd(t *testing.T) {
	db, publisher := newFakeStore(), &fakePublisher{}
	b := newBench(t, db, publisher, Config{Lanes: 2, BatchLimit: 10, MaxWaiting: 1000})
	in, err := b.Open(shard.Whole("eu01"))
	if err != nil {
		t.Fatal(err)
	}
	for n := range 500 {
		h := heard(t, instance(n), 1, "x")
		h.Snapshot = true
		offer(t, in, h)
	}
	if in.Waiting() != 40 || !in.Partial() {
		t.Errorf("%d of 500 entries wait, partial %t; want 40, true", in.Waiting(), in.Partial())
	}
	if err := in.Own(db.raise(in.Shard(), b.Pipeline.Owner())); err != nil {
		t.Fatal(err)
	}
	drain(t, in)
	b.stop()
}

// TestRecall: what the rows are known to have is stale before it is decoded, and
// what is newer is written as the first that was heard.
func TestRecall(t *testing.T) {
	db, publisher := newFakeStore(), &fakePublisher{}
	b := newBench(t, db, publisher, Config{Lanes: 2})
	in, err := b.Open(shard.Whole("eu01"))
	if err != nil {
		t.Fatal(err)
	}
	const rows = 20
	var versions []store.InstanceVersion
	for n := range rows {
		db.rows[instance(n)] = &fakeRow{7, "as stored"}
		versions = append(versions, store.InstanceVersion{ID: instance(n), Version: 7})
	}
	in.Seamless()
	offer(t, in, heard(t, instance(2), 8, "heard before"))
	var room int
	err = in.Recall(true, func(limit int) ([]store.InstanceVersion, error) {
		room = limit
		in.Forget([]status.InstanceID{instance(0)})
		return versions, nil
	})
	if err != nil || room < rows {
		t.Fatalf("recall: room for %d, %v", room, err)
	}
	if err := in.Own(db.raise(in.Shard(), b.Pipeline.Owner())); err != nil {
		t.Fatal(err)
	}
	for n := range rows {
		version := uint64(7)
		if n == 1 {
			version = 8
		}
		h := heard(t, instance(n), version, "as a snapshot says")
		h.Snapshot = true
		offer(t, in, h)
	}
	drain(t, in)
	want := map[status.InstanceID]bool{
		instance(0): true, // a sweep may have changed it since it was read
		instance(1): true,
		instance(2): true,
	}
	if got := db.firsts(); !maps.Equal(got, want) {
		t.Errorf("written, and whether as the first: %v, want %v", got, want)
	}
	if got := db.row(instance(1)); got != (fakeRow{8, "as a snapshot says"}) {
		t.Errorf("the row that has changed is %v", got)
	}
	if got := db.row(instance(2)).message; got != "heard before" {
		t.Errorf("the row of what was heard before is %q", got)
	}
	b.stop()
}

// TestRecallBeforeTheFence: while a shard is prepared, the owner before goes on
// writing. What the rows have already does not wait; what is newer is written as the
// first that was heard, also if it is what was heard before: the row may have been
// something else in between.
func TestRecallBeforeTheFence(t *testing.T) {
	db, publisher := newFakeStore(), &fakePublisher{}
	b := newBench(t, db, publisher, Config{})
	in, err := b.Open(shard.Whole("eu01"))
	if err != nil {
		t.Fatal(err)
	}
	const same, changed, back, repeated, swept = 1, 2, 3, 4, 5
	var versions []store.InstanceVersion
	for n := same; n <= swept; n++ {
		db.rows[instance(n)] = &fakeRow{7, "a"}
		versions = append(versions, store.InstanceVersion{ID: instance(n), Version: 7})
	}
	if err := in.Recall(false, func(int) ([]store.InstanceVersion, error) { return versions, nil }); err != nil {
		t.Fatal(err)
	}
	in.Forget([]status.InstanceID{instance(swept)})
	in.Subscribed()
	for n := same; n <= swept; n++ {
		h := heard(t, instance(n), 7, "a")
		h.Snapshot = true
		offer(t, in, h)
	}
	if n := in.Waiting(); n != 1 {
		t.Errorf("%d instances wait, want the one that a sweep has stopped", n)
	}
	// The owner before, and a gap in what is heard here.
	db.rows[instance(back)] = &fakeRow{8, "b"}
	offer(t, in, heard(t, instance(changed), 8, "b"))
	offer(t, in, heard(t, instance(back), 9, "a"))
	offer(t, in, heard(t, instance(repeated), 8, "a"))
	in.Seamless()
	if err := in.Own(db.raise(in.Shard(), b.Pipeline.Owner())); err != nil {
		t.Fatal(err)
	}
	drain(t, in)
	want := map[status.InstanceID]bool{
		instance(changed): true, instance(back): true, instance(repeated): true, // which the database compares
		instance(swept): true,
	}
	if got := db.firsts(); !maps.Equal(got, want) {
		t.Errorf("written, and whether as the first: %v, want %v", got, want)
	}
	for n, want := range map[int]fakeRow{same: {7, "a"}, changed: {8, "b"}, back: {9, "a"}} {
		if got := db.row(instance(n)); got != want {
			t.Errorf("row %d is %v, want %v", n, got, want)
		}
	}
	b.stop()
}

// TestShed: what a snapshot has brought to a shard that is only prepared, and the
// rows have already, does not wait for the fence; all else does.
func TestShed(t *testing.T) {
	db, publisher := newFakeStore(), &fakePublisher{}
	b := newBench(t, db, publisher, Config{})
	in, err := b.Open(shard.Whole("eu01"))
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Shed(nil); err != nil {
		t.Errorf("of nothing: %v", err) // and nobody is asked
	}
	in.Subscribed()
	const same, ahead, behind, swept, unread, unlisted, folded, newer = 1, 2, 3, 4, 5, 6, 7, 8
	for n := same; n <= newer; n++ {
		h := heard(t, instance(n), 7, "a")
		h.Snapshot = n != unlisted
		offer(t, in, h)
		db.rows[instance(n)] = &fakeRow{7, "a"}
	}
	db.rows[instance(ahead)] = &fakeRow{8, "b"}
	db.rows[instance(behind)] = &fakeRow{6, "z"}
	db.rows[instance(folded)] = &fakeRow{8, "b"}
	offer(t, in, heard(t, instance(folded), 8, "b"))
	offer(t, in, heard(t, instance(newer), 8, "b"))

	var asked []status.InstanceID
	read := func(ids []status.InstanceID) (versions []store.InstanceVersion, err error) {
		asked = ids
		for _, id := range ids {
			if id != instance(unread) {
				versions = append(versions, store.InstanceVersion{ID: id, Version: db.row(id).version})
			}
		}
		in.Forget([]status.InstanceID{instance(swept)}) // by a sweep just then
		return versions, nil
	}
	if err := in.Shed(func([]status.InstanceID) ([]store.InstanceVersion, error) { return nil, errAway }); !errors.Is(err, errAway) {
		t.Errorf("the rows cannot be read: %v", err)
	}
	if n := in.Waiting(); n != newer {
		t.Errorf("%d instances wait after that, want all %d", n, newer)
	}
	if err := in.Shed(read); err != nil {
		t.Fatal(err)
	}
	if want := newer - 1; len(asked) != want || slices.Contains(asked, instance(unlisted)) {
		t.Errorf("asked for %v, want the %d that the snapshot has brought", asked, want)
	}
	if n := in.Waiting(); n != 5 {
		t.Errorf("%d instances wait, want 5", n)
	}
	// Repeats of what the rows have, and what is new.
	offer(t, in, heard(t, instance(same), 7, "a"))
	offer(t, in, heard(t, instance(ahead), 8, "b"))
	offer(t, in, heard(t, instance(folded), 9, "c"))
	in.Seamless()
	if err := in.Own(db.raise(in.Shard(), b.Pipeline.Owner())); err != nil {
		t.Fatal(err)
	}
	if err := in.Shed(read); err != nil {
		t.Errorf("of what is owned: %v", err)
	}
	drain(t, in)
	want := map[status.InstanceID]bool{
		instance(behind): true, instance(swept): true, instance(unread): true, instance(unlisted): true,
		instance(newer): true, instance(folded): true,
	}
	if got := db.firsts(); !maps.Equal(got, want) {
		t.Errorf("written, and whether as the first: %v, want %v", got, want)
	}
	for n, want := range map[int]fakeRow{same: {7, "a"}, ahead: {8, "b"}, behind: {7, "a"}, newer: {8, "b"}, folded: {9, "c"}} {
		if got := db.row(instance(n)); got != want {
			t.Errorf("row %d is %v, want %v", n, got, want)
		}
	}
	b.stop()
}

// TestCompleteALargeSnapshot: of a snapshot for which there is no room in a prepared
// shard, what the rows lack is there after another.
func TestCompleteALargeSnapshot(t *testing.T) {
	db, publisher := newFakeStore(), &fakePublisher{}
	b := newBench(t, db, publisher, Config{Lanes: 2, BatchLimit: 10, MaxWaiting: 1000})
	in, err := b.Open(shard.Whole("eu01"))
	if err != nil {
		t.Fatal(err)
	}
	const all, lacking = 500, 30
	var versions []store.InstanceVersion
	for n := range all {
		version := uint64(7)
		if n >= all-lacking {
			version = 6
		}
		db.rows[instance(n)] = &fakeRow{version, "a"}
		versions = append(versions, store.InstanceVersion{ID: instance(n), Version: version})
	}
	snapshot := func() error {
		for n := range all {
			h := heard(t, instance(n), 7, "b")
			h.Snapshot = true
			offer(t, in, h)
		}
		return nil
	}
	shed := func() {
		err := in.Shed(func(ids []status.InstanceID) (of []store.InstanceVersion, err error) {
			for _, id := range ids {
				of = append(of, store.InstanceVersion{ID: id, Version: db.row(id).version})
			}
			return of, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := snapshot(); err != nil {
		t.Fatal(err)
	}
	shed()
	if in.Waiting() != 0 || !in.Partial() {
		t.Errorf("%d wait, partial %t; want none of the first 40, true", in.Waiting(), in.Partial())
	}
	if err := in.Recall(false, func(int) ([]store.InstanceVersion, error) { return versions, nil }); err != nil {
		t.Fatal(err)
	}
	if err := in.Complete(func() error { return errAway }); !errors.Is(err, errAway) || !in.Partial() {
		t.Errorf("no snapshot could be taken: %v, partial %t", err, in.Partial())
	}
	if err := in.Complete(snapshot); err != nil || in.Partial() {
		t.Errorf("after another snapshot: %v, partial %t", err, in.Partial())
	}
	shed()
	if n := in.Waiting(); n != lacking {
		t.Errorf("%d wait, want the %d that the rows lack", n, lacking)
	}
	if err := in.Own(db.raise(in.Shard(), b.Pipeline.Owner())); err != nil {
		t.Fatal(err)
	}
	drain(t, in)
	for n := all - lacking; n < all; n++ {
		if got := db.row(instance(n)); got != (fakeRow{7, "b"}) {
			t.Errorf("row %d is %v", n, got)
		}
	}
	b.stop()
}

// TestRepeatOfWhatTheRowWasAhead: at a hand-over a row may be ahead of what its new
// owner has heard. Once that has heard the same, a repeat is one.
func TestRepeatOfWhatTheRowWasAhead(t *testing.T) {
	db, publisher := newFakeStore(), &fakePublisher{}
	b := newBench(t, db, publisher, Config{})
	in := b.own(t, "eu01")
	db.rows[instance(1)] = &fakeRow{10, "stopped"}
	offer(t, in, heard(t, instance(1), 8, "stopping"))
	offer(t, in, heard(t, instance(1), 9, "stopping")) // a repeat, which the row is past
	awaitIdle(t, in)
	offer(t, in, heard(t, instance(1), 10, "stopped"))
	offer(t, in, heard(t, instance(1), 11, "stopped"))
	offer(t, in, heard(t, instance(1), 12, "stopped"))
	drain(t, in)
	if got := publisher.contents(instance(1)); len(got) != 0 {
		t.Errorf("told again: %q", got)
	}
	b.stop()
}

// TestChangeBackToWhatTheRowIsPast: an update that was taken for a repeat of one
// that turned out to be stale is written when it is heard again.
func TestChangeBackToWhatTheRowIsPast(t *testing.T) {
	db, publisher := newFakeStore(), &fakePublisher{}
	db.gate, db.entered = make(chan struct{}), make(chan struct{})
	b := newBench(t, db, publisher, Config{})
	in := b.own(t, "eu01")
	db.rows[instance(1)] = &fakeRow{10, "b"}
	offer(t, in, heard(t, instance(1), 9, "a"))
	<-db.entered
	offer(t, in, heard(t, instance(1), 12, "a")) // back, after a "b" that was missed
	close(db.gate)
	go func() {
		for range db.entered {
		}
	}()
	awaitIdle(t, in)
	offer(t, in, heard(t, instance(1), 12, "a"))
	drain(t, in)
	if got := db.row(instance(1)); got != (fakeRow{12, "a"}) {
		t.Errorf("the row is %v", got)
	}
	b.stop()
	close(db.entered)
}

func TestRecallFails(t *testing.T) {
	db, publisher := newFakeStore(), &fakePublisher{}
	b := newBench(t, db, publisher, Config{})
	in, err := b.Open(shard.Whole("eu01"))
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Recall(true, func(int) ([]store.InstanceVersion, error) { return nil, errAway }); !errors.Is(err, errAway) {
		t.Errorf("recall: %v", err)
	}
	b.stop()
}

// TestSameOutcome: lanes, batch limits and restarts do not show in the rows.
func TestSameOutcome(t *testing.T) {
	type script struct {
		id      status.InstanceID
		version uint64
		text    string
	}
	random := rand.New(rand.NewPCG(7, 7))
	var says []script
	versions := make(map[status.InstanceID]uint64)
	for range 3000 {
		id := instance(random.IntN(100))
		version := versions[id] + uint64(random.IntN(3)) // repeats and gaps
		says = append(says, script{id, version, fmt.Sprint("m", version)})
		versions[id] = version
		if random.IntN(10) == 0 && version > 3 {
			says = append(says, script{id, version - 2, fmt.Sprint("m", version-2)}) // late
		}
	}
	var want map[status.InstanceID]fakeRow
	for _, lanes := range []int{1, 2, 8} {
		for _, limit := range []int{1, 10, 1000} {
			for _, restarts := range []int{0, 3} {
				db, publisher := newFakeStore(), &fakePublisher{}
				for id := range versions {
					db.insert(id)
				}
				for part := range slices.Chunk(says, len(says)/(restarts+1)+1) {
					b := newBench(t, db, publisher, Config{Lanes: lanes, BatchLimit: limit})
					in := b.own(t, "eu01")
					for _, say := range part {
						offer(t, in, heard(t, say.id, say.version, say.text))
					}
					drain(t, in)
					b.stop()
				}
				got := make(map[status.InstanceID]fakeRow)
				for id, row := range db.rows {
					got[id] = *row
				}
				if want == nil {
					want = got
				}
				for id := range want {
					if got[id] != want[id] {
						t.Fatalf("lanes=%d limit=%d restarts=%d: row of %s = %v, elsewhere %v", lanes, limit, restarts, id, got[id], want[id])
					}
				}
			}
		}
	}
}

// TestSweptInstanceRevives: after Forget the same status is written again.
func TestSweptInstanceRevives(t *testing.T) {
	db, publisher := newFakeStore(), &fakePublisher{}
	b := newBench(t, db, publisher, Config{})
	in := b.own(t, "eu01")
	id := instance(1)
	db.insert(id)
	offer(t, in, heard(t, id, 5, "running"))
	awaitIdle(t, in)
	db.mu.Lock()
	db.rows[id] = &fakeRow{4, "swept"}
	db.mu.Unlock()
	offer(t, in, heard(t, id, 5, "running"))
	awaitIdle(t, in)
	if got := db.row(id).message; got != "swept" {
		t.Fatalf("a repeat was written: %q", got)
	}
	in.Forget([]status.InstanceID{id})
	offer(t, in, heard(t, id, 5, "running"))
	awaitIdle(t, in)
	if got := db.row(id).message; got != "running" {
		t.Errorf("the row stays %q after the sweep was forgotten", got)
	}
}
