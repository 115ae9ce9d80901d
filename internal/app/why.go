package app

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/trestle-bridge/trestle/internal/api"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/pipeline"
	"github.com/trestle-bridge/trestle/shard"
)

// askAtOnce bounds how many replicas are asked at once.
const askAtOnce = 16

// Why asks all living replicas what they remember of an instance, those too that
// do not carry its shard any more.
func (f *fleet) Why(ctx context.Context, id status.InstanceID) []api.Memory {
	members := f.coordinator.Members()
	members[f.me] = ""
	limit := semaphore.NewWeighted(askAtOnce)
	var asked sync.WaitGroup
	var mu sync.Mutex // guards all
	var all []api.Memory
	for who, address := range members {
		asked.Go(func() {
			m := api.Memory{Incarnation: who}
			if who == f.me {
				m.Decided, m.Undecided = f.worker.Why(id)
			} else if m.Err = limit.Acquire(ctx, 1); m.Err == nil {
				m.Decided, m.Undecided, m.Err = f.peers.Why(ctx, address, id)
				limit.Release(1)
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, m)
		})
	}
	asked.Wait()
	return all
}

// Retry has the owner of an instance's shard try again what was refused of the
// instance; see api.Instances.
func (f *fleet) Retry(ctx context.Context, cluster string, id status.InstanceID) (who string, decided pipeline.Decided, heard bool, err error) {
	carriers, _ := f.coordinator.Carriers(cluster)
	for _, c := range carriers {
		switch {
		case !c.Shard.Contains(id):
			continue
		case c.Incarnation == "":
			return "", pipeline.Decided{}, false, fmt.Errorf("%w: shard %s has no owner now", pipeline.ErrCannotRetry, c.Shard)
		case c.Incarnation == f.me:
			decided, heard, err = f.worker.Retry(ctx, c.Shard, id)
		default:
			decided, heard, err = f.peers.Retry(ctx, c.Peer, c.Shard, id)
		}
		if decided.Shard == (shard.ID{}) {
			decided.Shard = c.Shard
		}
		return c.Incarnation, decided, heard, err
	}
	return "", pipeline.Decided{}, false, fmt.Errorf("%w: no replica hears cluster %s, which may have been deregistered", pipeline.ErrCannotRetry, cluster)
}
