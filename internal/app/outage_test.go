package app

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/trestle-bridge/trestle/internal/config"
	"github.com/trestle-bridge/trestle/internal/devstack"
	"github.com/trestle-bridge/trestle/internal/devstack/devstacktest"
)

const (
	waitingInstances = "trestle_pipeline_waiting_instances"
	failedAttempts   = "trestle_pipeline_failed_attempts_total"
	quarantinedTotal = "trestle_pipeline_quarantined_total"
)

// An outage is a way to take a server away and to give it back.
type outage struct {
	name     string
	begin    func(*world)
	end      func(*world)
	postgres bool // nothing is written meanwhile
}

func outages() []outage {
	return []outage{
		{"postgres down", func(w *world) { w.postgres.Down() }, func(w *world) { w.postgres.Up() }, true},
		{"postgres silent", func(w *world) { w.postgres.Freeze() }, func(w *world) { w.postgres.Up() }, true},
		{"redis down", func(w *world) { w.redis.Down() }, func(w *world) { w.redis.Up() }, false},
		{"both down", func(w *world) { w.postgres.Down(); w.redis.Down() }, func(w *world) { w.postgres.Up(); w.redis.Up() }, true},
		{"redis back first", func(w *world) { w.postgres.Down(); w.redis.Down() }, func(w *world) {
			w.redis.Up()
			w.send(0, 1)
			w.postgres.Up()
		}, true},
		{"commits without an answer", func(w *world) { w.postgres.Swallow() }, func(w *world) { w.postgres.Up() }, false},
		{"publishes without an answer", func(w *world) { w.redis.Swallow() }, func(w *world) { w.redis.Up() }, false},
		{"connections cut", func(w *world) { w.postgres.Cut(); w.redis.Cut() }, func(w *world) { w.postgres.Cut(); w.redis.Cut() }, false},
	}
}

// An outage in the midst of a stream delays, and folds, what is written and
// told; nothing is lost, nothing goes to quarantine, and what waits is bounded
// by the number of instances.
func TestOutages(t *testing.T) {
	t.Parallel()
	for _, o := range outages() {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, plan{clusters: 2, instances: 150, odd: 0.5})
			s := w.serve()
			w.heard(1)
			w.sendAll(3)
			o.begin(w)
			for range 4 {
				w.sendAll(1)
				if n := s.metric(waitingInstances); n > float64(w.plan.instances) {
					t.Errorf("%v instances wait, there are %d", n, w.plan.instances)
				}
			}
			if o.postgres {
				w.until("writing fails", func() bool { return s.metric(waitingInstances) > 0 })
				if code, body := s.get("/healthz"); code != http.StatusOK {
					t.Errorf("/healthz answers %d during an outage: %s", code, body)
				}
				if code, body := s.get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "postgres: failing") {
					t.Errorf("/readyz answers %d during an outage: %s", code, body)
				}
			}
			o.end(w)
			w.sendAll(every)
			w.settle(true)
			w.until("it is ready again", func() bool {
				code, _ := s.get("/readyz")
				return code == http.StatusOK
			})
			if n := s.metric(quarantinedTotal); n != 0 {
				t.Errorf("%v updates in quarantine", n)
			}
			if n := ask[int](w, `SELECT count(*) FROM trestle_quarantine`); n != 0 {
				t.Errorf("%d rows in quarantine", n)
			}
			s.stop()
			w.settle(true)
		})
	}
}

// A server that dies, and its recovery, are no more than an outage.
func TestPostgresAndRedisDie(t *testing.T) {
	t.Parallel()
	postgres := devstacktest.OwnPostgres(t, devstack.PostgresConfig{Settings: settings()})
	w := newWorld(t, plan{instances: 100, odd: 0.5, postgres: postgres})
	s := w.serve()
	w.heard(1)
	for range 2 {
		w.sendAll(2)
		if err := postgres.Kill(); err != nil {
			t.Fatal(err)
		}
		w.sendAll(1)
		w.until("an attempt has failed", func() bool { return s.metric(failedAttempts) > 0 })
		if err := postgres.Start(w.ctx); err != nil {
			t.Fatal(err)
		}
	}
	w.sendAll(every)
	// The pool of the test itself has dead connections.
	w.db.Reset()
	w.settle(true)
	s.stop()
}

// The answer to a commit is lost: the same change comes again, finds itself
// written, and is published all the same.
func TestCommitWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{instances: 1})
	s := w.serve()
	w.heard(2)
	w.send(0, 1)
	w.settle(false)
	// The statement is on its way to the commit when the answers end.
	unlock := w.lock(0)
	w.send(0, 1)
	w.blocked()
	w.postgres.Swallow()
	unlock()
	sub := w.subject(0)
	want := int64(sub.Script.Steps[1].Version(&sub.ID))
	w.until("the change is committed", func() bool { return w.version(0) == want })
	if err := w.postgres.Swallowed(w.ctx, 1); err != nil {
		t.Fatal(err)
	}
	if n := w.ledger.Counts().Publishes; n != 1 {
		t.Errorf("%d publishes before the answer", n)
	}
	place := w.place(0)
	w.postgres.Up()
	w.settle(true)
	if after := w.place(0); after != place {
		t.Errorf("the row was written again: it was at %s and is at %s", place, after)
	}
	if n := w.ledger.Counts().Publishes; n != 2 {
		t.Errorf("%d publishes, want one for each change", n)
	}
	w.until("every update is accounted for", func() bool { return s.metric(completedTotal, "outcome=success") == 2 })
	s.stop()
}

// While the database is away from the start, the service hears, waits, and
// stops at once with nothing lost if it has heard nothing.
func TestStartWithoutADatabase(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{instances: 20})
	s := w.serve(func(c *config.Config) { c.Migrations.AtStart = false })
	w.heard(1)
	s.stop()

	w.postgres.Down()
	ctx, cancel := context.WithCancel(w.ctx)
	log := &logBuffer{}
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, Options{Config: s.config, Logger: log.logger()}) }()
	w.until("it waits", func() bool { return strings.Contains(log.String(), "waiting for the database") })
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ends with: %v", err)
	}

	again := make(chan *service)
	go func() { again <- w.serve() }()
	w.sendAll(3)
	w.postgres.Up()
	s = <-again
	w.settle(true)
	w.sendAll(every)
	w.settle(true)
	s.stop()
}
