package publish

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"github.com/trestle-bridge/trestle/internal/devstack"
	"github.com/trestle-bridge/trestle/internal/devstack/devstacktest"
	"github.com/trestle-bridge/trestle/internal/event"
)

func TestMain(m *testing.M) { devstacktest.Main(m) }

// patience bounds what a test waits for; nothing is expected to take long.
const patience = 20 * time.Second

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func newPublisher(t testing.TB, cfg Config) *Publisher {
	t.Helper()
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

type heard struct{ channel, payload string }

// listen subscribes to our three channels, and returns when it is heard.
func listen(t testing.TB, addr string) *redis.PubSub {
	t.Helper()
	client := redis.NewClient(&redis.Options{Addr: addr})
	sub := client.Subscribe(testContext(t), event.ChannelInstances, event.ChannelHeadless, event.ChannelPrebuilds)
	t.Cleanup(func() {
		_ = sub.Close() // the server may be gone
		_ = client.Close()
	})
	for range 3 {
		if _, err := sub.Receive(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	return sub
}

func receive(t testing.TB, sub *redis.PubSub, n int) []heard {
	t.Helper()
	var all []heard
	for range n {
		message, err := sub.ReceiveMessage(testContext(t))
		if err != nil {
			t.Fatalf("after %d messages: %v", len(all), err)
		}
		all = append(all, heard{message.Channel, message.Payload})
	}
	return all
}

// receiveUntil returns what is heard before a marker that the test publishes
// now, by a connection of its own.
func receiveUntil(t testing.TB, sub *redis.PubSub, addr string) []heard {
	t.Helper()
	client := redis.NewClient(&redis.Options{Addr: addr})
	defer func() { _ = client.Close() }()
	if err := client.Publish(testContext(t), event.ChannelHeadless, "marker").Err(); err != nil {
		t.Fatal(err)
	}
	var all []heard
	for {
		message, err := sub.ReceiveMessage(testContext(t))
		if err != nil {
			t.Fatalf("after %d messages: %v", len(all), err)
		}
		if message.Payload == "marker" {
			return all
		}
		all = append(all, heard{message.Channel, message.Payload})
	}
}

// expected is what sets say, in the order of the contract, by encoding/json.
func expected(t testing.TB, sets []event.Set) []heard {
	t.Helper()
	var all []heard
	add := func(channel string, message any) {
		payload, err := json.Marshal(message)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, heard{channel, string(payload)})
	}
	for _, set := range sets {
		for _, m := range set.Instances {
			add("chan:workspace-instances", m)
		}
		for _, m := range set.Headless {
			add("chan:headless", m)
		}
		for _, m := range set.Prebuilds {
			add("chan:prebuilds", m)
		}
	}
	return all
}

func instances(prefix string, n int) event.Set {
	var set event.Set
	for i := range n {
		set.Instances = append(set.Instances, event.Instance{
			OwnerID:     "6f1c3a1e-7b1c-4a43-9c7a-0d6a5f0f7c11",
			InstanceID:  fmt.Sprintf("%s-%06d", prefix, i),
			WorkspaceID: "gitpodio-templategolang-0123456789a",
		})
	}
	return set
}

func TestMessagesAreExactAndInOrder(t *testing.T) {
	server := devstacktest.Redis(t)
	sub := listen(t, server.Addr())
	registry := prometheus.NewRegistry()
	p := newPublisher(t, Config{Redis: Redis{Address: server.Addr()}, Registerer: registry})

	sets := []event.Set{
		{},
		{
			Instances: []event.Instance{{OwnerID: "o", InstanceID: "i", WorkspaceID: "w"}},
			Headless:  []event.Headless{{Type: "started", WorkspaceID: "w"}},
			Prebuilds: []event.Prebuild{{Status: "queued", PrebuildID: "p", WorkspaceID: "w", ProjectID: "pr", OrganizationID: "org"}, {Status: "building", PrebuildID: "p2", WorkspaceID: "w2"}},
		},
		instances("many", 3*chunkSize+1),
		{Prebuilds: []event.Prebuild{{Status: "a\"b\\c\n<>&é\u2028\xff\x00", PrebuildID: "p"}}},
	}
	if err := p.Publish(testContext(t), sets, nil); err != nil {
		t.Fatal(err)
	}
	want := expected(t, sets)
	got := receive(t, sub, len(want))
	if !slices.Equal(got, want) {
		t.Fatalf("heard %d messages that differ from the %d of the call", len(got), len(want))
	}
	for i, literal := range []heard{
		{"chan:workspace-instances", `{"ownerID":"o","instanceID":"i","workspaceID":"w"}`},
		{"chan:headless", `{"type":"started","workspaceID":"w"}`},
		{"chan:prebuilds", `{"status":"queued","prebuildID":"p","workspaceID":"w","projectID":"pr","organizationID":"org"}`},
		{"chan:prebuilds", `{"status":"building","prebuildID":"p2","workspaceID":"w2","projectID":""}`},
	} {
		if got[i] != literal {
			t.Errorf("message %d is %v, want %v", i, got[i], literal)
		}
	}

	exposition := &strings.Builder{}
	for _, name := range []string{"gitpod_redis_updates_published_total", "gitpod_ws_manager_bridge_updates_published_total"} {
		fmt.Fprintf(exposition, `# HELP %[1]s Messages published on Redis.
# TYPE %[1]s counter
%[1]s{error="false",type="headless"} 1
%[1]s{error="false",type="prebuild"} 3
%[1]s{error="false",type="workspace-instance"} %[2]d
%[1]s{error="true",type="headless"} 0
%[1]s{error="true",type="prebuild"} 0
%[1]s{error="true",type="workspace-instance"} 0
`, name, 3*chunkSize+2)
	}
	if err := testutil.GatherAndCompare(registry, strings.NewReader(exposition.String()),
		"gitpod_redis_updates_published_total", "gitpod_ws_manager_bridge_updates_published_total"); err != nil {
		t.Error(err)
	}
}

// TestEachRoundTripIsPermitted: nothing is sent once it is no more.
func TestEachRoundTripIsPermitted(t *testing.T) {
	server := devstacktest.Redis(t)
	sub := listen(t, server.Addr())
	p := newPublisher(t, Config{Redis: Redis{Address: server.Addr()}})
	lost := errors.New("the fence is lost")
	sets := []event.Set{instances("many", 3*chunkSize)}
	asked := 0
	err := p.Publish(testContext(t), sets, func(context.Context) error {
		if asked++; asked > 2 {
			return lost
		}
		return nil
	})
	if !errors.Is(err, lost) || asked != 3 {
		t.Errorf("%v after %d questions, want %v after 3", err, asked, lost)
	}
	if got, want := receiveUntil(t, sub, server.Addr()), expected(t, sets)[:2*chunkSize]; !slices.Equal(got, want) {
		t.Errorf("heard %d messages, want the first %d", len(got), len(want))
	}
	// The connection is as good as before.
	if err := p.Publish(testContext(t), sets[:1], func(context.Context) error { return nil }); err != nil {
		t.Error(err)
	}
}

func TestNothingToPublishNeedsNoRedis(t *testing.T) {
	p := newPublisher(t, Config{Redis: Redis{Address: "127.0.0.1:1"}})
	if err := p.Publish(testContext(t), []event.Set{{}, {}}, nil); err != nil {
		t.Error(err)
	}
	if err := p.Publish(testContext(t), nil, nil); err != nil {
		t.Error(err)
	}
}

func TestLanesKeepTheirOrder(t *testing.T) {
	const lanes, calls = 6, 40
	server := devstacktest.Redis(t)
	sub := listen(t, server.Addr())
	p := newPublisher(t, Config{Redis: Redis{Address: server.Addr()}})

	var wg sync.WaitGroup
	for lane := range lanes {
		wg.Go(func() {
			for call := range calls {
				if err := p.Publish(testContext(t), []event.Set{instances(fmt.Sprintf("lane%d-%03d", lane, call), 7)}, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	last := map[string]string{}
	for _, h := range receive(t, sub, lanes*calls*7) {
		var m event.Instance
		if err := json.Unmarshal([]byte(h.payload), &m); err != nil {
			t.Fatal(err)
		}
		lane := m.InstanceID[:5]
		if m.InstanceID <= last[lane] {
			t.Fatalf("%s came after %s", m.InstanceID, last[lane])
		}
		last[lane] = m.InstanceID
	}
	if idle := len(p.idle); idle > lanes {
		t.Errorf("%d sessions are kept for %d lanes", idle, lanes)
	}
}

func TestRedisDownThenUp(t *testing.T) {
	server := devstacktest.OwnRedis(t, devstack.RedisConfig{})
	registry := prometheus.NewRegistry()
	p := newPublisher(t, Config{Redis: Redis{Address: server.Addr()}, Registerer: registry})
	if err := p.Publish(testContext(t), []event.Set{instances("before", 1)}, nil); err != nil {
		t.Fatal(err)
	}
	if err := p.Ping(testContext(t)); err != nil {
		t.Fatal(err)
	}

	for _, down := range []struct {
		how string
		do  func() error
	}{
		{"stopped", func() error { return server.Stop(testContext(t)) }},
		{"killed", server.Kill},
	} {
		if err := down.do(); err != nil {
			t.Fatal(err)
		}
		// More often than there are connections in the pool: the driver must
		// not be driven into a corner.
		for i := range 2 * maxConnections {
			if err := p.Publish(testContext(t), []event.Set{instances("while", 2)}, nil); err == nil {
				t.Fatalf("call %d succeeded while Redis was %s", i, down.how)
			}
		}
		if err := p.Ping(testContext(t)); err == nil {
			t.Errorf("ping succeeded while Redis was %s", down.how)
		}
		if err := server.Start(testContext(t)); err != nil {
			t.Fatal(err)
		}
		sub := listen(t, server.Addr())
		want := []event.Set{instances("after", 2*chunkSize)}
		ctx := testContext(t)
		for {
			err := p.Publish(ctx, want, nil)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				t.Fatalf("Redis is up again, but: %v", err)
			}
		}
		if got := receiveUntil(t, sub, server.Addr()); !slices.Equal(got, expected(t, want)) {
			t.Errorf("heard %d messages, want the %d of the call", len(got), 2*chunkSize)
		}
	}
	if n := testutil.ToFloat64(p.metrics.failed[kindInstance][0]); n < 2*2*2*maxConnections {
		t.Errorf("%v messages counted as errors, want %d at least", n, 2*2*2*maxConnections)
	}
}

// A restart that nobody publishes through costs no failed call.
func TestIdleSessionIsProbed(t *testing.T) {
	server := devstacktest.OwnRedis(t, devstack.RedisConfig{})
	p := newPublisher(t, Config{Redis: Redis{Address: server.Addr()}})
	if err := p.Publish(testContext(t), []event.Set{instances("before", 1)}, nil); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(server.Kill(), server.Start(testContext(t))); err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	p.idle[0].usedAt = time.Now().Add(-2 * probeAfter)
	p.mu.Unlock()
	if err := p.Publish(testContext(t), []event.Set{instances("after", 1)}, nil); err != nil {
		t.Error(err)
	}
}

func TestCutInMidPipelineIsNotRepeated(t *testing.T) {
	server := devstacktest.Redis(t)
	x := newProxy(t, server.Addr())
	p := newPublisher(t, Config{Redis: Redis{Address: x.addr()}})
	sets := []event.Set{instances("cut", 2*chunkSize)}
	all := expected(t, sets)

	for _, budget := range []int{1, 1000, 30_000, 95_000} {
		if err := p.Publish(testContext(t), []event.Set{instances("warm", 1)}, nil); err != nil {
			t.Fatal(err)
		}
		sub := listen(t, server.Addr())
		failedBefore := testutil.ToFloat64(p.metrics.failed[kindInstance][0])
		okBefore := testutil.ToFloat64(p.metrics.ok[kindInstance][0])
		x.set(func() { x.budget = budget })
		if err := p.Publish(testContext(t), sets, nil); err == nil {
			t.Fatalf("a call that was cut after %d bytes succeeded", budget)
		}
		x.set(func() { x.budget = -1 })

		ok := int(testutil.ToFloat64(p.metrics.ok[kindInstance][0]) - okBefore)
		failed := int(testutil.ToFloat64(p.metrics.failed[kindInstance][0]) - failedBefore)
		if ok+failed != len(all) {
			t.Errorf("%d taken and %d failed of %d", ok, failed, len(all))
		}
		// The server may still be reading what it got before the cut; the next
		// call on a connection of its own kills that one first.
		if err := p.Publish(testContext(t), sets, nil); err != nil {
			t.Fatal(err)
		}
		got := receiveUntil(t, sub, server.Addr())
		prefix := len(got) - len(all)
		if prefix < ok || prefix > len(all) {
			t.Fatalf("cut after %d bytes: heard %d messages of two calls, %d were answered for", budget, len(got), ok)
		}
		if !slices.Equal(got[:prefix], all[:prefix]) || !slices.Equal(got[prefix:], all) {
			t.Errorf("cut after %d bytes: want a prefix of %d messages and then all of them", budget, prefix)
		}
		t.Logf("cut after %d bytes: %d published, %d answered", budget, prefix, ok)
	}
}

// What a network or a stuck server held back must not be heard behind what was
// published since.
func TestLateMessagesAreFenced(t *testing.T) {
	server := devstacktest.Redis(t)
	x := newProxy(t, server.Addr())
	p := newPublisher(t, Config{Redis: Redis{Address: x.addr()}})
	sub := listen(t, server.Addr())
	if err := p.Publish(testContext(t), []event.Set{instances("first", 1)}, nil); err != nil {
		t.Fatal(err)
	}

	x.set(func() { x.holding = true })
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	old := []event.Set{{Headless: []event.Headless{{Type: "started", WorkspaceID: "w"}}}}
	if err := p.Publish(ctx, old, nil); err == nil {
		t.Fatal("a call without an answer succeeded")
	}
	var held []func()
	x.set(func() { x.holding, held = false, x.held })
	if len(held) == 0 {
		t.Fatal("the proxy holds nothing")
	}

	newer := []event.Set{{Headless: []event.Headless{{Type: "started", WorkspaceID: "w"}, {Type: "finish-success", WorkspaceID: "w"}}}}
	if err := p.Publish(testContext(t), newer, nil); err != nil {
		t.Fatal(err)
	}
	for _, deliver := range held {
		deliver()
	}
	// The late bytes and the marker come by different connections; a round trip
	// after the bytes gives them time to be heard if they are to be.
	for range 3 {
		if err := p.Publish(testContext(t), newer, nil); err != nil {
			t.Fatal(err)
		}
	}
	want := expected(t, []event.Set{instances("first", 1), newer[0], newer[0], newer[0], newer[0]})
	if got := receiveUntil(t, sub, server.Addr()); !slices.Equal(got, want) {
		t.Errorf("heard %v, want %v", got, want)
	}
	if len(p.doubtful) != 0 {
		t.Errorf("still doubtful: %v", p.doubtful)
	}
}

func TestDeadlineHolds(t *testing.T) {
	server := devstacktest.Redis(t)
	x := newProxy(t, server.Addr())
	// Without the deadline this would wait for an hour.
	p := newPublisher(t, Config{Redis: Redis{URL: secretURL("redis://" + x.addr() + "?read_timeout=1h")}})
	if err := p.Publish(testContext(t), []event.Set{instances("first", 1)}, nil); err != nil {
		t.Fatal(err)
	}
	x.set(func() { x.holding = true })
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	err := p.Publish(ctx, []event.Set{instances("held", 1)}, nil)
	if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the error is %v", err)
	}

	x.set(func() { x.holding = false })
	canceled, cancelNow := context.WithCancel(context.Background())
	cancelNow()
	if err := p.Publish(canceled, []event.Set{instances("canceled", 1)}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("the error of a canceled call is %v", err)
	}
}

func TestClosed(t *testing.T) {
	p := newPublisher(t, Config{Redis: Redis{Address: devstacktest.Redis(t).Addr()}})
	if err := p.Publish(testContext(t), []event.Set{instances("open", 1)}, nil); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.Close(), p.Close()); err != nil {
		t.Fatal(err)
	}
	if err := p.Publish(testContext(t), []event.Set{instances("closed", 1)}, nil); err == nil {
		t.Error("a closed Publisher publishes")
	}
	if err := p.Ping(testContext(t)); err == nil {
		t.Error("a closed Publisher answers a ping")
	}
}

// logLines is a log that a test reads, written by any goroutine.
type logLines struct {
	mu sync.Mutex // guards b
	b  strings.Builder
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logLines) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
