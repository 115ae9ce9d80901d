// Package stage is where scenarios are played: a fleet of replicas that the load
// test starts itself, with a database, a Redis and an etcd of their own, or an
// installation that exists. It does to them what faults ask for.
//
// It judges nothing. Whoever makes a stage closes it.
package stage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/trestle-bridge/trestle/loadtest/operator"
	"github.com/trestle-bridge/trestle/loadtest/record"
	"github.com/trestle-bridge/trestle/loadtest/scenario"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
)

// Told hears what becomes of replicas. Its functions are called by whoever does
// it to them.
type Told struct {
	Started func(replica, revision string)
	// Ended: lost says that it let go of nothing.
	Ended func(replica, how string, lost bool)
	// Held is a replica that is held, and lost as far as the others can tell.
	Held func(replica string)
}

// Strike is a fault whose target has been chosen. Functions that are nil have
// nothing to do.
type Strike struct {
	// Target is whom it strikes, What happens, in words.
	Target, What string
	// Begin does it, and returns when it is done; Until waits for what must have
	// come about before End takes it back.
	Begin, Until, End func(context.Context) error
	// Recover returns when all is as before, as far as can be told.
	Recover func(context.Context) error
}

// do calls f, unless it is nil.
func do(ctx context.Context, f func(context.Context) error) error {
	if f == nil {
		return nil
	}
	return f(ctx)
}

// together makes one of several, which happen one after the other.
func together(strikes []*Strike) *Strike {
	if len(strikes) == 1 {
		return strikes[0]
	}
	all := &Strike{What: strikes[0].What}
	for i, s := range strikes {
		if i > 0 {
			all.Target += ", "
		}
		all.Target += s.Target
	}
	each := func(pick func(*Strike) func(context.Context) error) func(context.Context) error {
		return func(ctx context.Context) error {
			for _, s := range strikes {
				if err := do(ctx, pick(s)); err != nil {
					return err
				}
			}
			return nil
		}
	}
	all.Begin = each(func(s *Strike) func(context.Context) error { return s.Begin })
	all.Until = each(func(s *Strike) func(context.Context) error { return s.Until })
	all.End = each(func(s *Strike) func(context.Context) error { return s.End })
	all.Recover = each(func(s *Strike) func(context.Context) error { return s.Recover })
	return all
}

// patience is how long what is to come about may take before the load test says
// that it does not. It is no measure of speed.
const patience = 90 * time.Second

// await asks now and then whether something has become true.
func await(ctx context.Context, what string, is func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last error
	for {
		ok, err := is(ctx)
		if err == nil && ok {
			return nil
		}
		if err != nil && ctx.Err() == nil {
			last = err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("wait until %s: %w", what, ctx.Err()), last)
		}
	}
}

// carried says whether each shard rests with an owner that writes it, none of
// which is one of those given by their incarnations.
func carried(shards []*trestlev1.Shard, but ...string) bool {
	for _, s := range shards {
		if s.GetPhase() != trestlev1.ShardPhase_SHARD_PHASE_OWNED || s.GetEpochObserved() != s.GetEpochIntended() || s.GetEpochObserved() == 0 {
			return false
		}
		for _, incarnation := range but {
			if s.GetOwner().GetIncarnation() == incarnation {
				return false
			}
		}
	}
	return len(shards) > 0
}

// awaitCarried returns when each shard is carried, by others than those given.
func awaitCarried(ctx context.Context, o *operator.Operator, but ...string) error {
	return await(ctx, "every shard is carried", func(ctx context.Context) (bool, error) {
		shards, err := o.Shards(ctx)
		return err == nil && carried(shards, but...), err
	})
}

// operated is what an operator can do on any stage.
func operated(f *scenario.Fault, o *operator.Operator, replica string, cluster func(int) string) (*Strike, error) {
	switch f.Do {
	case "drain":
		return &Strike{
			Target: replica, What: "an operator drains " + replica,
			Begin: func(ctx context.Context) error { return o.Drain(ctx, replica, 10*f.For+time.Minute) },
			Until: func(ctx context.Context) error {
				return await(ctx, replica+" has nothing left", func(ctx context.Context) (bool, error) {
					shards, err := o.Shards(ctx)
					for _, s := range shards {
						if operator.ReplicaName(s.GetOwner()) == replica {
							return false, err
						}
					}
					return err == nil && carried(shards), err
				})
			},
			End: func(ctx context.Context) error { return o.Undrain(ctx, replica) },
		}, nil
	case "slice":
		name := cluster(f.Target.Cluster)
		return &Strike{
			Target: name, What: fmt.Sprintf("an operator cuts %s into %d slices", name, f.Slices),
			Begin: func(ctx context.Context) error { return o.Slice(ctx, name, f.Slices) },
			Recover: func(ctx context.Context) error {
				return await(ctx, fmt.Sprintf("%s has %d slices", name, f.Slices), func(ctx context.Context) (bool, error) {
					shards, err := o.Shards(ctx)
					n := 0
					for _, s := range shards {
						if s.GetCluster() == name && int(s.GetSlices()) == f.Slices {
							n++
						}
					}
					return err == nil && n == f.Slices && carried(shards), err
				})
			},
		}, nil
	}
	return nil, fmt.Errorf("%s of %s cannot be done here", f.Do, f.Target)
}

// Facts are what a recording says of a stage.
type Facts struct {
	Installation record.Installation
	Product      string
	Parts        []record.Setting
}

// replicaOf chooses the replica that a target means, by name, from what the
// service says of itself. draw is from 0 up to below 1.
func replicaOf(ctx context.Context, o *operator.Operator, t scenario.Target, cluster func(int) string, draw float64) (string, error) {
	var name string
	err := await(ctx, "a replica is found that is "+t.String(), func(ctx context.Context) (bool, error) {
		if t.Kind == scenario.OwnerOf {
			shards, err := o.Shards(ctx)
			for _, s := range shards {
				if s.GetCluster() == cluster(t.Cluster) && s.GetOwner() != nil {
					name = operator.ReplicaName(s.GetOwner())
				}
			}
			return name != "", err
		}
		answer, err := o.Replicas(ctx)
		if err != nil {
			return false, err
		}
		name = choose(answer.GetReplicas(), t, draw)
		return name != "", nil
	})
	return name, err
}

// choose is replicaOf but for the asking; "" if there is none.
func choose(replicas []*trestlev1.Replica, t scenario.Target, draw float64) string {
	var live []*trestlev1.Replica
	for _, r := range replicas {
		if r.GetState() == trestlev1.ReplicaState_REPLICA_STATE_LIVE {
			live = append(live, r)
		}
	}
	var found *trestlev1.Replica
	for i, r := range live {
		switch t.Kind {
		case scenario.Leader:
			if r.GetLeads() {
				found = r
			}
		case scenario.Owner:
			// The one with most; one that leads only if nobody else has any.
			better := found == nil || found.GetLeads() && !r.GetLeads() ||
				found.GetLeads() == r.GetLeads() && r.GetShards() > found.GetShards()
			if r.GetShards() > 0 && better {
				found = r
			}
		case scenario.AnyReplica:
			if i == int(draw*float64(len(live))) {
				found = r
			}
		case scenario.NamedReplica:
			if r.GetName() == t.Name {
				found = r
			}
		}
	}
	return found.GetName()
}
