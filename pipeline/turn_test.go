package pipeline

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/trestle-bridge/trestle/internal/bubbletest"
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
