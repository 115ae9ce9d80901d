package sim

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/trestle-bridge/trestle/proto/wsman"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// run starts a cluster that ends with the test.
func run(t *testing.T, cfg Config) *Cluster {
	t.Helper()
	cfg.Name = "sim"
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return c
}

func dial(t *testing.T, c *Cluster, creds credentials.TransportCredentials) wsman.WorkspaceManagerClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+c.Addr(), grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return wsman.NewWorkspaceManagerClient(conn)
}

func subscribe(t *testing.T, c *Cluster, client wsman.WorkspaceManagerClient) grpc.ServerStreamingClient[wsman.SubscribeResponse] {
	t.Helper()
	before := c.Stats().Subscribed
	stream, err := client.Subscribe(t.Context(), &wsman.SubscribeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Await(t.Context(), func(s Stats) bool { return s.Subscribed > before }); err != nil {
		t.Fatal(err)
	}
	return stream
}

func update(t *testing.T, n byte, message string, effect Effect) Update {
	t.Helper()
	b, err := proto.Marshal(&wsman.WorkspaceStatus{Id: string(rune('a' + n)), Message: message})
	if err != nil {
		t.Fatal(err)
	}
	return Update{ID: ID{n}, Message: NewStatus(b), Effect: effect}
}

func publish(t *testing.T, c *Cluster, u ...Update) {
	t.Helper()
	if err := c.Publish(t.Context(), u...); err != nil {
		t.Fatal(err)
	}
}

func TestUpdatesArriveInOrderWithTheirHeaders(t *testing.T) {
	c := run(t, Config{})
	stream := subscribe(t, c, dial(t, c, insecure.NewCredentials()))
	u := update(t, 1, "one", Live)
	u.Message = u.Message.WithHeader(map[string]string{"traceparent": "00-abc"})
	publish(t, c, u, update(t, 1, "two", Live))
	first, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if first.GetStatus().GetMessage() != "one" || first.GetHeader()["traceparent"] != "00-abc" {
		t.Errorf("first update: %v", first)
	}
	if second, err := stream.Recv(); err != nil || second.GetStatus().GetMessage() != "two" {
		t.Errorf("second update: %v, %v", second, err)
	}
}

func TestNoHistoryAndNoEarlyHeader(t *testing.T) {
	c := run(t, Config{})
	publish(t, c, update(t, 1, "before", Live))
	client := dial(t, c, insecure.NewCredentials())
	stream := subscribe(t, c, client)

	header := make(chan error, 1)
	go func() {
		_, err := stream.Header()
		header <- err
	}()
	// The answer to a call on the same connection comes after all that the
	// server has sent on it before.
	if _, err := client.GetWorkspaces(t.Context(), &wsman.GetWorkspacesRequest{}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-header:
		t.Fatal("header before the first message")
	default:
	}
	publish(t, c, update(t, 1, "after", Live))
	if err := <-header; err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Recv(); err != nil || m.GetStatus().GetMessage() != "after" {
		t.Errorf("first message: %v, %v", m, err)
	}
}

func TestSlowSubscriberIsDroppedAfterItsBuffer(t *testing.T) {
	c := run(t, Config{})
	client := dial(t, c, insecure.NewCredentials())
	stream := subscribe(t, c, client)
	// Nobody reads: flow control stops the server, then the buffer fills.
	text := strings.Repeat("x", 4000)
	published := 0
	for c.Stats().Dropped == 0 {
		publish(t, c, update(t, 1, text, Live))
		if published++; published > 100_000 {
			t.Fatal("never dropped")
		}
	}
	received := 0
	for {
		_, err := stream.Recv()
		if err != nil {
			if status.Code(err) != codes.ResourceExhausted {
				t.Errorf("the subscription ended with %v", err)
			}
			break
		}
		received++
	}
	// All but the one that found the buffer full.
	if received != published-1 || received < DefaultBuffer {
		t.Errorf("%d of %d messages were received", received, published)
	}
	if s := c.Stats(); s.Subscribers != 0 || s.Unheard != 1 {
		t.Errorf("after the drop: %+v", s)
	}
	// A new subscription works.
	stream = subscribe(t, c, client)
	publish(t, c, update(t, 2, "again", Live))
	if m, err := stream.Recv(); err != nil || m.GetStatus().GetMessage() != "again" {
		t.Errorf("after a drop: %v, %v", m, err)
	}
}

func TestDropSendsWhatIsBuffered(t *testing.T) {
	c := run(t, Config{})
	stream := subscribe(t, c, dial(t, c, insecure.NewCredentials()))
	cuts := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		c.Watch(ctx, func() { cuts <- struct{}{} }, func() { t.Error("there was no snapshot") })
	}()
	publish(t, c, update(t, 1, "one", Live), update(t, 1, "two", Live))
	c.Drop()
	<-cuts
	for range 2 {
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := stream.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("the subscription ended with %v", err)
	}
	if s := c.Stats(); s.Dropped != 1 || s.Unheard != 1 {
		t.Errorf("after the drop: %+v", s)
	}
	// That it is heard again is told, too.
	subscribe(t, c, dial(t, c, insecure.NewCredentials()))
	<-cuts
	cancel()
	<-watched
}

func TestNeverDropWaits(t *testing.T) {
	c := run(t, Config{NeverDrop: true, Buffer: 10})
	stream := subscribe(t, c, dial(t, c, insecure.NewCredentials()))
	const n = 5000
	text := strings.Repeat("x", 1000)
	published := make(chan error, 1)
	go func() {
		for range n {
			if err := c.Publish(t.Context(), update(t, 1, text, Live)); err != nil {
				published <- err
				return
			}
		}
		published <- nil
	}()
	for range n {
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-published; err != nil {
		t.Fatal(err)
	}

	// Nobody reads any more: Publish waits, and gives up with its context.
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for c.Publish(ctx, update(t, 1, text, Live)) == nil {
		}
		published <- nil
	}()
	cancel()
	<-published
	// Nor does it wait for a subscriber that has gone.
	c.CutStreams()
	for range 20 {
		publish(t, c, update(t, 1, text, Live))
	}
}

func TestSnapshotIsTheLiveState(t *testing.T) {
	c := run(t, Config{ForgetStopped: time.Hour})
	client := dial(t, c, insecure.NewCredentials())
	list := func() map[string]string {
		t.Helper()
		r, err := client.GetWorkspaces(t.Context(), &wsman.GetWorkspacesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		m := map[string]string{}
		for _, s := range r.GetStatus() {
			m[s.GetId()] = s.GetMessage()
		}
		return m
	}
	if got := list(); len(got) != 0 {
		t.Errorf("before anything was published: %v", got)
	}
	u := update(t, 0, "new", Live)
	u.Message = u.Message.WithHeader(map[string]string{"traceparent": "x"})
	publish(t, c, update(t, 0, "old", Live), u, update(t, 1, "stopped", Stopped), update(t, 0, "older", Untouched),
		Update{ID: ID{9}, Message: NewMessage([]byte{0xff}), Effect: Untouched})
	if got := list(); len(got) != 2 || got["a"] != "new" || got["b"] != "stopped" {
		t.Errorf("snapshot %v", got)
	}
	c.Forget(ID{1})
	if got := list(); len(got) != 1 {
		t.Errorf("after forgetting one: %v", got)
	}
	c.Forget()
	if got := list(); len(got) != 0 {
		t.Errorf("after forgetting all: %v", got)
	}
}

func TestStoppedInstancesAreForgotten(t *testing.T) {
	c := run(t, Config{ForgetStopped: time.Nanosecond})
	publish(t, c, update(t, 0, "", Stopped), update(t, 1, "", Stopped), update(t, 1, "back", Live), update(t, 2, "", Stopped))
	if s, err := c.getWorkspaces(t.Context()); err != nil || len(s.statuses) != 1 {
		t.Errorf("%d instances are left, %v; want the one that came back", len(s.statuses), err)
	}
	at := run(t, Config{ForgetStopped: -1})
	publish(t, at, update(t, 0, "", Live), update(t, 0, "", Stopped))
	if n := at.Stats().Live; n != 0 {
		t.Errorf("%d instances are left", n)
	}
}

func TestFaults(t *testing.T) {
	c := run(t, Config{})
	client := dial(t, c, insecure.NewCredentials())
	for n := range byte(10) {
		publish(t, c, update(t, n, "", Live))
	}
	snapshot := func(ctx context.Context) (int, error) {
		r, err := client.GetWorkspaces(ctx, &wsman.GetWorkspacesRequest{})
		return len(r.GetStatus()), err
	}
	c.SetFaults(Faults{Snapshot: Empty})
	if n, err := snapshot(t.Context()); n != 0 || err != nil {
		t.Errorf("empty: %d, %v", n, err)
	}
	c.SetFaults(Faults{Snapshot: Half})
	if n, err := snapshot(t.Context()); n != 5 || err != nil {
		t.Errorf("half: %d, %v", n, err)
	}
	c.SetFaults(Faults{Snapshot: Refuse, Subscribe: Refuse, Describe: Refuse})
	if _, err := snapshot(t.Context()); status.Code(err) != codes.Unavailable {
		t.Errorf("refused snapshot: %v", err)
	}
	if _, err := client.DescribeCluster(t.Context(), &wsman.DescribeClusterRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("refused description: %v", err)
	}
	stream, err := client.Subscribe(t.Context(), &wsman.SubscribeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("refused subscription: %v", err)
	}

	// A hanging call goes on when the fault is gone.
	c.SetFaults(Faults{Snapshot: Hang})
	done := make(chan error, 1)
	go func() {
		n, err := snapshot(t.Context())
		if n != 10 && err == nil {
			err = errors.New("not the whole list")
		}
		done <- err
	}()
	c.SetFaults(Faults{Delay: time.Millisecond})
	if err := <-done; err != nil {
		t.Error(err)
	}
	r, err := client.DescribeCluster(t.Context(), &wsman.DescribeClusterRequest{})
	if err != nil || len(r.GetWorkspaceClasses()) != 2 {
		t.Errorf("description: %v, %v", r, err)
	}
}

func TestGarbageReachesTheClient(t *testing.T) {
	c := run(t, Config{})
	stream := subscribe(t, c, dial(t, c, insecure.NewCredentials()))
	publish(t, c, Update{Message: NewMessage([]byte{0x0a, 0x64, 0xff}), Effect: Untouched})
	if _, err := stream.Recv(); status.Code(err) != codes.Internal {
		t.Errorf("a client that decodes gets %v", err)
	}
}

func TestStopAndStartOnTheSameAddress(t *testing.T) {
	c := run(t, Config{})
	client := dial(t, c, insecure.NewCredentials())
	stream := subscribe(t, c, client)
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ended with %v", err)
	}
	if conn, err := net.Dial("tcp", c.Addr()); err == nil {
		conn.Close()
		t.Error("the port still answers")
	}
	publish(t, c, update(t, 0, "meanwhile", Live))
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, err := client.GetWorkspaces(t.Context(), &wsman.GetWorkspacesRequest{}, grpc.WaitForReady(true))
	if err != nil || len(r.GetStatus()) != 1 {
		t.Errorf("after the restart: %v, %v", r, err)
	}
}

// TestFastPingsAreAnsweredByGoAway speaks HTTP/2 itself: gRPC's own client does
// not ping that fast.
func TestFastPingsAreAnsweredByGoAway(t *testing.T) {
	c := run(t, Config{})
	conn, err := net.Dial("tcp", c.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	// A subscription is open, so that pings are welcome as such.
	var headers bytes.Buffer
	enc := hpack.NewEncoder(&headers)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", "/wsman.WorkspaceManager/Subscribe"},
		{":authority", "sim"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		if err := enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: headers.Bytes(), EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
	if err := framer.WriteData(1, true, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if err := c.AwaitSubscribers(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	for range 6 {
		if err := framer.WritePing(false, [8]byte{1}); err != nil {
			break // closed already
		}
	}
	for {
		f, err := framer.ReadFrame()
		if err != nil {
			t.Fatalf("no GOAWAY: %v", err)
		}
		if g, ok := f.(*http2.GoAwayFrame); ok {
			if g.ErrCode != http2.ErrCodeEnhanceYourCalm {
				t.Errorf("GOAWAY for %v", g.ErrCode)
			}
			return
		}
	}
}

func TestTLS(t *testing.T) {
	ca, err := NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	issue := func(a *Authority, l Leaf) Pair {
		p, err := a.Issue(l)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	must := func(c *tls.Config, err error) *tls.Config {
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, tc := range []struct {
		name           string
		server, client Pair
		ok             bool
	}{
		{"right", issue(ca, Leaf{Name: ServerName}), issue(ca, Leaf{}), true},
		{"server of another name", issue(ca, Leaf{Name: "another"}), issue(ca, Leaf{}), false},
		{"expired server", issue(ca, Leaf{Name: ServerName, Expired: true}), issue(ca, Leaf{}), false},
		{"expired client", issue(ca, Leaf{Name: ServerName}), issue(ca, Leaf{Expired: true}), false},
		{"client of another authority", issue(ca, Leaf{Name: ServerName}), issue(stranger, Leaf{}), false},
		{"server of another authority", issue(stranger, Leaf{Name: ServerName}), issue(ca, Leaf{}), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := run(t, Config{TLS: must(ca.ServerTLS(tc.server))})
			client := dial(t, c, credentials.NewTLS(must(ca.ClientTLS(tc.client))))
			_, err := client.GetWorkspaces(t.Context(), &wsman.GetWorkspacesRequest{})
			if (err == nil) != tc.ok {
				t.Errorf("the call ended with %v", err)
			}
		})
	}
}

func TestStemMessagesDecode(t *testing.T) {
	want := &wsman.WorkspaceStatus{Id: "an-id", Message: strings.Repeat("m", 300), InitializerMetrics: &wsman.InitializerMetrics{}}
	b, err := proto.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	stem := NewStem(b)
	for _, version := range []uint64{0, 1, 127, 128, 1 << 20, 1 << 54, 1<<64 - 1, 5} {
		var got wsman.SubscribeResponse
		m := stem.At(version)
		if err := proto.Unmarshal(m.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		want.StatusVersion = version
		if !proto.Equal(want, got.GetStatus()) || m.Len() != len(m.Bytes()) {
			t.Errorf("version %d: %v", version, &got)
		}
	}
}

func BenchmarkPublish(b *testing.B) {
	c, err := New(Config{Name: "sim"})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	stem := NewStem(make([]byte, 850))
	b.ReportAllocs()
	version := uint64(1 << 40)
	for b.Loop() {
		version++
		if err := c.Publish(b.Context(), Update{ID: ID{byte(version)}, Message: stem.At(version)}); err != nil {
			b.Fatal(err)
		}
	}
}

// discard counts messages without decoding them.
type discard struct{ codec }

func (discard) Unmarshal(mem.BufferSlice, any) error { return nil }

// BenchmarkStream is what a stream costs at both ends when nobody decodes.
func BenchmarkStream(b *testing.B) {
	c, err := New(Config{Name: "sim", NeverDrop: true})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	conn, err := grpc.NewClient("passthrough:///"+c.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	stream, err := wsman.NewWorkspaceManagerClient(conn).Subscribe(ctx, &wsman.SubscribeRequest{}, grpc.ForceCodecV2(discard{c.codec}))
	if err != nil {
		b.Fatal(err)
	}
	if err := c.AwaitSubscribers(ctx, 1); err != nil {
		b.Fatal(err)
	}
	go func() {
		stem := NewStem(make([]byte, 850))
		batch := make([]Update, 64)
		for version := uint64(1 << 40); ; {
			for i := range batch {
				version++
				batch[i] = Update{ID: ID{byte(i)}, Message: stem.At(version)}
			}
			if c.Publish(ctx, batch...) != nil {
				return
			}
		}
	}()
	b.ReportAllocs()
	for b.Loop() {
		if err := stream.RecvMsg(nil); err != nil {
			b.Fatal(err)
		}
	}
	cancel()
	conn.Close()
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
}
