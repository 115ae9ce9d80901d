package pipeline

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trestle-bridge/trestle/internal/bubbletest"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/shard"
)

// forgetful is a store whose deletes from the outbox fail some times, before
// or after they were done.
type forgetful struct {
	*fakeStore
	// how says how each of the deletes to come fails; guarded by mu of the
	// store.
	how []failure
}

func (s *forgetful) DeleteOutbox(ctx context.Context, refs []store.OutboxRef) error {
	s.mu.Lock()
	how := succeed
	if len(s.how) > 0 {
		how, s.how = s.how[0], s.how[1:]
	}
	s.mu.Unlock()
	if how == failBefore {
		return errAway
	}
	if err := s.fakeStore.DeleteOutbox(ctx, refs); err != nil || how == succeed {
		return err
	}
	return errAway
}

func (s *forgetful) left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.outbox)
}

// ownForgetful gives an intake of a pipeline that has nothing else.
func ownForgetful(t *testing.T, db *forgetful, publisher Publisher) (in *Intake, stop func()) {
	t.Helper()
	p, err := New(Config{Owner: "replica/1", Lanes: 2, Store: db, Publisher: publisher,
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	if in, err = p.Open(shard.Whole("eu01")); err != nil {
		t.Fatal(err)
	}
	in.Subscribed()
	if err := in.Own(db.raise(in.Shard(), p.Owner())); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return in, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// A delete from the outbox that fails, whether it was done or not, is tried
// again, and keeps no drain waiting for ever.
func TestDeletesOfTheOutboxThatFail(t *testing.T) {
	for name, c := range map[string]struct {
		deletes   []failure
		publishes int // that fail, so that the recovery publishes
	}{
		"not done":                 {[]failure{failBefore, failBefore}, 0},
		"done":                     {[]failure{failAfter, failAfter}, 0},
		"by the recovery":          {[]failure{failBefore, failBefore}, 1},
		"done, by the recovery":    {[]failure{failAfter, failAfter}, 1},
		"by turns by the recovery": {[]failure{failBefore, failAfter, failBefore}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			bubbletest.Test(t, func(t *testing.T) {
				db := &forgetful{fakeStore: newFakeStore()}
				publisher := &fakePublisher{fail: func(attempt int) bool { return attempt <= c.publishes }}
				in, stop := ownForgetful(t, db, publisher)
				defer stop()
				db.mu.Lock()
				db.how = c.deletes
				db.mu.Unlock()
				for n := range 10 {
					db.insert(instance(n))
					offer(t, in, heard(t, instance(n), 1, "one"))
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				if err := in.Drain(ctx); err != nil {
					t.Fatal(err)
				}
				if n := db.left(); n > 0 {
					t.Errorf("%d rows are left in the outbox", n)
				}
			})
		})
	}
}

// When it is quiet what was published is removed from the outbox, be
// the publisher slow or the delete in vain at first; nothing more has to
// happen for it.
func TestOutboxIsEmptiedWhenQuiet(t *testing.T) {
	bubbletest.Test(t, func(t *testing.T) {
		db := &forgetful{fakeStore: newFakeStore(), how: []failure{failBefore}}
		in, stop := ownForgetful(t, db, &fakePublisher{takes: 3 * time.Second})
		defer stop()
		db.insert(instance(1))
		offer(t, in, heard(t, instance(1), 1, "one"))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := db.left(); n > 0 {
			t.Errorf("%d rows are left in the outbox", n)
		}
	})
}
