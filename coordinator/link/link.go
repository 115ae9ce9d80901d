// Package link is one replica's link to the store: its lease, what it reads and
// what it says there.
//
//   - The lease is renewed while the replica is healthy, and trusted from before
//     the request that renewed it, less a margin. When it is lost, another is
//     granted at once.
//   - The mirror is a copy of the table. It is read anew whenever it may be of
//     a store that is no more, or of a watch that hangs.
//   - The voice keeps this replica's keys in the store as they should be. What
//     the store does not show is said again.
//
// Owner: the coordinator.
package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/trestle-bridge/trestle/coordinator/kv"
	"github.com/trestle-bridge/trestle/coordinator/table"
	"github.com/trestle-bridge/trestle/shard"
)

// Timing of a Link; all of it is required.
type Timing struct {
	// Lease is how long the replica may be silent, Renew how often the lease is
	// renewed, Margin how much sooner than the store we hold it for expired.
	Lease, Renew, Margin time.Duration
	// Call bounds a call to the store.
	Call time.Duration
	// Relist is how often the whole table is read anew.
	Relist time.Duration
	// Stale is how long the store may take to show what was written.
	Stale time.Duration
}

// Config of a Link.
type Config struct {
	Store       kv.Store
	Layout      table.Layout
	Incarnation string
	Healthy     func() bool
	// Wakes are poked when the table or the lease has changed, loads apart. They
	// have size 1.
	Wakes      []chan struct{}
	Timing     Timing
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Link to the store. All methods may be called at once.
type Link struct {
	cfg     Config
	mirror  *mirror
	lease   *lease
	voice   *voice
	metrics metrics
}

type metrics struct{ listings, renewals, broken prometheus.Counter }

// New starts nothing; Run does.
func New(cfg Config) (*Link, error) {
	if cfg.Store == nil || cfg.Incarnation == "" || cfg.Healthy == nil || cfg.Logger == nil || cfg.Registerer == nil {
		return nil, errors.New("link: store, incarnation, healthy, logger and registerer are required")
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "trestle_coordinator_" + name, Help: help})
	}
	l := &Link{cfg: cfg, metrics: metrics{
		listings: counter("listings_total", "Times that the whole table was read."),
		renewals: counter("lease_renewals_failed_total", "Renewals of the lease that failed."),
		broken:   counter("undecodable_values_total", "Keys of the table that could not be read."),
	}}
	for _, c := range []prometheus.Collector{l.metrics.listings, l.metrics.renewals, l.metrics.broken} {
		if err := cfg.Registerer.Register(c); err != nil {
			return nil, fmt.Errorf("register the metrics of the link to the store: %w", err)
		}
	}
	l.lease, l.voice = newLease(l), newVoice(l)
	l.mirror = newMirror(l)
	return l, nil
}

// Run keeps the link up until ctx ends. It never fails for the store's sake.
func (l *Link) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, loop := range []func(context.Context) error{l.mirror.run, l.lease.run, l.voice.run} {
		group.Go(func() error { return loop(ctx) })
	}
	return group.Wait()
}

// Look lets do read the table as it was read last; do must neither wait nor
// keep the view.
func (l *Link) Look(do func(*table.View)) { l.mirror.look(do) }

// Changed is closed at the next change of the table.
func (l *Link) Changed() <-chan struct{} { return l.mirror.watched() }

// Refresh reads the whole table anew.
func (l *Link) Refresh(ctx context.Context) error { return l.mirror.refreshed(ctx) }

// Caught waits until the view is complete up to a revision, or as long as that
// should take at most; then it refreshes.
func (l *Link) Caught(ctx context.Context, revision int64) error {
	return l.mirror.caught(ctx, revision)
}

// Txn writes as kv.Keys does, with an eye on revisions: what is written after
// something was read has a higher one. If it has not, the store was replaced by
// an older copy, and the view is of two histories.
func (l *Link) Txn(ctx context.Context, guards []kv.Guard, ops []kv.Op) (kv.Result, error) {
	before := int64(0)
	l.Look(func(v *table.View) { before = v.Revision })
	result, err := l.cfg.Store.Txn(ctx, guards, ops)
	if err != nil {
		return result, err
	}
	puts := slices.ContainsFunc(ops, func(op kv.Op) bool { return !op.Delete }) // a deletion may change nothing
	if result.Revision < before || result.Revision == before && result.OK && puts {
		l.cfg.Logger.Warn("the store has gone back in time; the table is read anew", "from", before, "to", result.Revision)
		poke(l.mirror.distrust)
	}
	l.mirror.expect(result.Revision)
	return result, nil
}

// Say keeps a key of this replica, under its lease, at a value; Unsay removes
// it.
func (l *Link) Say(key string, value []byte) { l.voice.set(key, value) }

// Unsay takes back what was said.
func (l *Link) Unsay(key string) { l.voice.unset(key) }

// Answer says the answers given; an empty one is taken back, others stay.
func (l *Link) Answer(fresh map[shard.ID]table.Answer) { l.voice.answer(fresh) }

// Lease gives the lease, 0 if there is none, and until when it is trusted.
func (l *Link) Lease() (kv.LeaseID, time.Time) { return l.lease.current() }

// Trusted says that the store has this replica for alive.
func (l *Link) Trusted() bool {
	_, until := l.lease.current()
	return time.Now().Before(until)
}

// Lost is for who has learnt that the store does not know the lease.
func (l *Link) Lost(id kv.LeaseID) { l.lease.gone(id) }

// Returned is when this replica came back after it had lost its lease, zero if
// it never did.
func (l *Link) Returned() time.Time { return l.lease.returned() }

// GiveUp ends the lease for good, and with it all keys of this replica; it says
// nothing more.
func (l *Link) GiveUp(ctx context.Context) error {
	l.voice.hush()
	return l.lease.giveUp(ctx)
}
