package app

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/trestle-bridge/trestle/internal/config"
)

// tables gives the content of the tables of the contract that follows from
// what was sent alone: without the moments at which it was observed, but with
// whether there is one, and without the versions: a repeat of the last state is
// written if nobody remembers that state, and it has a version of its own.
func (w *world) tables() string {
	w.t.Helper()
	var out strings.Builder
	for _, sql := range []string{
		`SELECT id || ' ' || phase || ' ' || coalesce(ide_url, '') || ' ' || (status - 'version')::text || ' ' ||
			concat_ws(' ', deployed_time IS NULL, started_time IS NULL, stopping_time IS NULL, stopped_time IS NULL)
			FROM workspace_instance ORDER BY id`,
		`SELECT id || ' ' || state || ' ' || coalesce(error, '') || ' ' || coalesce(snapshot, '')
			FROM prebuilt_workspace ORDER BY id`,
		`SELECT instance_id || ' ' || metrics::text FROM workspace_instance_metrics ORDER BY instance_id`,
		`SELECT token_hash || ' ' || name FROM gitpod_token ORDER BY token_hash`,
		`SELECT 'outbox ' || shard FROM trestle_outbox`,
		`SELECT 'quarantine ' || instance_id FROM trestle_quarantine`,
	} {
		rows, err := w.db.Query(w.ctx, sql)
		if err != nil {
			w.t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			w.t.Fatal(err)
		}
		fmt.Fprintln(&out, strings.Join(lines, "\n"))
	}
	return out.String()
}

// How many lanes there are, how much a batch takes, and when the service was
// started anew, does not show in the tables.
func TestSameTablesWhateverTheShape(t *testing.T) {
	t.Parallel()
	// The extremes, and each of them with and without restarts.
	shapes := []shape{
		{4, 500, false}, // what the others are held against
		{1, 1, false}, {1, 1000, true},
		{2, 10, false},
		{8, 1, true}, {8, 1000, false},
	}
	if testing.Short() {
		shapes = shapes[:3]
	}
	tables := make([]string, len(shapes))
	t.Run("play", func(t *testing.T) {
		for n, at := range shapes {
			t.Run(at.String(), func(t *testing.T) {
				t.Parallel()
				tables[n] = playShape(t, at)
			})
		}
	})
	for n, got := range tables {
		if got != tables[0] {
			t.Errorf("the tables differ for %s:\n%s", shapes[n], firstDifference(tables[0], got))
		}
	}
}

type shape struct {
	lanes, batch int
	restarts     bool
}

func (s shape) String() string {
	text := fmt.Sprintf("%d lanes, batches of %d", s.lanes, s.batch)
	if s.restarts {
		text += ", restarts"
	}
	return text
}

// playShape plays the same scripts whatever the shape, and gives the tables.
func playShape(t *testing.T, at shape) string {
	const seed = 7_000_000
	w := newWorld(t, plan{clusters: 2, instances: 90, odd: 0.8, seed: seed})
	change := func(c *config.Config) { c.Pipeline.Lanes, c.Pipeline.BatchLimit = at.lanes, at.batch }
	s := w.serve(change)
	w.heard(2)
	random := rand.New(rand.NewPCG(seed, uint64(at.lanes*10000+at.batch)))
	for range 16 {
		w.sendAll(1)
		// What is said while nobody listens may pass without a trace, such as
		// a time that only this state sets, and so may what a snapshot
		// overtakes. So restarts come in the pauses, and pauses last for both
		// of the snapshots that follow.
		if at.restarts && random.IntN(5) == 0 {
			w.settle(true)
			s.stop()
			s = w.serve(change)
			w.heard(2)
		}
	}
	w.sendAll(every)
	w.settle(at.restarts)
	s.stop()
	return w.tables()
}

func firstDifference(want, got string) string {
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("want %s\ngot  %s", a[i], b[i])
		}
	}
	return fmt.Sprintf("%d lines and %d", len(a), len(b))
}
