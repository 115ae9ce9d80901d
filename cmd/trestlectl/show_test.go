package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
)

const day = 24 * time.Hour

func shardsShown() []*trestlev1.Shard {
	return []*trestlev1.Shard{
		{
			Id: "eu01", Cluster: "eu01", Slices: 1, Owner: ref("a"), Next: ref("b"), EpochIntended: 7, EpochObserved: 7, Weight: 123.4,
			Phase: trestlev1.ShardPhase_SHARD_PHASE_PREPARE, Reason: trestlev1.Reason_REASON_PIN, Text: "pinned to b", Since: ago(3 * day),
			Measured: &trestlev1.Measurement{Rate: 10.25, LiveInstances: 120, Lag: durationpb.New(1500 * time.Millisecond), LastEvent: ago(4 * day)},
			Pin:      &trestlev1.Pin{Replica: "b", Reason: "closer", Author: "ann", Until: timestamppb.New(time.Now().Add(5*day + time.Hour))},
			Moves: []*trestlev1.PastMove{
				{At: ago(9 * day), To: ref("c"), Epoch: 6, Reason: trestlev1.Reason_REASON_NEW},
				{At: ago(3 * day), From: ref("c"), To: ref("a"), Epoch: 7, Reason: trestlev1.Reason_REASON_ORPHAN},
			},
		},
		{
			Id: "us01#0/2", Cluster: "us01", Slices: 2, Owner: ref("b"), EpochIntended: 3, EpochObserved: 2, Generation: 1,
			Phase: trestlev1.ShardPhase_SHARD_PHASE_RAISE, Reason: trestlev1.Reason_REASON_RESLICE, Since: ago(2 * time.Hour),
			Measured: &trestlev1.Measurement{Deaf: true},
		},
		{Id: "us01#1/2", Cluster: "us01", Slice: 1, Slices: 2, Former: &trestlev1.ReplicaRef{Incarnation: "c.0"}, Phase: trestlev1.ShardPhase_SHARD_PHASE_UNOWNED, Since: ago(30 * time.Minute)},
	}
}

func fleetShown() *trestlev1.Fleet {
	return &trestlev1.Fleet{
		Leader: ref("a"), LeadsSince: ago(4 * day), Answering: ref("a"),
		Freeze: &trestlev1.Freeze{Reason: "incident", Author: "ann", Until: timestamppb.New(time.Now().Add(3*day + time.Hour))},
		Brake:  &trestlev1.Brake{Since: ago(30 * time.Minute), Roster: 5},
	}
}

func shown() map[string]proto.Message {
	drain := &trestlev1.Drain{Replica: "b", Reason: "disk", Author: "ann", At: ago(day)}
	return map[string]proto.Message{
		"ListShards": &trestlev1.ListShardsResponse{Shards: shardsShown()},
		"ListReplicas": &trestlev1.ListReplicasResponse{
			Replicas: []*trestlev1.Replica{
				{Name: "a", Incarnation: "a.1", Revision: "v1", PeerAddress: "a:1", State: trestlev1.ReplicaState_REPLICA_STATE_LIVE, Load: 12.5, Capacity: 1, Shards: 1, Joined: ago(5 * day), Heard: ago(3 * time.Hour), Leads: true, Answers: true},
				{Name: "b", Incarnation: "b.1", Revision: "v2", PeerAddress: "b:1", State: trestlev1.ReplicaState_REPLICA_STATE_DRAINING, Cap: 100, Capacity: 2, Shards: 1, Joined: ago(4 * day), Drain: drain},
				{Name: "c", Incarnation: "c.1", State: trestlev1.ReplicaState_REPLICA_STATE_GONE, Capacity: 1, Joined: ago(5 * day), Gone: ago(3 * time.Hour)},
			},
			Fleet: fleetShown(), OtherDrains: []*trestlev1.Drain{{Replica: "later", Reason: "comes back", Author: "bob", At: ago(day)}},
		},
		"ExplainCluster": &trestlev1.ExplainClusterResponse{
			Cluster: "us01", Slices: 2, Generation: 1, Fleet: fleetShown(),
			Reslice:   &trestlev1.Reslice{From: 2, To: 4, Generation: 2, Phase: trestlev1.ReslicePhase_RESLICE_PHASE_RELEASE, Reason: "hot", Author: "bob"},
			Proposals: []*trestlev1.Proposal{{Cluster: "us01", Slices: 8, Text: "too hot"}},
			Shards: []*trestlev1.ExplainedShard{
				{
					Shard: shardsShown()[0], Planned: &trestlev1.PlannedMove{Shard: "eu01", From: ref("a"), To: ref("b"), Reason: trestlev1.Reason_REASON_PIN, Text: "pinned to b"},
					Preferences: []*trestlev1.Preference{{Replica: ref("b"), Score: 2, Load: 1, Fair: 6, Cap: 100, Draining: true}, {Replica: ref("a"), Score: 1, Load: 12.5, Fair: 6}},
				},
				{Shard: shardsShown()[1]},
				{Shard: shardsShown()[2], Unplaced: trestlev1.UnplacedReason_UNPLACED_REASON_CAP},
			},
		},
		"PlanRebalance": &trestlev1.PlanRebalanceResponse{
			Moves:     []*trestlev1.PlannedMove{{Shard: "eu01", From: ref("a"), To: ref("b"), Reason: trestlev1.Reason_REASON_PIN, Text: "pinned to b"}},
			Cancelled: []string{"us01#0/2"}, Unplaced: []*trestlev1.Unplaced{{Shard: "us01#1/2", Reason: trestlev1.UnplacedReason_UNPLACED_REASON_BRAKE}},
			Overloaded: []*trestlev1.ReplicaRef{ref("b")}, Proposals: []*trestlev1.Proposal{{Cluster: "us01", Slices: 8, Text: "too hot"}},
			Before: &trestlev1.Imbalance{Max: 30, Mean: 20, Heaviest: 12, Ratio: 1.5}, After: &trestlev1.Imbalance{Max: 22, Mean: 20, Heaviest: 12, Ratio: 1.1},
			Fleet: &trestlev1.Fleet{Brake: &trestlev1.Brake{Since: ago(30 * time.Minute), Roster: 5, Limited: true}},
		},
		"ListCommands": &trestlev1.ListCommandsResponse{Commands: []*trestlev1.Command{
			{Kind: trestlev1.CommandKind_COMMAND_KIND_FREEZE, Reason: "incident", Author: "ann", At: ago(30 * time.Minute), Until: &timestamppb.Timestamp{Seconds: 1791169200}, State: trestlev1.CommandState_COMMAND_STATE_WAITING},
			{Kind: trestlev1.CommandKind_COMMAND_KIND_SET_SLICES, Cluster: "us01", Slices: 4, Reason: "hot", Author: "bob", At: ago(3 * time.Hour), Done: ago(3 * time.Hour), State: trestlev1.CommandState_COMMAND_STATE_REFUSED, Refused: "busy"},
			{Kind: trestlev1.CommandKind_COMMAND_KIND_PIN, Shard: "eu01", Replica: "b", Reason: "evil\x1b[2J", Author: "ann", At: ago(3 * day), Done: ago(3 * day), State: trestlev1.CommandState_COMMAND_STATE_DONE},
		}},
	}
}

func TestTables(t *testing.T) {
	t.Parallel()
	f := newFake(t, shown())
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"shards"}, `
SHARD     REPLICA  PHASE    NEXT  EPOCH        SINCE  REASON   UPDATES/S  LIVE   LAG  HEARD
eu01      a        PREPARE  b     7               3d  pin           10.2   120  1.5s     4d
us01#0/2  b        RAISE    -     3 (held: 2)     2h  reslice          0     0    0s   DEAF
us01#1/2  -        UNOWNED  -     0              30m  -                -     -     -      -
`},
		{[]string{"shards", "-o", "wide"}, `
SHARD     REPLICA  PHASE    NEXT  EPOCH        SINCE  REASON   UPDATES/S  LIVE   LAG  HEARD  PIN              WEIGHT  GENERATION  PROCESS  WHY
eu01      a        PREPARE  b     7               3d  pin           10.2   120  1.5s     4d  b (for 5d more)     123           0  a.1      pinned to b
us01#0/2  b        RAISE    -     3 (held: 2)     2h  reslice          0     0    0s   DEAF  -                     0           1  b.1      -
us01#1/2  -        UNOWNED  -     0              30m  -                -     -     -      -  -                     0           0  -        -
`},
		{[]string{"replicas"}, `
REPLICA  STATE     SHARDS  LOAD  CAP  REVISION  JOINED  NOTES
a        LIVE           1  12.5    -  v1            5d  leads, answers
b        DRAINING       1     0  100  v2            4d  drained by ann: disk
c        GONE           0     0    -  -             5d  gone since 3h

a leads since 4d.
Frozen (for 3d more) by ann: incident. Only shards without an owner move; trestlectl unfreeze ends it.
BRAKE: more than half of 5 replicas were lost 30m ago, and nothing moves; trestlectl brake release ends it.
later, which is not here, is drained by bob: comes back.
`},
		{[]string{"replicas", "--output=wide"}, `
REPLICA  STATE     SHARDS  LOAD  CAP  REVISION  JOINED  CAPACITY  PEER  PROCESS  TOLD  NOTES
a        LIVE           1  12.5    -  v1            5d         1  a:1   a.1        3h  leads, answers
b        DRAINING       1     0  100  v2            4d         2  b:1   b.1         -  drained by ann: disk
c        GONE           0     0    -  -             5d         1  -     c.1         -  gone since 3h

a leads since 4d.
Frozen (for 3d more) by ann: incident. Only shards without an owner move; trestlectl unfreeze ends it.
BRAKE: more than half of 5 replicas were lost 30m ago, and nothing moves; trestlectl brake release ends it.
later, which is not here, is drained by bob: comes back.
`},
		{[]string{"explain", "us01"}, `
us01 is cut into 2 slices.
It is being cut from 2 into 4, by bob: hot; the old shards are being released.
The planner proposes 8 slices: too hot.

eu01 is carried by a (a.1), PREPARE since 3d.
  b is to take it over.
  It is there because: pin, pinned to b.
  Its owner writes under epoch 7, as it should.
  10.2 updates/s, 120 live instances, the oldest update that waits is 1.5s old, last heard 4d ago; weight 123.
  Pinned to b (for 5d more) by ann: closer.
  The planner would move it to b (pin): pinned to b.
  It came this way, newest last:
  WHEN    FROM  TO  EPOCH  REASON
  9d ago  -     c       6  new
  3d ago  c     a       7  orphan
  It prefers, best first:
  REPLICA  LOAD  FAIR  CAP  NOTES
  b           1     6  100  takes no shards
  a        12.5     6    -  -

us01#0/2 is carried by b (b.1), RAISE since 2h.
  It is there because: reslice.
  Its owner writes under epoch 2, and is to write under 3.
  0 updates/s, 0 live instances, the oldest update that waits is 0s old, never heard; weight 0.
  Its owner CANNOT HEAR the cluster.

us01#1/2 is carried by NOBODY, UNOWNED since 30m; c.0 had it last.
  It is there because: -.
  It stays without an owner: after a loss of many, all others are full.

a leads since 4d.
Frozen (for 3d more) by ann: incident. Only shards without an owner move; trestlectl unfreeze ends it.
BRAKE: more than half of 5 replicas were lost 30m ago, and nothing moves; trestlectl brake release ends it.
`},
		{[]string{"plan"}, `
SHARD  FROM  TO  REASON  WHY
eu01   a     b   pin     pinned to b
The hand-over of us01#0/2 would be given up.
us01#1/2 stays without an owner: the brake holds.
b would carry more than its cap.
To be decided: us01 into 8 slices: too hot.
Load: most 30, mean 20 (1.50); with the plan most 22 (1.10). The heaviest shard weighs 12.
Nobody leads: nothing is moved until a replica does.
More than half of 5 replicas were lost 30m ago: shards move within the caps alone until each has an owner.
`},
		{[]string{"commands"}, `
ASKED  COMMAND  OF      BY   WHY       CAME OF IT
  30m  freeze   -       ann  incident  waiting
   3h  slices   us01 4  bob  hot       refused: busy
   3d  pin      eu01 b  ann  evil·[2J  done
`},
		{[]string{"commands", "-owide"}, `
ASKED  COMMAND  OF      BY   WHY       UNTIL                 ANSWERED  CAME OF IT
  30m  freeze   -       ann  incident  2026-10-05 03:00:00Z         -  waiting
   3h  slices   us01 4  bob  hot       -                           3h  refused: busy
   3d  pin      eu01 b  ann  evil·[2J  -                           3d  done
`},
	} {
		call(t, f.addr, c.args...).reads(t, strings.Join(c.args, " "), c.want)
	}
	nothing := newFake(t, map[string]proto.Message{
		"ListShards": &trestlev1.ListShardsResponse{}, "ListReplicas": &trestlev1.ListReplicasResponse{}, "ListCommands": &trestlev1.ListCommandsResponse{},
		"PlanRebalance": &trestlev1.PlanRebalanceResponse{},
	})
	for command, want := range map[string]string{
		"shards":   "There are no shards.",
		"replicas": "There are no replicas.\n\nNobody leads: nothing is moved until a replica does.",
		"commands": "Nobody has asked for anything.",
		"plan":     "Nothing would move.\nLoad: most 0, mean 0 (0.00); with the plan most 0 (0.00). The heaviest shard weighs 0.\nNobody leads: nothing is moved until a replica does.",
	} {
		call(t, nothing.addr, command).reads(t, command+" of nothing", want)
	}
}

// What machines read is the answer, whole, in the order of the contract, and the
// same for the same answer.
func TestJSONAndYAML(t *testing.T) {
	t.Parallel()
	answers := shown()
	f := newFake(t, answers)
	for command, method := range map[string]string{
		"shards": "ListShards", "replicas": "ListReplicas", "explain us01": "ExplainCluster", "plan": "PlanRebalance", "commands": "ListCommands",
	} {
		want := answers[method]
		asJSON := call(t, f.addr, append(strings.Fields(command), "-o", "json")...)
		got := want.ProtoReflect().New().Interface()
		if err := protojson.Unmarshal([]byte(asJSON.out), got); err != nil || !proto.Equal(got, want) {
			t.Errorf("%s as JSON (%v):\n%s%s", command, err, asJSON.out, asJSON.err)
		}
		asYAML := call(t, f.addr, append(strings.Fields(command), "-o", "yaml")...)
		var tree any
		if err := yaml.Unmarshal([]byte(asYAML.out), &tree); err != nil {
			t.Errorf("%s as YAML: %v\n%s", command, err, asYAML.out)
		}
		again, err := json.Marshal(tree)
		if err != nil {
			t.Fatal(err)
		}
		got = want.ProtoReflect().New().Interface()
		if err := protojson.Unmarshal(again, got); err != nil || !proto.Equal(got, want) {
			t.Errorf("%s as YAML (%v):\n%s%s", command, err, asYAML.out, asYAML.err)
		}
	}
	small := newFake(t, map[string]proto.Message{"ListShards": parse(t, `{"shards": [{"id": "1e5", "cluster": "1e5", "epochIntended": 7}]}`, &trestlev1.ListShardsResponse{})})
	call(t, small.addr, "shards", "-ojson").reads(t, "JSON", `
{
  "shards": [
    {
      "id": "1e5",
      "cluster": "1e5",
      "slice": 0,
      "slices": 0,
      "epochIntended": "7",
      "epochObserved": "0",
      "generation": "0",
      "phase": "SHARD_PHASE_UNSPECIFIED",
      "weight": 0,
      "reason": "REASON_UNSPECIFIED",
      "text": "",
      "moves": []
    }
  ],
  "nextPageToken": "",
  "detached": false
}`)
	call(t, small.addr, "shards", "-oyaml").reads(t, "YAML", `
shards:
  - id: "1e5"
    cluster: "1e5"
    slice: 0
    slices: 0
    epochIntended: "7"
    epochObserved: "0"
    generation: "0"
    phase: SHARD_PHASE_UNSPECIFIED
    weight: 0
    reason: REASON_UNSPECIFIED
    text: ""
    moves: []
nextPageToken: ""
detached: false`)
}

// Several pages are one list, and who is cut off says so beside it.
func TestPagesAndDoubts(t *testing.T) {
	t.Parallel()
	paged := newFake(t, nil)
	paged.reply = func(request proto.Message) (proto.Message, error) {
		switch request.(*trestlev1.ListShardsRequest).GetPageToken() {
		case "":
			return &trestlev1.ListShardsResponse{Shards: shardsShown()[:1], NextPageToken: "eu01"}, nil
		case "eu01":
			return &trestlev1.ListShardsResponse{Shards: shardsShown()[1:]}, nil
		}
		return nil, status.Error(codes.InvalidArgument, "page_token")
	}
	if o := call(t, paged.addr, "shards"); o.code != exitOK || strings.Count(o.out, "\n") != 4 {
		t.Errorf("two pages: %+v", o)
	}
	f := newFake(t, map[string]proto.Message{
		"ListShards":     &trestlev1.ListShardsResponse{Shards: shardsShown()[:1], Detached: true},
		"ListReplicas":   &trestlev1.ListReplicasResponse{Fleet: &trestlev1.Fleet{Detached: true}},
		"ListCommands":   &trestlev1.ListCommandsResponse{Detached: true},
		"PlanRebalance":  &trestlev1.PlanRebalanceResponse{Fleet: &trestlev1.Fleet{Detached: true}},
		"ExplainCluster": &trestlev1.ExplainClusterResponse{Fleet: &trestlev1.Fleet{Detached: true}},
	})
	for _, command := range []string{"shards", "replicas", "commands", "plan", "explain eu01"} {
		call(t, f.addr, strings.Fields(command)...).says(t, command, exitOK, "warning", "cut off", "--address")
	}
	call(t, f.addr, "shards", "--cluster", "eu01", "--replica", "a")
	asked := f.requests()
	if last := asked[len(asked)-1].(*trestlev1.ListShardsRequest); last.GetCluster() != "eu01" || last.GetReplica() != "a" {
		t.Errorf("asked for %v", last)
	}
}
