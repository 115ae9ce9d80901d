package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/trestle-bridge/trestle/coordinator"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/pipeline"
	"github.com/trestle-bridge/trestle/pipeline/trace"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
)

// Memory is what one replica remembers of an instance, or why it could not be
// asked.
type Memory struct {
	Incarnation string
	Decided     []pipeline.Decided
	Undecided   []pipeline.Undecided
	Err         error
}

// Instances asks the replicas about instances. It is safe for concurrent use.
type Instances interface {
	// Why asks all replicas that live.
	Why(ctx context.Context, id status.InstanceID) []Memory
	// Retry has the owner of an instance's shard try again what was refused of
	// the instance, and says who did and what came of it; heard is false if the
	// cluster does not speak of it any more. The error wraps
	// pipeline.ErrCannotRetry when nothing was changed.
	Retry(ctx context.Context, cluster string, id status.InstanceID) (who string, decided pipeline.Decided, heard bool, err error)
}

// Rows reads what is stored of instances; see store.Store. It is safe for
// concurrent use.
type Rows interface {
	Instance(ctx context.Context, id status.InstanceID) (*store.InstanceRow, error)
	ListQuarantine(ctx context.Context, f store.QuarantineFilter, limit int) ([]store.QuarantinedChange, int64, error)
	DropQuarantine(ctx context.Context, changes []store.QuarantinedChange) (int64, error)
}

// maxQuarantined is how many refused changes are listed.
const maxQuarantined = 1000

type instanceService struct {
	trestlev1.UnimplementedInstanceServiceServer

	fleet     Fleet
	instances Instances
	rows      Rows
}

func parseInstance(text string) (status.InstanceID, error) {
	id, err := status.ParseInstanceID(text)
	if err != nil {
		return id, invalid("instance", "%q is no UUID", text)
	}
	return id, nil
}

// TraceInstance tells all there is to say of one instance.
func (s *instanceService) TraceInstance(ctx context.Context, r *trestlev1.TraceInstanceRequest) (*trestlev1.TraceInstanceResponse, error) {
	id, err := parseInstance(r.GetInstance())
	if err != nil {
		return nil, err
	}
	state, _ := s.fleet.State()
	if !state.Known {
		return nil, errUnread
	}
	row, err := s.rows.Instance(ctx, id)
	if err != nil {
		return nil, err
	}
	refused, _, err := s.rows.ListQuarantine(ctx, store.QuarantineFilter{Instance: &id}, maxQuarantined)
	if err != nil {
		return nil, err
	}
	limited, cancel := early(ctx)
	defer cancel()
	convert := newConverter(state, time.Now())
	response := &trestlev1.TraceInstanceResponse{Instance: id.String(), Row: instanceRow(row), Detached: state.Detached}
	for i := range refused {
		response.Quarantined = append(response.Quarantined, quarantined(&refused[i]))
	}
	for _, m := range s.instances.Why(limited, id) {
		if m.Err != nil {
			response.Unheard = append(response.Unheard, &trestlev1.UnheardReplica{Replica: convert.ref(m.Incarnation), Reason: m.Err.Error()})
		}
		for _, d := range m.Decided {
			response.Decisions = append(response.Decisions, convert.decision(d, m.Incarnation))
		}
		for _, u := range m.Undecided {
			response.Waiting = append(response.Waiting, convert.waiting(u, m.Incarnation))
		}
	}
	if row == nil && len(response.Decisions)+len(response.Waiting)+len(response.Quarantined) == 0 {
		return nil, missingInstance(id, state, len(response.Unheard))
	}
	slices.SortStableFunc(response.Decisions, func(a, b *trestlev1.InstanceDecision) int {
		return cmp.Or(a.GetAt().AsTime().Compare(b.GetAt().AsTime()), cmp.Compare(a.GetEpoch(), b.GetEpoch()))
	})
	slices.SortStableFunc(response.Waiting, func(a, b *trestlev1.WaitingUpdates) int {
		return a.GetSince().AsTime().Compare(b.GetSince().AsTime())
	})
	slices.SortFunc(response.Unheard, func(a, b *trestlev1.UnheardReplica) int {
		return cmp.Compare(a.GetReplica().GetIncarnation(), b.GetReplica().GetIncarnation())
	})
	if row != nil {
		for i := range state.Shards {
			if sh := &state.Shards[i]; sh.ID.Cluster == row.Region && sh.ID.Contains(id) {
				response.Shard = convert.shard(sh)
			}
		}
	}
	return response, nil
}

func missingInstance(id status.InstanceID, state coordinator.State, unheard int) error {
	what := fmt.Sprintf("there is no row of instance %s, and no replica remembers to have heard of it", id)
	if unheard > 0 {
		what += fmt.Sprintf("; %d replicas could not be asked", unheard)
	}
	return &missingError{what: what, detached: state.Detached}
}

func instanceRow(r *store.InstanceRow) *trestlev1.InstanceRow {
	if r == nil {
		return nil
	}
	out := &trestlev1.InstanceRow{
		Workspace: r.WorkspaceID, Type: r.Type, Region: r.Region, Phase: r.Phase, Version: r.Version,
		Created: timestamp(r.Created), Deployed: timestamp(r.Deployed), Started: timestamp(r.Started),
		Stopping: timestamp(r.Stopping), Stopped: timestamp(r.Stopped),
		Message: r.Message, Failed: r.Failed, Timeout: r.Timeout, HeadlessTaskFailed: r.HeadlessTaskFailed, Node: r.NodeName,
		Deleted: r.Deleted, Swept: r.Swept,
	}
	if p := r.Prebuild; p != nil {
		out.Prebuild = &trestlev1.PrebuildRow{
			Id: p.ID, State: p.State, Error: p.Error, Snapshot: p.Snapshot, Version: p.Version, Instance: p.Instance,
		}
	}
	return out
}

func (c *converter) decision(d pipeline.Decided, who string) *trestlev1.InstanceDecision {
	out := &trestlev1.InstanceDecision{
		At: timestamp(d.At), Decision: decision(d.Decision), Updates: int64(d.Updates), Version: d.Version, Phase: string(d.Phase),
		Shard: d.Shard.String(), Replica: c.ref(who), Epoch: int64(d.Epoch),
	}
	if d.KnowsStored {
		out.Stored = &d.Stored
	}
	return out
}

func (c *converter) waiting(u pipeline.Undecided, who string) *trestlev1.WaitingUpdates {
	return &trestlev1.WaitingUpdates{
		Since: timestamp(u.Since), Updates: int64(u.Updates), Version: u.Version, Phase: string(u.Phase), InFlight: u.InFlight,
		Shard: u.Shard.String(), Replica: c.ref(who), Epoch: int64(u.Epoch),
	}
}

func decision(d trace.Decision) trestlev1.Decision {
	switch d {
	case trace.Applied:
		return trestlev1.Decision_DECISION_APPLIED
	case trace.Unchanged:
		return trestlev1.Decision_DECISION_UNCHANGED
	case trace.Repeat:
		return trestlev1.Decision_DECISION_REPEAT
	case trace.Stale:
		return trestlev1.Decision_DECISION_STALE
	case trace.Unknown:
		return trestlev1.Decision_DECISION_UNKNOWN
	case trace.Foreign:
		return trestlev1.Decision_DECISION_FOREIGN
	case trace.Fenced:
		return trestlev1.Decision_DECISION_FENCED
	case trace.Quarantined:
		return trestlev1.Decision_DECISION_QUARANTINED
	case trace.Invalid:
		return trestlev1.Decision_DECISION_INVALID
	case trace.Forgotten:
		return trestlev1.Decision_DECISION_FORGOTTEN
	}
	return trestlev1.Decision_DECISION_UNSPECIFIED // of a newer version
}

func quarantined(c *store.QuarantinedChange) *trestlev1.QuarantinedChange {
	out := &trestlev1.QuarantinedChange{
		Instance: c.Instance.String(), Cluster: c.Cluster, Type: string(c.Kind), Version: c.Version,
		Sqlstate: c.SQLState, Reason: c.Reason, First: timestamp(c.First), Last: timestamp(c.At), Times: c.Times, Past: c.Past(),
	}
	if c.HasRow {
		out.Stored = &c.Stored
	}
	return out
}

type quarantineService struct {
	trestlev1.UnimplementedQuarantineServiceServer

	fleet     Fleet
	instances Instances
	rows      Rows
	log       *slog.Logger
}

// ListQuarantine lists what was refused.
func (s *quarantineService) ListQuarantine(ctx context.Context, r *trestlev1.ListQuarantineRequest) (*trestlev1.ListQuarantineResponse, error) {
	f := store.QuarantineFilter{Cluster: r.GetCluster()}
	if r.GetInstance() != "" {
		id, err := parseInstance(r.GetInstance())
		if err != nil {
			return nil, err
		}
		f.Instance = &id
	}
	changes, total, err := s.rows.ListQuarantine(ctx, f, maxQuarantined)
	if err != nil {
		return nil, err
	}
	response := &trestlev1.ListQuarantineResponse{Total: total}
	for i := range changes {
		response.Changes = append(response.Changes, quarantined(&changes[i]))
	}
	return response, nil
}

// of gives what is in quarantine of an instance, which is something.
func (s *quarantineService) of(ctx context.Context, r described, instance string) (status.InstanceID, []store.QuarantinedChange, error) {
	id, err := parseInstance(instance)
	if err != nil {
		return id, nil, err
	}
	if err := checkDescribed(r); err != nil {
		return id, nil, err
	}
	changes, _, err := s.rows.ListQuarantine(ctx, store.QuarantineFilter{Instance: &id}, maxQuarantined)
	if err == nil && len(changes) == 0 {
		err = &missingError{what: fmt.Sprintf("nothing of instance %s is in quarantine; list the quarantine to see what is", id)}
	}
	return id, changes, err
}

// RetryQuarantined has the owner try again.
func (s *quarantineService) RetryQuarantined(ctx context.Context, r *trestlev1.RetryQuarantinedRequest) (*trestlev1.RetryQuarantinedResponse, error) {
	id, changes, err := s.of(ctx, r, r.GetInstance())
	if err != nil {
		return nil, err
	}
	state, _ := s.fleet.State()
	if !state.Known {
		return nil, errUnread
	}
	limited, cancel := early(ctx)
	defer cancel()
	// The last refused is by whom the instance was heard last.
	cluster := changes[0].Cluster
	who, decided, heard, err := s.instances.Retry(limited, cluster, id)
	note(ctx, "of", cluster, "decision", decision(decided.Decision).String())
	if err != nil {
		if errors.Is(err, pipeline.ErrCannotRetry) {
			return nil, err
		}
		return nil, &unretriedError{"the owner could not be asked, or has not answered; trace the instance to see whether it was tried, and try again", err}
	}
	response := &trestlev1.RetryQuarantinedResponse{Shard: decided.Shard.String(), Replica: newConverter(state, time.Now()).ref(who)}
	if heard {
		response.Decision, response.Version = decision(decided.Decision), decided.Version
	}
	// What was refused again meanwhile stays.
	if response.Removed, err = s.rows.DropQuarantine(ctx, changes); err == nil {
		changes, _, err = s.rows.ListQuarantine(ctx, store.QuarantineFilter{Instance: &id}, maxQuarantined)
	}
	if err != nil {
		return nil, &unretriedError{fmt.Sprintf("it was tried again (%s), but what is in quarantine could not be brought up to date; drop it, or try again", response.GetDecision()), err}
	}
	for i := range changes {
		response.Left = append(response.Left, quarantined(&changes[i]))
	}
	return response, nil
}

// DropQuarantined removes records.
func (s *quarantineService) DropQuarantined(ctx context.Context, r *trestlev1.DropQuarantinedRequest) (*trestlev1.DropQuarantinedResponse, error) {
	_, changes, err := s.of(ctx, r, r.GetInstance())
	if err != nil {
		return nil, err
	}
	removed, err := s.rows.DropQuarantine(ctx, changes)
	note(ctx, "removed", removed)
	return &trestlev1.DropQuarantinedResponse{Removed: removed}, err
}
