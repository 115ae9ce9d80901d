package upstream

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

// count sums a metric over the series whose labels include these values.
func count(t *testing.T, registry *prometheus.Registry, name string, values ...string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, family := range families {
		if family.GetName() != "trestle_upstream_"+name {
			continue
		}
	series:
		for _, m := range family.GetMetric() {
			for _, want := range values {
				found := false
				for _, label := range m.GetLabel() {
					found = found || label.GetValue() == want
				}
				if !found {
					continue series
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

func awaitSynced(t *testing.T, c *Client) {
	t.Helper()
	select {
	case <-c.Synced():
	case <-time.After(patience):
		t.Fatalf("not synced: %+v", c.State())
	}
}

func TestSubscribesBeforeItLooks(t *testing.T) {
	f := newFake(t)
	f.setQuietly(at(1, 5))
	// What changes after the subscription and before the snapshot is sent on
	// the stream or in the snapshot, and what changes before is in the latter.
	f.onSnapshot = func(context.Context) (encoded, error) {
		f.mu.Lock()
		n := len(f.subscribers)
		f.mu.Unlock()
		if n == 0 {
			return nil, grpcstatus.Error(codes.FailedPrecondition, "snapshot before subscription")
		}
		f.set(at(2, 7))
		return nil, nil
	}
	f.start(t, nil)
	c := run(t, f, nil)
	awaitSynced(t, c.Client)
	c.sink.awaitVersion(t, id(1), 5)
	c.sink.awaitVersion(t, id(2), 7)
	f.set(at(1, 6))
	c.sink.awaitVersion(t, id(1), 6)

	f.await(t, "the second look", func() bool { return f.snapshots >= 2 })
	if got := count(t, c.registry, "snapshots_total", "failure"); got != 0 {
		t.Errorf("%v snapshots failed: %s", got, c.State().SnapshotError)
	}
	c.sink.mu.Lock()
	defer c.sink.mu.Unlock()
	for _, h := range c.sink.offered {
		if h.At.IsZero() || h.Version == 5 && !h.Snapshot {
			t.Errorf("version %d: snapshot %v, at %v", h.Version, h.Snapshot, h.At)
		}
	}
}

// A change that the server made between our subscription and the moment from
// which it hears us is in no message; the second look brings it.
func TestSecondLookBringsWhatFellBetween(t *testing.T) {
	f := newFake(t)
	f.start(t, nil)
	var looks atomic.Int32
	f.onSnapshot = func(context.Context) (encoded, error) {
		if looks.Add(1) == 1 {
			return encoded{}, nil
		}
		return nil, nil
	}
	f.setQuietly(at(1, 5))
	c := run(t, f, nil)
	c.sink.awaitVersion(t, id(1), 5)
}

func TestHeaderAndMessageCutTheWaitShort(t *testing.T) {
	for name, sign := range map[string]func(*fakeCluster, *subscriber){
		"header":  func(_ *fakeCluster, s *subscriber) { close(s.header) },
		"message": func(_ *fakeCluster, s *subscriber) { s.updates <- &wsman.SubscribeResponse{Status: at(1, 1)} },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.onSubscribe = func(s *subscriber) { sign(f, s) }
			f.start(t, nil)
			c := run(t, f, func(cfg *Config) { cfg.Timing.Settle = time.Hour })
			awaitSynced(t, c.Client)
		})
	}
}

func TestDropLeadsToSubscriptionAndSnapshotAtOnce(t *testing.T) {
	f := newFake(t)
	f.start(t, nil)
	c := run(t, f, func(cfg *Config) { cfg.Timing.SecondLook = time.Hour })
	awaitSynced(t, c.Client)
	f.set(at(1, 1))
	c.sink.awaitVersion(t, id(1), 1)
	for round := uint64(2); round < 6; round++ {
		f.mu.Lock()
		before, snapshots := f.subscribes, f.snapshots
		for s := range f.subscribers {
			delete(f.subscribers, s)
			s.end <- grpcstatus.Error(codes.ResourceExhausted, "too slow")
		}
		f.live[id(1)] = at(1, round*10) // in no message
		f.mu.Unlock()
		f.await(t, "a new subscription and snapshot", func() bool { return f.subscribes > before && f.snapshots > snapshots })
		c.sink.awaitVersion(t, id(1), round*10)
		f.await(t, "a subscriber", func() bool { return len(f.subscribers) == 1 })
		f.set(at(1, round*10+1))
		c.sink.awaitVersion(t, id(1), round*10+1)
	}
	if got := count(t, c.registry, "reconnects_total", "dropped"); got != 4 {
		t.Errorf("%v drops counted", got)
	}
}

// A flood far beyond the server's buffer: whatever is dropped comes again.
func TestFloodBeyondTheServersBuffer(t *testing.T) {
	f := newFake(t)
	f.start(t, nil)
	c := run(t, f, nil)
	awaitSynced(t, c.Client)
	const instances, rounds = 200, 30
	for round := uint64(1); round <= rounds; round++ {
		for n := range instances {
			f.set(at(n, round))
		}
	}
	c.sink.await(t, "the last version of all", func() bool {
		for n := range instances {
			if c.sink.versions[id(n)] != rounds {
				return false
			}
		}
		return true
	})
}

func TestGiantUpdateKeepsNothingElseAway(t *testing.T) {
	f := newFake(t)
	giant := at(1, 1)
	giant.Message = strings.Repeat("x", 64<<10)
	// Every stream begins with it and ends by it; the snapshot has it too.
	f.onSubscribe = func(s *subscriber) { s.updates <- &wsman.SubscribeResponse{Status: giant} }
	f.setQuietly(giant)
	f.setQuietly(at(2, 3))
	f.start(t, nil)
	c := run(t, f, func(cfg *Config) { cfg.MaxUpdateBytes = 32 << 10 })
	c.sink.awaitVersion(t, id(2), 3)
	f.setQuietly(at(2, 4))
	c.sink.awaitVersion(t, id(2), 4)
	c.sink.await(t, "the giant to be counted", func() bool { return c.sink.invalidFor(status.ReasonTooLarge) })
	if got := count(t, c.registry, "reconnects_total", "too_large"); got < 1 {
		t.Errorf("%v ends by too large updates counted", got)
	}
	if c.sink.versions[id(1)] != 0 {
		t.Error("the giant was offered")
	}
}

// Entries beyond the read buffer, but within the limit, are whole.
func TestLargeEntries(t *testing.T) {
	f := newFake(t)
	for n := range 5 {
		s := at(n, 9)
		s.Message = strings.Repeat("x", snapshotBuffer+n*1000-2000)
		f.setQuietly(s)
	}
	f.start(t, nil)
	c := run(t, f, nil)
	for n := range 5 {
		c.sink.awaitVersion(t, id(n), 9)
	}
	f.send(&wsman.SubscribeResponse{Status: func() *wsman.WorkspaceStatus {
		s := at(7, 2)
		s.Message = strings.Repeat("x", 1<<20) // in many buffers
		return s
	}()})
	c.sink.awaitVersion(t, id(7), 2)
}

func TestSnapshotOverTheLimit(t *testing.T) {
	f := newFake(t)
	f.setQuietly(at(1, 1))
	f.setQuietly(at(2, 1))
	f.start(t, nil)
	c := run(t, f, func(cfg *Config) { cfg.MaxSnapshotBytes = 100; cfg.Timing.Every = 10 * time.Millisecond })
	f.await(t, "a second attempt", func() bool { return f.snapshots >= 2 })
	f.set(at(3, 1))
	c.sink.awaitVersion(t, id(3), 1) // the stream is heard
	if got := count(t, c.registry, "snapshots_total", "failure"); got < 1 {
		t.Errorf("%v failures counted", got)
	}
	if !strings.Contains(c.State().SnapshotError, ErrSnapshotTooLarge.Error()) {
		t.Errorf("the state says %q", c.State().SnapshotError)
	}
	if _, err := c.Workspaces(t.Context()); !errors.Is(err, ErrSnapshotTooLarge) {
		t.Errorf("Workspaces: %v", err)
	}
	select {
	case <-c.Synced():
		t.Error("synced without a snapshot")
	default:
	}
}

func TestGarbageDoesNotEndTheStream(t *testing.T) {
	f := newFake(t)
	f.start(t, nil)
	c := run(t, f, nil)
	awaitSynced(t, c.Client)
	good := bytesOf(t, at(1, 1))
	for _, raw := range []encoded{
		{0xff, 0xff, 0xff},
		{},
		entryOf([]byte{0xff}),
		entryOf(good[:len(good)-3]),
		protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1),
	} {
		f.send(raw)
	}
	f.set(at(1, 2))
	c.sink.awaitVersion(t, id(1), 2)
	c.sink.mu.Lock()
	defer c.sink.mu.Unlock()
	if len(c.sink.invalid) != 5 || c.sink.subscribed != 1 {
		t.Errorf("%d invalid, %d subscriptions: %v", len(c.sink.invalid), c.sink.subscribed, c.sink.invalid)
	}
	for _, err := range c.sink.invalid {
		if !strings.Contains(err.Error(), "eu1") {
			t.Errorf("%v does not name the cluster", err)
		}
	}
}

func TestGarbageInASnapshot(t *testing.T) {
	good := entryOf(bytesOf(t, at(1, 1)))
	for name, c := range map[string]struct {
		raw  encoded
		fail bool
	}{
		"entry":   {append(entryOf([]byte{0xff}), good...), false},
		"unknown": {append([]byte{0x7b, 0x08, 0x01, 0x7c, 0x10, 0x01}, good...), false}, // a group and a number
		"cut":     {append(good[:len(good):len(good)], good[:len(good)-1]...), true},
		"tag":     {append(good[:len(good):len(good)], 0x00), true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.onSnapshot = func(context.Context) (encoded, error) { return c.raw, nil }
			f.start(t, nil)
			client := run(t, f, nil)
			client.sink.awaitVersion(t, id(1), 1)
			_, err := client.Workspaces(t.Context())
			if fails := err != nil; fails != (c.fail || name == "entry") {
				t.Errorf("Workspaces: %v", err)
			}
			if !c.fail {
				awaitSynced(t, client.Client)
			}
		})
	}
}

func TestSnapshotErrorIsTriedAgain(t *testing.T) {
	f := newFake(t)
	var calls atomic.Int32
	f.onSnapshot = func(context.Context) (encoded, error) {
		if calls.Add(1) < 3 {
			return nil, grpcstatus.Error(codes.Internal, "not now: 100 %, später")
		}
		return nil, nil
	}
	f.setQuietly(at(1, 1))
	f.start(t, nil)
	c := run(t, f, func(cfg *Config) { cfg.Timing.Every = 10 * time.Millisecond })
	awaitSynced(t, c.Client)
	c.sink.awaitVersion(t, id(1), 1)

	calls.Store(-100)
	_, err := c.Workspaces(t.Context())
	if grpcstatus.Code(err) != codes.Internal || !strings.Contains(err.Error(), "100 %, später") {
		t.Errorf("the server's words are lost: %v", err)
	}
}

func TestStalledSnapshotIsGivenUp(t *testing.T) {
	f := newFake(t)
	var calls atomic.Int32
	f.onSnapshot = func(ctx context.Context) (encoded, error) {
		if calls.Add(1) == 1 {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return nil, nil
	}
	f.start(t, nil)
	c := run(t, f, func(cfg *Config) { cfg.Timing.Stall = 50 * time.Millisecond; cfg.Timing.Every = 10 * time.Millisecond })
	f.set(at(1, 1))
	c.sink.awaitVersion(t, id(1), 1)
	awaitSynced(t, c.Client)
}

func TestRestartOfTheServer(t *testing.T) {
	f := newFake(t)
	f.start(t, nil)
	c := run(t, f, nil)
	awaitSynced(t, c.Client)
	for version := uint64(1); version < 4; version++ {
		f.server.Stop()
		f.setQuietly(at(1, version))
		f.start(t, nil)
		c.sink.awaitVersion(t, id(1), version)
		// A snapshot has a connection of its own, and may be there before the stream
		// has noticed.
		c.await(t, "the stream is taken up again", func() bool {
			s := c.State()
			return s.Connected && uint64(s.Reconnects) >= version
		})
	}
}

func TestServerThatIsNotThereYet(t *testing.T) {
	f := newFake(t)
	f.start(t, nil)
	f.server.Stop() // its address is known, and refuses
	c := run(t, f, nil)
	c.await(t, "three attempts", func() bool { return count(t, c.registry, "reconnects_total", "unavailable") >= 3 })
	if s := c.State(); s.Connected || s.Error == "" {
		t.Errorf("state %+v", s)
	}
	f.start(t, nil)
	awaitSynced(t, c.Client)
}

func TestFullSinkEndsTheStreamUntilDrained(t *testing.T) {
	f := newFake(t)
	f.start(t, nil)
	c := run(t, f, nil)
	awaitSynced(t, c.Client)
	var full atomic.Bool
	full.Store(true)
	c.sink.mu.Lock()
	c.sink.refuse = func(h status.Heard) bool { return full.Load() }
	c.sink.mu.Unlock()
	f.set(at(1, 1))
	f.await(t, "the end of the stream", func() bool { return len(f.subscribers) == 0 || f.subscribes > 1 })
	c.await(t, "the end to be counted", func() bool { return count(t, c.registry, "reconnects_total", "full") > 0 })
	if c.State().Connected {
		t.Error("subscribed again before the sink has drained")
	}
	full.Store(false)
	close(c.sink.drained)
	c.sink.awaitVersion(t, id(1), 1)
	f.await(t, "a new subscription", func() bool { return len(f.subscribers) == 1 })
}

// A snapshot larger than what the sink takes at once is offered to its end.
func TestFullSinkHoldsASnapshotWhereItStands(t *testing.T) {
	f := newFake(t)
	const instances = 50
	for n := range instances {
		f.setQuietly(at(n, 1))
	}
	f.start(t, nil)
	c := run(t, f, func(cfg *Config) {
		r := cfg.Sink.(*recorder)
		close(r.drained)
		room := 10
		r.refuse = func(status.Heard) bool {
			if room--; room < 0 {
				room = 10 // as if the lanes had drained
				return true
			}
			return false
		}
		cfg.Timing.SecondLook = time.Hour
	})
	awaitSynced(t, c.Client)
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(c.sink.versions) != instances || f.snapshots != 1 || f.subscribes != 1 {
		t.Errorf("%d instances after %d snapshots, %d subscriptions", len(c.sink.versions), f.snapshots, f.subscribes)
	}
}

// Whoever wants a snapshot gets one that begins after the wish.
func TestAskedForSnapshot(t *testing.T) {
	f := newFake(t)
	f.start(t, nil)
	c := run(t, f, quiet)
	c.awaitSnapshots(t, 2)
	f.setQuietly(at(1, 1))
	c.Ask()
	c.sink.awaitVersion(t, id(1), 1)
}

// A stream that the server keeps open and forgets is found out.
func TestForgottenStreamIsFoundOut(t *testing.T) {
	f := newFake(t)
	f.setQuietly(at(1, 1))
	var forgotten atomic.Bool
	version := uint64(1)
	f.onSnapshot = func(context.Context) (encoded, error) {
		if forgotten.Load() {
			version++
			f.setQuietly(at(1, version))
		}
		return nil, nil
	}
	f.start(t, nil)
	c := run(t, f, func(cfg *Config) {
		cfg.Timing.Silence = 30 * time.Millisecond
		cfg.Timing.SecondLook = 10 * time.Millisecond
	})
	awaitSynced(t, c.Client)
	// The cluster goes on, but tells only those who subscribe from now on.
	f.mu.Lock()
	clear(f.subscribers)
	first := f.subscribes
	f.mu.Unlock()
	forgotten.Store(true)
	f.await(t, "a new subscription", func() bool { return f.subscribes > first })
	if got := count(t, c.registry, "reconnects_total", "silent"); got < 1 {
		t.Errorf("%v silent streams counted", got)
	}
}

// A cluster in which nothing happens is left alone, however long.
func TestQuietStreamIsNormal(t *testing.T) {
	f := newFake(t)
	f.setQuietly(at(1, 1))
	f.start(t, nil)
	c := run(t, f, func(cfg *Config) { cfg.Timing.Silence = 2 * time.Millisecond; cfg.Timing.SecondLook = time.Millisecond })
	f.await(t, "many looks", func() bool { return f.snapshots >= 12 })
	if s := c.State(); s.Reconnects != 0 || !s.Connected {
		t.Errorf("state %+v", s)
	}
}

func TestTraceIsHandedOnWhenAsked(t *testing.T) {
	for _, on := range []bool{false, true} {
		f := newFake(t)
		f.start(t, nil)
		c := run(t, f, func(cfg *Config) { cfg.Trace = on })
		awaitSynced(t, c.Client)
		f.send(&wsman.SubscribeResponse{Status: at(1, 1), Header: map[string]string{"uber-trace-id": "4bf9:1:0:1"}})
		c.sink.awaitVersion(t, id(1), 1)
		if got := c.sink.offered[len(c.sink.offered)-1].Trace; (got == "4bf9:1:0:1") != on {
			t.Errorf("tracing %v: got %q", on, got)
		}
	}
}

func TestCallsWithoutRun(t *testing.T) {
	f := newFake(t)
	for n := range 3 {
		f.setQuietly(at(n, 1))
	}
	broken := at(3, 1)
	broken.Spec = nil // of no use, but alive
	f.setQuietly(broken)
	f.setQuietly(&wsman.WorkspaceStatus{Id: "not-ours"})
	f.start(t, nil)
	c, err := New(Config{Cluster: Cluster{Name: "eu1", URL: "dns:///" + f.address}})
	if err != nil {
		t.Fatal(err)
	}
	ids, err := c.Workspaces(t.Context())
	if err != nil || len(ids) != 4 {
		t.Errorf("%d workspaces, %v", len(ids), err)
	}
	described, err := c.Describe(t.Context())
	if err != nil || described.GetPreferredWorkspaceClass() != "g1" || len(described.GetWorkspaceClasses()) != 1 {
		t.Errorf("got %v, %v", described, err)
	}
	f.server.Stop()
	if _, err := c.Describe(t.Context()); grpcstatus.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), f.address) {
		t.Errorf("Describe of a server that is gone: %v", err)
	}
	if _, err := c.Workspaces(t.Context()); err == nil || !strings.Contains(err.Error(), f.address) {
		t.Errorf("Workspaces of a server that is gone: %v", err)
	}
}

func TestUnixSocket(t *testing.T) {
	f := newFake(t)
	f.address = t.TempDir() + "/ws.sock"
	f.setQuietly(at(1, 1))
	f.start(t, nil)
	c := run(t, f, func(cfg *Config) { cfg.Cluster.URL = "unix://" + f.address })
	awaitSynced(t, c.Client)
	f.set(at(1, 2))
	c.sink.awaitVersion(t, id(1), 2)
}

func TestSeriesGoWithTheCluster(t *testing.T) {
	f := newFake(t)
	f.start(t, nil)
	c := run(t, f, nil)
	awaitSynced(t, c.Client)
	if count(t, c.registry, "stream_up", "eu1") != 1 {
		t.Error("the stream is not up")
	}
	again := c.cfg.Metrics.begin("eu1")
	c.stop()
	if s := c.State(); s.Connected {
		t.Errorf("state %+v", s)
	}
	if count(t, c.registry, "snapshots_total", "eu1") == 0 {
		t.Error("the series went while another client of the cluster ran")
	}
	again.end()
	families, err := c.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != "trestle_upstream_snapshot_duration_seconds" {
			t.Errorf("%s is left", family.GetName())
		}
	}
}

// quiet takes the two snapshots of the beginning and then none unasked.
func quiet(cfg *Config) {
	cfg.Timing.SecondLook, cfg.Timing.Every, cfg.Timing.Silence = time.Millisecond, time.Hour, time.Hour
}

// A refresh ends when all of a snapshot that began after it was asked for has
// been offered.
func TestRefresh(t *testing.T) {
	f := newFake(t)
	f.start(t, nil)
	c := run(t, f, quiet)
	c.awaitSnapshots(t, 2)
	for version := uint64(1); version < 4; version++ {
		f.setQuietly(at(1, version))
		f.setQuietly(at(2, 10*version))
		if err := c.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.sink.mu.Lock()
		if c.sink.versions[id(1)] != version || c.sink.versions[id(2)] != 10*version {
			t.Errorf("after the refresh: %v", c.sink.versions)
		}
		c.sink.mu.Unlock()
	}
	if s := c.State(); s.Instances != 2 || s.SnapshotError != "" || s.Reconnects != 0 {
		t.Errorf("state %+v", s)
	}
}

// A refresh that comes while a snapshot is taken waits for it, and then has one
// of its own, as that one began before it did.
func TestRefreshWaitsForTheSnapshotUnderWay(t *testing.T) {
	f := newFake(t)
	var holds atomic.Bool
	begun, goOn := make(chan struct{}), make(chan struct{})
	f.onSnapshot = func(ctx context.Context) (encoded, error) {
		if holds.CompareAndSwap(true, false) {
			close(begun)
			select {
			case <-goOn:
			case <-ctx.Done():
			}
			return encoded{}, nil // as it was before
		}
		return nil, nil
	}
	f.start(t, nil)
	c := run(t, f, quiet)
	c.awaitSnapshots(t, 2)
	holds.Store(true)
	c.Ask()
	<-begun
	f.setQuietly(at(1, 5))
	ended := make(chan error, 1) // read once, below
	go func() { ended <- c.Refresh(t.Context()) }()
	close(goOn)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	c.sink.mu.Lock()
	defer c.sink.mu.Unlock()
	if c.sink.versions[id(1)] != 5 {
		t.Errorf("a snapshot of before the refresh was taken for it: %v", c.sink.versions)
	}
}

func TestRefreshOfADeafClient(t *testing.T) {
	f := newFake(t)
	f.start(t, nil)
	c := run(t, f, quiet)
	c.awaitSnapshots(t, 2)
	f.server.Stop()
	c.await(t, "the end of the stream", func() bool { return !c.State().Connected })
	if err := c.Refresh(t.Context()); !errors.Is(err, ErrDeaf) || !strings.Contains(err.Error(), f.address) {
		t.Errorf("after its stream has ended: %v", err)
	}
	f.start(t, nil)
	c.awaitSnapshots(t, 4)
	f.setQuietly(at(1, 7))
	if err := c.Refresh(t.Context()); err != nil {
		t.Errorf("as soon as it hears again: %v", err)
	}
	c.sink.awaitVersion(t, id(1), 7)
}

// A snapshot that fails fails the refresh, with the reason, and is taken again
// without being asked for.
func TestRefreshFails(t *testing.T) {
	f := newFake(t)
	var fails atomic.Bool
	f.onSnapshot = func(context.Context) (encoded, error) {
		if fails.CompareAndSwap(true, false) {
			return nil, grpcstatus.Error(codes.Internal, "out of order")
		}
		return nil, nil
	}
	f.start(t, nil)
	c := run(t, f, quiet)
	c.awaitSnapshots(t, 2)
	f.setQuietly(at(1, 1))
	fails.Store(true)
	if err := c.Refresh(t.Context()); err == nil || errors.Is(err, ErrDeaf) || !strings.Contains(err.Error(), "out of order") || !strings.Contains(err.Error(), f.address) {
		t.Errorf("the refresh ends with %v", err)
	}
	if s := c.State(); !strings.Contains(s.SnapshotError, "out of order") {
		t.Errorf("state %+v", s)
	}
	c.sink.awaitVersion(t, id(1), 1)
	if got := count(t, c.registry, "snapshots_total", "failure"); got != 1 {
		t.Errorf("%v failures are counted", got)
	}
}

// Whoever waits for a refresh may leave; who has left is in nobody's way.
func TestRefreshIsGivenUp(t *testing.T) {
	f := newFake(t)
	var holds atomic.Bool
	begun := make(chan struct{})
	f.onSnapshot = func(ctx context.Context) (encoded, error) {
		if holds.CompareAndSwap(true, false) {
			close(begun)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return nil, nil
	}
	f.start(t, nil)
	c := run(t, f, quiet)
	c.awaitSnapshots(t, 2)
	gone, leave := context.WithCancel(t.Context())
	leave()
	holds.Store(true)
	first, end := context.WithCancel(t.Context())
	ended := make(chan error, 1) // read once, below
	go func() { ended <- c.Refresh(first) }()
	<-begun
	// The first one's snapshot is under way, so nobody takes up another wish.
	if err := c.Refresh(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("one that never began: %v", err)
	}
	end()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("one under way: %v", err)
	}
	c.stop()
	if err := c.Refresh(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}
