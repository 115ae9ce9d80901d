package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds how long a test waits for what must come.
const patience = 30 * time.Second

// encoded is a message that is encoded already, for what no encoder writes.
type encoded []byte

type serverCodec struct{ encoding.CodecV2 }

func (c serverCodec) Marshal(v any) (mem.BufferSlice, error) {
	if raw, ok := v.(encoded); ok {
		return mem.BufferSlice{mem.SliceBuffer(raw)}, nil
	}
	return c.CodecV2.Marshal(v)
}

// fakeCluster is a workspace manager with the habits of the real one: no
// history, no early header, subscribers dropped when their buffer is full.
type fakeCluster struct {
	wsman.UnimplementedWorkspaceManagerServer
	address string
	buffer  int

	// onSubscribe, if set, is called before a subscription is heard.
	onSubscribe func(*subscriber)
	// flood, if set, is sent to each subscriber so many times as fast as it
	// takes them.
	flood      encoded
	floodCount int
	// onSnapshot, if set, answers instead of the live state.
	onSnapshot func(ctx context.Context) (encoded, error)

	mu          sync.Mutex
	live        map[string]*wsman.WorkspaceStatus
	subscribers map[*subscriber]bool
	snapshots   int
	subscribes  int
	changed     chan struct{} // closed and made anew at every snapshot and change of subscribers

	server *grpc.Server
}

type subscriber struct {
	updates chan any // what to send
	end     chan error
	header  chan struct{} // closed to send the header early
}

func (f *fakeCluster) notify() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// await blocks until what is counted under mu satisfies done.
func (f *fakeCluster) await(t *testing.T, what string, done func() bool) {
	t.Helper()
	limit := time.After(patience)
	for {
		f.mu.Lock()
		ok, changed := done(), f.changed
		f.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// set changes the live state and tells the subscribers.
func (f *fakeCluster) set(s *wsman.WorkspaceStatus) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.live[s.Id] = s
	f.sendLocked(&wsman.SubscribeResponse{Status: s})
}

// setQuietly changes the live state and tells nobody.
func (f *fakeCluster) setQuietly(s *wsman.WorkspaceStatus) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.live[s.Id] = s
}

func (f *fakeCluster) send(m any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sendLocked(m)
}

func (f *fakeCluster) sendLocked(m any) {
	for s := range f.subscribers {
		select {
		case s.updates <- m:
		default:
			delete(f.subscribers, s)
			s.end <- grpcstatus.Error(codes.ResourceExhausted, "too slow")
		}
	}
}

func (f *fakeCluster) Subscribe(_ *wsman.SubscribeRequest, stream grpc.ServerStreamingServer[wsman.SubscribeResponse]) error {
	s := &subscriber{updates: make(chan any, f.buffer), end: make(chan error, 1), header: make(chan struct{})}
	if f.onSubscribe != nil {
		f.onSubscribe(s)
	}
	f.mu.Lock()
	f.subscribers[s] = true
	f.subscribes++
	f.notify()
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.subscribers, s)
		f.notify()
		f.mu.Unlock()
	}()
	for range f.floodCount {
		if err := stream.SendMsg(f.flood); err != nil {
			return err
		}
	}
	header := s.header
	for {
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-header:
			header = nil
			if err := stream.SendHeader(nil); err != nil {
				return err
			}
		case m := <-s.updates:
			if err := stream.SendMsg(m); err != nil {
				return err
			}
		case err := <-s.end:
			for { // what is buffered goes out first
				select {
				case m := <-s.updates:
					if err := stream.SendMsg(m); err != nil {
						return err
					}
					continue
				default:
				}
				return err
			}
		}
	}
}

// getWorkspaces takes the place of the generated handler, so that a test may
// answer with any bytes.
func (f *fakeCluster) getWorkspaces(ctx context.Context) (any, error) {
	f.mu.Lock()
	f.snapshots++
	f.notify()
	f.mu.Unlock()
	if f.onSnapshot != nil {
		raw, err := f.onSnapshot(ctx)
		if raw != nil || err != nil {
			return raw, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	response := &wsman.GetWorkspacesResponse{}
	for _, s := range f.live {
		response.Status = append(response.Status, s)
	}
	return response, nil
}

func (f *fakeCluster) DescribeCluster(context.Context, *wsman.DescribeClusterRequest) (*wsman.DescribeClusterResponse, error) {
	return &wsman.DescribeClusterResponse{
		WorkspaceClasses:        []*wsman.WorkspaceClass{{Id: "g1", DisplayName: "Large", CreditsPerMinute: 0.5}},
		PreferredWorkspaceClass: "g1",
	}, nil
}

func newFake(t testing.TB) *fakeCluster {
	return &fakeCluster{
		buffer: 250, live: map[string]*wsman.WorkspaceStatus{}, subscribers: map[*subscriber]bool{},
		changed: make(chan struct{}), address: "127.0.0.1:0",
	}
}

// start serves until the test ends or stop is called.
func (f *fakeCluster) start(t testing.TB, creds credentials.TransportCredentials) {
	t.Helper()
	network := "tcp"
	if strings.Contains(f.address, "/") {
		network = "unix"
	}
	listener, err := net.Listen(network, f.address)
	if err != nil {
		t.Fatal(err)
	}
	f.address = listener.Addr().String()
	options := []grpc.ServerOption{
		grpc.ForceServerCodecV2(serverCodec{encoding.GetCodecV2(grpcproto.Name)}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second}),
		grpc.MaxSendMsgSize(1 << 30),
		grpc.UnaryInterceptor(func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			if info.FullMethod == wsman.WorkspaceManager_GetWorkspaces_FullMethodName {
				return f.getWorkspaces(ctx)
			}
			return handler(ctx, request)
		}),
	}
	if creds != nil {
		options = append(options, grpc.Creds(creds))
	}
	server := grpc.NewServer(options...)
	wsman.RegisterWorkspaceManagerServer(server, f)
	f.server = server
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
}

// recorder is a sink that remembers the newest version of each instance.
type recorder struct {
	mu         sync.Mutex
	versions   map[string]uint64
	offered    []status.Heard // without Raw
	invalid    []error
	subscribed int
	refuse     func(h status.Heard) bool // if it says so, the sink is full
	drained    chan struct{}
	changed    chan struct{}
}

func newRecorder() *recorder {
	return &recorder{versions: map[string]uint64{}, drained: make(chan struct{}), changed: make(chan struct{})}
}

func (r *recorder) notify() {
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *recorder) Offer(h status.Heard) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.notify()
	if again, err := status.Scan(h.Raw); err != nil || again.ID != h.ID || again.Version != h.Version {
		return fmt.Errorf("offered %s, but the bytes are of %s: %w", h.ID, again.ID, err)
	}
	if r.refuse != nil && r.refuse(h) {
		return ErrFull
	}
	h.Raw = nil
	r.offered = append(r.offered, h)
	if v := r.versions[h.ID.String()]; h.Version >= v {
		r.versions[h.ID.String()] = h.Version
	}
	return nil
}

func (r *recorder) Invalid(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.invalid = append(r.invalid, err)
	r.notify()
}

func (r *recorder) Drained(ctx context.Context) error {
	select {
	case <-r.drained:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *recorder) Room(ctx context.Context) error { return r.Drained(ctx) }

func (r *recorder) Subscribed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.subscribed++
	r.notify()
}

func (r *recorder) await(t testing.TB, what string, done func() bool) {
	t.Helper()
	limit := time.After(patience)
	for {
		r.mu.Lock()
		ok, changed := done(), r.changed
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-limit:
			r.mu.Lock()
			defer r.mu.Unlock()
			t.Fatalf("waited in vain for %s: heard %d, invalid %v, subscribed %d", what, len(r.offered), r.invalid, r.subscribed)
		}
	}
}

func (r *recorder) awaitVersion(t testing.TB, id string, version uint64) {
	t.Helper()
	r.await(t, fmt.Sprintf("version %d of %s", version, id), func() bool { return r.versions[id] >= version })
}

func (r *recorder) invalidFor(reason status.Reason) bool {
	for _, err := range r.invalid {
		var invalid *status.InvalidError
		if errors.As(err, &invalid) && invalid.Reason == reason {
			return true
		}
	}
	return false
}

// quick is a timing for tests: nothing happens unasked but what they wait for.
func quick() Timing {
	return Timing{
		Settle: 20 * time.Millisecond, SecondLook: 40 * time.Millisecond, Every: time.Hour, Silence: time.Hour,
		MinBackoff: 5 * time.Millisecond, MaxBackoff: 40 * time.Millisecond,
	}
}

type running struct {
	*Client
	sink     *recorder
	registry *prometheus.Registry
	records  records
	stop     func()
}

// awaitSnapshots waits until so many were taken in to the end.
func (r running) awaitSnapshots(t *testing.T, n float64) {
	t.Helper()
	r.await(t, fmt.Sprintf("%v snapshots", n), func() bool { return count(t, r.registry, "snapshots_total", "success") == n })
}

// await looks again at every record that the client logs.
func (r running) await(t *testing.T, what string, done func() bool) {
	t.Helper()
	limit := time.After(patience)
	for !done() {
		select {
		case <-r.records:
		case <-limit:
			t.Fatalf("waited in vain for %s: %+v", what, r.State())
		}
	}
}

// records tells of each log record. Size 1: it coalesces.
type records chan struct{}

// Write makes it the destination of a text handler, which writes each record
// at once.
func (r records) Write(p []byte) (int, error) {
	select {
	case r <- struct{}{}:
	default:
	}
	return len(p), nil
}

// run starts a client that ends with the test.
func run(t testing.TB, f *fakeCluster, change func(*Config)) running {
	t.Helper()
	sink := newRecorder()
	registry := prometheus.NewRegistry()
	metrics, err := NewMetrics(registry)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(records, 1)
	cfg := Config{
		Cluster: Cluster{Name: "eu1", URL: f.address}, Sink: sink, Metrics: metrics,
		Logger: slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), seen), &slog.HandlerOptions{Level: slog.LevelDebug})),
		Timing: quick(), Budget: NewBudget(64 << 20),
	}
	if change != nil {
		change(&cfg)
	}
	client, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
	})
	t.Cleanup(stop)
	return running{client, sink, registry, seen, stop}
}

func id(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n) }

// at gives a status of the instance n.
func at(n int, version uint64) *wsman.WorkspaceStatus {
	return &wsman.WorkspaceStatus{
		Id: id(n), StatusVersion: version, Phase: wsman.WorkspacePhase_RUNNING,
		Metadata:   &wsman.WorkspaceMetadata{Owner: "3b0c0d7e-51a9-4b8e-8d0a-7fd0f4f1f0aa", MetaId: "trestlebrid-trestle-8u2k3m1x9qz"},
		Spec:       &wsman.WorkspaceSpec{Url: "https://trestlebrid-trestle-8u2k3m1x9qz.ws-eu117.cluster.example"},
		Conditions: &wsman.WorkspaceConditions{},
	}
}

func bytesOf(t testing.TB, m proto.Message) []byte {
	t.Helper()
	raw, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func entryOf(raw []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), raw)
}
