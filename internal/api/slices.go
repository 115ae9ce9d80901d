package api

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/trestle-bridge/trestle/coordinator"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
)

// ListSlices says how each cluster is cut.
func (s *shardService) ListSlices(context.Context, *trestlev1.ListSlicesRequest) (*trestlev1.ListSlicesResponse, error) {
	state, err := s.state()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	convert := newConverter(state, now)
	cuts := make(map[string]*trestlev1.Cut)
	owners := make(map[string]map[string]bool)
	for i := range state.Shards {
		sh := &state.Shards[i]
		name := sh.ID.Cluster
		cut := cuts[name]
		if cut == nil {
			stored := state.Clusters[name]
			cut = &trestlev1.Cut{Cluster: name, Slices: int32(max(stored.Slices, 1)), Generation: stored.Generation, Reslice: reslice(stored.Reslice)}
			cuts[name], owners[name] = cut, make(map[string]bool)
		}
		if owner := sh.Stored.Owner; owner != "" && !owners[name][owner] {
			owners[name][owner] = true
			cut.Owners = append(cut.Owners, convert.ref(owner))
		}
		cut.Weight += sh.Stored.Weight
		cut.Rate += sh.Measured.Rate
		cut.LiveInstances += int64(sh.Measured.Live)
	}
	for name, cut := range cuts {
		cut.Pinned = int32(len(pinnedOf(state, name, now)))
	}
	for _, p := range s.fleet.Plan().Proposals {
		if cut := cuts[p.Cluster]; cut != nil {
			cut.Proposal = proposal(p)
		}
	}
	response := &trestlev1.ListSlicesResponse{Detached: state.Detached}
	for _, name := range slices.Sorted(maps.Keys(cuts)) {
		response.Cuts = append(response.Cuts, cuts[name])
	}
	return response, nil
}

// pinnedOf names the shards of a cluster that are pinned.
func pinnedOf(state coordinator.State, cluster string, now time.Time) (pinned []string) {
	for _, sh := range state.Shards {
		p := sh.Stored.Pin
		if sh.ID.Cluster == cluster && p.Replica != "" && (p.Until.IsZero() || now.Before(p.Until)) {
			pinned = append(pinned, sh.ID.String())
		}
	}
	return pinned
}
