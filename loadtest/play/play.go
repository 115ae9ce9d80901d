// Package play plays scenarios: it has simulated clusters send what the work
// says, strikes with the faults when they are due, watches the service
// meanwhile, and makes a recording of it, with a verdict.
//
// What is right is decided by the oracle and the ledger; the replicas, the
// servers and the tables are those of a stage.
package play

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trestle-bridge/trestle/loadtest/record"
	"github.com/trestle-bridge/trestle/loadtest/scenario"
	"github.com/trestle-bridge/trestle/loadtest/stage"
)

// Config says what to play, and where.
type Config struct {
	// Scenario is complete.
	Scenario *scenario.Scenario
	// Seed decides all that is said, and what is drawn.
	Seed uint64
	// Own starts a fleet; Installation is one that exists. One of the two.
	Own          *Own
	Installation *Installation
	// Interrupt, if set, ends the playing when it is closed: faults are taken
	// back, what was sent is awaited and checked, and everything is cleaned up.
	Interrupt <-chan struct{}
	// Settle is how long to wait after the last message until everything is
	// published and right; default 90 s.
	Settle time.Duration
	// Progress, if set, is called about every second while something is sent.
	Progress func(record.Progress)
	// Tell, if set, hears in a line what goes on.
	Tell func(line string)
	// Logger, if set, hears what clusters do.
	Logger *slog.Logger
}

// Own is a fleet to start.
type Own struct {
	// Trestle is the path of the service's binary, Logs the folder for the logs
	// of replicas.
	Trestle, Logs string
	// Env is added to the environment of replicas.
	Env []string
}

// Installation is one that exists.
type Installation struct {
	stage.InstallationConfig
	// Prefix begins the names of clusters and regions.
	Prefix string
	// Listen is where the first cluster listens, as host:port; each further one
	// on the next port. Advertise is how the service reaches that.
	Listen, Advertise string
	// Plaintext clusters have no TLS: the installation must allow that.
	Plaintext bool
	// DecisiveStopped: its prebuild.decisivePhase is "stopped".
	DecisiveStopped bool
}

// theatre is what a stage does for a scenario.
type theatre interface {
	// Choose makes a strike of a fault.
	Choose(ctx context.Context, f *scenario.Fault, cluster func(int) string, draw float64) (*stage.Strike, error)
	// Facts are asked for at the beginning; Finish says at the end what else has
	// held.
	Facts(ctx context.Context) (stage.Facts, error)
	Finish(ctx context.Context) ([]record.Expectation, error)
}

// Play plays. A recording whose verdict is bad is no error; an error is what kept
// the scenario from being played.
func Play(ctx context.Context, cfg Config) (*record.Recording, error) {
	if cfg.Scenario == nil || (cfg.Own == nil) == (cfg.Installation == nil) {
		return nil, errors.New("to play needs a scenario, and either a fleet of its own or an installation")
	}
	if cfg.Settle == 0 {
		cfg.Settle = 90 * time.Second
	}
	if cfg.Tell == nil {
		cfg.Tell = func(string) {}
	}
	if cfg.Own != nil {
		return playOwn(ctx, cfg)
	}
	return playInstallation(ctx, cfg)
}

func playOwn(ctx context.Context, cfg Config) (_ *record.Recording, err error) {
	if err := os.MkdirAll(cfg.Own.Logs, 0o755); err != nil {
		return nil, fmt.Errorf("make the folder for the logs: %w", err)
	}
	d := newDirector(cfg, "sim")
	cfg.Tell(fmt.Sprintf("starting PostgreSQL, Redis, etcd and %d replicas; logs in %s", cfg.Scenario.Fleet.Replicas, cfg.Own.Logs))
	own, err := stage.StartOwn(ctx, stage.OwnConfig{Trestle: cfg.Own.Trestle, Dir: cfg.Own.Logs, Env: cfg.Own.Env, Scenario: cfg.Scenario, Told: d.told()})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, own.Close()) }()
	d.postgres, d.redis, d.operator, d.replicas, d.stage = own.Postgres(), own.Redis(), own.Operator(), own.Replicas, own
	// If a replica ends by itself, there is nobody to play with.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(own.Alive(), func() { cancel(context.Cause(own.Alive())) })()
	recording, err := d.run(ctx)
	if cause := context.Cause(own.Alive()); err != nil && cause != nil {
		err = cause
	}
	return recording, err
}

func playInstallation(ctx context.Context, cfg Config) (_ *record.Recording, err error) {
	in, err := stage.NewInstallation(cfg.Installation.InstallationConfig)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	d := newDirector(cfg, cfg.Installation.Prefix)
	d.postgres, d.redis, d.operator, d.replicas, d.stage = in.Postgres(), in.Redis(), in.Operator(), in.Replicas, in
	if err := d.secure(); err != nil {
		return nil, err
	}
	db, err := pgxpool.New(ctx, in.Postgres())
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer db.Close()
	rows := &stage.Rows{DB: db, Operator: in.Operator(), Prefix: cfg.Installation.Prefix}
	if err := rows.Unused(ctx); err != nil {
		return nil, err
	}
	recording, err := d.run(ctx)
	// Whatever became of it: nothing is to be left.
	cleaning, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	defer cancel()
	instances, clusters, cleanErr := rows.Clean(cleaning)
	if cleanErr != nil {
		cleanErr = fmt.Errorf("remove what the load test has made (loadtest clean --prefix=%s does it again): %w", rows.Prefix, cleanErr)
	} else {
		cfg.Tell(fmt.Sprintf("removed %d instances and %d clusters", instances, clusters))
	}
	return recording, errors.Join(err, cleanErr)
}
