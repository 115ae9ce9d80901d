package api

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/trestle-bridge/trestle/coordinator"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
	"github.com/trestle-bridge/trestle/shard"
)

const maxPage = 1000

// ListShards lists the shards by id.
func (s *shardService) ListShards(_ context.Context, r *trestlev1.ListShardsRequest) (*trestlev1.ListShardsResponse, error) {
	if r.GetPageSize() < 0 {
		return nil, invalid("page_size", "is %d; leave it out for %d", r.GetPageSize(), maxPage)
	}
	for _, filter := range []struct{ field, name string }{{"cluster", r.GetCluster()}, {"replica", r.GetReplica()}} {
		if filter.name == "" {
			continue
		}
		if err := checkText(filter.field, filter.name, maxNameBytes); err != nil {
			return nil, err
		}
	}
	var after *shard.ID
	if token := r.GetPageToken(); token != "" {
		id, err := shard.ParseID(token)
		if err != nil {
			return nil, invalid("page_token", "is none that was given")
		}
		after = &id
	}
	state, err := s.state()
	if err != nil {
		return nil, err
	}
	if r.GetCluster() != "" {
		if err := clusterExists(state, r.GetCluster()); err != nil {
			return nil, err
		}
	}
	is := func(string) bool { return true }
	if r.GetReplica() != "" {
		if is, err = whoIs(state, r.GetReplica()); err != nil {
			return nil, err
		}
	}
	response := &trestlev1.ListShardsResponse{Detached: state.Detached}
	size := min(cmp.Or(int(r.GetPageSize()), maxPage), maxPage)
	convert := newConverter(state, time.Now())
	for i := range state.Shards {
		sh := &state.Shards[i]
		switch {
		case after != nil && sh.ID.Compare(*after) <= 0:
			continue
		case r.GetCluster() != "" && sh.ID.Cluster != r.GetCluster():
			continue
		case !is(sh.Stored.Owner) && !is(sh.Stored.Next):
			continue
		}
		if len(response.Shards) == size {
			response.NextPageToken = response.Shards[size-1].GetId()
			break
		}
		response.Shards = append(response.Shards, convert.shard(sh))
	}
	return response, nil
}

// whoIs says which incarnations are meant by a replica's name or incarnation.
func whoIs(state coordinator.State, replica string) (func(incarnation string) bool, error) {
	meant := make(map[string]bool)
	for _, r := range state.Replicas {
		if r.Incarnation == replica || r.Member.Name == replica {
			meant[r.Incarnation] = true
		}
	}
	if len(meant) == 0 {
		return nil, replicaExists(state, replica, false)
	}
	return func(incarnation string) bool { return meant[incarnation] }, nil
}

// ListReplicas lists the replicas by name.
func (s *shardService) ListReplicas(context.Context, *trestlev1.ListReplicasRequest) (*trestlev1.ListReplicasResponse, error) {
	state, err := s.state()
	if err != nil {
		return nil, err
	}
	convert := newConverter(state, time.Now())
	response := &trestlev1.ListReplicasResponse{Fleet: convert.fleet(s.me)}
	listed := make(map[string]bool)
	for i := range state.Replicas {
		r := convert.replica(&state.Replicas[i], s.me)
		listed[r.GetName()] = true
		response.Replicas = append(response.Replicas, r)
	}
	slices.SortStableFunc(response.Replicas, func(a, b *trestlev1.Replica) int {
		return cmp.Or(cmp.Compare(a.GetName(), b.GetName()), a.GetJoined().AsTime().Compare(b.GetJoined().AsTime()))
	})
	for name := range state.Drains {
		if drain := convert.drain(name); drain != nil && !listed[name] {
			response.OtherDrains = append(response.OtherDrains, drain)
		}
	}
	slices.SortFunc(response.OtherDrains, func(a, b *trestlev1.Drain) int { return cmp.Compare(a.GetReplica(), b.GetReplica()) })
	return response, nil
}

// ExplainCluster says all there is to say of a cluster.
func (s *shardService) ExplainCluster(_ context.Context, r *trestlev1.ExplainClusterRequest) (*trestlev1.ExplainClusterResponse, error) {
	if err := checkText("cluster", r.GetCluster(), maxNameBytes); err != nil {
		return nil, err
	}
	state, err := s.state()
	if err != nil {
		return nil, err
	}
	if err := clusterExists(state, r.GetCluster()); err != nil {
		return nil, err
	}
	plan := s.fleet.Plan()
	convert := newConverter(state, time.Now())
	cut := state.Clusters[r.GetCluster()]
	response := &trestlev1.ExplainClusterResponse{
		Cluster: r.GetCluster(), Slices: int32(max(cut.Slices, 1)), Generation: cut.Generation,
		Reslice: reslice(cut.Reslice), Fleet: convert.fleet(s.me),
	}
	var ids []shard.ID
	for i := range state.Shards {
		sh := &state.Shards[i]
		if sh.ID.Cluster != r.GetCluster() {
			continue
		}
		explained := &trestlev1.ExplainedShard{Shard: convert.shard(sh)}
		for _, u := range plan.Unplaced {
			if u.Shard == sh.ID {
				explained.Unplaced = unplacedReason(u.Why)
			}
		}
		for _, m := range plan.Moves {
			if m.Shard == sh.ID {
				explained.Planned = convert.move(m)
			}
		}
		response.Shards = append(response.Shards, explained)
		ids = append(ids, sh.ID)
	}
	for i, ranks := range s.fleet.Ranks(ids) {
		for _, ranked := range ranks {
			response.Shards[i].Preferences = append(response.Shards[i].Preferences, convert.preference(ranked))
		}
	}
	for _, p := range plan.Proposals {
		if p.Cluster == r.GetCluster() {
			response.Proposals = append(response.Proposals, proposal(p))
		}
	}
	return response, nil
}

// PlanRebalance says what the planner would do.
func (s *shardService) PlanRebalance(context.Context, *trestlev1.PlanRebalanceRequest) (*trestlev1.PlanRebalanceResponse, error) {
	state, err := s.state()
	if err != nil {
		return nil, err
	}
	plan := s.fleet.Plan()
	convert := newConverter(state, time.Now())
	response := &trestlev1.PlanRebalanceResponse{
		Before: imbalance(plan.Before), After: imbalance(plan.After), Fleet: convert.fleet(s.me),
	}
	for _, m := range plan.Moves {
		response.Moves = append(response.Moves, convert.move(m))
	}
	for _, id := range plan.Cancel {
		response.Cancelled = append(response.Cancelled, id.String())
	}
	for _, u := range plan.Unplaced {
		response.Unplaced = append(response.Unplaced, &trestlev1.Unplaced{Shard: u.Shard.String(), Reason: unplacedReason(u.Why)})
	}
	for _, who := range plan.Overloaded {
		response.Overloaded = append(response.Overloaded, convert.ref(who))
	}
	for _, p := range plan.Proposals {
		response.Proposals = append(response.Proposals, proposal(p))
	}
	return response, nil
}

// ListCommands lists the last changes, newest first.
func (s *shardService) ListCommands(context.Context, *trestlev1.ListCommandsRequest) (*trestlev1.ListCommandsResponse, error) {
	state, err := s.state()
	if err != nil {
		return nil, err
	}
	response := &trestlev1.ListCommandsResponse{Detached: state.Detached}
	for _, c := range slices.Backward(state.Commands) {
		response.Commands = append(response.Commands, command(c))
	}
	return response, nil
}
