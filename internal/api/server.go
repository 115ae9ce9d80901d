package api

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/trestle-bridge/trestle/internal/access"
	"github.com/trestle-bridge/trestle/internal/config"
	"github.com/trestle-bridge/trestle/internal/store"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
	bridge "github.com/trestle-bridge/trestle/proto/workspacemanagerbridge"
)

// Registry is where the clusters are kept; see store.Store, which says what
// errors its methods have. All of it is safe for concurrent use.
type Registry interface {
	Clusters(ctx context.Context) ([]store.Cluster, error)
	RegisterCluster(ctx context.Context, c store.Cluster) error
	UpdateCluster(ctx context.Context, name string, change store.ClusterChange) error
	DeregisterCluster(ctx context.Context, name string, force bool) error
}

// Config is what a Server needs. Address, Registry, Logger and Registerer are
// required, and with Fleet also Sweeps, Instances and Rows.
type Config struct {
	// Address to listen on, host:port; port 0 is any that is free.
	Address  string
	Registry Registry
	// Static are the clusters of the configuration.
	Static []config.StaticBridge
	// AllowPlaintext permits clusters to be registered without TLS.
	AllowPlaintext bool
	// TryTimeout is how long a cluster may take to answer when its connection
	// is tried; default 10 s, which is also the most.
	TryTimeout time.Duration
	// CallTimeout bounds a call as a whole; default 30 s.
	CallTimeout time.Duration
	// Fleet and Sweeps are what ShardService shows and changes. Without a Fleet
	// it is not served.
	Fleet  Fleet
	Sweeps Sweeps
	// Instances and Rows are what InstanceService and QuarantineService show and
	// change; without a Fleet they are not served.
	Instances Instances
	Rows      Rows
	// Incarnation of this replica, which is shown as the one that answers.
	Incarnation string

	// TLS is for connections; nil for plain text.
	TLS *tls.Config
	// Access says who calls; nil = everybody is an operator.
	Access *access.Authenticator
	// Insecure permits an address that others reach without TLS or Access.
	Insecure bool
	// CallsPerSecond and CallsAtOnce are what one caller may do, 0 for 50 and
	// 64; MaxRequestBytes bounds a request, 0 for 1 MiB.
	CallsPerSecond  float64
	CallsAtOnce     int
	MaxRequestBytes int

	// Audit is the log of who changed what, and why; nil = Logger.
	Audit      *slog.Logger
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

const (
	defaultTryTimeout  = 10 * time.Second
	defaultCallTimeout = 30 * time.Second
	// stopTimeout is how long the calls under way may take after the end.
	stopTimeout = 5 * time.Second

	// A call carries three PEM files and a few texts.
	defaultRequestBytes   = 1 << 20
	defaultCallsPerSecond = 50
	defaultCallsAtOnce    = 64

	maxHeaderBytes = 16 << 10
	// Beyond these, connections wait to be taken.
	maxConnections = 512
	connectTimeout = 20 * time.Second
	// A connection on which nothing is asked makes room for others.
	maxIdle = 15 * time.Minute
	// A port-forward that broke says nothing.
	pingAfter   = time.Minute
	pingTimeout = 20 * time.Second
	// Clients that ping more often are sent away.
	minPing = 10 * time.Second
)

// Server is the gRPC server. Run serves it, once; without Run, Close gives
// back its address.
type Server struct {
	listener net.Listener
	grpc     *grpc.Server
	health   *health.Server
	stopping chan struct{} // closed when Run is to end
}

// New takes the address, so that one that is in use shows before anything has
// been started.
func New(cfg Config) (*Server, error) {
	if cfg.Registry == nil || cfg.Logger == nil || cfg.Registerer == nil {
		return nil, errors.New("the gRPC server needs a registry, a logger and a registerer of metrics")
	}
	if cfg.Fleet != nil && (cfg.Sweeps == nil || cfg.Instances == nil || cfg.Rows == nil) {
		return nil, errors.New("the gRPC server needs to know whom to ask for sweeps and instances of the fleet")
	}
	cfg.TryTimeout = cmp.Or(cfg.TryTimeout, defaultTryTimeout)
	cfg.CallTimeout = cmp.Or(cfg.CallTimeout, defaultCallTimeout)
	cfg.Audit = cmp.Or(cfg.Audit, cfg.Logger)
	if cfg.Access == nil {
		var err error
		if cfg.Access, err = access.New(access.Config{}); err != nil {
			return nil, err
		}
	}
	atOnce := cmp.Or(cfg.CallsAtOnce, defaultCallsAtOnce)

	metrics := grpcprom.NewServerMetrics(grpcprom.WithServerHandlingTimeHistogram(
		grpcprom.WithHistogramBuckets(prometheus.ExponentialBuckets(0.001, 4, 8)),
	))
	if err := cfg.Registerer.Register(metrics); err != nil {
		return nil, fmt.Errorf("register the metrics of the gRPC server: %w", err)
	}
	listener, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("serve ClusterService: %w", err)
	}
	if err := checkOpen(cfg, listener.Addr()); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	door, err := newDoor(cfg.Access, access.Limits{
		PerSecond: cmp.Or(cfg.CallsPerSecond, defaultCallsPerSecond), AtOnce: atOnce, InAll: maxCallsInAll,
	})
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	transport := insecure.NewCredentials()
	if cfg.TLS != nil {
		transport = credentials.NewTLS(cfg.TLS)
	}

	calls := calls{timeout: cfg.CallTimeout, door: door, log: cfg.Logger, audit: cfg.Audit}
	s := &Server{
		listener: netutil.LimitListener(listener, maxConnections),
		health:   health.NewServer(),
		stopping: make(chan struct{}),
		grpc: grpc.NewServer(
			grpc.Creds(transport),
			grpc.MaxRecvMsgSize(cmp.Or(cfg.MaxRequestBytes, defaultRequestBytes)),
			grpc.MaxHeaderListSize(maxHeaderBytes),
			grpc.MaxConcurrentStreams(uint32(max(atOnce, defaultCallsAtOnce))),
			grpc.ConnectionTimeout(connectTimeout),
			grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingAfter, Timeout: pingTimeout, MaxConnectionIdle: maxIdle}),
			grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
			// The outermost first: what is counted is what the client sees.
			grpc.ChainUnaryInterceptor(metrics.UnaryServerInterceptor(), calls.unary),
			grpc.ChainStreamInterceptor(metrics.StreamServerInterceptor(), calls.stream),
		),
	}
	bridge.RegisterClusterServiceServer(s.grpc, &clusterService{
		registry:       cfg.Registry,
		static:         cfg.Static,
		allowPlaintext: cfg.AllowPlaintext,
		tryTimeout:     cfg.TryTimeout,
		log:            cfg.Logger,
	})
	services := []string{"", bridge.ClusterService_ServiceDesc.ServiceName}
	if cfg.Fleet != nil {
		trestlev1.RegisterShardServiceServer(s.grpc, &shardService{
			fleet:    cfg.Fleet,
			sweeps:   cfg.Sweeps,
			me:       cfg.Incarnation,
			looks:    &looks{fleet: cfg.Fleet},
			seats:    make(chan struct{}, maxWatching), // a place for each who watches
			stopping: s.stopping,
		})
		trestlev1.RegisterInstanceServiceServer(s.grpc, &instanceService{fleet: cfg.Fleet, instances: cfg.Instances, rows: cfg.Rows})
		trestlev1.RegisterQuarantineServiceServer(s.grpc, &quarantineService{fleet: cfg.Fleet, instances: cfg.Instances, rows: cfg.Rows, log: cfg.Logger})
		services = append(services, trestlev1.ShardService_ServiceDesc.ServiceName,
			trestlev1.InstanceService_ServiceDesc.ServiceName, trestlev1.QuarantineService_ServiceDesc.ServiceName)
	}
	healthpb.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)
	metrics.InitializeMetrics(s.grpc)
	for _, service := range services {
		s.health.SetServingStatus(service, healthpb.HealthCheckResponse_NOT_SERVING)
	}
	return s, nil
}

// checkOpen says who may call. Others than those on this machine may do so in
// plain text, or without a name, only where that was asked for.
func checkOpen(cfg Config, at net.Addr) error {
	what := ""
	switch {
	case cfg.TLS == nil:
		what = "calls are not encrypted"
	case cfg.Access.Open():
		what = "nobody has to say who they are"
	}
	switch others := !loopback(at); {
	case others && what != "" && !cfg.Insecure:
		return fmt.Errorf("serve ClusterService on %s, which others reach: %s; use %s", at, what, config.HowToClose)
	case others && what != "":
		cfg.Logger.Warn("gRPC is open to others, as clusterService.insecure says: "+what, "address", at.String())
	case cfg.Access.Open():
		cfg.Logger.Info("whoever reaches gRPC is an operator: there are no tokens and no roles of certificates", "address", at.String())
	}
	return nil
}

func loopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// Addr is where it listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Close gives back the address of a server that never ran.
func (s *Server) Close() error { return s.listener.Close() }

// Run serves until ctx ends, gives the calls under way a few seconds, and
// returns nil; or an error if serving ended by itself. It is called once.
func (s *Server) Run(ctx context.Context) error {
	s.health.Resume()             // all serving
	served := make(chan error, 1) // so that serving ends even when nobody asks why
	go func() { served <- s.grpc.Serve(s.listener) }()
	select {
	case err := <-served:
		s.grpc.Stop()
		return fmt.Errorf("serve ClusterService: %w", err)
	case <-ctx.Done():
	}
	s.health.Shutdown()
	close(s.stopping)
	// Streams of health and reflection have no end of their own.
	overdue := time.AfterFunc(stopTimeout, s.grpc.Stop)
	s.grpc.GracefulStop()
	overdue.Stop()
	<-served
	return nil
}
