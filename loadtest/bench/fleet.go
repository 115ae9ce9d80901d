package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/trestle-bridge/trestle/loadtest"
	"github.com/trestle-bridge/trestle/loadtest/bench/limits"
	"github.com/trestle-bridge/trestle/loadtest/bench/report"
	"github.com/trestle-bridge/trestle/loadtest/fleet"
)

// replicas is P8: the storm on 20 clusters, over 1, 2 and 4 replicas of this
// machine. What counts is the processor time of all replicas for an update. One
// replica and four are measured twice, in turn, since the machine may have other
// things to do.
func (b *bench) replicas(ctx context.Context) error {
	over := make(map[int][]*fleetStorm)
	for i, n := range []int{1, 4, 2, 4, 1} {
		played, err := b.stormOver(ctx, n, uint64(181+i))
		if err != nil {
			return err
		}
		over[n] = append(over[n], &played)
	}
	cost := func(n int) float64 { return mean(over[n], func(s *fleetStorm) float64 { return s.cost }) }
	rate := func(n int) float64 { return mean(over[n], (*fleetStorm).rate) }
	folded := func(n int) float64 { return mean(over[n], (*fleetStorm).folded) }
	b.add("P8", "processor time of one replica for 1,000 updates, storm on 20 clusters", cost(1), "CPU-s", 0, nil)
	b.add("P8", "processor time of 2 replicas for 1,000 updates, against that of one", cost(2), "CPU-s", cost(1), nil)
	b.add("P8", "processor time of 4 replicas for 1,000 updates, against that of one", cost(4), "CPU-s", cost(1), &report.Target{Of: report.OfRatio, AtMost: 1.15})
	b.add("P8", "updates over one replica", rate(1), "updates/s", 0, nil)
	b.add("P8", "updates over 2 replicas", rate(2), "updates/s", rate(1), nil)
	b.add("P8", "updates over 4 replicas", rate(4), "updates/s", rate(1), nil)
	b.add("P8", "updates for each row written, by one replica", folded(1), "", 0, nil)
	b.add("P8", "updates for each row written, by 4 replicas", folded(4), "", folded(1), nil)
	return nil
}

// fleetStorm is a storm over some replicas, and what it cost all of them:
// processor seconds for 1,000 updates.
type fleetStorm struct {
	load
	cost float64
}

// stormOver plays the storm over so many replicas.
func (b *bench) stormOver(ctx context.Context, n int, seed uint64) (s fleetStorm, err error) {
	name := fmt.Sprintf("P8-%d", n)
	f, err := b.newFleet(ctx, name, n)
	if err != nil {
		return fleetStorm{}, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	var before, after time.Duration
	var hookErr error
	r, err := f.play(ctx, loadtest.Work{
		Shape: loadtest.Storm, Seed: seed, Clusters: 20, Wave: 2000,
		Instances: quick(b, 240_000, 40_000), Duration: quick(b, 20*time.Second, 3*time.Second),
	}, loadtest.Config{
		Begin: func() {
			var err error
			before, err = f.cpu()
			hookErr = errors.Join(hookErr, err)
		},
		Published: func() {
			var err error
			after, err = f.cpu()
			hookErr = errors.Join(hookErr, err)
		},
	})
	if err := errors.Join(err, hookErr); err != nil {
		return fleetStorm{}, err
	}
	b.judge(name, r)
	s.Report = r
	s.cost = s.perThousand(after - before)
	return s, nil
}

// replicaFleet is several replicas of the service on a database of their own.
type replicaFleet struct {
	*fleet.Fleet
	b              *bench
	name, postgres string
	// prefix is that of their keys in etcd.
	prefix string
	// crash says that a replica will be lost: clusters drop who reads no more, and
	// what was told may be told again.
	crash bool
	drop  func() error
}

// newFleet starts so many replicas and returns when all are ready.
func (b *bench) newFleet(ctx context.Context, name string, replicas int, args ...string) (_ *replicaFleet, err error) {
	f := &replicaFleet{b: b, name: name}
	if f.postgres, f.drop, err = b.database(ctx); err != nil {
		return nil, err
	}
	f.prefix = fmt.Sprintf("/bench_%d", b.databases)
	f.Fleet, err = fleet.New(fleet.Config{
		Binary: b.cfg.Trestle, Dir: b.dir, Stop: stopTimeout,
		Env: []string{
			"TRESTLE_POSTGRES_URL=" + f.postgres, "TRESTLE_REDIS_URL=" + b.stack.Redis.URL(), "TRESTLE_INSTALLATION=" + installation,
			"TRESTLE_ETCD_ENDPOINTS=" + b.stack.Etcd.Endpoints()[0], "TRESTLE_ETCD_PREFIX=" + f.prefix,
		},
		Args: append(append([]string{"--wsClusterDBReconcileIntervalSeconds", "1"}, args...), b.cfg.Serve...),
	})
	if err != nil {
		return nil, errors.Join(err, f.drop())
	}
	b.line.begin(name + ": starting the replicas")
	for i := range replicas {
		starting, cancel := context.WithTimeout(ctx, startTimeout)
		_, err := f.Start(starting, fmt.Sprintf("%s-%d", name, i+1), "v1")
		cancel()
		if err != nil {
			return nil, errors.Join(err, f.close())
		}
	}
	return f, nil
}

// close ends all replicas and removes the database.
func (f *replicaFleet) close() error { return errors.Join(f.Close(), f.drop()) }

// play plays a work against the fleet. Of the configuration, the hooks are the
// caller's.
func (f *replicaFleet) play(ctx context.Context, work loadtest.Work, cfg loadtest.Config) (*loadtest.Report, error) {
	b := f.b
	var test *loadtest.Test
	var hookErr error
	begin, published := cfg.Begin, cfg.Published
	cfg.Work, cfg.Postgres, cfg.Redis, cfg.Installation = work, f.postgres, b.stack.Redis.URL(), installation
	cfg.NeverDrop, cfg.Logger, cfg.Ready, cfg.Settle = !f.crash, b.cfg.Logger, time.Minute, 2*time.Minute
	// After the second snapshot none comes for minutes.
	cfg.Snapshots = 2
	cfg.Register = func(ctx context.Context, clusters []loadtest.Cluster) error {
		if err := on(ctx, f.postgres, limits.Settle); err != nil {
			return err
		}
		return loadtest.Register(ctx, f.postgres, clusters)
	}
	cfg.Begin = func() {
		hookErr = on(ctx, f.postgres, limits.Flush)
		begin()
		b.line.begin(f.name + ": running")
	}
	cfg.Published = func() {
		if published != nil {
			published()
		}
		if f.crash {
			test.Ledger().Retold()
		}
		b.line.begin(f.name + ": checking every row")
	}
	cfg.Progress = func(p loadtest.Progress) { b.line.show(fmt.Sprintf("%d sent, %d published", p.Sent, p.Publishes)) }
	var err error
	if test, err = loadtest.New(cfg); err != nil {
		return nil, err
	}
	r, err := test.Run(ctx)
	if err := errors.Join(err, hookErr); err != nil {
		return nil, fmt.Errorf("%s: %w", f.name, err)
	}
	return r, nil
}

// cpu is the processor time of all replicas that live.
func (f *replicaFleet) cpu() (sum time.Duration, err error) {
	for _, r := range f.Living() {
		used, cpuErr := r.CPU()
		sum += used
		err = errors.Join(err, cpuErr)
	}
	return sum, err
}
