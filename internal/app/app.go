// Package app wires the service: it is the only place that knows all parts.
// Run is one straight function in the order of dependencies; what it starts
// ends in the reverse order, intake first, so that nothing heard is dropped.
package app

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trestle-bridge/trestle/coordinator"
	"github.com/trestle-bridge/trestle/coordinator/kv"
	"github.com/trestle-bridge/trestle/internal/api"
	"github.com/trestle-bridge/trestle/internal/classsync"
	"github.com/trestle-bridge/trestle/internal/config"
	"github.com/trestle-bridge/trestle/internal/observe"
	"github.com/trestle-bridge/trestle/internal/peer"
	"github.com/trestle-bridge/trestle/internal/publish"
	"github.com/trestle-bridge/trestle/internal/secret"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/internal/sweep"
	"github.com/trestle-bridge/trestle/internal/upstream"
	"github.com/trestle-bridge/trestle/internal/worker"
	"github.com/trestle-bridge/trestle/pipeline"
	"github.com/trestle-bridge/trestle/shard"
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
	// LogLevel, if set, is the level of Logger, which may be changed through the
	// console.
	LogLevel *slog.LevelVar
	// Listening, if set, is called with the address of the HTTP server once
	// it listens.
	Listening func(http net.Addr)
	// ClusterService, if set, is called with the address of the gRPC server
	// once it listens, which is before Listening is called.
	ClusterService func(grpc net.Addr)
	// Console, if set, is called with the address of the console once it listens,
	// which is before Listening is called; not at all if there is none.
	Console func(http net.Addr)
	// Waiting, if set, is called with a function that says of how many instances
	// updates wait to be written. That one is safe for concurrent use.
	Waiting func(waiting func() int)
	// SecondLook, if set, is the time between the two snapshots that a
	// subscription begins with; see upstream.Timing.
	SecondLook time.Duration
}

// warmLimit is how long a replica takes at most to have its statements planned
// before it takes part. Where it takes longer than a moment, processors are short,
// and then a batch that has to wait for it at a hand-over waits long.
const warmLimit = 5 * time.Second

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
		Writers:          int32(cfg.Pipeline.Lanes),
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
	if err := db.Warm(ctx, warmLimit); err != nil && ctx.Err() == nil {
		log.Warn("statements could not be planned ahead; the first batches take longer", "error", err)
	}

	redisTLS, err := clientTLS("redis.tls", cfg.Redis.TLS, cfg.Redis.Material)
	if err != nil {
		return err
	}
	redis, err := publish.New(publish.Config{
		Redis:      publish.Redis{URL: cfg.Redis.Server, TLS: redisTLS},
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
		TraceBytes:      int(cfg.Pipeline.TraceBytes),
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

	if o.Waiting != nil {
		o.Waiting(pipe.Waiting)
	}

	// All that is asked of the other replicas, and of the coordinator, goes by
	// way of the fleet, which is complete when the coordinator is made.
	identity, err := peer.NewIdentity()
	if err != nil {
		return err
	}
	replicas := &fleet{me: pipe.Owner(), client: upstream.Config{
		MaxUpdateBytes:   int(cfg.Upstream.MaxUpdateBytes),
		MaxSnapshotBytes: int64(cfg.Upstream.MaxSnapshotBytes),
	}}
	roster := func() map[string][]string { return replicas.coordinator.Peers() }
	replicas.peers = peer.NewPeers(identity, roster)
	defer replicas.peers.Close()
	hearing := replicas.client
	hearing.Logger, hearing.Metrics = log.With("component", "upstream"), streams
	hearing.Timing = upstream.Timing{SecondLook: o.SecondLook, Every: cfg.Upstream.SnapshotInterval}
	hearing.Budget = upstream.NewBudget(int64(cfg.Upstream.SnapshotBudgetBytes))
	hearing.Trace = tracing.On()
	replicas.worker, err = worker.New(worker.Config{
		Pipeline:    pipe,
		Quarantined: db.Quarantined,
		Versions:    db.Versions,
		VersionsOf:  db.VersionsOf,
		Client:      hearing,
		Succeeded:   func() bool { return replicas.coordinator.Others() },
		OwnerDeaf:   func(id shard.ID) bool { return replicas.coordinator.OwnerDeaf(id) },
		HandedOver:  func(id shard.ID) bool { return replicas.coordinator.HandedOver(id) },
		Logger:      log.With("component", "worker"),
	})
	if err != nil {
		return err
	}
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
		Owners:        replicas,
		Clusters:      replicas.clusters,
		Lifecycle:     lifecycle.Wake,
		PrebuildEnded: pipe.PrebuildEnded,
		Logger:        log.With("component", "sweep"),
		Registerer:    registry,
	})
	if err != nil {
		return err
	}
	replicas.rounds = sweeper
	replicas.registry = newRegistry(registryConfig{
		Static:   cfg.StaticBridges,
		Interval: cfg.ClusterReconcileInterval,
		Store:    db,
		Metrics:  metrics,
		Changed: func(usable map[string]upstream.Cluster, others bool) {
			replicas.worker.SetClusters(usable)
			if others {
				replicas.coordinator.ClustersChanged()
				sweeper.ClustersChanged()
			}
		},
		Logger: log.With("component", "registry"),
	})
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

	peers, err := peer.New(peer.Config{
		Address: cfg.Peer.Listen, Replica: replicas.worker, Rounds: sweeper,
		Identity: identity, Roster: roster, Logger: log.With("component", "peer"),
	})
	if err != nil {
		return err
	}
	etcdKeys, err := etcdFiles(cfg.Etcd, registry, log.With("component", "etcd"))
	if err != nil {
		return errors.Join(err, peers.Close())
	}
	etcd, err := newEtcd(cfg.Etcd, etcdKeys)
	if err != nil {
		return errors.Join(err, peers.Close())
	}
	defer etcd.Close()
	replicas.coordinator, err = coordinator.New(coordinator.Config{
		Store:  kv.Etcd(etcd),
		Prefix: cfg.Etcd.Prefix,
		Replica: coordinator.Replica{
			ID:          cfg.Replica.ID,
			Incarnation: pipe.Owner(),
			Revision:    cfg.Replica.Revision,
			PeerAddress: cmp.Or(cfg.Peer.Advertise, peers.Addr().String()),
			PeerKey:     identity.Fingerprint(),
		},
		Lease:    cfg.Etcd.Lease,
		Worker:   replicas.worker,
		Fences:   fences{db},
		Clusters: replicas.registry.clusters,
		Measure:  replicas.worker.Measure,
		Healthy:  func() bool { return pipe.Healthy() == nil },
		Probe:    replicas.peers.Refuses,
		Sweep: func(cluster string) {
			if err := sweeper.Request(cluster); err != nil {
				log.Debug("a cluster whose owner was lost has no round yet; its first one is to come", "cluster", cluster)
			}
		},
		Lead: (&rounds{
			store: db, owner: pipe.Owner(), sweeper: sweeper, classes: classes, log: log.With("component", "sweep"),
		}).lead,
		Logger:     log.With("component", "coordinator"),
		Registerer: registry,
	})
	if err != nil {
		return errors.Join(err, peers.Close())
	}

	door, err := newDoor(cfg.ClusterService, registry, log.With("component", "access"))
	if err != nil {
		return errors.Join(err, peers.Close())
	}
	service, err := api.New(api.Config{
		Address:         cfg.ClusterService.Address(),
		Registry:        db,
		Static:          cfg.StaticBridges,
		AllowPlaintext:  cfg.AllowPlaintextClusters,
		Fleet:           replicas.coordinator,
		Sweeps:          replicas,
		Instances:       replicas,
		Rows:            db,
		Incarnation:     pipe.Owner(),
		TLS:             door.tls(),
		Access:          door.access,
		Insecure:        cfg.ClusterService.Insecure,
		CallsPerSecond:  cfg.ClusterService.CallsPerSecond,
		CallsAtOnce:     cfg.ClusterService.CallsAtOnce,
		MaxRequestBytes: int(cfg.ClusterService.MaxRequestBytes),
		Audit:           observe.Unfiltered(log.With("component", "audit")),
		Logger:          log.With("component", "api"),
		Registerer:      registry,
	})
	if err != nil {
		return errors.Join(err, peers.Close())
	}
	if o.ClusterService != nil {
		o.ClusterService(service.Addr())
	}
	health := health{pipeline: pipe, store: db, redis: redis, fleet: replicas}
	page, err := newConsole(o, health, db, replicas)
	if err != nil {
		return errors.Join(err, peers.Close(), service.Close())
	}
	server, err := observe.NewServer(observe.ServerConfig{
		Address:  cfg.HTTP.Address,
		Gatherer: registry,
		Healthy:  health.live,
		Ready:    health.ready,
		Logger:   log.With("component", "http"),
	})
	if err != nil {
		return errors.Join(err, peers.Close(), service.Close(), page.Close())
	}
	if o.Listening != nil {
		o.Listening(server.Addr())
	}

	// Everything runs until what was heard is written and handed over, which
	// begins when ctx ends.
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, running := errgroup.WithContext(running)
	if etcdKeys != nil {
		group.Go(func() error { return etcdKeys.Run(running) })
	}
	for _, part := range []func(context.Context) error{
		server.Run, service.Run, peers.Run, page.Run, pipe.Run, lifecycle.Run, replicas.worker.Run, replicas.coordinator.Run, door.run,
		func(ctx context.Context) error { replicas.registry.run(ctx); return nil },
		func(ctx context.Context) error { db.ListenClusters(ctx, replicas.registry.look); return nil },
		func(ctx context.Context) error { return metrics.watchOutbox(ctx, db, log) },
		func(ctx context.Context) error {
			allotLanes(ctx, cfg.Pipeline.FleetLanes, replicas.coordinator.Members, pipe.Allot)
			return nil
		},
	} {
		group.Go(func() error { return part(running) })
	}
	log.Info("trestle is up", "version", o.Version, "replica", cfg.Replica.ID, "incarnation", pipe.Owner(),
		"http", server.Addr().String(), "grpc", service.Addr().String(), "peer", peers.Addr().String(), "console", page.address())

	select {
	case <-ctx.Done():
	case <-running.Done(): // a part that failed ends all
	}
	left := leave(running, cfg.Shutdown.Timeout, replicas, log)
	stop()
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	if left != nil {
		return fmt.Errorf("%w within %s: %w", ErrIncomplete, cfg.Shutdown.Timeout, left)
	}
	log.Info("stopped: everything heard was written and published or handed over")
	return nil
}

// leave hands all shards over, or writes out and publishes what was heard of
// them. The error says what is left when the time is over.
func leave(ctx context.Context, limit time.Duration, replicas *fleet, log *slog.Logger) error {
	unwritten, _ := replicas.worker.Left()
	log.Info("stopping: all shards are handed over, or what was heard of them is written and published",
		"limit", limit.String(), "waiting", unwritten)
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := replicas.coordinator.Leave(limited)
	unwritten, unpublished := replicas.worker.Left()
	switch {
	case unwritten > 0:
		err = errors.Join(fmt.Errorf("%d instances have updates that were not written", unwritten), err)
	case unpublished > 0:
		err = errors.Join(fmt.Errorf("everything was written, but not all of it published: the rest is in the outbox of %d shards", unpublished), err)
	}
	return err
}

// fences are the database's, as the coordinator asks for them.
type fences struct{ *store.Store }

func (f fences) Known(ctx context.Context, clusters []string) (map[string]coordinator.Known, error) {
	known, err := f.Store.Known(ctx, clusters)
	out := make(map[string]coordinator.Known, len(known))
	for name, k := range known {
		out[name] = coordinator.Known(k)
	}
	return out, err
}

// Migrate brings the database's schema up to what this version needs.
func Migrate(ctx context.Context, cfg config.Config, log *slog.Logger) error {
	return store.Migrate(ctx, cfg.Postgres.URL, log)
}

// incarnation names this process: new at every start, also of a replica whose
// name stays. It is a part of keys, so it has no slash.
func incarnation(replica string) string {
	return strings.ReplaceAll(replica, "/", "_") + "." + rand.Text()[:10]
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
