package pipeline

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/trestle-bridge/trestle/internal/bubbletest"
	"github.com/trestle-bridge/trestle/shard"
)

// withOneUnderWay gives a shard of a pipeline of two lanes, and its store, which
// holds a small batch of one of them.
func withOneUnderWay(t *testing.T) (*fakeStore, *Intake) {
	db := newFakeStore()
	db.entered, db.gate = make(chan struct{}), make(chan struct{})
	in := newBench(t, db, &fakePublisher{}, Config{Lanes: 2}).own(t, "eu01")
	offer(t, in, heard(t, instance(0), 1, "first"))
	<-db.entered
	return db, in
}

// TestSmallBatchesTakeTurns: while a small batch is under way, what is heard goes
// into one batch that begins when that one ends.
func TestSmallBatchesTakeTurns(t *testing.T) {
	bubbletest.Test(t, func(t *testing.T) {
		db, in := withOneUnderWay(t)
		for n := range 3 {
			offer(t, in, heard(t, instance(1+n), 1, "x"))
		}
		synctest.Wait()
		select {
		case <-db.entered:
			t.Fatal("a second small batch began beside the first")
		default:
		}
		db.gate <- struct{}{}
		<-db.entered
		db.gate <- struct{}{}
		synctest.Wait()
		if got := len(db.batches); got != 2 || len(db.batches[1].Entries) != 3 {
			t.Errorf("%d batches, want two, the second with all of what was heard during the first", got)
		}
	})
}

// TestTurnIsNotWaitedForInVain: a small batch that takes long holds up neither
// little, after a moment, nor much, not even that long.
func TestTurnIsNotWaitedForInVain(t *testing.T) {
	for name, test := range map[string]struct {
		count int
		after time.Duration
	}{
		"little": {1, smallTurn},
		"much":   {smallBatch, 0},
	} {
		t.Run(name, func(t *testing.T) {
			bubbletest.Test(t, func(t *testing.T) {
				db, in := withOneUnderWay(t)
				begin := time.Now()
				for n := range test.count {
					offer(t, in, heard(t, instance(1+n), 1, "x"))
				}
				<-db.entered
				if took := time.Since(begin); took != test.after {
					t.Errorf("the second batch began after %v, want %v", took, test.after)
				}
			})
		})
	}
}

// TestShareOfLargeBatches: beside as many large batches as are allotted none begins,
// until more are allotted, one ends, or one takes so long that it may be waiting for
// a row.
func TestShareOfLargeBatches(t *testing.T) {
	for name, test := range map[string]struct {
		then  func(*bench)
		after time.Duration
	}{
		"more allotted": {func(b *bench) { b.Allot(2) }, 0},
		"one ended":     {func(b *bench) { b.store.gate <- struct{}{} }, 0},
		"very long":     {func(*bench) {}, longTurn},
	} {
		t.Run(name, func(t *testing.T) {
			bubbletest.Test(t, func(t *testing.T) {
				db := newFakeStore()
				db.entered, db.gate = make(chan struct{}), make(chan struct{})
				b := newBench(t, db, &fakePublisher{}, Config{Lanes: 2, BatchLimit: smallBatch})
				b.Allot(0) // one is the least
				in, err := b.Open(shard.Whole("eu01"))
				if err != nil {
					t.Fatal(err)
				}
				for n := range 2 * smallBatch {
					offer(t, in, heard(t, instance(n), 1, "x"))
				}
				in.Subscribed()
				if err := in.Own(db.raise(in.Shard(), b.Owner())); err != nil {
					t.Fatal(err)
				}
				<-db.entered
				begin := time.Now()
				synctest.Wait()
				select {
				case <-db.entered:
					t.Fatal("a second large batch began beside the one that is allotted")
				default:
				}
				test.then(b)
				<-db.entered
				if took := time.Since(begin); took != test.after {
					t.Errorf("the second batch began after %v, want %v", took, test.after)
				}
			})
		})
	}
}

// TestShareLeavesSmallBatchesAlone: a small batch that is under way does not count
// among the large ones.
func TestShareLeavesSmallBatchesAlone(t *testing.T) {
	bubbletest.Test(t, func(t *testing.T) {
		db, in := withOneUnderWay(t)
		in.p.Allot(1)
		for n := range smallBatch {
			offer(t, in, heard(t, instance(1+n), 1, "x"))
		}
		begin := time.Now()
		<-db.entered
		if took := time.Since(begin); took != 0 {
			t.Errorf("a large batch began beside a small one after %v, want at once", took)
		}
	})
}
