package api_test

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/trestle-bridge/trestle/coordinator"
	"github.com/trestle-bridge/trestle/coordinator/table"
	"github.com/trestle-bridge/trestle/internal/api"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
	"github.com/trestle-bridge/trestle/shard"
)

// fakeFleet is a fleet whose state a test sets.
type fakeFleet struct {
	// mu guards what follows.
	mu      sync.Mutex
	state   coordinator.State
	changed chan struct{}
	did     []coordinator.Command

	// What follows is set before the fleet is served.
	act    func(context.Context, coordinator.Command) error
	plan   shard.Plan
	ranked []shard.Ranked
}

func (f *fakeFleet) State() (coordinator.State, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state, f.changed
}

// change replaces the state by what do makes of it, which must change nothing
// in place.
func (f *fakeFleet) change(do func(*coordinator.State)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do(&f.state)
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeFleet) Do(ctx context.Context, c coordinator.Command) error {
	f.mu.Lock()
	f.did = append(f.did, c)
	f.mu.Unlock()
	if f.act != nil {
		return f.act(ctx, c)
	}
	return nil
}

func (f *fakeFleet) commands() []coordinator.Command {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.did)
}

func (f *fakeFleet) Plan() shard.Plan { return f.plan }
func (f *fakeFleet) Ranks(ids []shard.ID) [][]shard.Ranked {
	all := make([][]shard.Ranked, len(ids))
	for i := range all {
		all[i] = f.ranked
	}
	return all
}

// owned are shards that rest with their owner.
func owned(ids ...shard.ID) []coordinator.ShardState {
	list := make([]coordinator.ShardState, len(ids))
	for i, id := range ids {
		list[i] = coordinator.ShardState{ID: id, Stored: table.Shard{Record: shard.Record{Epoch: 3, Owner: "a.1", Phase: shard.PhaseOwned}}}
	}
	return list
}

// fakeSweeps is a leader that has rounds of some clusters.
type fakeSweeps struct {
	// mu guards asked.
	mu    sync.Mutex
	asked []string

	err error
}

func (f *fakeSweeps) ask(what, cluster string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, what+" "+cluster)
	return f.err
}

func (f *fakeSweeps) Request(_ context.Context, cluster string) error {
	return f.ask("request", cluster)
}
func (f *fakeSweeps) Confirm(_ context.Context, cluster string) error {
	return f.ask("confirm", cluster)
}

func at(second int) time.Time { return time.Date(2026, 10, 5, 3, 0, second, 0, time.UTC) }

// newFleet has two replicas and one that is gone; eu01 moves from a to b, and
// us01 is cut in two.
func newFleet() *fakeFleet {
	f := &fakeFleet{changed: make(chan struct{})}
	f.state = coordinator.State{
		Known:  true,
		Leader: table.Leader{Incarnation: "a.1", Name: "a", Since: at(0)},
		Shards: []coordinator.ShardState{
			{
				ID: shard.Whole("eu01"),
				Stored: table.Shard{
					Record: shard.Record{
						Epoch: 7, Owner: "a.1", Next: "b.1", Phase: shard.PhasePrepare, Reason: shard.ReasonPin,
						Pin: shard.Pin{Replica: "b", Reason: "closer", Author: "ann"},
					},
					Weight: 12, Since: at(5), Text: "pinned to b",
					Moves: []table.Past{{At: at(1), To: "c.1", Epoch: 6, Reason: shard.ReasonNew}, {At: at(2), From: "c.1", To: "a.1", Epoch: 7, Reason: shard.ReasonOrphan}},
				},
				Observed: 7,
				Measured: coordinator.Measured{Rate: 10, Live: 100, Lag: time.Second, LastEvent: at(9)},
			},
			{
				ID: shard.Slice("us01", 0, 2),
				Stored: table.Shard{Record: shard.Record{
					Epoch: 2, Owner: "b.1", Phase: shard.PhaseRaise, Former: "a.1", Generation: 1, Reason: shard.ReasonReslice,
					Pin: shard.Pin{Replica: "b", Until: at(1)}, // has lapsed
				}},
			},
			{ID: shard.Slice("us01", 1, 2), Stored: table.Shard{Record: shard.Record{Phase: shard.PhaseUnowned, Former: "c.0", Generation: 1}}},
		},
		Replicas: []coordinator.ReplicaState{
			{Incarnation: "b.1", Member: table.Member{Name: "b", Revision: "v2", Peer: "b:1", Capacity: 2, Cap: 100}, Joined: at(1), Draining: true, Shards: 1},
			{Incarnation: "a.1", Member: table.Member{Name: "a", Revision: "v1", Peer: "a:1"}, Joined: at(0), Heard: at(9), Load: 12, Shards: 1},
			{Incarnation: "c.1", Member: table.Member{Name: "c"}, Joined: at(0), Gone: at(3)},
		},
		Clusters: map[string]table.Cluster{"us01": {Slices: 2, Generation: 1, Reslice: &shard.Reslice{
			Cluster: "us01", From: 2, To: 4, Generation: 2, Phase: shard.ResliceRelease, Reason: "hot", Author: "bob",
		}}},
		Drains: map[string]table.Drain{
			"b":     {At: at(4), Reason: "disk", Author: "ann"},
			"old":   {At: at(0), Until: at(1)}, // has lapsed
			"later": {At: at(4), Reason: "comes back", Author: "bob"},
		},
		Brake:  shard.Brake{Since: at(3), Roster: 5, Limited: true},
		Freeze: shard.Freeze{On: true, Reason: "incident", Author: "ann"},
		Commands: []coordinator.Command{
			{Kind: coordinator.CommandPin, Shard: "eu01", Replica: "b", Reason: "closer", Author: "ann", At: at(4), Done: at(5)},
			{Kind: coordinator.CommandSlices, Cluster: "us01", Slices: 4, Reason: "hot", Author: "bob", At: at(5), Done: at(6), Refused: "busy"},
			{Kind: coordinator.CommandFreeze, Reason: "incident", Author: "ann", At: at(7), Until: at(59)},
		},
	}
	f.plan = shard.Plan{
		Moves:      []shard.Move{{Shard: shard.Whole("eu01"), From: "a.1", To: "b.1", Reason: shard.ReasonPin, Text: "pinned to b"}},
		Cancel:     []shard.ID{shard.Slice("us01", 0, 2)},
		Unplaced:   []shard.Unplaced{{Shard: shard.Slice("us01", 1, 2), Why: shard.WhyCap}},
		Overloaded: []string{"b.1"},
		Proposals:  []shard.Proposal{{Cluster: "us01", Slices: 8, Text: "too hot"}},
		Before:     shard.Imbalance{Max: 30, Mean: 20, Heaviest: 12},
	}
	f.ranked = []shard.Ranked{{Replica: "b.1", Score: 2, Load: 1, Fair: 6, Cap: 100, Draining: true}, {Replica: "a.1", Score: 1}}
	return f
}

// shardReplica is a server of a fleet, and a client of it.
type shardReplica struct {
	trestlev1.ShardServiceClient
	*testing.T
	conn   *grpc.ClientConn
	fleet  *fakeFleet
	sweeps *fakeSweeps
	// instances and rows are what there is to say of instances.
	instances *fakeInstances
	rows      *fakeRows
	log       *logBuffer
	stop      func()
}

func newShardReplica(t *testing.T, fleet *fakeFleet, change ...func(*api.Config)) *shardReplica {
	t.Helper()
	r := &shardReplica{T: t, fleet: fleet, sweeps: &fakeSweeps{}, instances: &fakeInstances{}, rows: &fakeRows{}, log: &logBuffer{}}
	cfg := api.Config{
		Address: "127.0.0.1:0", Registry: broken{}, Registerer: newRegistry(), Fleet: fleet, Sweeps: r.sweeps, Instances: r.instances, Rows: r.rows, Incarnation: "a.1",
		Logger: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, c := range change {
		c(&cfg)
	}
	server, err := api.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1) // read once, by stop
	go func() { ended <- server.Run(ctx) }()
	if r.conn, err = grpc.NewClient(server.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	r.ShardServiceClient = trestlev1.NewShardServiceClient(r.conn)
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { r.conn.Close(); r.stop() })
	return r
}

// says fails unless the error has the code and all texts.
func (r *shardReplica) says(what string, err error, code codes.Code, texts ...string) {
	r.Helper()
	if status.Code(err) != code {
		r.Errorf("%s: %v, want %v", what, err, code)
		return
	}
	for _, text := range texts {
		if !strings.Contains(status.Convert(err).Message(), text) {
			r.Errorf("%s does not say %q: %v", what, text, err)
		}
	}
}

// is fails unless a message reads as the JSON given.
func (r *shardReplica) is(what string, got proto.Message, err error, want string) {
	r.Helper()
	if err != nil {
		r.Errorf("%s: %v", what, err)
		return
	}
	wanted := got.ProtoReflect().New().Interface()
	if err := protojson.Unmarshal([]byte(want), wanted); err != nil {
		r.Fatalf("%s: %v", what, err)
	}
	if !proto.Equal(got, wanted) {
		r.Errorf("%s:\n%s\nwant\n%s", what, protojson.Format(got), protojson.Format(wanted))
	}
}
