package loadtest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/trestle-bridge/trestle/loadtest/ledger"
	"github.com/trestle-bridge/trestle/loadtest/script"
	"github.com/trestle-bridge/trestle/loadtest/seed"
	"github.com/trestle-bridge/trestle/loadtest/sim"
)

// Cluster is a simulated cluster as the service under test is told of it.
type Cluster struct {
	// Name is also the region of its rows; URL is a gRPC target.
	Name, URL string
}

// Config says what to test and how.
type Config struct {
	Work Work
	// Postgres is a URL; the tables exist and know none of the instances of
	// Work.Seed. Redis is a host:port or a redis:// URL.
	Postgres, Redis string
	// Installation is the service's name of itself; DecisiveStopped that its
	// prebuild.decisivePhase is "stopped".
	Installation    string
	DecisiveStopped bool
	// Register tells the service under test of the clusters. It is called once,
	// when they listen and the rows are there.
	Register func(context.Context, []Cluster) error
	// TLS is the clusters' side; nil: plain text.
	TLS *tls.Config
	// Buffer is the buffer for each subscriber, default sim.DefaultBuffer.
	// NeverDrop slows the clusters down instead of dropping a slow subscriber.
	Buffer    int
	NeverDrop bool
	// Snapshots is how many snapshots of each cluster to wait for before
	// sending; default 1. Updates that a later snapshot may overtake are
	// checked less strictly; see ledger.Ledger.Overtaken.
	Snapshots int
	// Begin, if set, is called just before the first message that counts:
	// the moment to start a measurement.
	Begin func()
	// Flooded, if set, is called when the last message of a flood has been
	// handed to the streams, before the changes that follow it are sent.
	Flooded func()
	// Published, if set, is called when every change has been followed by a
	// publish, or the waiting for that has ended: before the tables are
	// checked, the moment to end a measurement.
	Published func()
	// Finally, if set, is called when all has been checked, while the clusters
	// still run: the moment to end what hears them.
	Finally func(context.Context) error
	// Sending and Heard, if set, are called for each message and each publish:
	// see ledger.Config. Sending is also called for the messages of a flood.
	Sending func(cluster int, at time.Time, change bool)
	Heard   func(cluster int, at time.Time, followed []time.Duration)
	// Listen, if set, gives the address on which the cluster of a number
	// listens; default: loopback and a free port.
	Listen func(number int) string
	// Stop, if set, ends the sending when it is closed; what has been sent is
	// checked all the same. A Storm finishes its wave.
	Stop <-chan struct{}
	// Progress, if set, is called every ProgressInterval (default 1 s).
	Progress         func(Progress)
	ProgressInterval time.Duration
	// Settle is how long to wait after the last message until everything is
	// published and right; default 30 s. Ready is how long to wait for the
	// service to subscribe; default 30 s.
	Settle, Ready time.Duration
	// Silence is how long after the last publish nothing more is expected, if
	// every change has been followed by one: then what is not right stays so.
	// Default 5 s.
	Silence time.Duration
	// Sample: rows are read now and then just when their publish arrives. It
	// finds publishes before their commit, and costs some queries.
	Sample bool
	// AmongOthers: the tables hold much that is not under test.
	AmongOthers bool
	// Logger may be nil.
	Logger *slog.Logger
}

// Test is one load test.
type Test struct {
	cfg      Config
	work     Work
	library  *script.Library
	clusters []*sim.Cluster
	ledger   *ledger.Ledger
	ready    *ready
}

// New makes a test. Its clusters listen from now on; Run must follow.
func New(cfg Config) (*Test, error) {
	if err := cfg.Work.complete(); err != nil {
		return nil, err
	}
	if cfg.Postgres == "" || cfg.Redis == "" || cfg.Register == nil {
		return nil, errors.New("a load test needs Postgres, Redis and a way to register clusters")
	}
	for _, d := range []struct {
		value    *time.Duration
		standard time.Duration
	}{{&cfg.ProgressInterval, time.Second}, {&cfg.Settle, 30 * time.Second}, {&cfg.Ready, 30 * time.Second}, {&cfg.Silence, 5 * time.Second}} {
		if *d.value == 0 {
			*d.value = d.standard
		}
	}
	if cfg.Snapshots == 0 {
		cfg.Snapshots = 1
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	t := &Test{cfg: cfg, work: cfg.Work, ready: &ready{wake: make(chan struct{}, 1)}}
	var err error
	if t.library, err = script.NewLibrary(t.work.Seed); err != nil {
		return nil, fmt.Errorf("write scripts: %w", err)
	}
	lc := ledger.Config{
		Installation:    cfg.Installation,
		DecisiveStopped: cfg.DecisiveStopped,
		Count:           t.work.Instances,
		Subject:         func(n int) ledger.Subject { return t.work.subject(t.library, n) },
		AmongOthers:     cfg.AmongOthers,
		Sending:         cfg.Sending,
		Heard:           cfg.Heard,
	}
	if t.work.Shape == Closed {
		lc.Published = t.ready.add
	}
	for c := range t.work.Clusters {
		lc.Clusters = append(lc.Clusters, t.work.clusterName(c))
	}
	if t.ledger, err = ledger.New(lc); err != nil {
		return nil, err
	}
	for c, name := range lc.Clusters {
		address := ""
		if cfg.Listen != nil {
			address = cfg.Listen(c)
		}
		cluster, err := sim.New(sim.Config{
			Name: name, Address: address, TLS: cfg.TLS, Buffer: cfg.Buffer, NeverDrop: cfg.NeverDrop,
			ForgetStopped: time.Minute, Logger: cfg.Logger,
		})
		if err != nil {
			t.close()
			return nil, err
		}
		t.clusters = append(t.clusters, cluster)
	}
	return t, nil
}

// close frees the ports of clusters that have not been run.
func (t *Test) close() {
	for _, c := range t.clusters {
		c.Close()
	}
}

// Clusters are the simulated clusters, for faults. Tell the ledger of each
// failure by Ledger.Cut.
func (t *Test) Clusters() []*sim.Cluster { return t.clusters }

// Ledger is what has been sent and heard.
func (t *Test) Ledger() *ledger.Ledger { return t.ledger }

// Run seeds the rows, registers the clusters, sends, waits until all has
// settled and checks. A report whose verdict is bad is no error; an error is
// what kept the test from being made.
func (t *Test) Run(ctx context.Context) (*Report, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer t.close()
	// A pool, since connections break when the server is a part of the story.
	db, err := pgxpool.New(ctx, t.cfg.Postgres)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	defer db.Close()
	lc := ledger.ListenerConfig{Redis: t.cfg.Redis, Ledger: t.ledger}
	if t.cfg.Sample {
		lc.DB = db
	}
	listener, err := ledger.NewListener(lc)
	if err != nil {
		return nil, err
	}
	if err := seed.Seed(ctx, db, t.seeded); err != nil {
		return nil, err
	}

	// background lives until the test is over, whatever part of it fails.
	background, bctx := errgroup.WithContext(ctx)
	background.Go(func() error { return listener.Run(bctx) })
	for c, cluster := range t.clusters {
		background.Go(func() error { return cluster.Run(bctx) })
		background.Go(func() error { t.watch(bctx, c); return nil })
	}
	report, err := t.run(bctx, listener, db)
	if err == nil && t.cfg.Finally != nil {
		err = t.cfg.Finally(bctx)
	}
	cancel()
	if bErr := background.Wait(); err == nil {
		err = bErr
	}
	if err != nil {
		return nil, err
	}
	return report, nil
}

// Seeded are the instances that have rows: those that Run makes, and does not
// remove.
func (t *Test) Seeded() iter.Seq[seed.Instance] { return t.seeded }

// seeded are the instances that have rows.
func (t *Test) seeded(yield func(seed.Instance) bool) {
	for n := range t.work.Instances {
		s := t.work.subject(t.library, n)
		if s.Script.Role != script.Unknown && !yield(s.Instance) {
			return
		}
	}
}

// watch tells the ledger when updates of a cluster may have been missed.
func (t *Test) watch(ctx context.Context, number int) {
	t.clusters[number].Watch(ctx, func() { t.ledger.Cut(number) }, func() { t.ledger.Overtaken(number) })
}

func (t *Test) run(ctx context.Context, listener *ledger.Listener, db *pgxpool.Pool) (*Report, error) {
	if err := t.prepare(ctx, listener); err != nil {
		return nil, err
	}
	var start time.Time
	begin := func() {
		if t.cfg.Begin != nil {
			t.cfg.Begin()
		}
		t.ledger.ResetLatency()
		start = time.Now()
	}
	progress, stop := context.WithCancel(ctx)
	defer stop()
	reported := make(chan struct{})
	go func() {
		defer close(reported)
		t.progress(progress)
	}()

	var err error
	switch t.work.Shape {
	case Storm:
		begin()
		err = t.storm(ctx)
	case Steady:
		begin()
		err = t.steady(ctx)
	case Closed:
		begin()
		err = t.closed(ctx)
	case Repeats, Stale:
		err = t.flood(ctx, begin)
	}
	sent := time.Now()
	var report *Report
	if err == nil {
		report, err = t.settle(ctx, db)
	}
	stop()
	<-reported
	if err != nil {
		return nil, err
	}
	report.Sending = sent.Sub(start)
	report.Duration = max(report.Sending, t.ledger.Counts().LastPublish.Sub(start))
	return report, nil
}

// prepare returns when the service hears every cluster and we hear Redis.
func (t *Test) prepare(ctx context.Context, listener *ledger.Listener) error {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Ready)
	defer cancel()
	select {
	case <-listener.Ready():
	case <-ctx.Done():
		return fmt.Errorf("subscribe to Redis at %s: %w", t.cfg.Redis, ctx.Err())
	}
	var clusters []Cluster
	for _, c := range t.clusters {
		clusters = append(clusters, Cluster{Name: c.Name(), URL: c.Addr()})
	}
	if err := t.cfg.Register(ctx, clusters); err != nil {
		return fmt.Errorf("register %d clusters: %w", len(clusters), err)
	}
	for _, c := range t.clusters {
		if err := c.Await(ctx, func(s sim.Stats) bool { return s.Subscribers > 0 && s.Snapshots >= t.cfg.Snapshots }); err != nil {
			return err
		}
	}
	return nil
}

func (t *Test) progress(ctx context.Context) {
	if t.cfg.Progress == nil {
		return
	}
	start := time.Now()
	tick := time.NewTicker(t.cfg.ProgressInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		c := t.ledger.Counts()
		t.cfg.Progress(Progress{Elapsed: time.Since(start), Sent: c.Sent, Publishes: c.Publishes, Pending: c.Pending})
	}
}

// quiet is how long to listen for publishes that should not come, and how long
// to wait between two checks.
const quiet = 200 * time.Millisecond

// awaitSilence returns when every change has been followed by its publish, or,
// with an error, when nothing was published for as long as silence is.
func (t *Test) awaitSilence(ctx context.Context) error {
	last := time.Now()
	for {
		step, cancel := context.WithDeadline(ctx, last.Add(t.cfg.Silence))
		err := t.ledger.AwaitPublished(step)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		published := t.ledger.Counts().LastPublish
		if !published.After(last) {
			return err
		}
		last = published
	}
}

// settle waits until the tables and publishes are as they must be, or for as
// long as it may, and reports.
func (t *Test) settle(ctx context.Context, db *pgxpool.Pool) (*Report, error) {
	waiting, cancel := context.WithTimeout(ctx, t.cfg.Settle)
	defer cancel()
	var unsettled error
	for {
		unsettled = t.awaitSilence(waiting)
		if unsettled == nil || waiting.Err() != nil {
			break
		}
		// The check finds those that no publish is to follow. It is work for the
		// database, so it comes when nothing else does. A database that is away
		// at the moment is asked again.
		_, _ = t.ledger.Check(waiting, db)
	}
	if t.cfg.Published != nil {
		t.cfg.Published()
	}
	var verdict *ledger.Verdict
	for {
		select {
		case <-time.After(quiet):
		case <-ctx.Done():
			return nil, fmt.Errorf("settle: %w", ctx.Err())
		}
		var err error
		if verdict, err = t.ledger.Check(ctx, db); err != nil {
			return nil, err
		}
		c := t.ledger.Counts()
		if !verdict.Mendable() || waiting.Err() != nil || c.Pending == 0 && time.Since(c.LastPublish) > t.cfg.Silence {
			break
		}
	}
	latency, c := t.ledger.Latency(), t.ledger.Counts()
	r := &Report{
		Work: t.work, Verdict: verdict, Latency: Summarize(&latency),
		Sent: c.Sent, Changes: c.Changes, Repeats: c.Repeats, Stale: c.Stale, Invalid: c.Invalid,
		Folded:    max(0, c.Changes-c.Publishes),
		Publishes: c.Publishes, Prebuilds: c.Prebuilds, Headless: c.Headless,
		Gaps: c.Gaps, Strays: c.Strays,
	}
	if unsettled != nil {
		r.Unsettled = unsettled.Error()
	}
	for _, cluster := range t.clusters {
		r.Drops += cluster.Stats().Dropped
	}
	return r, nil
}
