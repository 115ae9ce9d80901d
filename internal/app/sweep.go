package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/coordinator"
	"github.com/trestle-bridge/trestle/internal/classsync"
	"github.com/trestle-bridge/trestle/internal/peer"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/internal/sweep"
	"github.com/trestle-bridge/trestle/internal/upstream"
	"github.com/trestle-bridge/trestle/internal/worker"
	"github.com/trestle-bridge/trestle/shard"
)

// rounds are what the leader does beside the assignment.
type rounds struct {
	store   *store.Store
	owner   string
	sweeper *sweep.Sweeper
	classes *classsync.Syncer
	log     *slog.Logger
}

// lead makes the rounds until ctx, which ends with leadership, ends.
func (r *rounds) lead(ctx context.Context) {
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() {
		if err := r.classes.Run(ctx); err != nil {
			r.log.Error("the workspace classes are synced no more", "error", err)
		}
	})
	for ctx.Err() == nil {
		fence, err := r.raise(ctx)
		if err == nil {
			err = r.sweeper.Run(ctx, fence)
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, store.ErrNotLeader):
			// One that led before has raised its fence late, or this one leads
			// no more and will hear of it; if not, it raises above.
			r.log.Warn("another replica has raised the fence of the leader")
		case err != nil:
			r.log.Error("the rounds of the leader cannot be made", "error", err)
		}
		pause(ctx, 2*time.Second)
	}
}

// raise raises the fence of the leader, as often as it takes; its error is that
// of ctx.
func (r *rounds) raise(ctx context.Context) (shard.Fence, error) {
	for {
		attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
		fence, err := r.store.RaiseLeader(attempt, r.owner)
		cancel()
		if err == nil {
			return fence, nil
		}
		if ctx.Err() != nil {
			return shard.Fence{}, ctx.Err()
		}
		r.log.Warn("the fence of the leader could not be raised; it is tried again", "error", err)
		pause(ctx, 5*time.Second)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d*3/4 + rand.N(d/2)):
	case <-ctx.Done():
	}
}

// fleet is all replicas as the rounds of the leader, and those who ask for them,
// need it.
type fleet struct {
	me          string
	coordinator *coordinator.Coordinator
	registry    *registry
	worker      *worker.Worker
	peers       *peer.Peers
	rounds      peer.Rounds
	client      upstream.Config // what every client has in common
}

// clusters gives the clusters that exist, as the sweeper asks them. The leader
// asks each itself, whoever hears it.
func (f *fleet) clusters(context.Context) ([]sweep.Cluster, error) {
	exist, known := f.registry.clusters()
	if !known {
		return nil, errors.New("the workspace clusters have not been read yet")
	}
	f.peers.Keep()
	clusters := make([]sweep.Cluster, 0, len(exist))
	for _, c := range exist {
		cluster := sweep.Cluster{Name: c.Name}
		at, usable := f.registry.at(c.Name)
		if usable {
			cluster.Address = at.URL
		}
		cluster.Workspaces = func(ctx context.Context) ([]status.InstanceID, error) {
			if !usable {
				return nil, fmt.Errorf("cluster %s cannot be asked: its registration cannot be used", c.Name)
			}
			cfg := f.client
			cfg.Cluster = at
			client, err := upstream.New(cfg)
			if err != nil {
				return nil, err
			}
			return client.Workspaces(ctx)
		}
		clusters = append(clusters, cluster)
	}
	return clusters, nil
}

// Settled says whether no shard of the cluster is changing hands.
func (f *fleet) Settled(cluster string) bool {
	_, settled := f.coordinator.Carriers(cluster)
	return settled
}

// CaughtUp says whether the owners of all shards of the cluster have written
// everything that they had heard before since.
func (f *fleet) CaughtUp(ctx context.Context, cluster string, since time.Time) (bool, error) {
	for who, shards := range f.carriers(cluster) {
		var caughtUp bool
		var err error
		if who.Incarnation == f.me {
			caughtUp, err = f.worker.CaughtUp(shards, since)
		} else {
			caughtUp, err = f.peers.CaughtUp(ctx, who.Peer, shards)
		}
		if err != nil || !caughtUp {
			return false, err
		}
	}
	return true, nil
}

// Forget makes the cluster's owners, and who is about to be one, forget what they
// know of these instances.
func (f *fleet) Forget(ctx context.Context, cluster string, ids []status.InstanceID) error {
	var errs []error
	for incarnation, peer := range f.coordinator.Listeners(cluster) {
		if incarnation == f.me {
			f.worker.Forget(cluster, ids)
		} else if err := f.peers.Forget(ctx, peer, cluster, ids); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// carriers groups the shards of a cluster by who carries them.
func (f *fleet) carriers(cluster string) map[coordinator.Carrier][]shard.ID {
	carriers, _ := f.coordinator.Carriers(cluster)
	grouped := make(map[coordinator.Carrier][]shard.ID)
	for _, c := range carriers {
		who := coordinator.Carrier{Incarnation: c.Incarnation, Peer: c.Peer}
		grouped[who] = append(grouped[who], c.Shard)
	}
	return grouped
}

// Owned says whether the shard has, or is about to have, an owner.
func (f *fleet) Owned(id shard.ID) bool { return f.coordinator.Assigned(id) }

// Request asks the leader for a round of a cluster, Confirm confirms what the
// leader holds back. The errors wrap sweep.ErrUnknownCluster and
// sweep.ErrNotHeld.
func (f *fleet) Request(ctx context.Context, cluster string) error {
	return f.ask(ctx, cluster, false)
}

// Confirm: see Request.
func (f *fleet) Confirm(ctx context.Context, cluster string) error {
	return f.ask(ctx, cluster, true)
}

func (f *fleet) ask(ctx context.Context, cluster string, confirm bool) error {
	leader, address := f.coordinator.LeaderPeer()
	switch {
	case leader == "":
		return sweep.ErrNotLeading
	case leader != f.me:
		return f.peers.Sweep(ctx, address, cluster, confirm)
	case confirm:
		return f.rounds.Confirm(cluster)
	}
	return f.rounds.Request(cluster)
}
