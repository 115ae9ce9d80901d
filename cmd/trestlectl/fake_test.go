package main

import (
	"bytes"
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
	bridge "github.com/trestle-bridge/trestle/proto/workspacemanagerbridge"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a replica that answers what a test wants.
type fake struct {
	trestlev1.UnimplementedShardServiceServer
	bridge.UnimplementedClusterServiceServer

	addr   string
	health *health.Server
	stop   func()

	// What follows is set before it is asked.
	answers map[string]proto.Message // by method
	err     error                    // instead of any of them
	reply   func(proto.Message) (proto.Message, error)
	waits   func(context.Context) // called first
	watch   func(grpc.ServerStreamingServer[trestlev1.WatchShardsResponse]) error

	// mu guards asked.
	mu    sync.Mutex
	asked []proto.Message
}

// newFake starts one.
func newFake(t *testing.T, answers map[string]proto.Message, options ...grpc.ServerOption) *fake {
	t.Helper()
	f := &fake{answers: answers, health: health.NewServer()}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.addr = listener.Addr().String()
	server := grpc.NewServer(append(options, grpc.ChainUnaryInterceptor(f.answer))...)
	trestlev1.RegisterShardServiceServer(server, f)
	bridge.RegisterClusterServiceServer(server, f)
	healthpb.RegisterHealthServer(server, f.health)
	ended := make(chan error, 1) // read once, below
	go func() { ended <- server.Serve(listener) }()
	f.stop = sync.OnceFunc(func() {
		server.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(f.stop)
	return f
}

// answer stands for all calls but those of health.
func (f *fake) answer(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if strings.HasPrefix(info.FullMethod, "/grpc.health") {
		return handle(ctx, request)
	}
	f.mu.Lock()
	f.asked = append(f.asked, request.(proto.Message))
	f.mu.Unlock()
	if f.waits != nil {
		f.waits(ctx)
	}
	if f.err != nil {
		return nil, f.err
	}
	if f.reply != nil {
		return f.reply(request.(proto.Message))
	}
	answer, known := f.answers[info.FullMethod[strings.LastIndex(info.FullMethod, "/")+1:]]
	if !known {
		return nil, status.Error(codes.Unimplemented, "")
	}
	return answer, nil
}

func (f *fake) WatchShards(r *trestlev1.WatchShardsRequest, stream grpc.ServerStreamingServer[trestlev1.WatchShardsResponse]) error {
	f.mu.Lock()
	f.asked = append(f.asked, r)
	f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	return f.watch(stream)
}

// requests are those that it was asked.
func (f *fake) requests() []proto.Message {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

// outcome is what a run of the program has left.
type outcome struct {
	code     int
	out, err string
}

// call runs the program against an address, which may be several, and "" for
// none.
func call(t *testing.T, address string, args ...string) outcome {
	t.Helper()
	return callWith(t.Context(), address, nil, args...)
}

func callWith(ctx context.Context, address string, env map[string]string, args ...string) outcome {
	var stdout, stderr bytes.Buffer
	if address != "" {
		args = append(args, "--address", address)
	}
	code := run(ctx, append([]string{}, args...), streams{out: &stdout, err: &stderr}, func(name string) (string, bool) {
		v, ok := env[name]
		return v, ok
	})
	return outcome{code, stdout.String(), stderr.String()}
}

// reads fails unless the program ended well and printed this.
func (o outcome) reads(t *testing.T, what, want string) {
	t.Helper()
	if o.code != exitOK {
		t.Errorf("%s: exits with %d: %s", what, o.code, o.err)
		return
	}
	if strings.TrimSpace(o.out) != strings.TrimSpace(want) {
		t.Errorf("%s:\n%s\nwant\n%s", what, o.out, want)
	}
}

// says fails unless the program ended with this code and said this.
func (o outcome) says(t *testing.T, what string, code int, texts ...string) {
	t.Helper()
	if o.code != code {
		t.Errorf("%s: exits with %d, want %d: %s", what, o.code, code, o.err)
	}
	for _, text := range texts {
		if !strings.Contains(o.err, text) {
			t.Errorf("%s: does not say %q: %s", what, text, o.err)
		}
	}
}

// parse reads a message from JSON.
func parse[M proto.Message](t *testing.T, text string, m M) M {
	t.Helper()
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		t.Fatal(err)
	}
	return m
}

// ago is some time in the past; so much that tests take as long as they like.
func ago(d time.Duration) *timestamppb.Timestamp {
	return timestamppb.New(time.Now().Add(-d - d/1000))
}

func ref(name string) *trestlev1.ReplicaRef {
	return &trestlev1.ReplicaRef{Name: name, Incarnation: name + ".1"}
}
