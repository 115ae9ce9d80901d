package main

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trestle-bridge/trestle/loadtest/operator"
	"github.com/trestle-bridge/trestle/loadtest/play"
	"github.com/trestle-bridge/trestle/loadtest/scenario"
	"github.com/trestle-bridge/trestle/loadtest/stage"
)

// A load test against an installation that exists leaves nothing behind, and
// touches nothing of what it has not made.
func TestLoadAgainstAnInstallation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.serve()
	var up struct{ GRPC, HTTP string }
	if err := json.Unmarshal([]byte(p.says("trestle is up")), &up); err != nil {
		t.Fatal(err)
	}
	const strange = "00000000-0000-4000-8000-000000000001"
	w.must(`INSERT INTO workspace (id, owner_id) VALUES ('theirs', 'them')`)
	w.must(`INSERT INTO workspace_instance (id, workspace_id, region, phase, workspace_image) VALUES ('` + strange + `', 'theirs', 'elsewhere-000', 'preparing', 'theirs')`)
	s, err := scenario.Parse("test", []byte(`
name: installation
summary: what an installation can suffer
work: {shape: steady, rate: 200, duration: 5s, clusters: 2, live: 50, odd: 0.3}
faults:
  - {at: 1s, do: cut-streams, target: clusters}
  - {at: 2s, do: refuse, target: cluster 1, for: 500ms}
`))
	if err != nil {
		t.Fatal(err)
	}
	in := &play.Installation{
		InstallationConfig: stage.InstallationConfig{
			Postgres: w.url, Redis: w.stack.Redis.URL(),
			// The first one does not answer.
			GRPC: []string{"127.0.0.1:1", up.GRPC}, Metrics: []string{"replica=" + up.HTTP},
		},
		Prefix: "lt", Listen: "127.0.0.1:13710", Advertise: "127.0.0.1:13710",
	}
	rec, err := play.Play(w.ctx, play.Config{Scenario: s, Seed: 5, Installation: in, Tell: func(line string) { t.Log(line) }})
	if err != nil {
		t.Fatal(err)
	}
	if !rec.Verdict.Held || rec.Totals.Published == 0 || len(rec.Clusters) != 2 || rec.Clusters[0].Latency.Count == 0 || len(rec.Replicas) != 1 || len(rec.Shards) != 2 {
		t.Errorf("%+v\n%+v\n%d replicas, %d shards", rec.Verdict, rec.Totals, len(rec.Replicas), len(rec.Shards))
	}

	db, err := pgxpool.New(w.ctx, w.url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	asks, err := operator.New(operator.Config{Addresses: func() []string { return in.GRPC }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := asks.Close(); err != nil {
			t.Error(err)
		}
	}()
	left := func() (n int) {
		t.Helper()
		err := w.db.QueryRow(w.ctx, `SELECT (SELECT count(*) FROM workspace) + (SELECT count(*) FROM workspace_instance)
			+ (SELECT count(*) FROM prebuilt_workspace) + (SELECT count(*) FROM gitpod_token) + (SELECT count(*) FROM workspace_instance_metrics)`).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := left(); n != 2 {
		t.Errorf("%d rows are left, want the 2 of others", n)
	}
	if names, err := asks.Clusters(w.ctx); err != nil || len(names) != 0 {
		t.Errorf("clusters that are left: %v, %v", names, err)
	}

	// What is in a region of the prefix and was not made by a load test stands in
	// the way of one, and is not removed.
	w.must(`UPDATE workspace_instance SET region = 'lt-000' WHERE id = '` + strange + `'`)
	rows := &stage.Rows{DB: db, Operator: asks, Prefix: "lt"}
	if _, _, err := rows.Clean(w.ctx); err == nil || !strings.Contains(err.Error(), strange) {
		t.Errorf("what others have made is cleaned: %v", err)
	}
	if _, err := play.Play(w.ctx, play.Config{Scenario: s, Seed: 6, Installation: in}); err == nil || !strings.Contains(err.Error(), strange) {
		t.Errorf("a load test begins among the rows of others: %v", err)
	}
	if n := left(); n != 2 {
		t.Errorf("%d rows are left, want the 2 of others", n)
	}

	// One that is broken off removes its things all the same.
	w.must(`UPDATE workspace_instance SET region = 'elsewhere-000' WHERE id = '` + strange + `'`)
	breaking, broken := context.WithCancel(w.ctx)
	defer broken()
	_, err = play.Play(breaking, play.Config{Scenario: s, Seed: 7, Installation: in, Tell: func(line string) {
		if strings.Contains(line, "streams") {
			broken()
		}
	}})
	if err == nil {
		t.Error("it was broken off, and says nothing of it")
	}
	if names, err := asks.Clusters(w.ctx); err != nil || slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, "lt-") }) || left() != 2 {
		t.Errorf("clusters that are left: %v, %v; rows: %d", names, err, left())
	}
	p.signal(syscall.SIGTERM)
	p.exits(exitClean)
}

// must has the database do something.
func (w *world) must(sql string) {
	w.t.Helper()
	if _, err := w.db.Exec(w.ctx, sql); err != nil {
		w.t.Fatal(err)
	}
}
