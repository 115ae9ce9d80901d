package api

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/trestle-bridge/trestle/coordinator"
	"github.com/trestle-bridge/trestle/internal/sweep"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
	"github.com/trestle-bridge/trestle/shard"
)

// Fleet is what is known of all replicas, and who acts on what operators wish;
// see coordinator.Coordinator. All of it is safe for concurrent use, and only Do
// waits.
type Fleet interface {
	State() (coordinator.State, <-chan struct{})
	Do(ctx context.Context, command coordinator.Command) error
	Plan() shard.Plan
	Ranks(ids []shard.ID) [][]shard.Ranked
}

// Sweeps asks for the leader's rounds, from any replica. The errors wrap
// sweep.ErrUnknownCluster, sweep.ErrNotHeld and sweep.ErrNotLeading; any other
// means that it is not known whether the leader was reached. It is safe for concurrent use.
type Sweeps interface {
	Request(ctx context.Context, cluster string) error
	Confirm(ctx context.Context, cluster string) error
}

const (
	// Whoever wonders why reads them in a table.
	maxReasonBytes = 512
	maxAuthorBytes = 128
	// A shard's name has a slice behind the cluster's, each # of which is doubled.
	maxShardBytes = 2*maxNameBytes + 16
	// maxNamed is how many names an error lists.
	maxNamed = 20
)

// shardService keeps nothing of the fleet but the last look of those who
// watch: it may be called by any number of clients at once.
type shardService struct {
	trestlev1.UnimplementedShardServiceServer

	fleet  Fleet
	sweeps Sweeps
	me     string // incarnation
	looks  *looks
	// seats bounds those who watch: each puts one in and takes one out.
	seats chan struct{}
	// stopping is closed when the server is to end.
	stopping <-chan struct{}
}

// state is what is known, unless that is nothing.
func (s *shardService) state() (coordinator.State, error) {
	state, _ := s.fleet.State()
	if !state.Known {
		return state, errUnread
	}
	return state, nil
}

// described is a change by an operator.
type described interface {
	GetReason() string
	GetAuthor() string
}

// lapsing is a change that holds, or waits, no longer than for some time.
type lapsing interface {
	described
	GetValidFor() *durationpb.Duration
}

func checkDescribed(r described) error {
	if err := checkText("reason", r.GetReason(), maxReasonBytes); err != nil {
		return err
	}
	return checkText("author", r.GetAuthor(), maxAuthorBytes)
}

// do has the leader act on a command. What it names was looked up, for a better
// answer than the leader's; the leader decides.
func (s *shardService) do(ctx context.Context, r lapsing, c coordinator.Command, exists func(coordinator.State) error) error {
	if err := checkDescribed(r); err != nil {
		return err
	}
	c.Reason, c.Author = r.GetReason(), r.GetAuthor()
	if lasts := r.GetValidFor(); lasts != nil {
		if err := lasts.CheckValid(); err != nil || lasts.AsDuration() <= 0 {
			return invalid("valid_for", "has to be more than nothing; leave it out for no end")
		}
		c.Until = time.Now().Add(lasts.AsDuration()).UTC()
	}
	state, err := s.state()
	if err != nil {
		return err
	}
	if exists != nil {
		if err := exists(state); err != nil {
			return err
		}
	}
	if c.Slices != 0 {
		note(ctx, "slices", c.Slices)
	}
	if !c.Until.IsZero() {
		note(ctx, "until", c.Until)
	}
	limited, cancel := early(ctx)
	defer cancel()
	err = s.fleet.Do(limited, c)
	if err != nil && !errors.Is(err, coordinator.ErrCommand) && !errors.Is(err, coordinator.ErrUnanswered) {
		err = &unwrittenError{err}
	}
	return err
}

// early ends before the call does, so that the answer reaches the client while
// it still listens.
func early(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, limited := ctx.Deadline()
	if !limited {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, deadline.Add(-min(time.Until(deadline)/10, time.Second)))
}

// Pin ties a shard to a replica.
func (s *shardService) Pin(ctx context.Context, r *trestlev1.PinRequest) (*trestlev1.PinResponse, error) {
	id, err := parseShard(r.GetShard())
	if err != nil {
		return nil, err
	}
	if err := checkText("replica", r.GetReplica(), maxNameBytes); err != nil {
		return nil, err
	}
	c := coordinator.Command{Kind: coordinator.CommandPin, Shard: id.String(), Replica: r.GetReplica()}
	return &trestlev1.PinResponse{}, s.do(ctx, r, c, func(state coordinator.State) error {
		if err := shardExists(state, id); err != nil {
			return err
		}
		return replicaExists(state, r.GetReplica(), false)
	})
}

// Unpin takes a pin back.
func (s *shardService) Unpin(ctx context.Context, r *trestlev1.UnpinRequest) (*trestlev1.UnpinResponse, error) {
	id, err := parseShard(r.GetShard())
	if err != nil {
		return nil, err
	}
	c := coordinator.Command{Kind: coordinator.CommandUnpin, Shard: id.String()}
	return &trestlev1.UnpinResponse{}, s.do(ctx, r, c, func(state coordinator.State) error { return shardExists(state, id) })
}

// DrainReplica empties a replica.
func (s *shardService) DrainReplica(ctx context.Context, r *trestlev1.DrainReplicaRequest) (*trestlev1.DrainReplicaResponse, error) {
	if err := checkText("replica", r.GetReplica(), maxNameBytes); err != nil {
		return nil, err
	}
	c := coordinator.Command{Kind: coordinator.CommandDrain, Replica: r.GetReplica()}
	return &trestlev1.DrainReplicaResponse{}, s.do(ctx, r, c, func(state coordinator.State) error {
		return replicaExists(state, r.GetReplica(), false)
	})
}

// UndrainReplica lets a replica take shards again.
func (s *shardService) UndrainReplica(ctx context.Context, r *trestlev1.UndrainReplicaRequest) (*trestlev1.UndrainReplicaResponse, error) {
	if err := checkText("replica", r.GetReplica(), maxNameBytes); err != nil {
		return nil, err
	}
	c := coordinator.Command{Kind: coordinator.CommandUndrain, Replica: r.GetReplica()}
	return &trestlev1.UndrainReplicaResponse{}, s.do(ctx, r, c, func(state coordinator.State) error {
		return replicaExists(state, r.GetReplica(), true)
	})
}

// Freeze lets nothing move but shards without an owner.
func (s *shardService) Freeze(ctx context.Context, r *trestlev1.FreezeRequest) (*trestlev1.FreezeResponse, error) {
	return &trestlev1.FreezeResponse{}, s.do(ctx, r, coordinator.Command{Kind: coordinator.CommandFreeze}, nil)
}

// Unfreeze takes a freeze back.
func (s *shardService) Unfreeze(ctx context.Context, r *trestlev1.UnfreezeRequest) (*trestlev1.UnfreezeResponse, error) {
	return &trestlev1.UnfreezeResponse{}, s.do(ctx, r, coordinator.Command{Kind: coordinator.CommandUnfreeze}, nil)
}

// SetSlices cuts a cluster into another number of slices.
func (s *shardService) SetSlices(ctx context.Context, r *trestlev1.SetSlicesRequest) (*trestlev1.SetSlicesResponse, error) {
	if err := checkText("cluster", r.GetCluster(), maxNameBytes); err != nil {
		return nil, err
	}
	if r.GetSlices() < 1 || r.GetSlices() > shard.MaxSlices {
		return nil, invalid("slices", "is %d; from 1 to %d are possible", r.GetSlices(), shard.MaxSlices)
	}
	c := coordinator.Command{Kind: coordinator.CommandSlices, Cluster: r.GetCluster(), Slices: int(r.GetSlices())}
	response := &trestlev1.SetSlicesResponse{}
	err := s.do(ctx, r, c, func(state coordinator.State) error {
		if max(state.Clusters[r.GetCluster()].Slices, 1) != int(r.GetSlices()) {
			response.Unpinned = pinnedOf(state, r.GetCluster(), time.Now())
		}
		return clusterExists(state, r.GetCluster())
	})
	return response, err
}

// ReleaseBrake lets shards move again after a loss of many replicas.
func (s *shardService) ReleaseBrake(ctx context.Context, r *trestlev1.ReleaseBrakeRequest) (*trestlev1.ReleaseBrakeResponse, error) {
	return &trestlev1.ReleaseBrakeResponse{}, s.do(ctx, r, coordinator.Command{Kind: coordinator.CommandBrakeRelease}, nil)
}

// RequestSweep asks for a round of a cluster.
func (s *shardService) RequestSweep(ctx context.Context, r *trestlev1.RequestSweepRequest) (*trestlev1.RequestSweepResponse, error) {
	return &trestlev1.RequestSweepResponse{}, s.sweep(ctx, r, r.GetCluster(), s.sweeps.Request)
}

// ConfirmSweep has rows stopped that are held back.
func (s *shardService) ConfirmSweep(ctx context.Context, r *trestlev1.ConfirmSweepRequest) (*trestlev1.ConfirmSweepResponse, error) {
	return &trestlev1.ConfirmSweepResponse{}, s.sweep(ctx, r, r.GetCluster(), s.sweeps.Confirm)
}

func (s *shardService) sweep(ctx context.Context, r described, cluster string, ask func(context.Context, string) error) error {
	if err := checkText("cluster", cluster, maxNameBytes); err != nil {
		return err
	}
	if err := checkDescribed(r); err != nil {
		return err
	}
	state, err := s.state()
	if err != nil {
		return err
	}
	limited, cancel := early(ctx)
	defer cancel()
	err = ask(limited, cluster)
	switch {
	case errors.Is(err, sweep.ErrUnknownCluster):
		err = &noRoundsError{clusterExists(state, cluster), err}
	case err != nil && !errors.Is(err, sweep.ErrNotHeld) && !errors.Is(err, sweep.ErrNotLeading):
		err = &unledError{err}
	}
	return err
}

func parseShard(name string) (shard.ID, error) {
	if err := checkText("shard", name, maxShardBytes); err != nil {
		return shard.ID{}, err
	}
	id, err := shard.ParseID(name)
	if err != nil {
		return id, invalid("shard", "%v; give a cluster (eu01) or a slice of one (eu01#2/4)", err)
	}
	return id, nil
}

func shardExists(state coordinator.State, id shard.ID) error {
	var all, siblings []string
	for _, sh := range state.Shards {
		if sh.ID == id {
			return nil
		}
		all = append(all, sh.ID.String())
		if sh.ID.Cluster == id.Cluster {
			siblings = append(siblings, sh.ID.String())
		}
	}
	if siblings != nil {
		return missing(state, "shard", id.String(), fmt.Sprintf("cluster %s has ", id.Cluster), siblings)
	}
	return missing(state, "shard", id.String(), "there are ", all)
}

// replicaExists looks for a replica by name, or, if that will do, for a drain
// of it.
func replicaExists(state coordinator.State, name string, drained bool) error {
	named := make(map[string]bool)
	for _, r := range state.Replicas {
		named[r.Member.Name] = true
	}
	if drained {
		for drain := range state.Drains {
			named[drain] = true
		}
	}
	if named[name] {
		return nil
	}
	return missing(state, "replica", name, "there are ", slices.Sorted(maps.Keys(named)))
}

func clusterExists(state coordinator.State, cluster string) error {
	named := make(map[string]bool)
	for _, sh := range state.Shards {
		named[sh.ID.Cluster] = true
	}
	if named[cluster] {
		return nil
	}
	return missing(state, "cluster", cluster, "there are ", slices.Sorted(maps.Keys(named)))
}

func missing(state coordinator.State, kind, name, before string, exist []string) error {
	what := fmt.Sprintf("there is no %s %q", kind, name)
	switch {
	case len(exist) == 0:
		what += fmt.Sprintf("; there is no %s at all", kind)
	case len(exist) > maxNamed:
		what += fmt.Sprintf("; %s%s and %d more", before, strings.Join(exist[:maxNamed], ", "), len(exist)-maxNamed)
	default:
		what += "; " + before + strings.Join(exist, ", ")
	}
	return &missingError{what: what, detached: state.Detached}
}
