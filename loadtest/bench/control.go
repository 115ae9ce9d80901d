package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/internal/publish"
	"github.com/trestle-bridge/trestle/internal/secret"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/internal/sweep"
	"github.com/trestle-bridge/trestle/loadtest/bench/limits"
	"github.com/trestle-bridge/trestle/loadtest/bench/report"
	"github.com/trestle-bridge/trestle/shard"
)

// planning is P11: plans for 10,000 shards on 100 replicas.
func (b *bench) planning(context.Context) error {
	b.line.begin("P11: planning")
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	rng := rand.New(rand.NewPCG(11, 0))
	scratch := shard.State{}
	for i := range 100 {
		scratch.Replicas = append(scratch.Replicas, shard.Replica{ID: fmt.Sprintf("r%03d", i), Revision: "1", Joined: now.Add(-time.Hour)})
	}
	for i := range 10_000 {
		// Most are light, a few are a hundred times as heavy.
		weight := 1 + 10*math.Pow(rng.Float64(), -0.5)
		scratch.Shards = append(scratch.Shards, shard.Shard{ID: shard.Whole(fmt.Sprintf("c%05d", i)), Weight: min(weight, 1000)})
	}
	settled, _ := carryOut(scratch, scratch.Plan(now))
	now = now.Add(time.Hour)
	join, leave := settled, settled
	join.Replicas = append(slices.Clone(settled.Replicas), shard.Replica{ID: "joiner", Revision: "1", Joined: now})
	leave.Replicas = slices.Clone(settled.Replicas)
	leave.Replicas[7].Gone = now
	for _, c := range []struct {
		what  string
		state shard.State
		moves float64 // at most
	}{
		{"all at once", scratch, 10_000},
		{"nothing to do", settled, 0},
		{"a join", join, math.Ceil(10_000.0 / 101)},
		{"a loss", leave, float64(carriedBy(settled, leave.Replicas[7].ID))},
	} {
		var took []time.Duration
		var plan shard.Plan
		for range 11 {
			begun := time.Now()
			plan = c.state.Plan(now)
			took = append(took, time.Since(begun))
		}
		slices.Sort(took)
		b.add("P11", "a plan for 10,000 shards on 100 replicas: "+c.what, float64(took[len(took)/2].Microseconds())/1000, "ms", 0, &report.Target{Of: report.OfFigure, AtMost: 50})
		b.add("P11", "its moves: "+c.what, float64(len(plan.Moves)), "shards", 0, &report.Target{Of: report.OfFigure, AtMost: c.moves})
		if c.what != "nothing to do" {
			i := plan.After
			b.add("P11", "its greatest load, against 1.05 x mean + the heaviest shard: "+c.what, i.Max, "", 1.05*i.Mean+i.Heaviest, &report.Target{Of: report.OfRatio, AtMost: 1})
		}
	}
	return nil
}

// carryOut gives the state after a plan, and how many shards have moved.
func carryOut(s shard.State, p shard.Plan) (shard.State, int) {
	at := make(map[shard.ID]string, len(p.Moves))
	for _, m := range p.Moves {
		at[m.Shard] = m.To
	}
	s.Shards = slices.Clone(s.Shards)
	for i := range s.Shards {
		if to, moved := at[s.Shards[i].ID]; moved {
			s.Shards[i].Owner = to
		}
	}
	return s, len(at)
}

func carriedBy(s shard.State, replica string) (n int) {
	for _, sh := range s.Shards {
		if sh.Owner == replica {
			n++
		}
	}
	return n
}

// sweeping is P12: two looks at a cluster of 100,000 rows, of which it has lost
// 1,000; the second one stops them.
func (b *bench) sweeping(ctx context.Context) (err error) {
	rows := quick(b, 100_000, 20_000)
	lost := rows / 100
	b.line.begin("P12: filling the tables")
	postgres, drop, err := b.database(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, drop()) }()
	db, err := pgx.Connect(ctx, postgres)
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	defer db.Close(context.WithoutCancel(ctx))
	for _, sql := range []string{
		fmt.Sprintf(`INSERT INTO workspace (id, owner_id) SELECT 'ws-' || n, 'owner-' || n %% 5000 FROM generate_series(1, %d) n`, rows),
		fmt.Sprintf(`INSERT INTO workspace_instance (id, workspace_id, region, phase, status_version, started_time, ide_url, status)
			SELECT gen_random_uuid(), 'ws-' || n, 'swept', 'running', 1000 + n, now(), 'https://ws-' || n || '.example.dev',
				jsonb_build_object('version', 1000 + n, 'phase', 'running', 'message', '', 'nodeName', 'node-' || n %% 200, 'podName', 'ws-' || md5(n::text),
					'conditions', jsonb_build_object('deployed', true, 'pullingImages', false), 'ownerToken', md5(n::text) || md5(n::text), 'padding', repeat(md5(n::text), 18))
			FROM generate_series(1, %d) n`, rows),
		`INSERT INTO gitpod_token (token_hash, user_id, name) SELECT i.id || '-ide', w.owner_id, i.id || '-ide' FROM workspace_instance i JOIN workspace w ON w.id = i.workspace_id`,
	} {
		if _, err := db.Exec(ctx, sql); err != nil {
			return fmt.Errorf("fill the tables: %w", err)
		}
	}
	if err := limits.Settle(ctx, db); err != nil {
		return err
	}
	s, err := store.Open(ctx, store.Config{URL: secret.NewURL(postgres), Installation: installation, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer s.Close()
	known, err := lose(ctx, s, rows/lost)
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	sweeper, err := sweep.New(sweep.Config{
		Installation: installation, Limits: hour(), Store: s, Outbox: s, Publisher: nowhere{}, Owners: nobody{},
		// The second look follows the first one as soon as that is asked for.
		Timing: sweep.Timing{Interval: 200 * time.Millisecond, SecondLook: 1, Orphan: time.Hour},
		Clusters: func(context.Context) ([]sweep.Cluster, error) {
			return []sweep.Cluster{{Name: "swept", Address: "here", Workspaces: func(context.Context) ([]status.InstanceID, error) { return slices.Clone(known), nil }}}, nil
		},
		Logger: slog.New(slog.DiscardHandler), Registerer: registry,
	})
	if err != nil {
		return err
	}
	fence, err := s.RaiseLeader(ctx, "bench")
	if err != nil {
		return err
	}
	b.line.begin("P12: looking")
	var before, after int64
	wal := func(at *int64) error {
		return db.QueryRow(ctx, `SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint`).Scan(at)
	}
	if err := wal(&before); err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1) // so that it ends even if nobody waits
	go func() { ended <- sweeper.Run(running, fence) }()
	defer func() { stop(); err = errors.Join(err, <-ended) }()
	// The sweeper's own counts: to ask the database would be as much work as what
	// is measured. The second look stops the rows, and is counted at its end.
	var done looks
	for done.looks < 2 || done.stopped < float64(lost) {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("sweep %d rows: %w", rows, ctx.Err())
		}
		if done, err = readLooks(registry); err != nil {
			return err
		}
	}
	if err := wal(&after); err != nil {
		return err
	}
	b.add("P12", fmt.Sprintf("a look at %d rows, of which %d are to be stopped", rows, lost), done.seconds/float64(done.looks), "s", 0, &report.Target{Of: report.OfFigure, AtMost: 2})
	b.add("P12", "written to the database's log for each row stopped", float64(after-before)/float64(lost)/1024, "KiB", 0, nil)
	return nil
}

// lose gives all rows of the cluster but one of so many.
func lose(ctx context.Context, s *store.Store, of int) ([]status.InstanceID, error) {
	open, err := s.OpenInstances(ctx, "swept", store.ScopeAll, hour())
	if err != nil {
		return nil, err
	}
	var known []status.InstanceID
	for i, row := range open {
		if i%of != 0 {
			known = append(known, row.ID)
		}
	}
	rand.Shuffle(len(known), func(i, j int) { known[i], known[j] = known[j], known[i] })
	return known, nil
}

func hour() store.Limits {
	return store.Limits{Preparing: time.Hour, Building: time.Hour, Unknown: time.Hour, Pending: time.Hour, Stopping: time.Hour}
}

// looks is what a sweeper has counted.
type looks struct {
	looks            uint64
	seconds, stopped float64
}

func readLooks(g prometheus.Gatherer) (done looks, err error) {
	families, err := g.Gather()
	if err != nil {
		return looks{}, err
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			switch f.GetName() {
			case "trestle_sweep_seconds":
				done.looks, done.seconds = m.GetHistogram().GetSampleCount(), m.GetHistogram().GetSampleSum()
			case "gitpod_ws_instances_marked_stopped_total":
				done.stopped += m.GetCounter().GetValue()
			}
		}
	}
	return done, nil
}

// nowhere publishes to nobody, nobody owns anything: P12 is about the rows.
type (
	nowhere struct{}
	nobody  struct{}
)

func (nowhere) Publish(ctx context.Context, _ []event.Set, may publish.Permit) error { return may(ctx) }

func (nobody) Settled(string) bool                                       { return true }
func (nobody) CaughtUp(context.Context, string, time.Time) (bool, error) { return true, nil }
func (nobody) Forget(context.Context, string, []status.InstanceID) error { return nil }
func (nobody) Owned(shard.ID) bool                                       { return true }
