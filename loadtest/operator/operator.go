// Package operator asks of a running service what its operators ask: which
// replicas there are, that clusters be registered, that shards move. It speaks
// the contracts ClusterService and ShardService, and asks whichever replica
// answers.
//
// An Operator may be used by many at once. Its owner closes it.
package operator

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
	bridge "github.com/trestle-bridge/trestle/proto/workspacemanagerbridge"
)

// Config says whom to ask.
type Config struct {
	// Addresses gives the gRPC targets of the replicas that may answer. It is
	// asked for each call: replicas come and go.
	Addresses func() []string
	// Dial are further options of connections; default: plain text.
	Dial []grpc.DialOption
	// Patience is how long a call is tried again while nobody can answer it;
	// default 30 s.
	Patience time.Duration
}

// Operator asks.
type Operator struct {
	cfg Config

	// mu guards conns.
	mu    sync.Mutex
	conns map[string]*grpc.ClientConn
}

// author is whom the service's history names.
const author = "loadtest"

// New connects to nobody yet.
func New(cfg Config) (*Operator, error) {
	if cfg.Addresses == nil {
		return nil, errors.New("an operator needs the addresses of replicas")
	}
	if len(cfg.Dial) == 0 {
		cfg.Dial = []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	}
	if cfg.Patience == 0 {
		cfg.Patience = 30 * time.Second
	}
	return &Operator{cfg: cfg, conns: make(map[string]*grpc.ClientConn)}, nil
}

// Close closes the connections.
func (o *Operator) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var errs []error
	for address, conn := range o.conns {
		errs = append(errs, conn.Close())
		delete(o.conns, address)
	}
	return errors.Join(errs...)
}

func (o *Operator) conn(address string) (*grpc.ClientConn, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if conn := o.conns[address]; conn != nil {
		return conn, nil
	}
	conn, err := grpc.NewClient(address, append([]grpc.DialOption{
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64 << 20)),
	}, o.cfg.Dial...)...)
	if err != nil {
		return nil, err
	}
	o.conns[address] = conn
	return conn, nil
}

// callTimeout bounds one call of one replica.
const callTimeout = 10 * time.Second

// ask calls one replica after the other until one answers, again and again for
// as long as the patience lasts. An answer that refuses is an answer.
func (o *Operator) ask(ctx context.Context, what string, call func(context.Context, grpc.ClientConnInterface) error) error {
	ctx, cancel := context.WithTimeout(ctx, o.cfg.Patience)
	defer cancel()
	var last error
	for {
		for _, address := range o.cfg.Addresses() {
			conn, err := o.conn(address)
			if err == nil {
				one, cancel := context.WithTimeout(ctx, callTimeout)
				err = call(one, conn)
				cancel()
			}
			switch status.Code(err) {
			case codes.OK:
				return nil
			case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
				last = fmt.Errorf("%s: %w", address, err)
			default:
				return fmt.Errorf("%s, asking %s: %w", what, address, err)
			}
			if ctx.Err() != nil {
				break
			}
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			if last == nil {
				last = fmt.Errorf("no replica is known: %w", ctx.Err())
			}
			return fmt.Errorf("%s: nobody answers; the last one: %w", what, last)
		}
	}
}

// Cluster is a cluster to register.
type Cluster struct {
	Name, URL string
	// CA, Cert and Key are PEM: what the service must have to call the cluster.
	// Without them the cluster is plain text.
	CA, Cert, Key []byte
}

// Register registers a cluster. The service calls it before it answers.
func (o *Operator) Register(ctx context.Context, c Cluster) error {
	request := &bridge.RegisterRequest{Name: c.Name, Url: c.URL}
	if c.CA != nil {
		encode := base64.StdEncoding.EncodeToString
		request.Tls = &bridge.TlsConfig{Ca: encode(c.CA), Crt: encode(c.Cert), Key: encode(c.Key)}
	}
	tried := false
	return o.ask(ctx, "register cluster "+c.Name+" at "+c.URL, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		_, err := bridge.NewClusterServiceClient(conn).Register(ctx, request)
		if tried && status.Code(err) == codes.AlreadyExists {
			return nil // by an attempt whose answer was lost
		}
		tried = true
		return err
	})
}

// Deregister removes a cluster; that it is not there is no error.
func (o *Operator) Deregister(ctx context.Context, name string) error {
	return o.ask(ctx, "deregister cluster "+name, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		_, err := bridge.NewClusterServiceClient(conn).Deregister(ctx, &bridge.DeregisterRequest{Name: name})
		if status.Code(err) == codes.NotFound {
			return nil
		}
		return err
	})
}

// Clusters are the names of all clusters that the service knows.
func (o *Operator) Clusters(ctx context.Context) (names []string, err error) {
	err = o.ask(ctx, "list the clusters", func(ctx context.Context, conn grpc.ClientConnInterface) error {
		answer, err := bridge.NewClusterServiceClient(conn).List(ctx, &bridge.ListRequest{})
		names = nil
		for _, c := range answer.GetStatus() {
			names = append(names, c.GetName())
		}
		return err
	})
	return names, err
}

// Replicas lists the replicas, as one knows them that is not cut off.
func (o *Operator) Replicas(ctx context.Context) (answer *trestlev1.ListReplicasResponse, err error) {
	err = o.ask(ctx, "list the replicas", func(ctx context.Context, conn grpc.ClientConnInterface) (err error) {
		answer, err = trestlev1.NewShardServiceClient(conn).ListReplicas(ctx, &trestlev1.ListReplicasRequest{})
		if err == nil && answer.GetFleet().GetDetached() {
			return status.Error(codes.Unavailable, "it is cut off from etcd")
		}
		return err
	})
	return answer, err
}

// Shards lists all shards.
func (o *Operator) Shards(ctx context.Context) (shards []*trestlev1.Shard, err error) {
	err = o.ask(ctx, "list the shards", func(ctx context.Context, conn grpc.ClientConnInterface) error {
		shards = nil
		client := trestlev1.NewShardServiceClient(conn)
		for token := ""; ; {
			page, err := client.ListShards(ctx, &trestlev1.ListShardsRequest{PageToken: token})
			if err != nil {
				return err
			}
			if page.GetDetached() {
				return status.Error(codes.Unavailable, "it is cut off from etcd")
			}
			shards = append(shards, page.GetShards()...)
			if token = page.GetNextPageToken(); token == "" {
				return nil
			}
		}
	})
	return shards, err
}

// Drain moves everything off a replica, until Undrain, or for as long as limit.
func (o *Operator) Drain(ctx context.Context, replica string, limit time.Duration) error {
	return o.ask(ctx, "drain "+replica, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		_, err := trestlev1.NewShardServiceClient(conn).DrainReplica(ctx, &trestlev1.DrainReplicaRequest{
			Replica: replica, Reason: "a scenario of the load test", Author: author, ValidFor: durationpb.New(limit)})
		return err
	})
}

// Undrain takes that back.
func (o *Operator) Undrain(ctx context.Context, replica string) error {
	return o.ask(ctx, "end the drain of "+replica, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		_, err := trestlev1.NewShardServiceClient(conn).UndrainReplica(ctx, &trestlev1.UndrainReplicaRequest{
			Replica: replica, Reason: "a scenario of the load test", Author: author})
		return err
	})
}

// Pin ties a shard to a replica.
func (o *Operator) Pin(ctx context.Context, shard, replica string) error {
	return o.ask(ctx, "pin "+shard+" to "+replica, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		_, err := trestlev1.NewShardServiceClient(conn).Pin(ctx, &trestlev1.PinRequest{
			Shard: shard, Replica: replica, Reason: "a scenario of the load test", Author: author})
		return err
	})
}

// Await returns the shard of this id as soon as it is as ok says.
func (o *Operator) Await(ctx context.Context, id string, ok func(*trestlev1.Shard) bool) (found *trestlev1.Shard, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o.Watch(ctx, func(_ bool, shards []*trestlev1.Shard, _ []string) {
		for _, s := range shards {
			if found == nil && s.GetId() == id && ok(s) {
				found = s
				cancel()
			}
		}
	})
	if found == nil {
		return nil, fmt.Errorf("wait for shard %s: %w", id, ctx.Err())
	}
	return found, nil
}

// Written says whether the owner of a shard says that it writes it.
func Written(s *trestlev1.Shard) bool {
	return s.GetPhase() == trestlev1.ShardPhase_SHARD_PHASE_OWNED && s.GetEpochObserved() > 0 && s.GetEpochObserved() == s.GetEpochIntended()
}

// Slice cuts a cluster into a number of slices.
func (o *Operator) Slice(ctx context.Context, cluster string, slices int) error {
	return o.ask(ctx, fmt.Sprintf("cut cluster %s into %d slices", cluster, slices), func(ctx context.Context, conn grpc.ClientConnInterface) error {
		_, err := trestlev1.NewShardServiceClient(conn).SetSlices(ctx, &trestlev1.SetSlicesRequest{
			Cluster: cluster, Slices: int32(slices), Reason: "a scenario of the load test", Author: author})
		return err
	})
}

// Watch tells of all shards, and then of those that change, until ctx ends; when
// a replica ends the watch, it goes on with another. heard is called by one
// goroutine at a time: all says that shards are all there are; removed are ids.
func (o *Operator) Watch(ctx context.Context, heard func(all bool, shards []*trestlev1.Shard, removed []string)) {
	for at := 0; ctx.Err() == nil; at++ {
		addresses := o.cfg.Addresses()
		if len(addresses) > 0 {
			if conn, err := o.conn(addresses[at%len(addresses)]); err == nil {
				// Whatever ended it: the next one may know better.
				_ = watch(ctx, conn, heard)
			}
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

var errDetached = errors.New("the replica is cut off from etcd")

func watch(ctx context.Context, conn grpc.ClientConnInterface, heard func(bool, []*trestlev1.Shard, []string)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := trestlev1.NewShardServiceClient(conn).WatchShards(ctx, &trestlev1.WatchShardsRequest{})
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if m.GetDetached() {
			return errDetached
		}
		all, shards, removed := m.GetInitial(), m.GetShards(), m.GetRemoved()
		for m.GetMore() {
			if m, err = stream.Recv(); err != nil {
				return err
			}
			shards, removed = append(shards, m.GetShards()...), append(removed, m.GetRemoved()...)
		}
		heard(all, shards, removed)
	}
}

// ReplicaName is the name in a reference, or what is known instead.
func ReplicaName(r *trestlev1.ReplicaRef) string {
	if r.GetName() != "" {
		return r.GetName()
	}
	incarnation := r.GetIncarnation()
	if cut := strings.LastIndexByte(incarnation, '.'); cut > 0 {
		return incarnation[:cut]
	}
	return incarnation
}
