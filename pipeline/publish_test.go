package pipeline

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trestle-bridge/trestle/internal/bubbletest"
	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/internal/publish"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/shard"
)

// recoveries counts how often an outbox is read from now on.
func recoveries(db *fakeStore) *atomic.Int64 {
	n := new(atomic.Int64)
	db.mu.Lock()
	defer db.mu.Unlock()
	db.read = func() { n.Add(1) }
	return n
}

// TestManyShardsDoNotFallBehind: a batch has a row of the outbox for each shard,
// and what several batches have to tell waits for a publish that is under way.
func TestManyShardsDoNotFallBehind(t *testing.T) {
	bubbletest.Test(t, func(t *testing.T) {
		const shards, versions = 300, 3
		db, publisher := newFakeStore(), &fakePublisher{takes: 100 * time.Millisecond}
		b := newBench(t, db, publisher, Config{})
		intakes := make([]*Intake, shards)
		for n := range intakes {
			db.insert(instance(n))
			intakes[n] = b.own(t, fmt.Sprintf("eu%03d", n))
		}
		synctest.Wait()
		read := recoveries(db)
		for v := range versions {
			for n, in := range intakes {
				offer(t, in, heard(t, instance(n), uint64(1+v), fmt.Sprint("v", v)))
			}
			time.Sleep(10 * time.Millisecond) // written, and not published
		}
		for n, in := range intakes {
			drain(t, in)
			if got := publisher.contents(instance(n)); !slices.Equal(got, []string{"v0", "v1", "v2"}) {
				t.Fatalf("of instance %d was published %q", n, got)
			}
		}
		if n := read.Load(); n > 0 {
			t.Errorf("an outbox was read %d times, and none was behind", n)
		}
		b.stop()
	})
}

// TestTooMuchToTellStaysInTheOutbox: what waits for a publish is bounded, and what
// is beyond it is told from the outbox, once.
func TestTooMuchToTellStaysInTheOutbox(t *testing.T) {
	bubbletest.Test(t, func(t *testing.T) {
		const instances = maxPending + 3000
		db, publisher := newFakeStore(), &fakePublisher{takes: 100 * time.Millisecond}
		b := newBench(t, db, publisher, Config{})
		in := b.own(t, "eu01")
		synctest.Wait()
		read := recoveries(db)
		for n := range instances {
			db.insert(instance(n))
			offer(t, in, heard(t, instance(n), 1, "a"))
		}
		drain(t, in)
		if read.Load() == 0 {
			t.Error("all of it waited in memory")
		}
		publisher.mu.Lock()
		defer publisher.mu.Unlock()
		told := make(map[string]int)
		for _, m := range publisher.published {
			told[m.InstanceID]++
		}
		if len(told) != instances || len(publisher.published) != instances {
			t.Errorf("%d messages of %d instances, want one of each of %d", len(publisher.published), len(told), instances)
		}
		b.stop()
	})
}

// TestVerySlowDatabaseIsReadInSmallerPages: a page that cannot be read within an
// attempt's time is made smaller until it can.
func TestVerySlowDatabaseIsReadInSmallerPages(t *testing.T) {
	bubbletest.Test(t, func(t *testing.T) {
		const attempt = 20 * time.Second
		db, publisher := newFakeStore(), &fakePublisher{}
		db.perRow = 2 * attempt / recoveryRows
		for n := range recoveryRows {
			db.outbox = append(db.outbox, formerRow(n))
		}
		b := newBench(t, db, publisher, Config{AttemptTimeout: attempt})
		ctx, cancel := context.WithTimeout(t.Context(), 10*attempt)
		defer cancel()
		if err := b.own(t, "eu01").Drain(ctx); err != nil {
			t.Error(err)
		}
		if n := len(publisher.published); n != recoveryRows {
			t.Errorf("%d messages were published, want %d", n, recoveryRows)
		}
		b.stop()
	})
}

// formerRow is a row of the outbox that a former owner has left.
func formerRow(n int) store.OutboxRow {
	return store.OutboxRow{
		Ref:    store.OutboxRef{Shard: shard.Whole("eu01"), Owner: "a former owner", Seq: int64(n)},
		Events: event.Set{Instances: []event.Instance{{InstanceID: instance(n).String()}}},
	}
}

// TestSlowDatabaseIsReadInSmallerPages: what is read of an outbox at once is never so
// much that it is too old to be published when it has been read.
func TestSlowDatabaseIsReadInSmallerPages(t *testing.T) {
	bubbletest.Test(t, func(t *testing.T) {
		const rows = 3 * recoveryRows
		db, publisher := newFakeStore(), &fakePublisher{}
		db.perRow = 2 * publish.Trust / recoveryRows
		for n := range rows {
			db.outbox = append(db.outbox, formerRow(n))
		}
		b := newBench(t, db, publisher, Config{})
		began := time.Now()
		drain(t, b.own(t, "eu01"))
		if n := len(publisher.published); n != rows {
			t.Errorf("%d messages were published, want %d", n, rows)
		}
		if took, least := time.Since(began), rows*db.perRow; took > least+4*publish.Trust {
			t.Errorf("it took %v, and to read all of it takes %v", took, least)
		}
		b.stop()
	})
}
