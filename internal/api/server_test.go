package api_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"

	"github.com/trestle-bridge/trestle/internal/api"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/loadtest/sim"
	bridge "github.com/trestle-bridge/trestle/proto/workspacemanagerbridge"
)

func TestHealthAndReflection(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := b.replica()
	healthy := healthpb.NewHealthClient(r.conn)
	for _, service := range []string{"", "workspacemanagerbridge.ClusterService"} {
		// The first answers may come before Run does.
		watch, err := healthy.Watch(t.Context(), &healthpb.HealthCheckRequest{Service: service})
		if err != nil {
			t.Fatal(err)
		}
		for serving := false; !serving; {
			response, err := watch.Recv()
			if err != nil {
				t.Fatal(err)
			}
			serving = response.GetStatus() == healthpb.HealthCheckResponse_SERVING
		}
	}
	info, err := reflectionpb.NewServerReflectionClient(r.conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := info.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	response, err := info.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(response.GetListServicesResponse().GetService(), func(s *reflectionpb.ServiceResponse) bool {
		return s.GetName() == "workspacemanagerbridge.ClusterService"
	}) {
		t.Errorf("reflection lists %v", response)
	}
	// Both streams are open still: they do not keep the server from ending.
	r.stop()
	if _, err := info.Recv(); err == nil {
		t.Error("a stream outlives its server")
	}
}

func TestServerNeedsItsAddress(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := b.replica()
	_, err := api.New(api.Config{Address: r.addr})
	if err == nil || !strings.Contains(err.Error(), "registry") {
		t.Errorf("without a registry: %v", err)
	}
	second := func(c *api.Config) {
		cfg := *c
		cfg.Address = r.addr
		if _, err := api.New(cfg); err == nil || !strings.Contains(err.Error(), "serve ClusterService") {
			t.Errorf("at an address that is in use: %v", err)
		}
		c.Registerer = r.registry
		if _, err := api.New(*c); err == nil {
			t.Error("two servers have the same metrics")
		}
		c.Registerer = newRegistry()
	}
	b.replica(second)
}

// broken is a registry that fails.
type broken struct {
	err   error
	value any // to panic with
}

func (b broken) Clusters(context.Context) ([]store.Cluster, error) {
	if b.value != nil {
		panic(b.value)
	}
	return nil, b.err
}
func (b broken) RegisterCluster(context.Context, store.Cluster) error { return b.err }
func (b broken) UpdateCluster(context.Context, string, store.ClusterChange) error {
	return b.err
}
func (b broken) DeregisterCluster(context.Context, string, bool) error { return b.err }

func TestFailuresOfOurs(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, c := range []struct {
		what     string
		registry broken
		code     codes.Code
		says     string
		logs     string
	}{
		{"a panic", broken{value: "the inside"}, codes.Internal, "log of the service", "the inside"},
		{"an error without a code", broken{err: errors.New("the inside")}, codes.Internal, "log of the service", "the inside"},
		{"a database that is away", broken{err: context.DeadlineExceeded}, codes.Unavailable, "database", "level=ERROR"},
		{"a cluster that moved", broken{err: store.ErrClusterMoved}, codes.Aborted, "again", "call refused"},
		{"a name taken meanwhile", broken{err: store.ErrClusterNameTaken}, codes.AlreadyExists, "name", "call refused"},
		{"a URL taken meanwhile", broken{err: store.ErrClusterURLTaken}, codes.AlreadyExists, "URL", "call refused"},
	} {
		r := b.replica(func(cfg *api.Config) { cfg.Registry = c.registry })
		_, err := r.List(t.Context(), &bridge.ListRequest{})
		b.says(c.what, err, c.code, c.says)
		if err != nil && strings.Contains(err.Error(), "the inside") {
			t.Errorf("%s shows itself to the caller: %v", c.what, err)
		}
		if !strings.Contains(r.log.String(), c.logs) {
			t.Errorf("%s: the log does not say %q:\n%s", c.what, c.logs, r.log)
		}
		count, gatherErr := testutil.GatherAndCount(r.registry, "grpc_server_handled_total")
		if gatherErr != nil || count == 0 {
			t.Errorf("%s: calls are not counted: %v", c.what, gatherErr)
		}
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := b.replica()
	_, err := r.Register(t.Context(), b.registration("eu70", "eu70:443", func(r *bridge.RegisterRequest) { r.Region = strings.Repeat("x", 2<<20) }))
	b.says("a huge request", err, codes.ResourceExhausted)

	// A call has a deadline whatever the client says, and so does a server
	// that is stopped meanwhile.
	cluster := b.cluster(good())
	cluster.SetFaults(sim.Faults{Describe: sim.Hang})
	short := b.replica(func(c *api.Config) { c.CallTimeout = time.Second })
	_, err = short.Register(t.Context(), b.registration("eu70", cluster.Addr()))
	b.says("a call beyond its deadline", err, codes.DeadlineExceeded, "too long")

	ctx, cancel := context.WithCancel(t.Context())
	cancelled := make(chan error)
	go func() {
		_, err := r.Register(ctx, b.registration("eu70", cluster.Addr()))
		cancelled <- err
	}()
	cancel()
	b.says("a call that was given up", <-cancelled, codes.Canceled)
	if names := b.names(r); len(names) != 0 {
		t.Errorf("calls that failed have left %v", names)
	}
}
