package sweep

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
)

// BenchmarkRound makes rounds of a cluster with 100,000 rows, of realistic
// size, of which it has lost 1,000: a first look that misses them, and a
// second one that stops them. The cluster's answer is there at once. Reported
// are milliseconds a look, and what the second one has written to the log of
// the database for each row that it stopped.
func BenchmarkRound(b *testing.B) {
	const rows, lost = 100_000, 1_000
	p := newParts(b)
	p.exec(`INSERT INTO workspace (id, owner_id)
		SELECT 'ws-' || n, 'owner-' || n % 5000 FROM generate_series(1, $1::int) n`, rows)
	p.exec(`INSERT INTO workspace_instance (id, workspace_id, region, phase, status_version, started_time, ide_url, workspace_image, status)
		SELECT gen_random_uuid(), 'ws-' || n, $2, 'running', 1000 + n, now(), 'https://ws-' || n || '.example.dev',
			'registry.example.dev/workspace-images:' || md5(n::text),
			jsonb_build_object('version', 1000 + n, 'phase', 'running', 'message', '', 'nodeName', 'node-' || n % 200, 'podName', 'ws-' || md5(n::text),
				'conditions', jsonb_build_object('deployed', true, 'pullingImages', false), 'ownerToken', md5(n::text) || md5(n::text),
				'exposedPorts', jsonb_build_array(jsonb_build_object('port', 3000, 'visibility', 'private', 'protocol', 'http', 'url', 'https://3000-' || n || '.example.dev'),
					jsonb_build_object('port', 8080, 'visibility', 'private', 'protocol', 'http', 'url', 'https://8080-' || n || '.example.dev')), 'padding', repeat(md5(n::text), 12))
		FROM generate_series(1, $1::int) n`, rows, realCluster)
	p.exec(`INSERT INTO gitpod_token (token_hash, user_id, name)
		SELECT i.id || '-ide', 'owner-' || substr(i.workspace_id, 4)::int % 5000, i.id || '-ide' FROM workspace_instance i`)
	p.exec(`VACUUM ANALYZE workspace_instance`)
	open, err := p.store.OpenInstances(b.Context(), realCluster, store.ScopeAll, limits())
	if err != nil || len(open) != rows {
		b.Fatalf("%d rows (%v)", len(open), err)
	}
	var known []status.InstanceID
	for i, row := range open {
		if i%(rows/lost) != 0 {
			known = append(known, row.ID)
		}
	}
	rand.Shuffle(len(known), func(i, j int) { known[i], known[j] = known[j], known[i] })

	s := p.sweeper(func(c *Config) { c.Timing.SecondLook, c.Timing.Ask = 1, time.Minute })
	fence, err := p.store.RaiseLeader(b.Context(), "leader/1")
	if err != nil {
		b.Fatal(err)
	}
	term := &term{cfg: s.cfg, metrics: s.metrics, fence: fence, turns: make(chan struct{}, 2)}
	look := func(w *watch) time.Duration {
		began := time.Now()
		if outcome, _, err := w.round(b.Context()); err != nil || outcome != outcomeDone {
			b.Fatalf("%s: %v", outcome, err)
		}
		return time.Since(began)
	}
	var first, second []time.Duration
	var written int64
	b.ReportAllocs()
	for range b.N {
		w := newWatch(term, Cluster{Name: realCluster, Workspaces: func(context.Context) ([]status.InstanceID, error) {
			return slices.Clone(known), nil
		}})
		first = append(first, look(w))
		from := p.walPosition()
		second = append(second, look(w))
		written += p.walPosition() - from
		b.StopTimer()
		if n, err := p.store.CountOpen(b.Context(), realCluster); err != nil || n != rows-lost {
			b.Fatalf("%d rows are left (%v)", n, err)
		}
		p.exec(`UPDATE workspace_instance SET phase = 'running', stopping_time = NULL, stopped_time = NULL, swept = false WHERE stopped_time IS NOT NULL`)
		p.exec(`VACUUM workspace_instance`)
		b.StartTimer()
	}
	for name, took := range map[string][]time.Duration{"first": first, "second": second} {
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, fmt.Sprintf("ms/%s-look", name))
	}
	b.ReportMetric(float64(written)/float64(b.N)/lost, "WAL-B/stop")
}

func (p *parts) walPosition() (bytes int64) {
	p.Helper()
	if err := p.db.QueryRow(p.Context(), `SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint`).Scan(&bytes); err != nil {
		p.Fatal(err)
	}
	return bytes
}
