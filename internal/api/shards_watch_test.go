package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"

	"github.com/trestle-bridge/trestle/coordinator"
	"github.com/trestle-bridge/trestle/internal/api"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
	"github.com/trestle-bridge/trestle/shard"
)

// follower keeps what a watch has told.
type follower struct {
	r        *shardReplica
	stream   grpc.ServerStreamingClient[trestlev1.WatchShardsResponse]
	initial  int
	messages int
	shards   map[string]*trestlev1.Shard
	detached bool
}

func (r *shardReplica) follow(ctx context.Context, cluster string) *follower {
	r.Helper()
	return r.followBy(ctx, r, cluster)
}

func (r *shardReplica) followBy(ctx context.Context, client trestlev1.ShardServiceClient, cluster string) *follower {
	r.Helper()
	stream, err := client.WatchShards(ctx, &trestlev1.WatchShardsRequest{Cluster: cluster})
	if err != nil {
		r.Fatal(err)
	}
	return &follower{r: r, stream: stream, shards: make(map[string]*trestlev1.Shard)}
}

// next takes one state in.
func (f *follower) next() error {
	for more := true; more; {
		m, err := f.stream.Recv()
		if err != nil {
			return err
		}
		f.messages++
		if m.GetInitial() {
			f.initial++
		}
		for _, sh := range m.GetShards() {
			f.shards[sh.GetId()] = sh
		}
		for _, id := range m.GetRemoved() {
			if f.shards[id] == nil {
				f.r.Errorf("%s is told to be no more, and was not told to be", id)
			}
			delete(f.shards, id)
		}
		f.detached, more = m.GetDetached(), m.GetMore()
	}
	return nil
}

// until takes states in until one is as it should be.
func (f *follower) until(what string, is func() bool) {
	f.r.Helper()
	for !is() {
		if err := f.next(); err != nil {
			f.r.Fatalf("this was not told: %s: %v", what, err)
		}
	}
}

func (f *follower) ids() string { return strings.Join(slices.Sorted(maps.Keys(f.shards)), " ") }

func TestWatchTellsAllAndThenChanges(t *testing.T) {
	t.Parallel()
	fleet := newFleet()
	r := newShardReplica(t, fleet)
	all, one := r.follow(t.Context(), ""), r.follow(t.Context(), "us01")
	for _, f := range []*follower{all, one} {
		if err := f.next(); err != nil {
			t.Fatal(err)
		}
	}
	r.is("the first shard", all.shards["eu01"], nil, eu01)
	if all.ids() != "eu01 us01#0/2 us01#1/2" || one.ids() != "us01#0/2 us01#1/2" || all.initial != 1 || all.messages != 1 {
		t.Fatalf("told first: %s in %d messages, %d of them initial, and of us01 %s", all.ids(), all.messages, all.initial, one.ids())
	}
	pointer := all.shards["us01#0/2"]
	fleet.change(func(s *coordinator.State) {
		s.Shards = slices.Clone(s.Shards)
		s.Shards[0].Stored.Owner, s.Shards[0].Stored.Phase = "b.1", shard.PhaseOwned
	})
	all.until("the new owner", func() bool { return all.shards["eu01"].GetOwner().GetName() == "b" })
	if all.shards["us01#0/2"] != pointer {
		t.Error("a shard that has not changed was told again")
	}
	fleet.change(func(s *coordinator.State) {
		s.Shards = append(owned(shard.Whole("ap01")), s.Shards[:2]...)
	})
	all.until("one that is new, and one that is no more", func() bool { return all.ids() == "ap01 eu01 us01#0/2" })
	one.until("one that is no more", func() bool { return one.ids() == "us01#0/2" })
	fleet.change(func(s *coordinator.State) { s.Shards = nil })
	all.until("that there is none", func() bool { return len(all.shards) == 0 })
	// Nothing tells that a replica is cut off: who watches hears of it all the
	// same.
	fleet.mu.Lock()
	fleet.state.Detached = true
	fleet.mu.Unlock()
	all.until("that the replica is cut off", func() bool { return all.detached })
	fleet.change(func(s *coordinator.State) { s.Detached = false })
	all.until("that it is no more", func() bool { return !all.detached })
	if all.initial != 1 || one.initial != 1 {
		t.Errorf("%d and %d initial messages", all.initial, one.initial)
	}

	stranger := r.follow(t.Context(), "eu02")
	r.says("an unknown cluster", stranger.next(), codes.NotFound, "no cluster")

	// All of them end with the server, which does not wait for them.
	r.stop()
	for _, f := range []*follower{all, one} {
		err := f.next()
		for err == nil {
			err = f.next()
		}
		r.says("the end", err, codes.Unavailable, "stops")
	}
	if strings.Contains(r.log.String(), "level=ERROR") {
		t.Errorf("a server that stops complains:\n%s", r.log)
	}
}

// What a client makes of the changes is what there is, whatever they are.
func TestWatchEndsWithWhatThereIs(t *testing.T) {
	t.Parallel()
	fleet := newFleet()
	fleet.change(func(s *coordinator.State) { s.Shards = nil })
	r := newShardReplica(t, fleet)
	f := r.follow(t.Context(), "")
	random := rand.New(rand.NewPCG(1, 2))
	const last = shard.Epoch(1000)
	for round := range last + 1 {
		fleet.change(func(s *coordinator.State) {
			s.Shards = nil
			for n := range 20 {
				if random.IntN(3) > 0 {
					sh := owned(shard.Whole(fmt.Sprintf("c%02d", n)))[0]
					sh.Stored.Epoch = shard.Epoch(random.IntN(3))
					s.Shards = append(s.Shards, sh)
				}
			}
			s.Shards = append(s.Shards, owned(shard.Whole("round"))...)
			s.Shards[len(s.Shards)-1].Stored.Epoch = round
		})
	}
	f.until("the last state", func() bool { return f.shards["round"].GetEpochIntended() == int64(last) })
	state, _ := fleet.State()
	if len(state.Shards) != len(f.shards) {
		t.Errorf("told %s of %d shards", f.ids(), len(state.Shards))
	}
	for _, sh := range state.Shards {
		if f.shards[sh.ID.String()].GetEpochIntended() != int64(sh.Stored.Epoch) {
			t.Errorf("%s: told %v, is %v", sh.ID, f.shards[sh.ID.String()], sh.Stored)
		}
	}
}

// Who does not read holds up neither others nor the fleet, and reads what is
// newest when it does. It fits in no buffer.
func TestSlowWatcherHoldsUpNobody(t *testing.T) {
	t.Parallel()
	fleet := newFleet()
	const many = 1300
	set := func(text string) {
		fleet.change(func(s *coordinator.State) {
			s.Shards = owned(shard.Slices("big", 1024)...)
			s.Shards = append(s.Shards, owned(shard.Slices("large", many-1024)...)...)
			for i := range s.Shards {
				s.Shards[i].Stored.Text = text + strings.Repeat("x", 500)
			}
		})
	}
	set("0 ")
	r := newShardReplica(t, fleet)
	// A window of fixed size, so that the first state does not fit in.
	narrow, err := grpc.NewClient(r.conn.Target(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithStaticStreamWindowSize(1<<16))
	if err != nil {
		t.Fatal(err)
	}
	defer narrow.Close()
	slow, quick := r.followBy(t.Context(), trestlev1.NewShardServiceClient(narrow), ""), r.follow(t.Context(), "")
	if err := quick.next(); err != nil {
		t.Fatal(err)
	}
	if len(quick.shards) != many || quick.messages != 3 || quick.initial != 1 {
		t.Errorf("%d shards in %d messages, %d of them initial", len(quick.shards), quick.messages, quick.initial)
	}
	const rounds = 6
	for round := range rounds {
		text := fmt.Sprint(round+1, " ")
		set(text)
		quick.until("round "+text, func() bool { return strings.HasPrefix(quick.shards["big#0/1024"].GetText(), text) })
	}
	slow.until("the last round", func() bool {
		return strings.HasPrefix(slow.shards["big#0/1024"].GetText(), fmt.Sprint(rounds, " "))
	})
	if len(slow.shards) != many {
		t.Errorf("the slow one was told of %d shards", len(slow.shards))
	}
	if slow.messages > 6 {
		t.Errorf("the slow one was told more than a first state and the last: %d messages, the quick one %d", slow.messages, quick.messages)
	}
}

func TestWatchersAreBounded(t *testing.T) {
	t.Parallel()
	r := newShardReplica(t, newFleet())
	const most = 32
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first := r.follow(ctx, "")
	for i := range most {
		f := first
		if i > 0 {
			f = r.follow(t.Context(), "")
		}
		if err := f.next(); err != nil {
			t.Fatal(err)
		}
	}
	r.says("one too many", r.follow(t.Context(), "").next(), codes.ResourceExhausted, "watch")
	// A place that was left is free, once the server has heard of it.
	cancel()
	for {
		err := r.follow(t.Context(), "").next()
		if err == nil {
			break
		}
		r.says("while the place is left", err, codes.ResourceExhausted)
		if t.Failed() {
			break
		}
	}
}

func TestShardServiceIsFound(t *testing.T) {
	t.Parallel()
	const name = "trestle.v1.ShardService"
	for _, c := range []struct {
		what   string
		change func(*api.Config)
		served bool
	}{
		{"with a fleet", func(*api.Config) {}, true},
		{"without one", func(c *api.Config) { c.Fleet = nil }, false},
	} {
		r := newShardReplica(t, newFleet(), c.change)
		watch, err := healthpb.NewHealthClient(r.conn).Watch(t.Context(), &healthpb.HealthCheckRequest{Service: name})
		if err != nil {
			t.Fatal(err)
		}
		want := healthpb.HealthCheckResponse_SERVICE_UNKNOWN
		if c.served {
			want = healthpb.HealthCheckResponse_SERVING
		}
		for got := healthpb.HealthCheckResponse_UNKNOWN; got != want; {
			m, err := watch.Recv()
			if err != nil {
				t.Fatal(err)
			}
			got = m.GetStatus()
		}
		info, err := reflectionpb.NewServerReflectionClient(r.conn).ServerReflectionInfo(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ask := func(q *reflectionpb.ServerReflectionRequest) *reflectionpb.ServerReflectionResponse {
			if err := info.Send(q); err != nil {
				t.Fatal(err)
			}
			m, err := info.Recv()
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
		listed := ask(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
		if found := slices.ContainsFunc(listed.GetListServicesResponse().GetService(), func(s *reflectionpb.ServiceResponse) bool {
			return s.GetName() == name
		}); found != c.served {
			t.Errorf("%s: listed: %t", c.what, found)
		}
		if c.served {
			described := ask(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: name}})
			if described.GetFileDescriptorResponse() == nil {
				t.Errorf("reflection does not describe it: %v", described)
			}
		} else {
			_, err := r.ListShards(t.Context(), &trestlev1.ListShardsRequest{})
			r.says(c.what, err, codes.Unimplemented)
		}
		if err := info.CloseSend(); err != nil {
			t.Error(err)
		}
		if _, err := info.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("reflection ends with %v", err)
		}
	}
}
