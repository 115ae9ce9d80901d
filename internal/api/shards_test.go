package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/trestle-bridge/trestle/coordinator"
	"github.com/trestle-bridge/trestle/internal/api"
	"github.com/trestle-bridge/trestle/internal/sweep"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
	"github.com/trestle-bridge/trestle/shard"
)

const (
	eu01 = `{"id": "eu01", "cluster": "eu01", "slices": 1, "owner": {"name": "a", "incarnation": "a.1"}, "next": {"name": "b", "incarnation": "b.1"},
		"epochIntended": 7, "epochObserved": 7, "phase": "SHARD_PHASE_PREPARE", "weight": 12,
		"measured": {"rate": 10, "liveInstances": 100, "lag": "1s", "lastEvent": "2026-10-05T03:00:09Z"},
		"reason": "REASON_PIN", "text": "pinned to b", "since": "2026-10-05T03:00:05Z", "pin": {"replica": "b", "reason": "closer", "author": "ann"},
		"moves": [{"at": "2026-10-05T03:00:01Z", "to": {"name": "c", "incarnation": "c.1"}, "epoch": 6, "reason": "REASON_NEW"},
			{"at": "2026-10-05T03:00:02Z", "from": {"name": "c", "incarnation": "c.1"}, "to": {"name": "a", "incarnation": "a.1"}, "epoch": 7, "reason": "REASON_ORPHAN"}]}`
	us01a = `{"id": "us01#0/2", "cluster": "us01", "slices": 2, "owner": {"name": "b", "incarnation": "b.1"}, "former": {"name": "a", "incarnation": "a.1"},
		"epochIntended": 2, "generation": 1, "phase": "SHARD_PHASE_RAISE", "reason": "REASON_RESLICE"}`
	us01b = `{"id": "us01#1/2", "cluster": "us01", "slice": 1, "slices": 2, "former": {"incarnation": "c.0"}, "generation": 1, "phase": "SHARD_PHASE_UNOWNED"}`
	drain = `{"replica": "b", "at": "2026-10-05T03:00:04Z", "reason": "disk", "author": "ann"}`
	whole = `{"leader": {"name": "a", "incarnation": "a.1"}, "leadsSince": "2026-10-05T03:00:00Z", "freeze": {"reason": "incident", "author": "ann"},
		"brake": {"since": "2026-10-05T03:00:03Z", "roster": 5, "limited": true}, "answering": {"name": "a", "incarnation": "a.1"}}`
	planned = `{"shard": "eu01", "from": {"name": "a", "incarnation": "a.1"}, "to": {"name": "b", "incarnation": "b.1"}, "reason": "REASON_PIN", "text": "pinned to b"}`
	ranked  = `[{"replica": {"name": "b", "incarnation": "b.1"}, "score": 2, "load": 1, "fair": 6, "cap": 100, "draining": true},
		{"replica": {"name": "a", "incarnation": "a.1"}, "score": 1}]`
)

func TestFleetIsShown(t *testing.T) {
	t.Parallel()
	r := newShardReplica(t, newFleet())
	list := func(q *trestlev1.ListShardsRequest) (proto.Message, error) { return r.ListShards(t.Context(), q) }
	for _, c := range []struct {
		what string
		q    *trestlev1.ListShardsRequest
		want string
	}{
		{"all shards", &trestlev1.ListShardsRequest{}, `{"shards": [` + eu01 + `,` + us01a + `,` + us01b + `]}`},
		{"those of a cluster", &trestlev1.ListShardsRequest{Cluster: "us01"}, `{"shards": [` + us01a + `,` + us01b + `]}`},
		{"those of a replica", &trestlev1.ListShardsRequest{Replica: "b"}, `{"shards": [` + eu01 + `,` + us01a + `]}`},
		{"those of a process", &trestlev1.ListShardsRequest{Replica: "a.1"}, `{"shards": [` + eu01 + `]}`},
		{"those of both", &trestlev1.ListShardsRequest{Replica: "b", Cluster: "us01"}, `{"shards": [` + us01a + `]}`},
		{"those of one that is gone", &trestlev1.ListShardsRequest{Replica: "c"}, `{}`},
		{"a page", &trestlev1.ListShardsRequest{PageSize: 2}, `{"shards": [` + eu01 + `,` + us01a + `], "nextPageToken": "us01#0/2"}`},
		{"the next page", &trestlev1.ListShardsRequest{PageSize: 2, PageToken: "us01#0/2"}, `{"shards": [` + us01b + `]}`},
		{"a page that is just full", &trestlev1.ListShardsRequest{PageSize: 3}, `{"shards": [` + eu01 + `,` + us01a + `,` + us01b + `]}`},
	} {
		got, err := list(c.q)
		r.is(c.what, got, err, c.want)
	}
	_, err := list(&trestlev1.ListShardsRequest{Cluster: "eu02"})
	r.says("an unknown cluster", err, codes.NotFound, `no cluster "eu02"`, "eu01, us01")
	_, err = list(&trestlev1.ListShardsRequest{Replica: "d"})
	r.says("an unknown replica", err, codes.NotFound, `no replica "d"`, "a, b, c")
	_, err = list(&trestlev1.ListShardsRequest{PageSize: -1})
	r.says("a negative page", err, codes.InvalidArgument, "page_size")
	_, err = list(&trestlev1.ListShardsRequest{PageToken: "#"})
	r.says("a wrong token", err, codes.InvalidArgument, "page_token")

	replicas, err := r.ListReplicas(t.Context(), &trestlev1.ListReplicasRequest{})
	r.is("the replicas", replicas, err, `{"replicas": [
		{"name": "a", "incarnation": "a.1", "revision": "v1", "peerAddress": "a:1", "state": "REPLICA_STATE_LIVE", "load": 12, "capacity": 1, "shards": 1,
			"joined": "2026-10-05T03:00:00Z", "heard": "2026-10-05T03:00:09Z", "leads": true, "answers": true},
		{"name": "b", "incarnation": "b.1", "revision": "v2", "peerAddress": "b:1", "state": "REPLICA_STATE_DRAINING", "cap": 100, "capacity": 2, "shards": 1,
			"joined": "2026-10-05T03:00:01Z", "drain": `+drain+`},
		{"name": "c", "incarnation": "c.1", "state": "REPLICA_STATE_GONE", "capacity": 1, "joined": "2026-10-05T03:00:00Z", "gone": "2026-10-05T03:00:03Z"}],
		"fleet": `+whole+`, "otherDrains": [{"replica": "later", "at": "2026-10-05T03:00:04Z", "reason": "comes back", "author": "bob"}]}`)

	explained, err := r.ExplainCluster(t.Context(), &trestlev1.ExplainClusterRequest{Cluster: "eu01"})
	r.is("a cluster", explained, err, `{"cluster": "eu01", "slices": 1, "shards": [{"shard": `+eu01+`, "preferences": `+ranked+`, "planned": `+planned+`}], "fleet": `+whole+`}`)
	explained, err = r.ExplainCluster(t.Context(), &trestlev1.ExplainClusterRequest{Cluster: "us01"})
	r.is("a cluster that is cut", explained, err, `{"cluster": "us01", "slices": 2, "generation": 1,
		"reslice": {"from": 2, "to": 4, "generation": 2, "phase": "RESLICE_PHASE_RELEASE", "reason": "hot", "author": "bob"},
		"shards": [{"shard": `+us01a+`, "preferences": `+ranked+`}, {"shard": `+us01b+`, "preferences": `+ranked+`, "unplaced": "UNPLACED_REASON_CAP"}],
		"proposals": [{"cluster": "us01", "slices": 8, "text": "too hot"}], "fleet": `+whole+`}`)
	_, err = r.ExplainCluster(t.Context(), &trestlev1.ExplainClusterRequest{Cluster: "eu02"})
	r.says("an unknown cluster", err, codes.NotFound, `no cluster "eu02"`, "eu01, us01")
	_, err = r.ExplainCluster(t.Context(), &trestlev1.ExplainClusterRequest{})
	r.says("no cluster", err, codes.InvalidArgument, "cluster")

	plan, err := r.PlanRebalance(t.Context(), &trestlev1.PlanRebalanceRequest{})
	r.is("the plan", plan, err, `{"moves": [`+planned+`], "cancelled": ["us01#0/2"], "unplaced": [{"shard": "us01#1/2", "reason": "UNPLACED_REASON_CAP"}],
		"overloaded": [{"name": "b", "incarnation": "b.1"}], "proposals": [{"cluster": "us01", "slices": 8, "text": "too hot"}],
		"before": {"max": 30, "mean": 20, "heaviest": 12, "ratio": 1.5}, "after": {}, "fleet": `+whole+`}`)

	commands, err := r.ListCommands(t.Context(), &trestlev1.ListCommandsRequest{})
	r.is("the commands", commands, err, `{"commands": [
		{"kind": "COMMAND_KIND_FREEZE", "reason": "incident", "author": "ann", "at": "2026-10-05T03:00:07Z", "until": "2026-10-05T03:00:59Z", "state": "COMMAND_STATE_WAITING"},
		{"kind": "COMMAND_KIND_SET_SLICES", "cluster": "us01", "slices": 4, "reason": "hot", "author": "bob", "at": "2026-10-05T03:00:05Z",
			"state": "COMMAND_STATE_REFUSED", "done": "2026-10-05T03:00:06Z", "refused": "busy"},
		{"kind": "COMMAND_KIND_PIN", "shard": "eu01", "replica": "b", "reason": "closer", "author": "ann", "at": "2026-10-05T03:00:04Z",
			"state": "COMMAND_STATE_DONE", "done": "2026-10-05T03:00:05Z"}]}`)
}

// A change is one of the calls that need a reason and an author.
type change struct {
	name string
	call func(r *shardReplica, reason, author string, valid *durationpb.Duration) error
	want coordinator.Command
}

func changes() []change {
	return []change{
		{"Pin", func(r *shardReplica, reason, author string, valid *durationpb.Duration) error {
			_, err := r.ShardServiceClient.Pin(r.Context(), &trestlev1.PinRequest{Shard: "us01#1/2", Replica: "b", Reason: reason, Author: author, ValidFor: valid})
			return err
		}, coordinator.Command{Kind: coordinator.CommandPin, Shard: "us01#1/2", Replica: "b"}},
		{"Unpin", func(r *shardReplica, reason, author string, valid *durationpb.Duration) error {
			_, err := r.Unpin(r.Context(), &trestlev1.UnpinRequest{Shard: "eu01", Reason: reason, Author: author, ValidFor: valid})
			return err
		}, coordinator.Command{Kind: coordinator.CommandUnpin, Shard: "eu01"}},
		{"DrainReplica", func(r *shardReplica, reason, author string, valid *durationpb.Duration) error {
			_, err := r.DrainReplica(r.Context(), &trestlev1.DrainReplicaRequest{Replica: "a", Reason: reason, Author: author, ValidFor: valid})
			return err
		}, coordinator.Command{Kind: coordinator.CommandDrain, Replica: "a"}},
		{"UndrainReplica", func(r *shardReplica, reason, author string, valid *durationpb.Duration) error {
			_, err := r.UndrainReplica(r.Context(), &trestlev1.UndrainReplicaRequest{Replica: "later", Reason: reason, Author: author, ValidFor: valid})
			return err
		}, coordinator.Command{Kind: coordinator.CommandUndrain, Replica: "later"}},
		{"Freeze", func(r *shardReplica, reason, author string, valid *durationpb.Duration) error {
			_, err := r.Freeze(r.Context(), &trestlev1.FreezeRequest{Reason: reason, Author: author, ValidFor: valid})
			return err
		}, coordinator.Command{Kind: coordinator.CommandFreeze}},
		{"Unfreeze", func(r *shardReplica, reason, author string, valid *durationpb.Duration) error {
			_, err := r.Unfreeze(r.Context(), &trestlev1.UnfreezeRequest{Reason: reason, Author: author, ValidFor: valid})
			return err
		}, coordinator.Command{Kind: coordinator.CommandUnfreeze}},
		{"SetSlices", func(r *shardReplica, reason, author string, valid *durationpb.Duration) error {
			_, err := r.SetSlices(r.Context(), &trestlev1.SetSlicesRequest{Cluster: "eu01", Slices: 2, Reason: reason, Author: author, ValidFor: valid})
			return err
		}, coordinator.Command{Kind: coordinator.CommandSlices, Cluster: "eu01", Slices: 2}},
		{"ReleaseBrake", func(r *shardReplica, reason, author string, valid *durationpb.Duration) error {
			_, err := r.ReleaseBrake(r.Context(), &trestlev1.ReleaseBrakeRequest{Reason: reason, Author: author, ValidFor: valid})
			return err
		}, coordinator.Command{Kind: coordinator.CommandBrakeRelease}},
	}
}

func TestChanges(t *testing.T) {
	t.Parallel()
	for _, c := range changes() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			fleet := newFleet()
			r := newShardReplica(t, fleet)
			for _, wrong := range []struct {
				what, reason, author string
				valid                *durationpb.Duration
				field                string
			}{
				{"without a reason", "", "ann", nil, "reason"},
				{"with an empty reason", " ", "ann", nil, "reason"},
				{"with a long reason", strings.Repeat("x", 2000), "ann", nil, "reason"},
				{"without an author", "because", "", nil, "author"},
				{"with an author of two lines", "because", "ann\nbob", nil, "author"},
				{"for no time", "because", "ann", durationpb.New(0), "valid_for"},
				{"for a negative time", "because", "ann", durationpb.New(-time.Second), "valid_for"},
				{"for a time that is none", "because", "ann", &durationpb.Duration{Seconds: 1, Nanos: -1}, "valid_for"},
			} {
				r.says(wrong.what, c.call(r, wrong.reason, wrong.author, wrong.valid), codes.InvalidArgument, wrong.field+":")
			}
			if did := fleet.commands(); did != nil {
				t.Fatalf("wrong calls had an effect: %+v", did)
			}
			before := time.Now()
			if err := c.call(r, "because", "ann", nil); err != nil {
				t.Fatal(err)
			}
			if err := c.call(r, "because", "ann", durationpb.New(time.Hour)); err != nil {
				t.Fatal(err)
			}
			did := fleet.commands()
			if len(did) != 2 {
				t.Fatalf("there are the commands %+v", did)
			}
			if until := did[1].Until; until.Before(before.Add(time.Hour)) || until.After(time.Now().Add(time.Hour)) {
				t.Errorf("for an hour means until %s", until)
			}
			did[1].Until = time.Time{}
			want := c.want
			want.Reason, want.Author = "because", "ann"
			for _, got := range did {
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("the command is %+v, want %+v", got, want)
				}
			}
			for _, text := range []string{"change=" + string(want.Kind), "reason=because", "author=ann", "peer=127.0.0.1:", want.Shard, want.Replica, want.Cluster} {
				if !strings.Contains(r.log.String(), text) {
					t.Errorf("the log does not say %q:\n%s", text, r.log)
				}
			}

			for _, fault := range []struct {
				what string
				err  error
				code codes.Code
				says string
			}{
				{"refused", fmt.Errorf("%w: no way", coordinator.ErrCommand), codes.FailedPrecondition, "the leader refuses: no way"},
				{"unanswered", fmt.Errorf("%w: %w", coordinator.ErrUnanswered, context.DeadlineExceeded), codes.DeadlineExceeded, "it stands"},
				{"with etcd away", fmt.Errorf("write the command: %w", context.DeadlineExceeded), codes.Unavailable, "etcd cannot be reached"},
				{"with etcd failing", status.Error(codes.ResourceExhausted, "the inside"), codes.Unavailable, "etcd cannot be reached"},
			} {
				failing := newFleet()
				failing.act = func(context.Context, coordinator.Command) error { return fault.err }
				r := newShardReplica(t, failing)
				r.says(fault.what, c.call(r, "because", "ann", nil), fault.code, fault.says)
				if !strings.Contains(r.log.String(), "reason=because") {
					t.Errorf("%s: the log does not say what was wished:\n%s", fault.what, r.log)
				}
			}
			unread := newFleet()
			unread.state.Known = false
			r = newShardReplica(t, unread)
			r.says("before the table was read", c.call(r, "because", "ann", nil), codes.Unavailable, "another replica")
		})
	}
}

func TestChangesOfWhatThereIsNot(t *testing.T) {
	t.Parallel()
	fleet := newFleet()
	r := newShardReplica(t, fleet)
	ctx := t.Context()
	pin := func(shard, replica string) error {
		_, err := r.ShardServiceClient.Pin(ctx, &trestlev1.PinRequest{Shard: shard, Replica: replica, Reason: "r", Author: "a"})
		return err
	}
	unpin := func(shard string) error {
		_, err := r.Unpin(ctx, &trestlev1.UnpinRequest{Shard: shard, Reason: "r", Author: "a"})
		return err
	}
	drain := func(replica string) error {
		_, err := r.DrainReplica(ctx, &trestlev1.DrainReplicaRequest{Replica: replica, Reason: "r", Author: "a"})
		return err
	}
	undrain := func(replica string) error {
		_, err := r.UndrainReplica(ctx, &trestlev1.UndrainReplicaRequest{Replica: replica, Reason: "r", Author: "a"})
		return err
	}
	cut := func(cluster string, n int32) error {
		_, err := r.SetSlices(ctx, &trestlev1.SetSlicesRequest{Cluster: cluster, Slices: n, Reason: "r", Author: "a"})
		return err
	}
	r.says("no shard", pin("", "a"), codes.InvalidArgument, "shard:")
	r.says("what is no shard", pin("eu01#1", "a"), codes.InvalidArgument, "shard:", "eu01#2/4")
	r.says("no replica", pin("eu01", ""), codes.InvalidArgument, "replica:")
	r.says("an unknown shard", pin("eu02", "a"), codes.NotFound, `no shard "eu02"`, "there are eu01, us01#0/2, us01#1/2")
	r.says("an unknown slice", pin("us01", "a"), codes.NotFound, `no shard "us01"`, "cluster us01 has us01#0/2, us01#1/2")
	r.says("an unknown replica", pin("eu01", "d"), codes.NotFound, `no replica "d"`, "there are a, b, c")
	r.says("no shard to unpin", unpin(""), codes.InvalidArgument, "shard:")
	r.says("an unknown shard to unpin", unpin("eu02"), codes.NotFound, "eu01")
	r.says("no replica to drain", drain(""), codes.InvalidArgument, "replica:")
	r.says("an unknown replica to drain", drain("later"), codes.NotFound, "there are a, b, c")
	r.says("no replica to undrain", undrain(""), codes.InvalidArgument, "replica:")
	r.says("an unknown replica to undrain", undrain("d"), codes.NotFound, "there are a, b, c, later, old")
	r.says("no cluster to cut", cut("", 1), codes.InvalidArgument, "cluster:")
	r.says("an unknown cluster to cut", cut("eu02", 2), codes.NotFound, `no cluster "eu02"`, "eu01, us01")
	r.says("too few slices", cut("eu01", 0), codes.InvalidArgument, "slices:", "1024")
	r.says("too many slices", cut("eu01", 1025), codes.InvalidArgument, "slices:")
	if did := fleet.commands(); did != nil {
		t.Errorf("wrong calls had an effect: %+v", did)
	}

	// Of very many, some are named.
	fleet.change(func(s *coordinator.State) {
		s.Shards = nil
		for i := range 30 {
			s.Shards = append(s.Shards, owned(shard.Whole(fmt.Sprintf("c%02d", i)))...)
		}
	})
	r.says("an unknown one of many", cut("eu02", 2), codes.NotFound, "c00, c01", "c19 and 10 more")
	fleet.change(func(s *coordinator.State) { s.Shards, s.Replicas = nil, nil })
	r.says("one of none", cut("eu02", 2), codes.NotFound, "no cluster at all")
	// Who is cut off cannot know what there is.
	fleet.change(func(s *coordinator.State) { s.Detached = true })
	r.says("one that a detached replica does not know", cut("eu02", 2), codes.Unavailable, `no cluster "eu02"`, "cut off")
}

// The answer that a change stands comes before the client stops listening, and
// the call ends if the client does.
func TestChangesTakeAsLongAsTheirCall(t *testing.T) {
	t.Parallel()
	fleet := newFleet()
	waiting := make(chan struct{}, 3) // one for each call below
	fleet.act = func(ctx context.Context, _ coordinator.Command) error {
		waiting <- struct{}{}
		<-ctx.Done()
		return fmt.Errorf("%w: %w", coordinator.ErrUnanswered, ctx.Err())
	}
	r := newShardReplica(t, fleet, func(c *api.Config) { c.CallTimeout = 2 * time.Second })
	freeze := func(ctx context.Context) error {
		_, err := r.Freeze(ctx, &trestlev1.FreezeRequest{Reason: "r", Author: "a"})
		return err
	}
	r.says("as long as the server allows", freeze(t.Context()), codes.DeadlineExceeded, "it stands")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- freeze(ctx) }()
	<-waiting
	<-waiting
	cancel()
	r.says("as long as the client likes", <-ended, codes.Canceled)
}

func TestSweepsAreAskedFor(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		call func(r *shardReplica, cluster, reason, author string) error
	}{
		{"request", func(r *shardReplica, cluster, reason, author string) error {
			_, err := r.RequestSweep(r.Context(), &trestlev1.RequestSweepRequest{Cluster: cluster, Reason: reason, Author: author})
			return err
		}},
		{"confirm", func(r *shardReplica, cluster, reason, author string) error {
			_, err := r.ConfirmSweep(r.Context(), &trestlev1.ConfirmSweepRequest{Cluster: cluster, Reason: reason, Author: author})
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newShardReplica(t, newFleet())
			r.says("without a cluster", c.call(r, "", "r", "a"), codes.InvalidArgument, "cluster:")
			r.says("without a reason", c.call(r, "eu01", "", "a"), codes.InvalidArgument, "reason:")
			r.says("without an author", c.call(r, "eu01", "r", ""), codes.InvalidArgument, "author:")
			if err := c.call(r, "eu01", "because", "ann"); err != nil {
				t.Error(err)
			}
			if want := []string{c.name + " eu01"}; !slices.Equal(r.sweeps.asked, want) {
				t.Errorf("asked for %v, want %v", r.sweeps.asked, want)
			}
			for _, text := range []string{"change=sweep-" + c.name, "cluster=eu01", "reason=because", "author=ann"} {
				if !strings.Contains(r.log.String(), text) {
					t.Errorf("the log does not say %q:\n%s", text, r.log)
				}
			}
			for _, fault := range []struct {
				what, cluster string
				err           error
				code          codes.Code
				says          string
			}{
				{"of a cluster that there is not", "eu02", sweep.ErrUnknownCluster, codes.NotFound, "eu01, us01"},
				{"of a cluster without rounds", "eu01", fmt.Errorf("ask the replica: %w", sweep.ErrUnknownCluster), codes.NotFound, "no rounds"},
				{"of one that is not held", "eu01", fmt.Errorf("ask the replica: %w", sweep.ErrNotHeld), codes.FailedPrecondition, "nothing"},
				{"without a leader", "eu01", errors.New("no replica leads"), codes.Unavailable, "no replica leads"},
				{"with the leader away", "eu01", status.Error(codes.Unavailable, "refused"), codes.Unavailable, "refused"},
				{"with a slow leader", "eu01", context.DeadlineExceeded, codes.Unavailable, "may or may not"},
			} {
				failing := &fakeSweeps{err: fault.err}
				r := newShardReplica(t, newFleet(), func(cfg *api.Config) { cfg.Sweeps = failing })
				r.says(fault.what, c.call(r, fault.cluster, "r", "a"), fault.code, fault.says)
			}
			unread := newFleet()
			unread.state.Known = false
			r = newShardReplica(t, unread)
			r.says("before the table was read", c.call(r, "eu01", "r", "a"), codes.Unavailable)
		})
	}
}

func TestLooksAtWhatWasNotReadYet(t *testing.T) {
	t.Parallel()
	fleet := newFleet()
	fleet.state.Known = false
	r := newShardReplica(t, fleet)
	ctx := t.Context()
	for what, call := range map[string]func() error{
		"ListShards":   func() error { _, err := r.ListShards(ctx, &trestlev1.ListShardsRequest{}); return err },
		"ListReplicas": func() error { _, err := r.ListReplicas(ctx, &trestlev1.ListReplicasRequest{}); return err },
		"ExplainCluster": func() error {
			_, err := r.ExplainCluster(ctx, &trestlev1.ExplainClusterRequest{Cluster: "eu01"})
			return err
		},
		"PlanRebalance": func() error { _, err := r.PlanRebalance(ctx, &trestlev1.PlanRebalanceRequest{}); return err },
		"ListCommands":  func() error { _, err := r.ListCommands(ctx, &trestlev1.ListCommandsRequest{}); return err },
		"WatchShards": func() error {
			watch, err := r.WatchShards(ctx, &trestlev1.WatchShardsRequest{})
			if err == nil {
				_, err = watch.Recv()
			}
			return err
		},
	} {
		r.says(what, call(), codes.Unavailable, "another replica")
	}
	if strings.Contains(r.log.String(), "level=ERROR") {
		t.Errorf("a replica that has just started complains:\n%s", r.log)
	}

	// Who is cut off says so.
	fleet.change(func(s *coordinator.State) { s.Known, s.Detached = true, true })
	shards, err := r.ListShards(ctx, &trestlev1.ListShardsRequest{})
	if err != nil || !shards.GetDetached() {
		t.Errorf("ListShards: %v, %v", shards.GetDetached(), err)
	}
	replicas, err := r.ListReplicas(ctx, &trestlev1.ListReplicasRequest{})
	if err != nil || !replicas.GetFleet().GetDetached() {
		t.Errorf("ListReplicas: %v, %v", replicas.GetFleet().GetDetached(), err)
	}
	commands, err := r.ListCommands(ctx, &trestlev1.ListCommandsRequest{})
	if err != nil || !commands.GetDetached() {
		t.Errorf("ListCommands: %v, %v", commands.GetDetached(), err)
	}
}

func TestFleetNeedsSweeps(t *testing.T) {
	t.Parallel()
	_, err := api.New(api.Config{
		Registry: broken{}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Registerer: newRegistry(), Fleet: newFleet(),
	})
	if err == nil || !strings.Contains(err.Error(), "sweeps") {
		t.Errorf("without sweeps: %v", err)
	}
}
