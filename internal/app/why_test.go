package app

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/trestle-bridge/trestle/loadtest/script"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
)

// detective asks one replica why a row is as it is.
type detective struct {
	trestlev1.InstanceServiceClient
	trestlev1.QuarantineServiceClient
	w *world
}

func (w *world) detective(s *service) *detective {
	w.t.Helper()
	conn, err := grpc.NewClient(s.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	return &detective{trestlev1.NewInstanceServiceClient(conn), trestlev1.NewQuarantineServiceClient(conn), w}
}

func (w *world) id(number int) string { return script.FormatUUID(w.subject(number).ID.Instance) }

func (d *detective) trace(number int) *trestlev1.TraceInstanceResponse {
	d.w.t.Helper()
	response, err := d.TraceInstance(d.w.ctx, &trestlev1.TraceInstanceRequest{Instance: d.w.id(number)})
	if err != nil {
		d.w.t.Fatal(err)
	}
	return response
}

// story is what was decided of an instance: what, from which version to which,
// by whom and under which epoch, counted from the first one.
func story(r *trestlev1.TraceInstanceResponse, first int64) string {
	var lines []string
	for _, d := range r.GetDecisions() {
		from := "?"
		if d.Stored != nil {
			from = fmt.Sprint(d.GetStored())
		}
		what := strings.ToLower(strings.TrimPrefix(d.GetDecision().String(), "DECISION_"))
		lines = append(lines, fmt.Sprintf("%s %s>%d by %s@%d", what, from, d.GetVersion(), d.GetReplica().GetName(), d.GetEpoch()-first))
	}
	return strings.Join(lines, ", ")
}

// pair starts two replicas, the first of which carries all shards, and stays so.
func (w *world) pair() (services [2]*service, o *operator) {
	w.t.Helper()
	services[0] = w.serve(calm)
	o = w.operator(services[0])
	w.until("the first replica carries all", func() bool {
		list, err := o.ListShards(w.ctx, &trestlev1.ListShardsRequest{})
		return err == nil && len(list.GetShards()) == len(w.clusters) && o.settled(len(w.clusters))
	})
	for n := range w.clusters {
		o.did(o.Pin(w.ctx, &trestlev1.PinRequest{Shard: clusterName(n), Replica: "replica-1", Reason: "a test", Author: "ann"}))
	}
	services[1] = w.serve(calm)
	w.until("the second one knows the first", func() bool {
		response, err := w.operator(services[1]).ListReplicas(w.ctx, &trestlev1.ListReplicasRequest{})
		return err == nil && len(response.GetReplicas()) == 2 && o.settled(len(w.clusters))
	})
	return services, o
}

func (o *operator) move(cluster int, replica string) {
	o.w.t.Helper()
	o.did(o.Pin(o.w.ctx, &trestlev1.PinRequest{Shard: clusterName(cluster), Replica: replica, Reason: "a test", Author: "ann"}))
	o.w.until("the shard rests there", func() bool {
		for _, s := range o.shards(replica) {
			if s.GetId() == clusterName(cluster) && rests(s, replica) {
				return true
			}
		}
		return false
	})
}

// Who mends the cause of a refusal has what was refused written, by way of any
// replica.
func TestQuarantinedChangeIsRetried(t *testing.T) {
	t.Parallel()
	w := poisoned(t, 3)
	services, o := w.pair()
	away := w.detective(services[1]) // carries nothing
	quarantined := func() []*trestlev1.QuarantinedChange {
		t.Helper()
		list, err := away.ListQuarantine(w.ctx, &trestlev1.ListQuarantineRequest{Cluster: clusterName(0)})
		if err != nil {
			t.Fatal(err)
		}
		return list.GetChanges()
	}
	retry := func(d *detective) (*trestlev1.RetryQuarantinedResponse, error) {
		return d.RetryQuarantined(w.ctx, &trestlev1.RetryQuarantinedRequest{Instance: w.id(1), Reason: "mended", Author: "ann"})
	}
	if _, err := retry(away); grpcstatus.Code(err) != codes.NotFound {
		t.Errorf("with nothing in quarantine the retry ends with %v", err)
	}
	w.say(1, w.status(1, 10, poison))
	w.until("it is refused", func() bool { return len(quarantined()) == 1 })
	if q := quarantined()[0]; q.GetInstance() != w.id(1) || q.GetVersion() != 10 || q.GetSqlstate() != "23514" || q.GetPast() || q.Stored == nil || q.GetStored() != 0 || q.GetTimes() != 1 {
		t.Errorf("in quarantine is %v", q)
	}

	// Nothing is mended: it is refused again, and stays.
	answer, err := retry(away)
	if err != nil || answer.GetDecision() != trestlev1.Decision_DECISION_QUARANTINED || answer.GetVersion() != 10 || answer.GetReplica().GetName() != "replica-1" ||
		answer.GetShard() != clusterName(0) || answer.GetRemoved() != 0 || len(answer.GetLeft()) != 1 || answer.GetLeft()[0].GetTimes() != 2 {
		t.Errorf("as it was, the retry ends with %v, %v", answer, err)
	}
	if got := w.version(1); got != 0 {
		t.Errorf("the row is at version %d", got)
	}

	w.exec(`ALTER TABLE workspace_instance DROP CONSTRAINT no_poison`)
	answer, err = retry(away)
	if err != nil || answer.GetDecision() != trestlev1.Decision_DECISION_APPLIED || answer.GetVersion() != 10 || answer.GetReplica().GetName() != "replica-1" ||
		answer.GetRemoved() != 1 || len(answer.GetLeft()) != 0 {
		t.Errorf("after it was mended, the retry ends with %v, %v", answer, err)
	}
	if got, text := w.version(1), w.text(1, `status ->> 'message'`); got != 10 || text != "poison" {
		t.Errorf("the row is at version %d, and says %q", got, text)
	}
	if left := quarantined(); len(left) != 0 {
		t.Errorf("in quarantine is still %v", left)
	}
	first := away.trace(1).GetDecisions()[0].GetEpoch()
	if got, want := story(away.trace(1), first), "quarantined ?>10 by replica-1@0, forgotten ?>10 by replica-1@0, quarantined ?>10 by replica-1@0, "+
		"forgotten ?>10 by replica-1@0, applied ?>10 by replica-1@0"; !strings.HasSuffix(want, got) || got == "" {
		t.Errorf("the trace tells\n%s\nwhich is no end of\n%s", got, want)
	}

	// The newest of what was refused is what a retry takes, and the new owner
	// is who does it.
	w.exec(`ALTER TABLE workspace_instance ADD CONSTRAINT no_poison CHECK (status ->> 'message' NOT LIKE 'bad%') NOT VALID`)
	bad := func(version uint64) {
		s := w.status(1, version, poison)
		s.Message = fmt.Sprint("bad", version)
		w.say(1, s)
		w.until("it is refused", func() bool { return len(quarantined()) > 0 && quarantined()[0].GetVersion() == version })
	}
	bad(11)
	bad(12)
	o.move(0, "replica-2")
	w.exec(`ALTER TABLE workspace_instance DROP CONSTRAINT no_poison`)
	answer, err = retry(w.detective(services[0]))
	if err != nil || answer.GetDecision() != trestlev1.Decision_DECISION_APPLIED || answer.GetVersion() != 12 || answer.GetReplica().GetName() != "replica-2" || answer.GetRemoved() != 2 {
		t.Errorf("with two in quarantine, the retry ends with %v, %v", answer, err)
	}
	if got := w.text(1, `status ->> 'message'`); got != "bad12" {
		t.Errorf("the row says %q", got)
	}

	// A cluster that is not heard cannot be asked: nothing is changed.
	w.exec(`ALTER TABLE workspace_instance ADD CONSTRAINT no_poison CHECK (status ->> 'message' NOT LIKE 'worse%') NOT VALID`)
	s := w.status(1, 20, poison)
	s.Message = "worse"
	w.say(1, s)
	w.until("it is refused", func() bool { return len(quarantined()) == 1 })
	w.exec(`UPDATE workspace_cluster SET url = '127.0.0.1:1' WHERE name = $1`, clusterName(0))
	w.until("the cluster is not heard", func() bool {
		list := o.shards("replica-2")
		return len(list) == 1 && list[0].GetMeasured().GetDeaf()
	})
	if answer, err := retry(away); grpcstatus.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("of a cluster that is not heard, the retry ends with %v, %v", answer, err)
	}
	if left := quarantined(); len(left) != 1 || left[0].GetTimes() != 1 {
		t.Errorf("in quarantine is %v", left)
	}
	dropped, err := away.DropQuarantined(w.ctx, &trestlev1.DropQuarantinedRequest{Instance: w.id(1), Reason: "past", Author: "ann"})
	if err != nil || dropped.GetRemoved() != 1 || len(quarantined()) != 0 {
		t.Errorf("the drop ends with %v, %v", dropped, err)
	}
}

// Any replica tells what all of them remember: of the owner before a hand-over
// and the one after it, of instances without a row and of another cluster's,
// and of a write that came under a fence that was lost.
func TestTraceOverAHandOver(t *testing.T) {
	t.Parallel()
	// Snapshots say again what is written, or waits to be.
	moved := regexp.MustCompile(`^(.*, )?applied \?>5 by replica-1@0, (.*, )?applied [5?]>6 by replica-2@1(, (unchanged|repeat|stale) [56?]>6 by replica-2@1)*$`)
	w := newWorld(t, plan{instances: 5})
	const moves, unknown, foreign, fenced, silent = 0, 1, 2, 3, 4
	w.exec(`DELETE FROM workspace_instance WHERE id = $1`, w.subject(unknown).ID.Instance)
	w.exec(`UPDATE workspace_instance SET region = 'another-cluster' WHERE id = $1`, w.subject(foreign).ID.Instance)
	services, o := w.pair()
	detectives := []*detective{w.detective(services[0]), w.detective(services[1])}

	w.say(moves, w.status(moves, 5, nil))
	w.until("it is written", func() bool { return w.version(moves) == 5 })
	first := detectives[1].trace(moves).GetDecisions()[0].GetEpoch()
	o.move(0, "replica-2")
	s := w.status(moves, 6, nil)
	s.Message = "moved"
	w.say(moves, s)
	w.until("the next owner writes", func() bool { return w.version(moves) == 6 })
	for i, d := range detectives {
		w.until("both remember", func() bool { return len(d.trace(moves).GetDecisions()) >= 2 })
		r := d.trace(moves)
		if got := story(r, first); !moved.MatchString(got) {
			t.Errorf("replica-%d tells %s", i+1, got)
		}
		if r.GetRow().GetVersion() != 6 || r.GetRow().GetMessage() != "moved" || r.GetShard().GetOwner().GetName() != "replica-2" || len(r.GetUnheard()) != 0 || len(r.GetWaiting()) != 0 {
			t.Errorf("replica-%d tells %v", i+1, r)
		}
	}

	for _, d := range detectives {
		if _, err := d.TraceInstance(w.ctx, &trestlev1.TraceInstanceRequest{Instance: w.id(unknown)}); grpcstatus.Code(err) != codes.NotFound {
			t.Errorf("of an instance that nobody has heard of: %v", err)
		}
		if r := d.trace(silent); r.GetRow() == nil || len(r.GetDecisions()) != 0 || r.GetShard().GetId() != clusterName(0) {
			t.Errorf("of an instance that its cluster has not spoken of: %v", r)
		}
	}
	w.say(unknown, w.status(unknown, 3, nil))
	w.say(foreign, w.status(foreign, 4, nil))
	for i, d := range detectives {
		w.until("both are decided", func() bool {
			r, err := d.TraceInstance(w.ctx, &trestlev1.TraceInstanceRequest{Instance: w.id(unknown)})
			return err == nil && len(r.GetDecisions()) > 0 && len(d.trace(foreign).GetDecisions()) > 0
		})
		if r := d.trace(unknown); r.GetRow() != nil || r.GetShard() != nil || story(r, first) != "unknown ?>3 by replica-2@1" {
			t.Errorf("replica-%d tells of an instance without a row: %s, %v", i+1, story(r, first), r)
		}
		if r := d.trace(foreign); r.GetRow().GetRegion() != "another-cluster" || r.GetRow().GetVersion() != 0 || r.GetShard() != nil || story(r, first) != "foreign ?>4 by replica-2@1" {
			t.Errorf("replica-%d tells of an instance of another cluster: %s, %v", i+1, story(r, first), r)
		}
	}

	// Another owner has raised the fence: what is written now is refused, and
	// the row stays.
	w.exec(`UPDATE trestle_fence SET epoch = epoch + 1, owner = 'another' WHERE shard = $1`, clusterName(0))
	w.say(fenced, w.status(fenced, 7, nil))
	for i, d := range detectives {
		w.until("it is refused", func() bool { return len(d.trace(fenced).GetDecisions()) > 0 })
		if got := story(d.trace(fenced), first); !strings.HasPrefix(got, "fenced ?>7 by replica-2@1") {
			t.Errorf("replica-%d tells of a write without a fence: %s", i+1, got)
		}
	}
	// The fleet finds an epoch above it by itself, and the row is written.
	w.until("it is written", func() bool { return w.version(fenced) == 7 })
	for i, d := range detectives {
		if got := story(d.trace(fenced), first); !strings.Contains(got, ", applied") && !strings.HasPrefix(got, "fenced ?>7 by replica-2@1, ") {
			t.Errorf("replica-%d tells of the write after it: %s", i+1, got)
		}
	}

	// Of a replica that has gone, what it remembered has gone as well.
	if err := services[0].end(); err != nil {
		t.Errorf("the replica ends with %v", err)
	}
	w.until("the other one is alone", func() bool {
		r := detectives[1].trace(moves)
		return len(r.GetUnheard()) == 0 && !strings.Contains(story(r, first), "replica-1")
	})
}
