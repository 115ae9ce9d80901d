package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trestle-bridge/trestle/loadtest/fleet"
)

const (
	// leaseSeconds is shorter than in production, where nobody watches how long
	// a crash takes to be found.
	leaseSeconds = "3"
	startTimeout = time.Minute
	stopTimeout  = 45 * time.Second
)

// running is the replicas, as processes of this program.
type running struct {
	fleet *fleet.Fleet
	// alive ends when a replica has ended that was not told to.
	alive context.Context
	ends  context.CancelCauseFunc
	// watches are the goroutines that wait for the ends of replicas.
	watches sync.WaitGroup

	// mu guards leaving.
	mu sync.Mutex
	// leaving are the replicas that are told to end, or killed.
	leaving map[*fleet.Replica]bool
}

// start returns when all replicas are ready; the tables are there then.
func (d *dev) start(ctx context.Context) (*running, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	f, err := fleet.New(fleet.Config{
		Binary: self,
		// Not the environment of the user: it may name servers that are no toys.
		Env: []string{
			"TRESTLE_POSTGRES_URL=" + d.database,
			"TRESTLE_REDIS_URL=" + d.stack.Redis.URL(),
			"TRESTLE_ETCD_ENDPOINTS=" + d.stack.Etcd.Endpoints()[0],
			"TRESTLE_ETCD_LEASE_SECONDS=" + leaseSeconds,
			"TRESTLE_INSTALLATION=" + installation,
		},
		Args: []string{"--wsClusterDBReconcileIntervalSeconds", "1"},
		Dir:  d.logs,
		Stop: stopTimeout,
	})
	if err != nil {
		return nil, err
	}
	r := &running{fleet: f, leaving: make(map[*fleet.Replica]bool)}
	r.alive, r.ends = context.WithCancelCause(context.WithoutCancel(ctx))
	limited, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	group, limited := errgroup.WithContext(limited)
	for n := range d.replicas {
		group.Go(func() error {
			_, err := r.launch(limited, replicaName(n+1), "v1")
			return err
		})
	}
	if err := group.Wait(); err != nil {
		r.close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, err
	}
	return r, nil
}

func replicaName(n int) string { return fmt.Sprintf("replica-%d", n) }

// launch starts a replica, watches it, and returns when it is ready.
func (r *running) launch(ctx context.Context, name, revision string) (*fleet.Replica, error) {
	replica, err := r.fleet.Start(ctx, name, revision)
	if err != nil {
		return nil, err
	}
	r.watches.Go(func() {
		<-replica.Done()
		r.mu.Lock()
		expected := r.leaving[replica]
		r.mu.Unlock()
		if !expected {
			r.ends(fmt.Errorf("%s has ended by itself; its log: %s", replica.Name, replica.Log))
		}
	})
	return replica, nil
}

// named is the living replica of a name, nil if there is none.
func (r *running) named(name string) *fleet.Replica {
	for _, replica := range r.fleet.Living() {
		if replica.Name == name {
			return replica
		}
	}
	return nil
}

func (r *running) leave(replica *fleet.Replica) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leaving[replica] = true
}

// stop has all replicas end in order, one after the other: each hands its
// shards to those that are left.
func (r *running) stop(ctx context.Context) error {
	if err := context.Cause(r.alive); err != nil {
		return err
	}
	for _, replica := range r.fleet.Living() {
		r.leave(replica)
		if err := replica.Stop(ctx); err != nil {
			return err
		}
	}
	return nil
}

// close kills what is left.
func (r *running) close() {
	for _, replica := range r.fleet.Living() {
		r.leave(replica)
	}
	// What cannot be killed is gone.
	_ = r.fleet.Close()
	r.watches.Wait()
	r.ends(nil)
}

// sum adds a metric up over the living replicas; those that do not answer are
// left out.
func (r *running) sum(ctx context.Context, names ...string) map[string]float64 {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	total := make(map[string]float64, len(names))
	for _, replica := range r.fleet.Living() {
		sums, err := replica.Sums(ctx)
		if err != nil {
			continue
		}
		for _, name := range names {
			total[name] += sums[name]
		}
	}
	return total
}

// errStory is the error of a demo whose story could not be told.
var errStory = errors.New("the demo could not go as it was to")
