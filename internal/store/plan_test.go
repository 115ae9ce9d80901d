package store_test

import (
	"context"
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/status/statustest"
	"github.com/trestle-bridge/trestle/internal/store"
)

// Status updates stay on their page and leave the indexes alone. A life is
// eight updates, and the one that stops must touch the indexes: stopped_time is
// in the predicate of one.
func TestUpdatesAreHOT(t *testing.T) {
	b := newBench(t, func(c *store.Config) { c.Lifecycle = false })
	l := lives{group: 10, batches: 60}
	l.insert(b)
	for k := range l.batches {
		var changes []*status.Change
		for _, said := range l.batch(k) {
			changes = append(changes, change(t, said, statustest.Epoch.Add(time.Duration(k)*time.Second)))
		}
		b.apply(changes...)
	}
	updates, hot := countHOT(t, b)
	share := float64(hot) / float64(updates)
	t.Logf("%d of %d updates were HOT (%.3f); all but the stops would be 0.875", hot, updates, share)
	if updates < 4000 || share < 0.7 {
		t.Errorf("%d of %d updates were HOT (%.3f)", hot, updates, share)
	}
}

// countHOT gives what PostgreSQL counts of updates. Connections hand in their
// counts when they end, hence the pools are closed first.
func countHOT(t testing.TB, b *bench) (updates, hot int64) {
	t.Helper()
	b.Close()
	b.db.Reset()
	for sessions := 1; sessions > 0; {
		if err := b.db.QueryRow(context.Background(), `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'`).Scan(&sessions); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.db.QueryRow(context.Background(), `SELECT n_tup_upd, n_tup_hot_upd
		FROM pg_stat_user_tables WHERE relname = 'workspace_instance'`).Scan(&updates, &hot); err != nil {
		t.Fatal(err)
	}
	return updates, hot
}
