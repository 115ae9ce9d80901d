package stage

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/trestle-bridge/trestle/internal/devstack"
	"github.com/trestle-bridge/trestle/internal/devstack/faultproxy"
	"github.com/trestle-bridge/trestle/loadtest/fleet"
	"github.com/trestle-bridge/trestle/loadtest/monitor"
	"github.com/trestle-bridge/trestle/loadtest/operator"
	"github.com/trestle-bridge/trestle/loadtest/record"
	"github.com/trestle-bridge/trestle/loadtest/scenario"
)

// OwnConfig says what to start.
type OwnConfig struct {
	// Trestle is the path of the service's binary; Dir is a folder for logs.
	Trestle, Dir string
	// Env is added to the environment of replicas.
	Env      []string
	Scenario *scenario.Scenario
	Told     Told
}

const (
	startTimeout = 2 * time.Minute
	stopTimeout  = 75 * time.Second
	// revision is that of the first replicas.
	revision = "v%d"
)

// Own is a fleet of the load test's own, and all that it needs.
type Own struct {
	cfg      OwnConfig
	stack    *devstack.Stack
	postgres string // URL of the database, past the proxy
	proxies  map[scenario.TargetKind]*faultproxy.Proxy
	fleet    *fleet.Fleet
	operator *operator.Operator
	// parts are proxies and those who wait for the ends of replicas.
	parts sync.WaitGroup
	end   context.CancelFunc
	alive context.Context
	dies  context.CancelCauseFunc
	// servers keeps those apart who start and stop servers.
	servers sync.Mutex

	// mu guards what follows.
	mu       sync.Mutex
	leaving  map[*fleet.Replica]bool
	born     int
	revision int
}

// StartOwn starts everything, and returns when all replicas are ready.
func StartOwn(ctx context.Context, cfg OwnConfig) (_ *Own, err error) {
	if cfg.Trestle == "" || cfg.Dir == "" || cfg.Scenario == nil {
		return nil, errors.New("a fleet needs a binary, a folder for its logs and a scenario")
	}
	o := &Own{cfg: cfg, proxies: make(map[scenario.TargetKind]*faultproxy.Proxy), leaving: make(map[*fleet.Replica]bool), revision: 1}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	o.end = end
	o.alive, o.dies = context.WithCancelCause(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			err = errors.Join(err, o.Close())
		}
	}()
	o.stack, err = devstack.Start(ctx, devstack.Config{
		// With the times of commits, each publish can be held against the commit
		// that it tells of.
		Postgres: &devstack.PostgresConfig{Settings: map[string]string{"track_commit_timestamp": "on"}},
		Redis:    &devstack.RedisConfig{},
		Etcd:     &devstack.EtcdConfig{},
	})
	if err != nil {
		return nil, err
	}
	if o.postgres, err = o.stack.Postgres.NewDatabase(ctx, "trestle"); err != nil {
		return nil, err
	}
	if err := o.interpose(life); err != nil {
		return nil, err
	}
	if err := o.makeFleet(); err != nil {
		return nil, err
	}
	o.operator, err = operator.New(operator.Config{Addresses: o.addresses})
	if err != nil {
		return nil, err
	}
	return o, o.start(ctx, cfg.Scenario.Fleet.Replicas)
}

// interpose puts proxies where the scenario breaks connections.
func (o *Own) interpose(ctx context.Context) error {
	addresses := map[scenario.TargetKind]string{
		scenario.Postgres: o.stack.Postgres.Addr(), scenario.Redis: o.stack.Redis.Addr(), scenario.Etcd: o.stack.Etcd.Addr(),
	}
	for i := range o.cfg.Scenario.Faults {
		f := &o.cfg.Scenario.Faults[i]
		kind := f.Target.Kind
		address, server := addresses[kind]
		if !server || !f.Connection() || o.proxies[kind] != nil {
			continue
		}
		proxy, err := faultproxy.New(address)
		if err != nil {
			return err
		}
		o.proxies[kind] = proxy
		o.parts.Go(func() {
			if err := proxy.Run(ctx); err != nil {
				o.dies(err)
			}
		})
	}
	return nil
}

// through is an address, or that of the proxy before it.
func (o *Own) through(kind scenario.TargetKind, address string) string {
	if proxy := o.proxies[kind]; proxy != nil {
		return proxy.Addr()
	}
	return address
}

func (o *Own) makeFleet() error {
	database, err := url.Parse(o.postgres)
	if err != nil {
		return fmt.Errorf("read the URL of the database: %w", err)
	}
	database.Host = o.through(scenario.Postgres, database.Host)
	o.fleet, err = fleet.New(fleet.Config{
		Binary: o.cfg.Trestle, Dir: o.cfg.Dir, Stop: stopTimeout,
		Env: append([]string{
			"TRESTLE_POSTGRES_URL=" + database.String(),
			"TRESTLE_REDIS_URL=redis://" + o.through(scenario.Redis, o.stack.Redis.Addr()),
			"TRESTLE_ETCD_ENDPOINTS=http://" + o.through(scenario.Etcd, o.stack.Etcd.Addr()),
			fmt.Sprintf("TRESTLE_ETCD_LEASE_SECONDS=%d", o.cfg.Scenario.Fleet.Lease/time.Second),
			"TRESTLE_ALLOW_PLAINTEXT_CLUSTERS=true",
		}, o.cfg.Env...),
		Args: append([]string{"--wsClusterDBReconcileIntervalSeconds", "1", "--shutdown.timeoutSeconds", "60"}, o.cfg.Scenario.Fleet.Serve...),
	})
	return err
}

// start starts more replicas of the present revision, all at once, and returns
// when they are ready.
func (o *Own) start(ctx context.Context, count int) error {
	group, ctx := errgroup.WithContext(ctx)
	for range count {
		o.mu.Lock()
		o.born++
		name, rev := fmt.Sprintf("replica-%d", o.born), fmt.Sprintf(revision, o.revision)
		o.mu.Unlock()
		group.Go(func() error { return o.launch(ctx, name, rev) })
	}
	return group.Wait()
}

// launch starts a replica, watches it, and returns when it is ready.
func (o *Own) launch(ctx context.Context, name, rev string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	r, err := o.fleet.Start(ctx, name, rev)
	if err != nil {
		return err
	}
	o.tell(o.cfg.Told.Started, name, rev)
	o.parts.Go(func() {
		<-r.Done()
		o.mu.Lock()
		expected := o.leaving[r]
		o.mu.Unlock()
		if !expected {
			o.dies(fmt.Errorf("%s has ended by itself; its log: %s", r.Name, r.Log))
		}
	})
	return nil
}

func (o *Own) tell(f func(string, string), name, what string) {
	if f != nil {
		f(name, what)
	}
}

func (o *Own) ended(r *fleet.Replica, how string, lost bool) {
	if o.cfg.Told.Ended != nil {
		o.cfg.Told.Ended(r.Name, how, lost)
	}
}

func (o *Own) leave(r *fleet.Replica) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.leaving[r] = true
}

// Alive ends when a part of the stage has failed that should not have, with the
// reason as its cause.
func (o *Own) Alive() context.Context { return o.alive }

// addresses are those of the living replicas' gRPC.
func (o *Own) addresses() []string {
	var all []string
	for _, r := range o.fleet.Living() {
		all = append(all, r.GRPC)
	}
	return all
}

// Postgres is the URL of the database, Redis that of Redis: past the faults.
func (o *Own) Postgres() string { return o.postgres }

// Redis is the URL of Redis, past the faults.
func (o *Own) Redis() string { return o.stack.Redis.URL() }

// Operator asks the replicas that live.
func (o *Own) Operator() *operator.Operator { return o.operator }

// Replicas are those that live.
func (o *Own) Replicas() []monitor.Replica {
	var all []monitor.Replica
	for _, r := range o.fleet.Living() {
		all = append(all, monitor.Replica{Name: r.Name, Metrics: "http://" + r.HTTP + "/metrics", Usage: func() (time.Duration, int64, error) {
			cpu, err := r.CPU()
			memory, memoryErr := r.Memory()
			return cpu, memory, errors.Join(err, memoryErr)
		}})
	}
	return all
}

// Facts of the fleet.
func (o *Own) Facts(ctx context.Context) (Facts, error) {
	facts := Facts{Installation: record.OwnFleet, Parts: []record.Setting{
		{Name: "PostgreSQL", Value: strings.TrimPrefix(o.stack.Postgres.Kind(), "PostgreSQL ")},
		{Name: "Redis", Value: o.stack.Redis.Kind()},
		{Name: "etcd", Value: strings.TrimPrefix(o.stack.Etcd.Kind(), "etcd ")},
	}}
	for _, r := range o.fleet.Living() {
		families, err := r.Families(ctx)
		if err != nil {
			return facts, err
		}
		for _, m := range families["trestle_build_info"].GetMetric() {
			for _, label := range m.GetLabel() {
				if label.GetName() == "version" {
					facts.Product = label.GetValue()
				}
			}
		}
	}
	return facts, nil
}

// Finish has all replicas end in order, one after the other, and says whether
// they did and what is left of what they had to tell; whether writes were
// refused, too, if nothing was to fail.
func (o *Own) Finish(ctx context.Context) ([]record.Expectation, error) {
	var met []record.Expectation
	if o.cfg.Scenario.Planned() {
		refused := 0.0
		for _, r := range o.fleet.Living() {
			sums, err := r.Sums(ctx)
			if err != nil {
				return nil, err
			}
			refused += sums["trestle_pipeline_fenced_writes_total"]
		}
		met = append(met, record.Expectation{What: "writes refused, of shards that had another owner", Want: "0, for nothing failed", Got: fmt.Sprint(refused), Held: refused == 0})
	}
	stopped := record.Expectation{What: "replicas that stop", Want: "in order, with everything written and told or handed over", Got: "so they did", Held: true}
	for _, r := range o.fleet.Living() {
		o.leave(r)
		err := r.Stop(ctx)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			stopped.Held, stopped.Got = false, err.Error()
		}
		o.ended(r, "stopped", false)
	}
	db, err := pgx.Connect(ctx, o.postgres)
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer db.Close(context.WithoutCancel(ctx))
	left := 0
	if err := db.QueryRow(ctx, `SELECT count(*) FROM trestle_outbox`).Scan(&left); err != nil {
		return nil, fmt.Errorf("count what is left in the outbox: %w", err)
	}
	return append(met, stopped, record.Expectation{What: "commits left in the outbox", Want: "0", Got: fmt.Sprint(left), Held: left == 0}), nil
}

// Close ends whatever lives.
func (o *Own) Close() error {
	var errs []error
	if o.fleet != nil {
		for _, r := range o.fleet.Living() {
			o.leave(r)
		}
		errs = append(errs, o.fleet.Close())
	}
	if o.operator != nil {
		errs = append(errs, o.operator.Close())
	}
	o.end()
	o.parts.Wait()
	o.dies(nil)
	if o.stack != nil {
		errs = append(errs, o.stack.Close())
	}
	return errors.Join(errs...)
}
