package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/sweep"
	"github.com/trestle-bridge/trestle/pipeline"
	"github.com/trestle-bridge/trestle/pipeline/trace"
	peerv1 "github.com/trestle-bridge/trestle/proto/trestle/peer/v1"
	"github.com/trestle-bridge/trestle/shard"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// replica notes what it is asked, and answers as it is told. The tests ask one
// thing at a time.
type replica struct {
	shards   []shard.ID
	since    time.Time
	caughtUp bool
	err      error

	cluster string
	ids     []status.InstanceID

	requested, confirmed string

	decided   []pipeline.Decided
	undecided []pipeline.Undecided
}

func (r *replica) CaughtUp(shards []shard.ID, since time.Time) (bool, error) {
	r.shards, r.since = shards, since
	return r.caughtUp, r.err
}

func (r *replica) Forget(cluster string, ids []status.InstanceID) {
	r.cluster, r.ids = cluster, append(r.ids, ids...)
}

func (r *replica) Why(id status.InstanceID) ([]pipeline.Decided, []pipeline.Undecided) {
	r.ids = append(r.ids, id)
	return r.decided, r.undecided
}

func (r *replica) Retry(_ context.Context, id shard.ID, instance status.InstanceID) (pipeline.Decided, bool, error) {
	r.shards, r.ids = []shard.ID{id}, append(r.ids, instance)
	if len(r.decided) == 0 || r.err != nil {
		return pipeline.Decided{}, false, r.err
	}
	return r.decided[0], true, nil
}

func (r *replica) Request(cluster string) error { r.requested = cluster; return r.err }
func (r *replica) Confirm(cluster string) error { r.confirmed = cluster; return r.err }

// serve gives the address of a server that answers for a replica, and peers that
// can ask it.
func serve(t *testing.T, r *replica) (string, *Peers) {
	t.Helper()
	s, peers := listen(t, r)
	run(t, s, peers)
	return s.Addr().String(), peers
}

// listen makes the server, which does not run yet, and the peers.
func listen(t *testing.T, r *replica) (*Server, *Peers) {
	t.Helper()
	me := newIdentity(t)
	members := &members{keys: map[string][]string{}}
	s, err := New(Config{
		Address: "127.0.0.1:0", Replica: r, Rounds: r, Identity: me, Roster: members.roster, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	members.set(s.Addr().String(), me.Fingerprint())
	return s, NewPeers(me, members.roster)
}

// run serves until end is called, or the test ends.
func run(t *testing.T, s *Server, peers *Peers) (end func()) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	end = sync.OnceFunc(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		if err := peers.Close(); err != nil {
			t.Error(err)
		}
		end()
	})
	return end
}

func TestCaughtUp(t *testing.T) {
	r := &replica{}
	at, peers := serve(t, r)
	shards := []shard.ID{shard.Whole("od#d"), shard.Slice("eu", 2, 4)}
	before := time.Now()
	for _, want := range []bool{false, true} {
		r.caughtUp = want
		if got, err := peers.CaughtUp(t.Context(), at, shards); err != nil || got != want {
			t.Errorf("%v, %v, want %v", got, err, want)
		}
	}
	// What was heard until it was asked counts, by its own clock.
	if !slices.Equal(r.shards, shards) || r.since.Before(before) {
		t.Errorf("it was asked for %v since %s", r.shards, r.since)
	}
	r.err = errors.New("not owned here")
	if got, err := peers.CaughtUp(t.Context(), at, shards); grpcstatus.Code(err) != codes.FailedPrecondition || got {
		t.Errorf("who does not own the shard says %v, %v", got, err)
	}
}

func TestForget(t *testing.T) {
	r := &replica{}
	at, peers := serve(t, r)
	// More than one message holds.
	ids := make([]status.InstanceID, maxMessage/32+3)
	for i := range ids {
		ids[i][0], ids[i][1], ids[i][2] = byte(i), byte(i>>8), byte(i>>16)
	}
	if err := peers.Forget(t.Context(), at, "eu", ids); err != nil {
		t.Fatal(err)
	}
	if r.cluster != "eu" || !slices.Equal(r.ids, ids) {
		t.Errorf("%d ids of %s, want %d of eu", len(r.ids), r.cluster, len(ids))
	}
}

func TestSweep(t *testing.T) {
	r := &replica{}
	at, peers := serve(t, r)
	for _, confirm := range []bool{false, true} {
		for _, want := range []error{nil, sweep.ErrUnknownCluster, sweep.ErrNotHeld, sweep.ErrNotLeading} {
			r.err = want
			if err := peers.Sweep(t.Context(), at, "eu", confirm); !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		}
		r.err = errors.New("something else")
		if err := peers.Sweep(t.Context(), at, "eu", confirm); grpcstatus.Code(err) != codes.Internal {
			t.Errorf("%v", err)
		}
	}
	if r.requested != "eu" || r.confirmed != "eu" {
		t.Errorf("requested %q, confirmed %q", r.requested, r.confirmed)
	}
}

// What another version might send, or somebody who is no replica.
func TestNonsenseIsRefused(t *testing.T) {
	r := &replica{}
	at, peers := serve(t, r)
	client, err := peers.client(at)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CaughtUp(t.Context(), &peerv1.CaughtUpRequest{Shards: []string{"eu#9/4"}}); grpcstatus.Code(err) != codes.InvalidArgument {
		t.Errorf("a shard that is none: %v", err)
	}
	if _, err := client.Forget(t.Context(), &peerv1.ForgetRequest{InstanceIds: [][]byte{{1, 2}}}); grpcstatus.Code(err) != codes.InvalidArgument || r.ids != nil {
		t.Errorf("an id that is none: %v", err)
	}
	if err := peers.Sweep(t.Context(), "", "eu", false); err == nil {
		t.Error("nobody was asked")
	}
}

func TestKeep(t *testing.T) {
	at, peers := serve(t, &replica{caughtUp: true})
	ask := func() {
		t.Helper()
		if _, err := peers.CaughtUp(t.Context(), at, nil); err != nil {
			t.Error(err)
		}
	}
	ask()
	kept := peers.conns[at]
	peers.Keep()
	if peers.conns[at] != kept {
		t.Error("the connection to a member was given up")
	}
	there := peers.roster
	peers.roster = func() map[string][]string { return nil }
	peers.Keep()
	peers.roster = there
	if len(peers.conns) != 0 {
		t.Error("the connection to one who has gone is kept")
	}
	ask()
}

// counted counts the connections that were made.
type counted struct {
	net.Listener
	made atomic.Int32
}

func (c *counted) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.made.Add(1)
	}
	return conn, err
}

func TestRefuses(t *testing.T) {
	s, peers := listen(t, &replica{})
	connections := &counted{Listener: s.listener}
	s.listener = connections
	end := run(t, s, peers)
	at := s.Addr().String()

	over, cancel := context.WithCancel(t.Context())
	cancel()
	if peers.Refuses(over, at) {
		t.Error("that there was no time is a refusal")
	}
	if peers.Refuses(t.Context(), at) {
		t.Error("who listens refuses")
	}
	conn := peers.conns[at]
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		conn.WaitForStateChange(t.Context(), state)
	}
	made := connections.made.Load()
	if peers.Refuses(t.Context(), at) {
		t.Error("who is connected refuses")
	}
	if _, err := peers.CaughtUp(t.Context(), at, nil); err != nil { // on that connection
		t.Error(err)
	}
	if now := connections.made.Load(); now != made {
		t.Errorf("%d connections were made while one stood", now-made)
	}

	end()
	conn.WaitForStateChange(t.Context(), connectivity.Ready)
	if !peers.Refuses(t.Context(), at) {
		t.Error("where nobody listens any more is no refusal")
	}
	if peers.Refuses(t.Context(), "") {
		t.Error("an address that is not known refuses")
	}
}

// What a replica remembers of an instance arrives as it is.
func TestWhy(t *testing.T) {
	at0 := time.Unix(1_700_000_000, 0).UTC()
	r := &replica{
		decided: []pipeline.Decided{
			{Entry: trace.Entry{Decision: trace.Applied, At: at0, Updates: 3, Version: 1 << 63, Phase: status.PhaseRunning}, Shard: shard.Whole("od#d"), Epoch: 4},
			{Entry: trace.Entry{Decision: trace.Stale, At: at0.Add(time.Second), Updates: 1, Version: 5, Stored: 7, KnowsStored: true}, Shard: shard.Slice("eu", 2, 4)},
		},
		undecided: []pipeline.Undecided{{Shard: shard.Whole("eu"), Epoch: 2, Version: 9, Updates: 2, Since: at0, Phase: status.PhaseStopping, InFlight: true}},
	}
	at, peers := serve(t, r)
	id := status.InstanceID{1, 2, 3}
	decided, undecided, err := peers.Why(t.Context(), at, id)
	if err != nil || !slices.Equal(decided, r.decided) || !slices.Equal(undecided, r.undecided) {
		t.Errorf("%+v, %+v, %v\nwant %+v, %+v", decided, undecided, err, r.decided, r.undecided)
	}
	if !slices.Equal(r.ids, []status.InstanceID{id}) {
		t.Errorf("it was asked for %v", r.ids)
	}
}

func TestRetry(t *testing.T) {
	r := &replica{}
	at, peers := serve(t, r)
	id := status.InstanceID{1, 2, 3}
	if d, heard, err := peers.Retry(t.Context(), at, shard.Slice("eu", 1, 2), id); err != nil || heard || d != (pipeline.Decided{}) {
		t.Errorf("nothing heard: %+v, %v, %v", d, heard, err)
	}
	if !slices.Equal(r.shards, []shard.ID{shard.Slice("eu", 1, 2)}) || !slices.Equal(r.ids, []status.InstanceID{id}) {
		t.Errorf("it was asked for %v of %v", r.ids, r.shards)
	}
	r.decided = []pipeline.Decided{{Entry: trace.Entry{Decision: trace.Quarantined, At: time.Unix(1, 0).UTC(), Updates: 1, Version: 3}, Shard: shard.Whole("eu"), Epoch: 4}}
	if d, heard, err := peers.Retry(t.Context(), at, shard.Whole("eu"), id); err != nil || !heard || d != r.decided[0] {
		t.Errorf("%+v, %v, %v", d, heard, err)
	}
	r.err = fmt.Errorf("%w: not heard", pipeline.ErrCannotRetry)
	if _, _, err := peers.Retry(t.Context(), at, shard.Whole("eu"), id); !errors.Is(err, pipeline.ErrCannotRetry) || !strings.Contains(err.Error(), "not heard") {
		t.Errorf("%v", err)
	}
	r.err = errors.New("something else")
	if _, _, err := peers.Retry(t.Context(), at, shard.Whole("eu"), id); errors.Is(err, pipeline.ErrCannotRetry) || grpcstatus.Code(err) != codes.Internal {
		t.Errorf("%v", err)
	}
}
