package link

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/coordinator/kv"
)

// lease is this replica's life in the fleet. It is renewed by a loop of our own:
// the client's keepalive goes on by itself however stuck the process is.
type lease struct {
	l *Link
	// failed says that the last renewal did; it is run's own.
	failed bool

	// mu guards what follows.
	mu sync.Mutex
	id kv.LeaseID
	// until is how long the lease is trusted.
	until time.Time
	// again is when a lease was granted in the place of one that was lost.
	again   time.Time
	granted bool
	// ended is closed when Leave has given the lease up for good.
	ended chan struct{}
	over  bool
}

func newLease(l *Link) *lease { return &lease{l: l, ended: make(chan struct{})} }

// current gives the lease, 0 if there is none, and how long it is trusted.
func (l *lease) current() (kv.LeaseID, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.id, l.until
}

func (l *lease) set(id kv.LeaseID, until time.Time) {
	l.mu.Lock()
	if l.over {
		id, until = 0, time.Time{}
	}
	l.id, l.until = id, until
	if id != 0 {
		if l.granted {
			l.again = time.Now()
		}
		l.granted = true
	}
	l.mu.Unlock()
	poke(l.l.voice.wake)
	for _, w := range l.l.cfg.Wakes {
		poke(w)
	}
}

// returned is when this replica came back after it had lost its lease, zero if
// it never did.
func (l *lease) returned() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.again
}

// gone is what another loop learnt: the store does not know the lease.
func (l *lease) gone(id kv.LeaseID) {
	if current, _ := l.current(); current == id {
		l.set(0, time.Time{})
	}
}

func (l *lease) run(ctx context.Context) error {
	ill := false
	for ctx.Err() == nil {
		id, _ := l.current()
		pause := l.l.cfg.Timing.Renew
		switch {
		case !l.l.cfg.Healthy():
			if !ill {
				l.l.cfg.Logger.Error("this replica's loops do not turn; its lease is not renewed")
			}
			ill = true
			pause /= 2
		case id == 0:
			ill = false
			if !l.grant(ctx) {
				pause = l.l.cfg.Timing.Lease / 20
			}
		default:
			ill = false
			if err := l.renew(ctx, id); errors.Is(err, kv.ErrNoLease) {
				pause = 0
			} else if err != nil {
				pause = l.l.cfg.Timing.Lease / 20
			}
		}
		if pause > 0 {
			wait(ctx, jitter(pause), l.ended)
		}
		select {
		case <-l.ended:
			<-ctx.Done()
		default:
		}
	}
	return nil
}

func (l *lease) grant(ctx context.Context) bool {
	begun := time.Now()
	limited, cancel := context.WithTimeout(ctx, l.l.cfg.Timing.Call)
	defer cancel()
	id, ttl, err := l.l.cfg.Store.Grant(limited, l.l.cfg.Timing.Lease)
	if err != nil {
		if ctx.Err() == nil {
			l.l.cfg.Logger.Warn("this replica cannot register in etcd", "error", err)
		}
		return false
	}
	l.l.cfg.Logger.Info("this replica has a lease", "lease", int64(id), "ttl", ttl)
	l.set(id, begun.Add(ttl-l.l.cfg.Timing.Margin))
	poke(l.l.mirror.distrust)
	return true
}

func (l *lease) renew(ctx context.Context, id kv.LeaseID) error {
	begun := time.Now()
	limited, cancel := context.WithTimeout(ctx, l.l.cfg.Timing.Call)
	defer cancel()
	ttl, err := l.l.cfg.Store.KeepAlive(limited, id)
	switch {
	case err == nil:
		if l.failed {
			// While it was away the store may have been replaced.
			poke(l.l.mirror.distrust)
		}
		l.failed = false
		l.mu.Lock()
		if l.id == id {
			l.until = begun.Add(ttl - l.l.cfg.Timing.Margin)
		}
		l.mu.Unlock()
	case ctx.Err() != nil:
	case errors.Is(err, kv.ErrNoLease):
		l.l.cfg.Logger.Warn("this replica's lease has expired; it registers anew and goes on with its shards")
		l.gone(id)
	default:
		l.failed = true
		l.l.metrics.renewals.Inc()
		l.l.cfg.Logger.Warn("this replica's lease cannot be renewed", "error", err)
	}
	return err
}

// giveUp ends the lease for good, and with it all keys of this replica.
func (l *lease) giveUp(ctx context.Context) error {
	l.mu.Lock()
	id := l.id
	l.id, l.until = 0, time.Time{}
	if !l.over {
		l.over = true
		close(l.ended)
	}
	l.mu.Unlock()
	if id == 0 {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, l.l.cfg.Timing.Call)
	defer cancel()
	if err := l.l.cfg.Store.Revoke(limited, id); err != nil && !errors.Is(err, kv.ErrNoLease) {
		return err
	}
	return nil
}
