package api_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/trestle-bridge/trestle/internal/api"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/pipeline"
	"github.com/trestle-bridge/trestle/pipeline/trace"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
	"github.com/trestle-bridge/trestle/shard"
)

const someInstance = "00000000-0000-4000-8000-000000000001"

// fakeInstances is what the replicas remember.
type fakeInstances struct {
	memories []api.Memory
	decided  pipeline.Decided
	heard    bool
	err      error
	retried  []string
}

func (f *fakeInstances) Why(context.Context, status.InstanceID) []api.Memory { return f.memories }

func (f *fakeInstances) Retry(_ context.Context, cluster string, id status.InstanceID) (string, pipeline.Decided, bool, error) {
	f.retried = append(f.retried, cluster+" "+id.String())
	return "a.1", f.decided, f.heard, f.err
}

// fakeRows is a database with one row and a quarantine.
type fakeRows struct {
	row     *store.InstanceRow
	refused []store.QuarantinedChange
}

func (f *fakeRows) Instance(context.Context, status.InstanceID) (*store.InstanceRow, error) {
	return f.row, nil
}

func (f *fakeRows) ListQuarantine(_ context.Context, q store.QuarantineFilter, limit int) ([]store.QuarantinedChange, int64, error) {
	list := slices.Clone(f.refused)
	list = slices.DeleteFunc(list, func(c store.QuarantinedChange) bool {
		return q.Cluster != "" && c.Cluster != q.Cluster || q.Instance != nil && c.Instance != *q.Instance
	})
	return list[:min(limit, len(list))], int64(len(list)), nil
}

func (f *fakeRows) DropQuarantine(_ context.Context, changes []store.QuarantinedChange) (int64, error) {
	before := len(f.refused)
	f.refused = slices.DeleteFunc(f.refused, func(c store.QuarantinedChange) bool { return slices.Contains(changes, c) })
	return int64(before - len(f.refused)), nil
}

func TestTraceInstance(t *testing.T) {
	t.Parallel()
	r := newShardReplica(t, newFleet())
	instances := trestlev1.NewInstanceServiceClient(r.conn)
	ask := func(id string) (*trestlev1.TraceInstanceResponse, error) {
		return instances.TraceInstance(t.Context(), &trestlev1.TraceInstanceRequest{Instance: id})
	}
	if _, err := ask("nonsense"); grpcstatus.Code(err) != codes.InvalidArgument {
		t.Errorf("an id that is none: %v", err)
	}
	if _, err := ask(someInstance); grpcstatus.Code(err) != codes.NotFound || !strings.Contains(err.Error(), someInstance) {
		t.Errorf("an unknown instance: %v", err)
	}
	at := time.Unix(1_700_000_000, 0).UTC()
	r.rows.row = &store.InstanceRow{Region: "eu01", Phase: "stopping", Version: 9, Stopping: at, Prebuild: &store.PrebuildRow{ID: "p", State: "failed"}}
	entry := func(d trace.Decision, after time.Duration) pipeline.Decided {
		return pipeline.Decided{Entry: trace.Entry{Decision: d, At: at.Add(after), Version: 9, Stored: 5, KnowsStored: d == trace.Applied, Updates: 2}, Shard: shard.Whole("eu01"), Epoch: 3}
	}
	r.instances.memories = []api.Memory{
		{Incarnation: "b.1", Decided: []pipeline.Decided{entry(trace.Applied, time.Second)}},
		{Incarnation: "a.1", Decided: []pipeline.Decided{entry(trace.Fenced, 0)}, Undecided: []pipeline.Undecided{{Shard: shard.Whole("eu01"), Version: 11, Since: at}}},
		{Incarnation: "c.1", Err: errors.New("silent")},
	}
	got, err := ask(someInstance)
	if err != nil {
		t.Fatal(err)
	}
	if got.GetRow().GetPhase() != "stopping" || got.GetRow().GetStarted() != nil || got.GetRow().GetPrebuild().GetState() != "failed" || got.GetShard().GetId() != "eu01" {
		t.Errorf("%v", got)
	}
	if d := got.GetDecisions(); len(d) != 2 || d[0].GetDecision() != trestlev1.Decision_DECISION_FENCED || d[0].Stored != nil ||
		d[1].GetDecision() != trestlev1.Decision_DECISION_APPLIED || d[1].GetStored() != 5 || d[1].GetReplica().GetName() != "b" || d[1].GetEpoch() != 3 {
		t.Errorf("decided: %v", d)
	}
	if len(got.GetWaiting()) != 1 || len(got.GetUnheard()) != 1 || got.GetUnheard()[0].GetReason() != "silent" {
		t.Errorf("%v", got)
	}
}

func TestQuarantine(t *testing.T) {
	t.Parallel()
	r := newShardReplica(t, newFleet())
	client := trestlev1.NewQuarantineServiceClient(r.conn)
	id, err := status.ParseInstanceID(someInstance)
	if err != nil {
		t.Fatal(err)
	}
	retry := func() (*trestlev1.RetryQuarantinedResponse, error) {
		return client.RetryQuarantined(t.Context(), &trestlev1.RetryQuarantinedRequest{Instance: someInstance, Reason: "mended", Author: "ann"})
	}
	if _, err := retry(); grpcstatus.Code(err) != codes.NotFound {
		t.Errorf("nothing in quarantine: %v", err)
	}
	refused := store.QuarantinedChange{Poison: store.Poison{Instance: id, Cluster: "eu01", Version: 7, Times: 1}, HasRow: true, Stored: 8}
	r.rows.refused = []store.QuarantinedChange{refused}
	if _, err := client.RetryQuarantined(t.Context(), &trestlev1.RetryQuarantinedRequest{Instance: someInstance}); grpcstatus.Code(err) != codes.InvalidArgument {
		t.Errorf("without a reason: %v", err)
	}
	list, err := client.ListQuarantine(t.Context(), &trestlev1.ListQuarantineRequest{Cluster: "eu01"})
	if err != nil || list.GetTotal() != 1 || !list.GetChanges()[0].GetPast() {
		t.Errorf("%v, %v", list, err)
	}
	r.instances.err = fmt.Errorf("%w: the owner cannot hear it", pipeline.ErrCannotRetry)
	if _, err := retry(); grpcstatus.Code(err) != codes.FailedPrecondition || len(r.rows.refused) != 1 {
		t.Errorf("one that cannot be tried: %v", err)
	}
	r.instances.err = errors.New("silent")
	if _, err := retry(); grpcstatus.Code(err) != codes.Unavailable || len(r.rows.refused) != 1 {
		t.Errorf("one whose owner is silent: %v", err)
	}
	r.instances.err, r.instances.heard = nil, true
	r.instances.decided = pipeline.Decided{Entry: trace.Entry{Decision: trace.Applied, Version: 9}, Shard: shard.Whole("eu01")}
	got, err := retry()
	if err != nil || got.GetDecision() != trestlev1.Decision_DECISION_APPLIED || got.GetRemoved() != 1 || got.GetReplica().GetName() != "a" || len(got.GetLeft()) != 0 {
		t.Errorf("%v, %v", got, err)
	}
	if len(r.instances.retried) != 3 || r.instances.retried[2] != "eu01 "+someInstance {
		t.Errorf("retried: %q", r.instances.retried)
	}
	r.rows.refused = []store.QuarantinedChange{refused}
	dropped, err := client.DropQuarantined(t.Context(), &trestlev1.DropQuarantinedRequest{Instance: someInstance, Reason: "past", Author: "ann"})
	if err != nil || dropped.GetRemoved() != 1 || len(r.rows.refused) != 0 {
		t.Errorf("%v, %v", dropped, err)
	}
}
