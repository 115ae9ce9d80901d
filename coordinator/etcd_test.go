package coordinator

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/trestle-bridge/trestle/coordinator/kv"
	"github.com/trestle-bridge/trestle/internal/devstack"
	"github.com/trestle-bridge/trestle/internal/devstack/devstacktest"
	"github.com/trestle-bridge/trestle/shard"
)

// settled waits until each shard is held at the epoch that the table names, by
// one of the replicas that are there, as the given one sees it.
func (w *world) settled(ctx context.Context, n *node) map[shard.ID]string {
	w.t.Helper()
	for {
		s, changed := n.c.State()
		owners := make(map[shard.ID]string)
		for _, sh := range s.Shards {
			lives := false
			for _, x := range w.nodes {
				lives = lives || x.inc == sh.Stored.Owner
			}
			if lives && sh.Stored.Phase == shard.PhaseOwned && sh.Observed == sh.Stored.Epoch {
				owners[sh.ID] = sh.Stored.Owner
			}
		}
		if len(owners) == len(w.clusters) && s.Leader.Incarnation != "" && !s.Detached {
			return owners
		}
		select {
		case <-changed:
		case <-ctx.Done():
			w.t.Fatalf("the fleet does not settle: %+v", s)
		}
	}
}

// The whole of it on a real etcd: what the simulation does with the fake, once.
func TestOnEtcd(t *testing.T) {
	server := devstacktest.OwnEtcd(t, devstack.EtcdConfig{UnsafeNoFsync: true})
	w := newWorld(t, 1, 10)
	w.lease = 2 * time.Second
	w.connect = func(*node) kv.Store {
		client, err := clientv3.New(clientv3.Config{
			Endpoints: server.Endpoints(), DialTimeout: 5 * time.Second,
			DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 3 * time.Second,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := client.Close(); err != nil {
				t.Error(err)
			}
		})
		return kv.Etcd(client)
	}
	defer w.end()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	a, b, c := w.start("a", "1"), w.start("b", "1"), w.start("c", "1")
	w.settled(ctx, a)

	if err := b.leave(20 * time.Second); err != nil {
		t.Errorf("b leaves: %v", err)
	}
	w.settled(ctx, c)

	a.stop()
	d := w.start("d", "1")
	before := w.settled(ctx, c)

	// What they hold they keep, while etcd is away and after it was wiped.
	held := map[*node]map[shard.ID]shard.Fence{c: c.c.Held(), d: d.c.Held()}
	if err := server.Wipe(ctx); err != nil {
		t.Fatal(err)
	}
	after := w.settled(ctx, c)
	for id, owner := range before {
		if after[id] != owner {
			t.Errorf("%s moved from %s to %s", id, owner, after[id])
		}
	}
	for n, fences := range held {
		for id, fence := range fences {
			if got := n.c.Held()[id]; got != fence {
				t.Errorf("%s held %+v and now %+v", n.inc, fence, got)
			}
		}
	}
	w.start("e", "1")
	c.stop()
	w.settled(ctx, d)
}
