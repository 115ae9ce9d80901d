package kv

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// Etcd is a Store in etcd. The client stays its maker's, who closes it. It
// should have DialKeepAliveTime set, or a connection that died in silence is
// noticed late.
func Etcd(client *clientv3.Client) Store { return etcd{client} }

type etcd struct{ client *clientv3.Client }

func (e etcd) List(ctx context.Context, prefix string) ([]Item, int64, error) {
	resp, err := e.client.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, 0, fmt.Errorf("list %s: %w", prefix, err)
	}
	items := make([]Item, len(resp.Kvs))
	for i, pair := range resp.Kvs {
		items[i] = item(pair)
	}
	return items, resp.Header.Revision, nil
}

func item(pair *mvccpb.KeyValue) Item {
	return Item{
		Key: string(pair.Key), Value: pair.Value, Lease: LeaseID(pair.Lease),
		Create: pair.CreateRevision, Mod: pair.ModRevision,
	}
}

func (e etcd) Txn(ctx context.Context, guards []Guard, ops []Op) (Result, error) {
	conditions := make([]clientv3.Cmp, len(guards))
	for i, g := range guards {
		switch g.Kind {
		case GuardCreated:
			conditions[i] = clientv3.Compare(clientv3.CreateRevision(g.Key), "=", g.Revision)
		case GuardModified:
			conditions[i] = clientv3.Compare(clientv3.ModRevision(g.Key), "=", g.Revision)
		case GuardValue:
			conditions[i] = clientv3.Compare(clientv3.Value(g.Key), "=", string(g.Value))
		}
	}
	writes := make([]clientv3.Op, len(ops))
	for i, op := range ops {
		if op.Delete {
			writes[i] = clientv3.OpDelete(op.Key)
			continue
		}
		writes[i] = clientv3.OpPut(op.Key, string(op.Value), clientv3.WithLease(clientv3.LeaseID(op.Lease)))
	}
	resp, err := e.client.Txn(ctx).If(conditions...).Then(writes...).Commit()
	if err != nil {
		return Result{}, fmt.Errorf("write %d keys: %w", len(ops), lease(err))
	}
	return Result{OK: resp.Succeeded, Revision: resp.Header.Revision}, nil
}

// Watch asks for a leader, as a member that has lost its cluster would
// otherwise stay silent for ever, and for progress, as a watch of keys that
// rarely change would otherwise begin again before the last compaction.
func (e etcd) Watch(ctx context.Context, prefix string, from int64) <-chan Batch {
	out := make(chan Batch)
	go func() {
		defer close(out)
		ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
		defer cancel()
		changes := e.client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(from), clientv3.WithProgressNotify())
		for {
			var batch Batch
			resp, open := <-changes
			switch {
			case ctx.Err() != nil:
				return
			case !open:
				batch.Err = fmt.Errorf("watch %s: it ended", prefix)
			case resp.Err() != nil:
				batch.Err = resp.Err()
				if resp.CompactRevision != 0 || errors.Is(batch.Err, rpctypes.ErrCompacted) {
					batch.Err = ErrCompacted
				}
				batch.Err = fmt.Errorf("watch %s: %w", prefix, batch.Err)
			default:
				batch = changesOf(resp)
			}
			select {
			case out <- batch:
			case <-ctx.Done():
				return
			}
			if batch.Err != nil {
				return
			}
		}
	}()
	return out
}

func changesOf(resp clientv3.WatchResponse) Batch {
	batch := Batch{Events: make([]Event, len(resp.Events))}
	// The header names the store's revision, which may be above that of changes
	// still to come; only without events does it say that there are none.
	if len(resp.Events) == 0 && resp.IsProgressNotify() {
		batch.Revision = resp.Header.Revision
	}
	for i, change := range resp.Events {
		batch.Events[i] = Event{Item: item(change.Kv), Deleted: change.Type == mvccpb.Event_DELETE}
		batch.Revision = max(batch.Revision, change.Kv.ModRevision)
	}
	return batch
}

func (e etcd) Grant(ctx context.Context, ttl time.Duration) (LeaseID, time.Duration, error) {
	seconds := int64((ttl + time.Second - 1) / time.Second)
	resp, err := e.client.Grant(ctx, seconds)
	if err != nil {
		return 0, 0, fmt.Errorf("grant a lease: %w", err)
	}
	return LeaseID(resp.ID), time.Duration(resp.TTL) * time.Second, nil
}

// KeepAlive opens a stream of its own for each renewal: the client's
// KeepAliveOnce tries again without a pause while there is no connection.
func (e etcd) KeepAlive(ctx context.Context, id LeaseID) (time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := etcdserverpb.NewLeaseClient(e.client.ActiveConnection()).LeaseKeepAlive(ctx, grpc.WaitForReady(true))
	if err != nil {
		return 0, fmt.Errorf("renew the lease: %w", err)
	}
	if err := stream.Send(&etcdserverpb.LeaseKeepAliveRequest{ID: int64(id)}); err != nil {
		return 0, fmt.Errorf("renew the lease: %w", err)
	}
	resp, err := stream.Recv()
	if err != nil {
		return 0, fmt.Errorf("renew the lease: %w", lease(err))
	}
	if resp.TTL <= 0 {
		return 0, fmt.Errorf("renew the lease: %w", ErrNoLease)
	}
	return time.Duration(resp.TTL) * time.Second, nil
}

func (e etcd) Revoke(ctx context.Context, id LeaseID) error {
	if _, err := e.client.Revoke(ctx, clientv3.LeaseID(id)); err != nil {
		return fmt.Errorf("revoke the lease: %w", lease(err))
	}
	return nil
}

// lease replaces etcd's word for a lease that is gone by ours.
func lease(err error) error {
	if errors.Is(err, rpctypes.ErrLeaseNotFound) || errors.Is(rpctypes.Error(err), rpctypes.ErrLeaseNotFound) {
		return ErrNoLease
	}
	return err
}
