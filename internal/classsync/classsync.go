// Package classsync keeps the workspace classes of the registered clusters: now
// and then it asks each cluster what classes it has, and stores what differs.
//
// Its invariants:
//
//   - A cluster that is slow or fails delays no other: a few are asked at once,
//     each with a deadline. What is stored of it stays.
//   - An answer is stored only if the row is as it was read before asking, so
//     that two at once, or one that was held up, overwrite nothing newer.
//
// Owner: whoever is the leader. Leadership is the caller's: it gives Run a
// context that ends with it.
package classsync

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

// Registry is where the classes are kept; see store.Store.
type Registry interface {
	Clusters(ctx context.Context) ([]store.Cluster, error)
	SetClasses(ctx context.Context, read store.Cluster, classes store.Classes) (changed bool, err error)
}

// Config is what a Syncer needs. All but the times and AtOnce is required.
type Config struct {
	Registry Registry
	// Describe asks a cluster. It is called for several at once.
	Describe func(context.Context, store.Cluster) (*wsman.DescribeClusterResponse, error)
	// Interval is the time between two rounds, jittered by a tenth either
	// way; default 1 min.
	Interval time.Duration
	// Deadline is how long one cluster, or one statement, may take; default
	// 10 s.
	Deadline time.Duration
	// AtOnce is how many clusters are asked at once; default 32.
	AtOnce     int
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// The values of the label outcome.
const (
	outcomeSame    = "same"
	outcomeChanged = "changed"
	outcomeFailed  = "failed"
)

// Syncer makes the rounds. Run is for one caller at a time.
type Syncer struct {
	cfg    Config
	synced *prometheus.CounterVec
}

// New checks the configuration. It starts nothing.
func New(cfg Config) (*Syncer, error) {
	if cfg.Registry == nil || cfg.Describe == nil || cfg.Logger == nil || cfg.Registerer == nil {
		return nil, errors.New("the sync of classes needs a registry, a way to ask, a logger and a registerer of metrics")
	}
	if cfg.Interval < 0 || cfg.Deadline < 0 || cfg.AtOnce < 0 {
		return nil, errors.New("the sync of classes: times and numbers must not be negative")
	}
	if cfg.Interval == 0 {
		cfg.Interval = time.Minute
	}
	if cfg.Deadline == 0 {
		cfg.Deadline = 10 * time.Second
	}
	if cfg.AtOnce == 0 {
		cfg.AtOnce = 32
	}
	s := &Syncer{cfg: cfg, synced: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "trestle_class_syncs_total", Help: "Clusters asked by the leader for their workspace classes: same, changed, failed.",
	}, []string{"outcome"})}
	for _, outcome := range []string{outcomeSame, outcomeChanged, outcomeFailed} {
		s.synced.WithLabelValues(outcome)
	}
	if err := cfg.Registerer.Register(s.synced); err != nil {
		return nil, fmt.Errorf("register the metrics of the sync of classes: %w", err)
	}
	return s, nil
}

// Run makes a round now and one after each interval, until ctx ends and the
// round under way has ended. It returns nil.
func (s *Syncer) Run(ctx context.Context) error {
	for {
		s.round(ctx)
		select {
		case <-time.After(s.cfg.Interval*9/10 + rand.N(s.cfg.Interval/5+1)):
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *Syncer) round(ctx context.Context) {
	reading, cancel := context.WithTimeout(ctx, s.cfg.Deadline)
	clusters, err := s.cfg.Registry.Clusters(reading)
	cancel()
	if err != nil {
		if ctx.Err() == nil {
			s.cfg.Logger.Warn("the workspace classes are not synced this time", "error", err)
		}
		return
	}
	var asked errgroup.Group
	asked.SetLimit(s.cfg.AtOnce)
	for _, cluster := range clusters {
		if !cluster.Govern {
			continue
		}
		asked.Go(func() error {
			s.sync(ctx, cluster)
			return nil
		})
	}
	// Each has handled its own errors.
	_ = asked.Wait()
}

func (s *Syncer) sync(ctx context.Context, cluster store.Cluster) {
	attempt, cancel := context.WithTimeout(ctx, s.cfg.Deadline)
	defer cancel()
	changed, err := s.ask(attempt, cluster)
	switch {
	case err != nil && ctx.Err() != nil:
	case err != nil:
		s.synced.WithLabelValues(outcomeFailed).Inc()
		s.cfg.Logger.Warn("the workspace classes of a cluster could not be synced", "cluster", cluster.Name, "error", err)
	case changed:
		s.synced.WithLabelValues(outcomeChanged).Inc()
		s.cfg.Logger.Info("the workspace classes of a cluster have changed", "cluster", cluster.Name)
	default:
		s.synced.WithLabelValues(outcomeSame).Inc()
	}
}

func (s *Syncer) ask(ctx context.Context, cluster store.Cluster) (changed bool, err error) {
	described, err := s.cfg.Describe(ctx, cluster)
	if err != nil {
		return false, err
	}
	classes, err := store.ClassesOf(described)
	if err != nil {
		return false, err
	}
	return s.cfg.Registry.SetClasses(ctx, cluster, classes)
}
