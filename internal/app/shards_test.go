package app

import (
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/trestle-bridge/trestle/loadtest/sim"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

// operator asks one replica's ShardService.
type operator struct {
	trestlev1.ShardServiceClient
	w *world
}

func (w *world) operator(s *service) *operator {
	w.t.Helper()
	conn, err := grpc.NewClient(s.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	return &operator{trestlev1.NewShardServiceClient(conn), w}
}

// did fails the test unless a change was acted on.
func (o *operator) did(_ any, err error) {
	o.w.t.Helper()
	if err != nil {
		o.w.t.Fatal(err)
	}
}

// shards are those of a replica, or all.
func (o *operator) shards(replica string) []*trestlev1.Shard {
	o.w.t.Helper()
	response, err := o.ListShards(o.w.ctx, &trestlev1.ListShardsRequest{Replica: replica})
	if err != nil {
		o.w.t.Fatal(err)
	}
	return response.GetShards()
}

// rests says whether a shard rests with a replica, which writes it.
func rests(s *trestlev1.Shard, replica string) bool {
	return s.GetPhase() == trestlev1.ShardPhase_SHARD_PHASE_OWNED && s.GetOwner().GetName() == replica &&
		s.GetEpochIntended() > 0 && s.GetEpochObserved() == s.GetEpochIntended()
}

// settled says whether there are so many shards, and all rest.
func (o *operator) settled(shards int) bool {
	o.w.t.Helper()
	list := o.shards("")
	for _, s := range list {
		if !rests(s, s.GetOwner().GetName()) {
			return false
		}
	}
	return len(list) == shards
}

// pinToSecond pins the first cluster's shard to the second of two replicas, once the
// fleet knows both.
func (o *operator) pinToSecond(second *service) {
	o.w.t.Helper()
	o.w.until("there are two replicas", func() bool {
		response, err := o.ListReplicas(o.w.ctx, &trestlev1.ListReplicasRequest{})
		return err == nil && len(response.GetReplicas()) == 2
	})
	o.did(o.Pin(o.w.ctx, &trestlev1.PinRequest{Shard: clusterName(0), Replica: second.config.Replica.ID, Reason: "a test", Author: "ann"}))
}

// Operators move shards by way of a replica that does not lead, while updates go
// on, and nothing is lost or told twice.
func TestOperatorsMoveShards(t *testing.T) {
	t.Parallel()
	const clusters = 3
	w := newWorld(t, plan{clusters: clusters, instances: 60})
	services := []*service{w.serve(calm)}
	first := w.operator(services[0])
	w.until("the first replica carries all", func() bool {
		list, err := first.ListShards(w.ctx, &trestlev1.ListShardsRequest{})
		if status.Code(err) == codes.Unavailable {
			return false // it has not read the table yet
		}
		if err != nil {
			t.Fatal(err)
		}
		return len(list.GetShards()) == clusters && first.settled(clusters)
	})
	services = append(services, w.serve(calm))
	operators := []*operator{first, w.operator(services[1])}

	// Who leads is not for the test to say.
	var leader, other *trestlev1.Replica
	w.until("two replicas, of which one leads", func() bool {
		leader, other = nil, nil
		response, err := first.ListReplicas(w.ctx, &trestlev1.ListReplicasRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range response.GetReplicas() {
			if r.GetLeads() {
				leader = r
			} else {
				other = r
			}
		}
		return leader != nil && other != nil && first.settled(clusters)
	})
	o := operators[0]
	if leader.GetAnswers() {
		o = operators[1]
	}
	w.until("the other one has read the table", func() bool {
		_, err := o.ListReplicas(w.ctx, &trestlev1.ListReplicasRequest{})
		return err == nil
	})
	why := "a test"

	w.sendAll(2)
	id := clusterName(0)
	o.did(o.Pin(w.ctx, &trestlev1.PinRequest{Shard: id, Replica: other.GetName(), Reason: why, Author: "ann"}))
	w.sendAll(1)
	w.until("the pinned shard rests there", func() bool {
		for _, s := range o.shards(other.GetName()) {
			if s.GetId() == id && rests(s, other.GetName()) {
				return s.GetPin().GetAuthor() == "ann"
			}
		}
		return false
	})
	w.sendAll(1)
	w.settle(false)

	// Frozen, it stays, and the plan says what is held back.
	o.did(o.Freeze(w.ctx, &trestlev1.FreezeRequest{Reason: why, Author: "ann"}))
	o.did(o.Pin(w.ctx, &trestlev1.PinRequest{Shard: id, Replica: leader.GetName(), Reason: why, Author: "bob"}))
	w.until("the plan would move it", func() bool {
		plan, err := o.PlanRebalance(w.ctx, &trestlev1.PlanRebalanceRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range plan.GetMoves() {
			if m.GetShard() == id && m.GetTo().GetIncarnation() == leader.GetIncarnation() && m.GetReason() == trestlev1.Reason_REASON_PIN {
				return plan.GetFleet().GetFreeze().GetAuthor() == "ann"
			}
		}
		return false
	})
	explained, err := o.ExplainCluster(w.ctx, &trestlev1.ExplainClusterRequest{Cluster: id})
	if err != nil {
		t.Fatal(err)
	}
	if s := explained.GetShards()[0]; len(explained.GetShards()) != 1 || !rests(s.GetShard(), other.GetName()) || len(s.GetPreferences()) != 2 ||
		s.GetPlanned().GetTo().GetName() != leader.GetName() {
		t.Errorf("explained while frozen: %v", explained)
	}
	o.did(o.Unfreeze(w.ctx, &trestlev1.UnfreezeRequest{Reason: why, Author: "ann"}))
	w.until("it moves when nothing is frozen", func() bool {
		for _, s := range o.shards(leader.GetName()) {
			if s.GetId() == id && rests(s, leader.GetName()) {
				return true
			}
		}
		return false
	})
	o.did(o.Unpin(w.ctx, &trestlev1.UnpinRequest{Shard: id, Reason: why, Author: "ann"}))
	w.sendAll(1)
	w.settle(false)

	o.did(o.DrainReplica(w.ctx, &trestlev1.DrainReplicaRequest{Replica: leader.GetName(), Reason: why, Author: "ann"}))
	w.sendAll(1)
	w.until("the drained replica is empty", func() bool { return o.settled(clusters) && len(o.shards(leader.GetName())) == 0 })
	o.did(o.UndrainReplica(w.ctx, &trestlev1.UndrainReplicaRequest{Replica: leader.GetName(), Reason: why, Author: "ann"}))
	w.settle(false)

	for _, slices := range []int32{2, 1} {
		o.did(o.SetSlices(w.ctx, &trestlev1.SetSlicesRequest{Cluster: id, Slices: slices, Reason: why, Author: "ann"}))
		w.sendAll(1)
		w.until("the cluster is cut anew", func() bool {
			explained, err := o.ExplainCluster(w.ctx, &trestlev1.ExplainClusterRequest{Cluster: id})
			return err == nil && explained.GetSlices() == slices && explained.GetReslice() == nil && o.settled(clusters-1+int(slices))
		})
		w.sendAll(1)
		w.settle(false)
	}
	w.sendAll(every)
	w.settle(false)

	// The leader, whichever that is by now, has rounds of a cluster soon after it
	// began to lead.
	sweeps := func() (n float64) {
		for _, s := range services {
			n += s.metric("trestle_sweep_seconds")
		}
		return n
	}
	rounds := sweeps()
	w.until("a sweep is asked for", func() bool {
		_, err := o.RequestSweep(w.ctx, &trestlev1.RequestSweepRequest{Cluster: id, Reason: why, Author: "ann"})
		return err == nil
	})
	w.until("the leader makes a round", func() bool { return sweeps() > rounds })
	_, err = o.ConfirmSweep(w.ctx, &trestlev1.ConfirmSweepRequest{Cluster: id, Reason: why, Author: "ann"})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("nothing is held back, and the confirmation ends with %v", err)
	}

	commands, err := o.ListCommands(w.ctx, &trestlev1.ListCommandsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(commands.GetCommands()); n != 9 || commands.GetCommands()[n-1].GetKind() != trestlev1.CommandKind_COMMAND_KIND_PIN {
		t.Errorf("there are %d commands: %v", n, commands)
	}
	for _, s := range services {
		if s.logs(`"msg":"call failed"`) {
			t.Error("a call has failed")
		}
	}
}

// A planned move writes nothing of what has not changed.
func TestMoveWritesNothingAgain(t *testing.T) {
	t.Parallel()
	const instances = 20
	w := newWorld(t, plan{instances: instances})
	owner := w.serve(calm)
	w.heard(2)
	for n := range instances {
		w.say(n, w.status(n, 3, func(s *wsman.WorkspaceStatus) { s.Phase = wsman.WorkspacePhase_RUNNING }))
	}
	w.until("all run", func() bool {
		for n := range instances {
			if w.text(n, "phase") != "running" {
				return false
			}
		}
		return true
	})
	next := w.serve(calm)
	o := w.operator(owner)
	o.pinToSecond(next)
	w.until("the shard rests with the other one", func() bool {
		list := o.shards(next.config.Replica.ID)
		return len(list) == 1 && rests(list[0], next.config.Replica.ID)
	})
	// What waited is written before this.
	w.say(0, w.status(0, 4, func(s *wsman.WorkspaceStatus) { s.Phase = wsman.WorkspacePhase_STOPPING }))
	w.until("an update goes on", func() bool { return w.text(0, "phase") == "stopping" })
	if n := next.metric("trestle_pipeline_changes_total"); n != 1 {
		t.Errorf("the new owner has written %v changes, want that of the one update", n)
	}
}

// A replica that stops while it only prepares a shard has nothing to write of it.
func TestStopWhilePreparing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{instances: 20})
	owner := w.serve(calm)
	o := w.operator(owner)
	w.until("the first replica carries the shard", func() bool {
		list, err := o.ListShards(w.ctx, &trestlev1.ListShardsRequest{})
		return err == nil && len(list.GetShards()) == 1 && rests(list.GetShards()[0], owner.config.Replica.ID)
	})
	w.heard(1)
	// Without a snapshot the next owner does not get ready.
	w.clusters[0].SetFaults(sim.Faults{Snapshot: sim.Hang})
	next := w.serve(calm)
	o.pinToSecond(next)
	if err := w.clusters[0].AwaitSubscribers(w.ctx, 2); err != nil {
		t.Fatal(err)
	}
	w.sendAll(3)
	w.until("it has heard updates", func() bool { return next.metric(waitingInstances) > 0 })
	if err := next.end(); err != nil {
		t.Errorf("it ends with: %v", err)
	}
	w.clusters[0].SetFaults(sim.Faults{})
	w.sendAll(every)
	w.settle(false)
	owner.stop()
}
