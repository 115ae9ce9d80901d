package console_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/trestle-bridge/trestle/coordinator"
	"github.com/trestle-bridge/trestle/coordinator/table"
	"github.com/trestle-bridge/trestle/internal/console"
	"github.com/trestle-bridge/trestle/internal/observe"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/shard"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeFleet is a fleet whose state a test sets.
type fakeFleet struct {
	// mu guards what follows.
	mu      sync.Mutex
	state   coordinator.State
	changed chan struct{}
	looks   int

	// What follows is set before the fleet is served.
	plan   shard.Plan
	ranked []shard.Ranked
}

func (f *fakeFleet) State() (coordinator.State, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks++
	return f.state, f.changed
}

// change replaces the state by what do makes of a copy of it, the lists of
// replicas and shards included.
func (f *fakeFleet) change(do func(*coordinator.State)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := f.state
	next.Shards = append([]coordinator.ShardState(nil), f.state.Shards...)
	next.Replicas = append([]coordinator.ReplicaState(nil), f.state.Replicas...)
	do(&next)
	f.state = next
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeFleet) looked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.looks
}

func (f *fakeFleet) Plan() shard.Plan { return f.plan }

func (f *fakeFleet) Ranks(ids []shard.ID) [][]shard.Ranked {
	return slices.Repeat([][]shard.Ranked{f.ranked}, len(ids))
}

// began is when all fleets of these tests began. They live in the present: the
// page says how long ago things were.
var began = time.Now().UTC().Truncate(time.Second).Add(-time.Hour)

func incarnation(replica int) string { return fmt.Sprintf("replica-%d.abc", replica) }

// newFleet has replicas that live, and shards that rest with them in turn.
func newFleet(replicas, shards int) *fakeFleet {
	f := &fakeFleet{changed: make(chan struct{})}
	f.state = coordinator.State{
		Known:  true,
		Leader: table.Leader{Incarnation: incarnation(1), Name: "replica-1", Since: began},
	}
	for r := 1; r <= replicas; r++ {
		f.state.Replicas = append(f.state.Replicas, coordinator.ReplicaState{
			Incarnation: incarnation(r), Joined: began, Heard: began,
			Member: table.Member{Name: fmt.Sprintf("replica-%d", r), Revision: "v1", Peer: fmt.Sprintf("127.0.0.1:%d", 7000+r)},
		})
	}
	for n := range shards {
		owner := 1 + n%replicas
		weight := float64(1 + (n*7919)%97)
		f.state.Shards = append(f.state.Shards, coordinator.ShardState{
			ID: shard.Whole(fmt.Sprintf("eu%02d", n+1)),
			Stored: table.Shard{
				Record: shard.Record{Epoch: 3, Owner: incarnation(owner), Phase: shard.PhaseOwned, Reason: shard.ReasonNew},
				Weight: weight, Since: began, Text: "it had no owner, and this one was preferred",
				Moves: []table.Past{{At: began.Add(time.Duration(n) * time.Millisecond), To: incarnation(owner), Epoch: 3, Reason: shard.ReasonNew}},
			},
			Observed: 3,
			Measured: coordinator.Measured{Rate: weight, Live: int(weight) * 10, Lag: 40 * time.Millisecond, LastEvent: began},
		})
		f.state.Replicas[owner-1].Load += weight
		f.state.Replicas[owner-1].Shards++
	}
	return f
}

// of finds a shard.
func of(s *coordinator.State, id string) *coordinator.ShardState {
	for i := range s.Shards {
		if s.Shards[i].ID.String() == id {
			return &s.Shards[i]
		}
	}
	panic("there is no shard " + id)
}

// moved is a shard that was handed over.
func moved(s *coordinator.State, id string, to int, reason shard.Reason) {
	sh := of(s, id)
	from := sh.Stored.Owner
	sh.Stored.Owner, sh.Stored.Next, sh.Stored.Phase = incarnation(to), "", shard.PhaseOwned
	sh.Stored.Epoch, sh.Observed, sh.Stored.Reason = sh.Stored.Epoch+1, sh.Stored.Epoch+1, reason
	sh.Stored.Since = time.Now().UTC()
	sh.Stored.Moves = append(append([]table.Past(nil), sh.Stored.Moves...),
		table.Past{At: sh.Stored.Since, From: from, To: incarnation(to), Epoch: sh.Stored.Epoch, Reason: reason})
}

// fakeQuarantine holds what a test puts there.
type fakeQuarantine struct {
	counts  []store.QuarantineCount
	poisons []store.Poison
	err     error
}

func (q *fakeQuarantine) QuarantineCounts(context.Context) ([]store.QuarantineCount, error) {
	return q.counts, q.err
}

func (q *fakeQuarantine) LastQuarantined(_ context.Context, cluster string, limit int) ([]store.Poison, error) {
	var list []store.Poison
	for _, p := range q.poisons {
		if p.Cluster == cluster && len(list) < limit {
			list = append(list, p)
		}
	}
	return list, q.err
}

// fakeHealth is well until told otherwise.
type fakeHealth struct {
	// mu guards errs, by the name of a check.
	mu   sync.Mutex
	errs map[string]error
}

func (h *fakeHealth) check(context.Context) []observe.Check {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []observe.Check
	for _, name := range []string{"pipeline", "clusters", "etcd", "postgres", "redis"} {
		list = append(list, observe.Check{Name: name, Err: h.errs[name]})
	}
	return list
}

func (h *fakeHealth) fail(name, why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.errs == nil {
		h.errs = make(map[string]error)
	}
	h.errs[name] = errors.New(why)
}

func config(f *fakeFleet) console.Config {
	return console.Config{
		Address: "127.0.0.1:0", Installation: "eu01", Version: "v1.2.3", Incarnation: incarnation(1),
		Fleet: f, Checks: new(fakeHealth).check, Quarantine: &fakeQuarantine{},
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

// serve runs a console until the test ends, or stop is called.
func serve(t *testing.T, cfg console.Config) (address string, stop func()) {
	t.Helper()
	server, err := console.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	t.Cleanup(stop)
	return server.Addr().String(), stop
}
