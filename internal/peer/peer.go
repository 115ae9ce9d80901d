// Package peer is how replicas ask each other: whether what was heard is
// written, to forget instances that a sweep has stopped, and for the rounds that
// only the leader makes. It is also where they knock to find out whether one of
// them has died.
//
// Nothing that is asked here is trusted to keep rows right; the database does
// that. Still nobody but replicas is answered: each has a key that is new at every
// start, the others find its fingerprint in etcd, and both sides of a connection
// prove theirs by TLS. Whether a caller still is a replica is asked at every call.
//
// Owner: internal/app. A Server listens from New on, so that a replica is never
// taken for dead between its registration and its first call.
package peer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/keepalive"
	grpcpeer "google.golang.org/grpc/peer"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/sweep"
	"github.com/trestle-bridge/trestle/pipeline"
	peerv1 "github.com/trestle-bridge/trestle/proto/trestle/peer/v1"
	"github.com/trestle-bridge/trestle/shard"
)

// Replica is what a Server answers for. All methods are safe for concurrent use.
type Replica interface {
	// CaughtUp says whether all that was heard of these shards before since is
	// written; an error means that they are not all owned here.
	CaughtUp(shards []shard.ID, since time.Time) (bool, error)
	// Forget makes the shards of a cluster forget these instances.
	Forget(cluster string, ids []status.InstanceID)
	// Why tells what was decided of an instance, oldest first, and what waits.
	Why(id status.InstanceID) ([]pipeline.Decided, []pipeline.Undecided)
	// Retry tries what was refused of an instance again, and says whether its
	// cluster still speaks of it. The error wraps pipeline.ErrCannotRetry when
	// nothing was changed.
	Retry(ctx context.Context, id shard.ID, instance status.InstanceID) (pipeline.Decided, bool, error)
}

// Rounds are those of the leader; the errors are sweep.ErrUnknownCluster and
// sweep.ErrNotHeld. All methods are safe for concurrent use.
type Rounds interface {
	Request(cluster string) error
	Confirm(cluster string) error
}

const (
	// maxMessage fits the ids of as many instances as a sweep stops at once.
	maxMessage  = 4 << 20
	callTimeout = 5 * time.Second
	keepAlive   = 15 * time.Second
	stopTimeout = 2 * time.Second
	// A replica has one connection to each other, and makes some calls a minute.
	maxConnections = 1024
	maxCallsAtOnce = 64
	maxHeaderBytes = 16 << 10
	connectTimeout = 10 * time.Second
)

// Config is what a Server needs; all of it is required.
type Config struct {
	// Address to listen on, host:port; port 0 is any that is free.
	Address  string
	Replica  Replica
	Rounds   Rounds
	Identity *Identity
	// Roster says who is answered.
	Roster Roster
	Logger *slog.Logger
}

// Server answers the other replicas.
type Server struct {
	listener net.Listener
	grpc     *grpc.Server
}

// New listens. Run must follow, or Close.
func New(cfg Config) (*Server, error) {
	if cfg.Replica == nil || cfg.Rounds == nil || cfg.Identity == nil || cfg.Roster == nil || cfg.Logger == nil {
		return nil, errors.New("peer: replica, rounds, identity, roster and logger are required")
	}
	listener, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("listen for the other replicas (peer.listen): %w", err)
	}
	s := &Server{listener: netutil.LimitListener(listener, maxConnections), grpc: grpc.NewServer(
		grpc.Creds(&transport{me: cfg.Identity, roster: cfg.Roster}),
		grpc.UnaryInterceptor((&doorman{roster: cfg.Roster, log: cfg.Logger}).unary),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.MaxConcurrentStreams(maxCallsAtOnce),
		grpc.ConnectionTimeout(connectTimeout),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepAlive / 2}),
	)}
	peerv1.RegisterPeerServiceServer(s.grpc, &service{replica: cfg.Replica, rounds: cfg.Rounds})
	return s, nil
}

// Addr is where it listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Close gives back the address of a server that never ran.
func (s *Server) Close() error { return s.listener.Close() }

// Run serves until ctx ends; a call under way gets a moment more.
func (s *Server) Run(ctx context.Context) error {
	served := make(chan error, 1) // so that serving ends even when nobody asks why
	go func() { served <- s.grpc.Serve(s.listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve the other replicas: %w", err)
	case <-ctx.Done():
	}
	overdue := time.AfterFunc(stopTimeout, s.grpc.Stop)
	s.grpc.GracefulStop()
	overdue.Stop()
	<-served
	return nil
}

// doorman lets in calls of those who are replicas still, and keeps a panic from
// ending the process.
type doorman struct {
	roster Roster
	log    *slog.Logger
}

func (d *doorman) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (response any, err error) {
	var from proof
	if p, ok := grpcpeer.FromContext(ctx); ok {
		from, _ = p.AuthInfo.(proof)
	}
	if err := believed(from, anywhere(d.roster())...); err != nil {
		d.log.WarnContext(ctx, "a call of somebody who is no replica was refused", "method", info.FullMethod, "error", err)
		return nil, grpcstatus.Error(codes.Unauthenticated, err.Error())
	}
	defer func() {
		if value := recover(); value != nil {
			d.log.ErrorContext(ctx, "a call of another replica failed", "method", info.FullMethod, "error", fmt.Sprintf("panic: %v\n%s", value, debug.Stack()))
			err = grpcstatus.Error(codes.Internal, "internal error; the log of the replica that was asked says more")
		}
	}()
	return handle(ctx, request)
}

type service struct {
	peerv1.UnimplementedPeerServiceServer
	replica Replica
	rounds  Rounds
}

func (s *service) CaughtUp(_ context.Context, r *peerv1.CaughtUpRequest) (*peerv1.CaughtUpResponse, error) {
	asked := time.Now()
	shards := make([]shard.ID, len(r.GetShards()))
	for i, name := range r.GetShards() {
		var err error
		if shards[i], err = shard.ParseID(name); err != nil {
			return nil, grpcstatus.Error(codes.InvalidArgument, err.Error())
		}
	}
	caughtUp, err := s.replica.CaughtUp(shards, asked)
	if err != nil {
		return nil, grpcstatus.Error(codes.FailedPrecondition, err.Error())
	}
	return &peerv1.CaughtUpResponse{CaughtUp: caughtUp}, nil
}

func (s *service) Forget(_ context.Context, r *peerv1.ForgetRequest) (*peerv1.ForgetResponse, error) {
	ids := make([]status.InstanceID, len(r.GetInstanceIds()))
	for i, id := range r.GetInstanceIds() {
		if len(id) != len(ids[i]) {
			return nil, grpcstatus.Errorf(codes.InvalidArgument, "id %d of %d has %d bytes, want %d", i+1, len(ids), len(id), len(ids[i]))
		}
		copy(ids[i][:], id)
	}
	s.replica.Forget(r.GetCluster(), ids)
	return &peerv1.ForgetResponse{}, nil
}

func (s *service) Sweep(_ context.Context, r *peerv1.SweepRequest) (*peerv1.SweepResponse, error) {
	do := s.rounds.Request
	if r.GetConfirm() {
		do = s.rounds.Confirm
	}
	switch err := do(r.GetCluster()); {
	case errors.Is(err, sweep.ErrUnknownCluster):
		return nil, grpcstatus.Error(codes.NotFound, err.Error())
	case errors.Is(err, sweep.ErrNotLeading):
		return nil, grpcstatus.Error(codes.Aborted, err.Error())
	case errors.Is(err, sweep.ErrNotHeld):
		return nil, grpcstatus.Error(codes.FailedPrecondition, err.Error())
	case err != nil:
		return nil, grpcstatus.Error(codes.Internal, err.Error())
	}
	return &peerv1.SweepResponse{}, nil
}

// Peers are the connections to the other replicas. All methods are safe for
// concurrent use; each call ends after five seconds.
type Peers struct {
	me     *Identity
	roster Roster
	// mu guards conns, by address.
	mu    sync.Mutex
	conns map[string]*grpc.ClientConn
}

// NewPeers connects to nobody yet.
func NewPeers(me *Identity, roster Roster) *Peers {
	return &Peers{me: me, roster: roster, conns: make(map[string]*grpc.ClientConn)}
}

// Close ends all connections.
func (p *Peers) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for address, conn := range p.conns {
		errs = append(errs, conn.Close())
		delete(p.conns, address)
	}
	return errors.Join(errs...)
}

// Keep ends the connections to addresses where no replica is any more.
func (p *Peers) Keep() {
	addresses := p.roster()
	p.mu.Lock()
	defer p.mu.Unlock()
	for address, conn := range p.conns {
		if len(addresses[address]) == 0 {
			_ = conn.Close() // it was only idle
			delete(p.conns, address)
		}
	}
}

func (p *Peers) client(address string) (peerv1.PeerServiceClient, error) {
	conn, err := p.conn(address)
	if err != nil {
		return nil, err
	}
	return peerv1.NewPeerServiceClient(conn), nil
}

func (p *Peers) conn(address string) (*grpc.ClientConn, error) {
	if address == "" {
		return nil, errors.New("the replica has not said where it listens")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	conn := p.conns[address]
	if conn == nil {
		var err error
		conn, err = grpc.NewClient("passthrough:///"+address,
			grpc.WithTransportCredentials(&transport{me: p.me, roster: p.roster, to: address}),
			grpc.WithNoProxy(),
			grpc.WithDisableServiceConfig(),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepAlive, Timeout: callTimeout}),
		)
		if err != nil {
			return nil, err
		}
		p.conns[address] = conn
	}
	return conn, nil
}

// call makes one call to a replica.
func (p *Peers) call(ctx context.Context, address string, within time.Duration, what string, do func(context.Context, peerv1.PeerServiceClient) error) error {
	client, err := p.client(address)
	if err == nil {
		limited, cancel := context.WithTimeout(ctx, within)
		defer cancel()
		err = do(limited, client)
	}
	if err != nil {
		return fmt.Errorf("ask the replica at %s %s: %w", cmp.Or(address, "an unknown address"), what, err)
	}
	return nil
}

// CaughtUp asks whether a replica has written all that it had heard of these
// shards when it was asked.
func (p *Peers) CaughtUp(ctx context.Context, address string, shards []shard.ID) (caughtUp bool, err error) {
	request := &peerv1.CaughtUpRequest{}
	for _, id := range shards {
		request.Shards = append(request.Shards, id.String())
	}
	err = p.call(ctx, address, callTimeout, "whether it has caught up", func(ctx context.Context, c peerv1.PeerServiceClient) error {
		response, err := c.CaughtUp(ctx, request)
		caughtUp = response.GetCaughtUp()
		return err
	})
	return caughtUp, err
}

// Forget asks a replica to forget what it has heard of instances.
func (p *Peers) Forget(ctx context.Context, address, cluster string, ids []status.InstanceID) error {
	const atOnce = maxMessage / 32
	for len(ids) > 0 {
		part := ids[:min(len(ids), atOnce)]
		ids = ids[len(part):]
		request := &peerv1.ForgetRequest{Cluster: cluster}
		for i := range part {
			request.InstanceIds = append(request.InstanceIds, part[i][:])
		}
		err := p.call(ctx, address, callTimeout, "to forget instances", func(ctx context.Context, c peerv1.PeerServiceClient) error {
			_, err := c.Forget(ctx, request)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Sweep asks the leader for a round of a cluster, or confirms what is held back.
// The errors wrap sweep.ErrUnknownCluster and sweep.ErrNotHeld.
func (p *Peers) Sweep(ctx context.Context, address, cluster string, confirm bool) error {
	return p.call(ctx, address, callTimeout, "for a sweep of "+cluster, func(ctx context.Context, c peerv1.PeerServiceClient) error {
		_, err := c.Sweep(ctx, &peerv1.SweepRequest{Cluster: cluster, Confirm: confirm})
		switch grpcstatus.Code(err) {
		case codes.NotFound:
			return sweep.ErrUnknownCluster
		case codes.FailedPrecondition:
			return sweep.ErrNotHeld
		case codes.Aborted:
			return sweep.ErrNotLeading
		}
		return err
	})
}

// Refuses says whether an address refuses connections, which is what the
// address of a process that has died does while its machine lives. Silence is
// no refusal. While the connection to it stands nothing is sent: the end of a
// process ends its connections.
func (p *Peers) Refuses(ctx context.Context, address string) bool {
	p.Keep()
	conn, err := p.conn(address)
	if err != nil || conn.GetState() == connectivity.Ready {
		return false // what is no address refuses nothing
	}
	knock, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return errors.Is(err, syscall.ECONNREFUSED)
	}
	_ = knock.Close() // nothing was said
	conn.Connect()    // for the next time
	return false
}
