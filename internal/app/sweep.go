package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/internal/classsync"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/internal/sweep"
	"github.com/trestle-bridge/trestle/shard"
)

// lead makes the rounds of the leader until ctx ends or another process leads:
// the one that was started last.
func lead(ctx context.Context, log *slog.Logger, db *store.Store, owner string, sweeper *sweep.Sweeper, classes *classsync.Syncer) {
	fence, err := raise(ctx, log, db, owner)
	if err == nil {
		leading, stop := context.WithCancel(ctx)
		var parts sync.WaitGroup
		parts.Go(func() {
			if err := classes.Run(leading); err != nil {
				log.Error("the workspace classes are synced no more", "error", err)
			}
		})
		err = sweeper.Run(leading, fence)
		stop()
		parts.Wait()
	}
	switch {
	case errors.Is(err, store.ErrNotLeader):
		log.Info("another replica makes the rounds of the leader; this one makes none any more")
	case err != nil && ctx.Err() == nil:
		log.Error("the rounds of the leader cannot be made", "error", err)
	}
}

// raise raises the fence of the leader, as often as it takes; its error is that
// of ctx.
func raise(ctx context.Context, log *slog.Logger, db *store.Store, owner string) (shard.Fence, error) {
	for {
		attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
		fence, err := db.RaiseLeader(attempt, owner)
		cancel()
		if err == nil {
			return fence, nil
		}
		if ctx.Err() == nil {
			log.Warn("the fence of the leader could not be raised; it is tried again", "error", err)
		}
		select {
		case <-time.After(4*time.Second + rand.N(2*time.Second)):
		case <-ctx.Done():
			return shard.Fence{}, ctx.Err()
		}
	}
}

// sweptClusters gives the clusters that exist, as the sweeper asks them.
func (f *fleet) sweptClusters(context.Context) ([]sweep.Cluster, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.exist == nil {
		return nil, errors.New("the workspace clusters have not been read yet")
	}
	clusters := make([]sweep.Cluster, 0, len(f.exist))
	for _, name := range f.exist {
		m := f.members[name]
		cluster := sweep.Cluster{Name: name, Workspaces: func(ctx context.Context) ([]status.InstanceID, error) {
			if (owners{f}).member(name) != m || m == nil {
				return nil, fmt.Errorf("cluster %s is not heard, or heard elsewhere since", name)
			}
			return m.client.Workspaces(ctx)
		}}
		if m != nil {
			cluster.Address = m.cluster.URL
		}
		clusters = append(clusters, cluster)
	}
	return clusters, nil
}

// owners are the members of the fleet, as those who hear the clusters and
// write their rows. A cluster without a member is heard by nobody, and nothing
// of it waits: a member stays until all that it has heard is written.
type owners struct{ fleet *fleet }

func (o owners) member(cluster string) *member {
	o.fleet.mu.Lock()
	defer o.fleet.mu.Unlock()
	return o.fleet.members[cluster]
}

// Settled says whether the cluster is neither being taken over nor left.
func (o owners) Settled(cluster string) bool {
	m := o.member(cluster)
	return m == nil || m.intake.Owns()
}

// CaughtUp says whether all that was heard before since is written.
func (o owners) CaughtUp(_ context.Context, cluster string, since time.Time) (bool, error) {
	m := o.member(cluster)
	return m == nil || m.intake.CaughtUp(since), nil
}

// Forget makes the cluster's dedup forget these instances.
func (o owners) Forget(_ context.Context, cluster string, ids []status.InstanceID) error {
	if m := o.member(cluster); m != nil {
		m.intake.Forget(ids)
	}
	return nil
}

// Owned says whether somebody publishes what the shard's outbox holds.
func (o owners) Owned(id shard.ID) bool {
	m := o.member(id.Cluster)
	return m != nil && m.intake.Shard() == id
}
