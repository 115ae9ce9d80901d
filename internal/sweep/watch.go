package sweep

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
)

// watch makes the rounds of one cluster.
type watch struct {
	t      *term
	name   string
	log    *slog.Logger
	cancel context.CancelFunc
	// wake has size 1: requests coalesce, and nobody who makes one waits.
	wake chan struct{}
	// contact is when the cluster answered last, or the term began. It is
	// run's alone.
	contact time.Time

	// mu guards what follows; no I/O under it.
	mu sync.Mutex
	// cluster is what the cluster was when it was last read: it may move.
	cluster Cluster
	looks   looks
	// held is how many rows the last look held back, since when.
	held      int
	heldSince time.Time
}

func newWatch(t *term, c Cluster) *watch {
	return &watch{
		t:       t,
		name:    c.Name,
		log:     t.cfg.Logger.With("cluster", c.Name),
		wake:    make(chan struct{}, 1),
		contact: time.Now(),
		cluster: c,
	}
}

// update tells of what the cluster is now.
func (w *watch) update(c Cluster) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c.Address != w.cluster.Address {
		w.startOver()
	}
	w.cluster = c
}

func (w *watch) request() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watch) confirm() error {
	confirmed := w.markConfirmed()
	if confirmed == 0 {
		return ErrNotHeld
	}
	w.log.Info("the instances that the cluster misses are confirmed to be gone", "instances", confirmed)
	w.request()
	return nil
}

// markConfirmed confirms what the last look has missed, if any of it is held
// back, and gives the number.
func (w *watch) markConfirmed() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held == 0 {
		return 0
	}
	for id, m := range w.looks {
		m.confirmed = true
		w.looks[id] = m
	}
	return len(w.looks)
}

// run makes rounds until ctx ends, with nil, or another leader has the fence.
func (w *watch) run(ctx context.Context) error {
	timing := w.t.cfg.Timing
	// The rounds of many clusters are spread over the interval, and clusters
	// that have just been subscribed to have better to do.
	pause := rand.N(timing.Interval)
	for {
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-w.wake:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		began := time.Now()
		outcome, again, err := w.round(ctx)
		switch {
		case errors.Is(err, store.ErrNotLeader):
			return err
		case ctx.Err() != nil:
			return nil
		case err != nil:
			w.log.Warn("a round was not made to its end; the next one will be", "error", err)
		}
		w.t.metrics.rounds.WithLabelValues(outcome).Inc()
		w.t.metrics.seconds.Observe(time.Since(began).Seconds())
		pause = jitter(timing.Interval)
		if again {
			pause = min(pause, timing.SecondLook+rand.N(timing.SecondLook/10+1))
		}
	}
}

// round looks at the cluster once, and stops what is to be stopped. It says
// whether another look is due soon.
func (w *watch) round(ctx context.Context) (outcome string, again bool, err error) {
	cfg := &w.t.cfg
	settled := cfg.Owners.Settled(w.name)
	w.mu.Lock()
	cluster := w.cluster
	if !settled {
		w.startOver()
	}
	w.mu.Unlock()
	if !settled {
		return outcomeMoving, false, nil
	}
	began := time.Now()
	rows, err := w.t.read(ctx, w.name, store.ScopeDoubtful)
	if err != nil {
		return outcomeFailed, false, err
	}
	stop, doubtful := split(rows)
	outcome = outcomeDone
	known, err := w.ask(ctx, cluster)
	ended := time.Now()
	if err != nil {
		outcome = outcomeUnreachable
	} else {
		var lost []store.OpenInstance
		lost, again, err = w.look(ctx, cluster.Address, began, ended, missing(doubtful, known))
		if err != nil {
			return outcomeFailed, false, err
		}
		stop = append(stop, lost...)
	}
	if ctx.Err() != nil || len(stop) == 0 {
		return outcome, again, nil
	}
	switch ready, err := w.t.ready(ctx, w.name, ended); {
	case err != nil:
		return outcomeBehind, false, err
	case !ready:
		w.log.Info("rows are to be stopped once their owner has written what it has heard", "instances", len(stop))
		return outcomeBehind, false, nil
	}
	if err := w.t.stop(ctx, w.name, []string{w.name}, false, stop); err != nil {
		return outcomeFailed, false, err
	}
	return outcome, again, nil
}

// ask asks the cluster for its instances, and keeps account of when it
// answered last.
func (w *watch) ask(ctx context.Context, cluster Cluster) ([]status.InstanceID, error) {
	asking, cancel := context.WithTimeout(ctx, w.t.cfg.Timing.Ask)
	defer cancel()
	known, err := cluster.Workspaces(asking)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err == nil {
		w.contact = time.Now()
	}
	silent := time.Since(w.contact)
	w.t.metrics.disconnected.WithLabelValues(w.name).Set(silent.Seconds())
	switch {
	case err == nil:
	case silent > w.t.cfg.Timing.MaxDisconnect:
		w.log.Warn("the cluster cannot be asked for its instances; its rows are left as they are",
			"for", silent.Round(time.Second).String(), "error", err)
	default:
		w.log.Info("the cluster could not be asked for its instances", "error", err)
	}
	return known, err
}

// look judges the rows that the cluster at this address does not know.
func (w *watch) look(ctx context.Context, address string, began, ended time.Time, missing []store.OpenInstance) (stop []store.OpenInstance, again bool, err error) {
	l := look{began: began, ended: ended, missing: missing}
	if len(missing) > holdRows {
		err := w.t.attempt(ctx, func(ctx context.Context) (err error) {
			l.total, err = w.t.cfg.Store.CountOpen(ctx, w.name)
			return err
		})
		if err != nil {
			return nil, false, err
		}
	}
	v, counts := w.judge(address, l)
	if !counts {
		return nil, false, nil
	}
	w.t.metrics.missing.WithLabelValues(w.name).Set(float64(len(missing)))
	return v.stop, v.again, nil
}

// judge judges a look, remembers it, and says when a hold begins and ends. It
// reports false if the cluster has moved meanwhile: then the look is nothing.
func (w *watch) judge(address string, l look) (v verdict, counts bool) {
	timing := w.t.cfg.Timing
	w.mu.Lock()
	if address != w.cluster.Address {
		w.mu.Unlock()
		return verdict{}, false
	}
	v = judge(l, w.looks, timing.SecondLook, timing.Hold)
	before := w.held
	w.looks, w.held = v.after, v.held
	if before == 0 {
		w.heldSince = l.ended
	}
	since := w.heldSince
	w.t.metrics.held.WithLabelValues(w.name).Set(float64(v.held))
	w.mu.Unlock()

	switch {
	case v.held > 0 && before == 0:
		w.log.Error("the cluster misses many of its instances at once; their rows are held back",
			"missing", v.held, "of", l.total, "for", timing.Hold.String())
	case v.held > 0:
		w.log.Warn("the cluster is held back: it misses many of its instances at once",
			"missing", v.held, "of", l.total, "since", since.Format(time.RFC3339))
	case before > 0:
		w.log.Info("the cluster is held back no more", "missing", len(l.missing))
	}
	return v, true
}

// startOver forgets the looks: what they saw was before a hand-over, or
// elsewhere. The caller holds mu.
func (w *watch) startOver() {
	w.looks, w.held = nil, 0
	w.t.metrics.held.WithLabelValues(w.name).Set(0)
}

// read reads the rows of a region that a round is about.
func (t *term) read(ctx context.Context, region string, scope store.Scope) (rows []store.OpenInstance, err error) {
	// Not an attempt: reading a region takes as long as its size wants, and
	// is not worth more than the cluster's answer.
	select {
	case t.turns <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-t.turns }()
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Timing.Ask)
	defer cancel()
	rows, err = t.cfg.Store.OpenInstances(ctx, region, scope, t.cfg.Limits)
	t.metrics.rows.Add(float64(len(rows)))
	return rows, err
}

// ready says whether rows of a cluster may be stopped that were read before
// heard: nobody holds anything newer of them that was heard by then.
func (t *term) ready(ctx context.Context, cluster string, heard time.Time) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Timing.Attempt)
	defer cancel()
	caughtUp, err := t.cfg.Owners.CaughtUp(ctx, cluster, heard)
	if err != nil {
		return false, fmt.Errorf("ask whether all is written that was heard of cluster %s: %w", cluster, err)
	}
	// A hand-over may have begun since the round did; its new owner was not
	// asked.
	return caughtUp && t.cfg.Owners.Settled(cluster), nil
}
