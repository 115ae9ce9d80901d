package link

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/coordinator/kv"
	"github.com/trestle-bridge/trestle/coordinator/table"
)

// mirror keeps the table as read from the store: a listing, and a watch from
// there on. It lists again when the watch ends (compaction, no leader), when
// asked to, now and then, and when what was written does not show: a watch that
// hangs does not say so, and after a loss of the store it waits for revisions
// that are far away.
type mirror struct {
	l *Link
	// refresh asks for a listing; the answer is the error of it.
	refresh chan chan error
	// distrust carries the wake-up that the view may be of a store that is no
	// more; it coalesces.
	distrust chan struct{}
	// expects carries the wake-up that expected has grown; it coalesces.
	expects chan struct{}

	// mu guards what follows.
	mu   sync.Mutex
	view *table.View
	// expected is the highest revision that we have seen elsewhere since the last listing.
	expected int64
	// changed is closed and replaced at each change of the view.
	changed chan struct{}
}

func newMirror(l *Link) *mirror {
	m := &mirror{
		l: l, refresh: make(chan chan error), expects: make(chan struct{}, 1), distrust: make(chan struct{}, 1),
		view: table.NewView(l.cfg.Layout, l.cfg.Incarnation), changed: make(chan struct{}),
	}
	m.view.Broken = func(key string, err error) {
		l.metrics.broken.Inc()
		l.cfg.Logger.Error("a key of the table cannot be read, and counts as empty", "key", key, "error", err)
	}
	return m
}

// look lets do read the view, which it must not keep.
func (m *mirror) look(do func(*table.View)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	do(m.view)
}

// change lets do change the view, and wakes the loops if it says that they
// should be.
func (m *mirror) change(do func(*table.View) bool) {
	m.mu.Lock()
	matters := do(m.view)
	close(m.changed)
	m.changed = make(chan struct{})
	m.mu.Unlock()
	if !matters {
		return
	}
	poke(m.l.voice.wake)
	for _, w := range m.l.cfg.Wakes {
		poke(w)
	}
}

func (m *mirror) watched() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// expect says that the store has reached a revision, so the view has to.
func (m *mirror) expect(revision int64) {
	m.mu.Lock()
	m.expected = max(m.expected, revision)
	behind := m.expected > m.view.Revision
	m.mu.Unlock()
	if behind {
		poke(m.expects)
	}
}

func (m *mirror) behind() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.expected > m.view.Revision
}

// refreshed lists the table anew.
func (m *mirror) refreshed(ctx context.Context) error {
	done := make(chan error, 1) // the loop does not wait for who has gone
	select {
	case m.refresh <- done:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// caught waits until the view is complete up to a revision.
func (m *mirror) caught(ctx context.Context, revision int64) error {
	late := time.NewTimer(m.l.cfg.Timing.Stale)
	defer late.Stop()
	for {
		changed := m.watched()
		caught := false
		m.look(func(v *table.View) { caught = v.Revision >= revision })
		if caught {
			return nil
		}
		select {
		case <-changed:
		case <-late.C:
			return m.refreshed(ctx)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (m *mirror) run(ctx context.Context) error {
	var asked []chan error
	for ctx.Err() == nil {
		revision, err := m.list(ctx)
		for _, a := range asked {
			a <- err
		}
		asked = nil
		if err != nil {
			if ctx.Err() == nil {
				m.l.cfg.Logger.Warn("the table cannot be read from etcd", "error", err)
			}
			asked = m.pause(ctx)
			continue
		}
		asked = m.follow(ctx, revision)
	}
	return nil
}

func (m *mirror) list(ctx context.Context) (int64, error) {
	limited, cancel := context.WithTimeout(ctx, m.l.cfg.Timing.Call)
	defer cancel()
	items, revision, err := m.l.cfg.Store.List(limited, m.l.cfg.Layout.Prefix())
	if err != nil {
		return 0, err
	}
	m.l.metrics.listings.Inc()
	m.change(func(v *table.View) bool {
		v.Reset(items, revision)
		m.expected = revision
		return true
	})
	return revision, nil
}

// pause waits before the next attempt, or until somebody asks for it.
func (m *mirror) pause(ctx context.Context) []chan error {
	timer := time.NewTimer(jitter(500 * time.Millisecond))
	defer timer.Stop()
	select {
	case <-timer.C:
	case a := <-m.refresh:
		return []chan error{a}
	case <-ctx.Done():
	}
	return nil
}

// follow watches until the table is to be listed anew, and returns who asked
// for that.
func (m *mirror) follow(ctx context.Context, revision int64) []chan error {
	ctx, cancel := context.WithCancel(ctx)
	changes := m.l.cfg.Store.Watch(ctx, m.l.cfg.Layout.Prefix(), revision+1)
	defer func() {
		cancel()
		for range changes { // until it has ended
		}
	}()
	relist := time.NewTimer(jitter(m.l.cfg.Timing.Relist))
	defer relist.Stop()
	// stale runs while the store is known to be ahead of the view.
	stale := time.NewTimer(time.Hour)
	stale.Stop()
	defer stale.Stop()
	waiting := false
	for {
		select {
		case batch, open := <-changes:
			switch {
			case !open:
				return nil
			case batch.Err != nil:
				if !errors.Is(batch.Err, kv.ErrCompacted) {
					m.l.cfg.Logger.Warn("the watch of the table has ended; it is read anew", "error", batch.Err)
					return m.pause(ctx)
				}
				return nil
			}
			m.change(func(v *table.View) bool { return v.Apply(batch) })
		case <-m.expects:
			if !waiting {
				waiting = true
				stale.Reset(m.l.cfg.Timing.Stale)
			}
		case <-stale.C:
			waiting = false
			if m.behind() {
				m.l.cfg.Logger.Warn("the watch of the table is behind the store; it is read anew")
				return nil
			}
		case a := <-m.refresh:
			return []chan error{a}
		case <-m.distrust:
			return nil
		case <-relist.C:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// poke wakes the reader of a channel of size 1.
func poke(wake chan<- struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

// wait returns after d, when woken, or when ctx ends.
func wait(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-wake:
	case <-ctx.Done():
	}
}

func jitter(d time.Duration) time.Duration { return d*9/10 + rand.N(d/5+1) }
