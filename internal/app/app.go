// Package app wires the service: it is the only place that knows all parts.
// Run is one straight function in the order of dependencies; what it starts
// ends in the reverse order, intake first, so that nothing heard is dropped.
package app

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trestle-bridge/trestle/internal/api"
	"github.com/trestle-bridge/trestle/internal/classsync"
	"github.com/trestle-bridge/trestle/internal/config"
	"github.com/trestle-bridge/trestle/internal/observe"
	"github.com/trestle-bridge/trestle/internal/publish"
	"github.com/trestle-bridge/trestle/internal/secret"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/internal/sweep"
	"github.com/trestle-bridge/trestle/internal/upstream"
	"github.com/trestle-bridge/trestle/pipeline"
)

// ErrIncomplete is wrapped by the error of a Run that was stopped before
// everything heard was written and published.
var ErrIncomplete = errors.New("stopped before everything was written and published")

// Options are what Run needs.
type Options struct {
	Config config.Config
	// Version and Revision of the binary.
	Version, Revision string
	Logger            *slog.Logger
	// Listening, if set, is called with the address of the HTTP server once
	// it listens.
	Listening func(http net.Addr)
	// ClusterService, if set, is called with the address of the gRPC server
	// once it listens, which is before Listening is called.
	ClusterService func(grpc net.Addr)
}

// Run is the service. It returns after ctx has ended and everything heard
// until then is written and published, or the shutdown's time limit is over;
// the error wraps ErrIncomplete then.
func Run(ctx context.Context, o Options) error {
	cfg, log := o.Config, o.Logger
	registry := observe.NewRegistry()
	metrics := newMetrics(registry, o.Version, o.Revision)
	tracing, err := observe.NewTracing(ctx, observe.TracingConfig{
		Endpoint:    cfg.Tracing.Endpoint,
		SampleRatio: cfg.Tracing.SampleRatio,
		Version:     o.Version,
		Replica:     cfg.Replica.ID,
		Logger:      log.With("component", "tracing"),
	})
	if err != nil {
		return err
	}
	defer func() {
		flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := tracing.Close(flush); err != nil {
			log.Warn("the last spans could not be sent", "error", err)
		}
	}()
	streams, err := upstream.NewMetrics(registry)
	if err != nil {
		return err
	}

	if cfg.Migrations.AtStart {
		err := untilReached(ctx, log, "migrate the database", func(ctx context.Context) error {
			return store.Migrate(ctx, cfg.Postgres.URL, log)
		})
		if ctx.Err() != nil {
			return nil // stopped before anything was heard
		}
		if err != nil {
			return err
		}
	}
	db, err := store.Open(ctx, store.Config{
		URL:              cfg.Postgres.URL,
		MaxConnections:   int32(cfg.PostgresConnections()),
		StatementTimeout: cfg.Postgres.StatementTimeout,
		Installation:     cfg.Installation,
		Lifecycle:        cfg.Lifecycle.Sink.Reveal() != "none",
		Logger:           log.With("component", "store"),
		Registerer:       registry,
	})
	if err != nil {
		return err
	}
	defer db.Close()
	if err := untilReached(ctx, log, "check the database's schema", db.CheckSchema); ctx.Err() != nil {
		return nil
	} else if err != nil {
		return err
	}

	redis, err := publish.New(publish.Config{
		Redis:      publish.Redis{URL: cfg.Redis.Server},
		Log:        log.With("component", "publish"),
		Registerer: registry,
	})
	if err != nil {
		return err
	}
	defer redis.Close()
	lifecycle, err := publish.NewLifecycle(publish.LifecycleConfig{
		Sink:       secret.New(cfg.Lifecycle.Sink.Reveal()),
		Queue:      lifecycleQueue{db},
		Log:        log.With("component", "lifecycle"),
		Registerer: registry,
	})
	if err != nil {
		return err
	}

	pipe, err := pipeline.New(pipeline.Config{
		Owner:           incarnation(cfg.Replica.ID),
		Lanes:           cfg.Pipeline.Lanes,
		BatchLimit:      cfg.Pipeline.BatchLimit,
		DedupEntries:    cfg.Pipeline.DedupEntries,
		MaxWaiting:      cfg.Pipeline.MaxWaitingPerCluster,
		MaxWaitingTotal: cfg.Pipeline.MaxWaiting,
		Rules:           status.Rules{DecidedWhenStopped: cfg.Prebuild.DecisivePhase == "stopped"},
		Store:           db,
		Publisher:       redis,
		Lifecycle:       lifecycle.Wake,
		Tracer:          tracing.Tracer(),
		Extract:         tracing.Extract,
		Logger:          log.With("component", "pipeline"),
		Registerer:      registry,
	})
	if err != nil {
		return err
	}

	clusters := newFleet(fleetConfig{
		Config:   cfg,
		Store:    db,
		Pipeline: pipe,
		Budget:   upstream.NewBudget(int64(cfg.Upstream.SnapshotBudgetBytes)),
		Upstream: streams,
		Metrics:  metrics,
		Traced:   tracing.On(),
		Logger:   log.With("component", "upstream"),
	})
	sweeper, err := sweep.New(sweep.Config{
		Installation: cfg.Installation,
		Limits: store.Limits{
			Preparing: cfg.Timeouts.Preparing,
			Building:  cfg.Timeouts.Building,
			Unknown:   cfg.Timeouts.Unknown,
			Pending:   cfg.Timeouts.Pending,
			Stopping:  cfg.Timeouts.Stopping,
		},
		Timing:        sweep.Timing{Interval: cfg.ControllerInterval, MaxDisconnect: cfg.ControllerMaxDisconnect},
		Store:         db,
		Outbox:        db,
		Publisher:     redis,
		Owners:        owners{clusters},
		Clusters:      clusters.sweptClusters,
		Lifecycle:     lifecycle.Wake,
		PrebuildEnded: pipe.PrebuildEnded,
		Logger:        log.With("component", "sweep"),
		Registerer:    registry,
	})
	if err != nil {
		return err
	}
	classes, err := classsync.New(classsync.Config{
		Registry:   db,
		Describe:   describe,
		Interval:   cfg.ClusterSyncInterval,
		Logger:     log.With("component", "classsync"),
		Registerer: registry,
	})
	if err != nil {
		return err
	}
	service, err := api.New(api.Config{
		Address:        cfg.ClusterService.Address(),
		Registry:       db,
		Static:         cfg.StaticBridges,
		AllowPlaintext: cfg.AllowPlaintextClusters,
		Logger:         log.With("component", "api"),
		Registerer:     registry,
	})
	if err != nil {
		return err
	}
	if o.ClusterService != nil {
		o.ClusterService(service.Addr())
	}
	health := health{pipeline: pipe, store: db, redis: redis, clusters: clusters}
	server, err := observe.NewServer(observe.ServerConfig{
		Address:  cfg.HTTP.Address,
		Gatherer: registry,
		Healthy:  health.live,
		Ready:    health.ready,
		Logger:   log.With("component", "http"),
	})
	if err != nil {
		return errors.Join(err, service.Close())
	}
	if o.Listening != nil {
		o.Listening(server.Addr())
	}

	// Two contexts: hearing ends with ctx, finishing what was heard ends
	// afterwards, by itself or when the time limit is over.
	finish, stopFinishing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopFinishing()
	group, finish := errgroup.WithContext(finish)
	group.Go(func() error { return server.Run(finish) })
	group.Go(func() error { return pipe.Run(finish) })
	group.Go(func() error { return lifecycle.Run(finish) })
	group.Go(func() error { return metrics.watchOutbox(finish, db, log) })

	log.Info("trestle is up", "version", o.Version, "replica", cfg.Replica.ID, "http", server.Addr().String(), "grpc", service.Addr().String())
	hearing, stopHearing := context.WithCancel(ctx)
	defer stopHearing()
	context.AfterFunc(finish, stopHearing) // a part that failed ends all
	group.Go(func() error {
		lead(hearing, log.With("component", "sweep"), db, pipe.Owner(), sweeper, classes)
		return nil
	})
	group.Go(func() error { return service.Run(hearing) })
	group.Go(func() error { db.ListenClusters(hearing, clusters.look); return nil })
	clusters.run(hearing)

	log.Info("stopping: what was heard is being written and published", "limit", cfg.Shutdown.Timeout.String(), "waiting", pipe.Waiting())
	limited, cancel := context.WithTimeout(finish, cfg.Shutdown.Timeout)
	defer cancel()
	left := clusters.drain(limited)
	stopFinishing()
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	if left != nil {
		return fmt.Errorf("%w within %s: %w", ErrIncomplete, cfg.Shutdown.Timeout, left)
	}
	log.Info("stopped: everything heard was written and published")
	return nil
}

// Migrate brings the database's schema up to what this version needs.
func Migrate(ctx context.Context, cfg config.Config, log *slog.Logger) error {
	return store.Migrate(ctx, cfg.Postgres.URL, log)
}

// incarnation names this process: new at every start, also of a replica whose
// name stays.
func incarnation(replica string) string {
	return replica + "/" + rand.Text()[:10]
}

// untilReached repeats what needs a server until the server is reached, so
// that a replica that starts during an outage waits for its end. An answer
// that another try would not change is returned at once.
func untilReached(ctx context.Context, log *slog.Logger, what string, do func(context.Context) error) error {
	backoff := 200 * time.Millisecond
	for {
		err := do(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || !store.Unreachable(err) {
			return fmt.Errorf("%s: %w", what, err)
		}
		log.Warn("waiting for the database", "to", what, "error", err)
		select {
		case <-time.After(backoff):
			backoff = min(2*backoff, 5*time.Second)
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}

// lifecycleQueue is the store as the sender of lifecycle events sees it.
type lifecycleQueue struct{ store *store.Store }

func (q lifecycleQueue) Pending(ctx context.Context, limit int) ([]publish.Pending, error) {
	rows, err := q.store.PendingLifecycle(ctx, limit)
	pending := make([]publish.Pending, len(rows))
	for i, row := range rows {
		pending[i] = publish.Pending{ID: row.ID, Lifecycle: row.Lifecycle}
	}
	return pending, err
}

func (q lifecycleQueue) Done(ctx context.Context, ids []int64) error {
	return q.store.DeleteLifecycle(ctx, ids)
}
