package main

import (
	"context"
	"errors"
	"syscall"
	"testing"

	dto "github.com/prometheus/client_model/go"

	"github.com/trestle-bridge/trestle/loadtest"
	"github.com/trestle-bridge/trestle/loadtest/script"
	"github.com/trestle-bridge/trestle/loadtest/seed"
	"github.com/trestle-bridge/trestle/loadtest/sim"
)

// A million instances that come and go, one in ten with a row, leave nothing
// behind in memory.
func TestMemoryIsFlat(t *testing.T) {
	if testing.Short() {
		t.Skip("a million instances take a while")
	}
	t.Parallel()
	const instances, early = 1_000_000, 200_000
	w := newWorld(t)
	library, err := script.NewLibrary(1)
	if err != nil {
		t.Fatal(err)
	}
	known := func(n int) bool { return n%10 == 0 }
	err = seed.Seed(w.ctx, w.db, func(yield func(seed.Instance) bool) {
		for n := range instances {
			if known(n) && !yield(seed.Instance{ID: script.NewIdentity(1, n), Type: script.Regular, Region: "cluster"}) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	// A stopped instance is gone at once: no snapshot has it.
	cluster, err := sim.New(sim.Config{Name: "cluster", NeverDrop: true, ForgetStopped: -1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.ctx)
	ran := make(chan error, 1)
	go func() { ran <- cluster.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	if err := w.register(w.ctx, []loadtest.Cluster{{Name: "cluster", URL: cluster.Addr()}}); err != nil {
		t.Fatal(err)
	}
	// What is remembered of instances is bounded by this, and full early on.
	// Garbage is collected at twice what is in use, which is how we see how
	// much that is.
	p := beginWith(t, []string{"GOGC=100"}, w.serving("--pipeline.dedupEntries", "8192")...)
	if err := cluster.AwaitSubscribers(w.ctx, 1); err != nil {
		t.Fatal(err)
	}

	// live is what was in use, in bytes, at a collection that began after all
	// so far had been processed; the next one comes when that has doubled.
	// Asking for the metrics makes enough garbage for one to come soon.
	live := func() float64 {
		collections := func(f map[string]*dto.MetricFamily) (n uint64) {
			for _, m := range f["go_gc_duration_seconds"].GetMetric() {
				n += m.GetSummary().GetSampleCount()
			}
			return n
		}
		now := p.families()
		for before := collections(now); collections(now) < before+2; {
			now = p.families()
		}
		return gauge(now["go_memstats_next_gc_bytes"]) / 2
	}
	at := make(map[int]float64)
	words := library.Short[0].Steps[2] // STOPPED
	batch := make([]sim.Update, 0, 500)
	for n := range instances {
		id := script.NewIdentity(1, n)
		batch = append(batch, sim.Update{ID: id.Instance, Message: sim.NewMessage(words.Response(&id)), Effect: sim.Stopped})
		if len(batch) < cap(batch) {
			continue
		}
		if err := cluster.Publish(w.ctx, batch...); err != nil {
			t.Fatal(err)
		}
		batch = batch[:0]
		sent := n + 1
		if sent%10_000 == 0 {
			// As many as are live at once: the service hears faster than it
			// writes.
			w.until("most are processed", func() bool { return p.completed() >= float64(sent-10_000) })
		}
		if sent == early || sent == instances {
			w.until("all so far are processed", func() bool { return p.completed() >= float64(sent) })
			at[sent] = live()
		}
	}
	t.Logf("%.1f MB in use after %d instances, %.1f MB after %d", at[early]/1e6, early, at[instances]/1e6, instances)
	if at[instances] > 1.25*at[early]+4e6 {
		t.Error("memory grows with the number of instances that have been there")
	}
	p.signal(syscall.SIGTERM)
	p.exits(exitClean)
	var written int
	if err := w.db.QueryRow(w.ctx, `SELECT count(*) FROM workspace_instance WHERE phase = 'stopped'`).Scan(&written); err != nil {
		t.Fatal(err)
	}
	if written != instances/10 {
		t.Errorf("%d rows are stopped, want %d", written, instances/10)
	}
}

func gauge(family *dto.MetricFamily) (value float64) {
	for _, m := range family.GetMetric() {
		value += m.GetGauge().GetValue()
	}
	return value
}
