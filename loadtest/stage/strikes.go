package stage

import (
	"context"
	"fmt"

	"github.com/trestle-bridge/trestle/internal/devstack/faultproxy"
	"github.com/trestle-bridge/trestle/loadtest/fleet"
	"github.com/trestle-bridge/trestle/loadtest/operator"
	"github.com/trestle-bridge/trestle/loadtest/scenario"
)

// Choose makes a strike of a fault; clusters have names by their numbers.
func (o *Own) Choose(ctx context.Context, f *scenario.Fault, cluster func(int) string, draw float64) (*Strike, error) {
	switch f.Target.Kind {
	case scenario.Postgres, scenario.Redis, scenario.Etcd:
		return o.server(f)
	}
	switch f.Do {
	case "start":
		return &Strike{
			Target: fmt.Sprintf("%d more", f.Count), What: "more replicas start",
			Begin:   func(ctx context.Context) error { return o.start(ctx, f.Count) },
			Recover: o.awaitSpread,
		}, nil
	case "upgrade":
		return &Strike{
			Target: "all replicas", What: "each replica is replaced by one of the next revision",
			Begin:   o.upgrade,
			Recover: func(ctx context.Context) error { return awaitCarried(ctx, o.operator) },
		}, nil
	case "slice":
		return operated(f, o.operator, "", cluster)
	}
	targets, err := o.replicasOf(ctx, f.Target, cluster, draw)
	if err != nil {
		return nil, err
	}
	if f.Do == "drain" {
		return operated(f, o.operator, targets[0].Name, cluster)
	}
	var strikes []*Strike
	for _, r := range targets {
		s, err := o.process(f, r)
		if err != nil {
			return nil, err
		}
		strikes = append(strikes, s)
	}
	return together(strikes), nil
}

// replicasOf are the living replicas that a target means.
func (o *Own) replicasOf(ctx context.Context, t scenario.Target, cluster func(int) string, draw float64) ([]*fleet.Replica, error) {
	living := o.fleet.Living()
	if t.Kind == scenario.AllReplicas {
		return living, nil
	}
	name, err := replicaOf(ctx, o.operator, t, cluster, draw)
	if err != nil {
		return nil, err
	}
	for _, r := range living {
		if r.Name == name {
			return []*fleet.Replica{r}, nil
		}
	}
	return nil, fmt.Errorf("%s, which is %s, does not live", name, t)
}

// process makes a strike of what is done to the process of a replica.
func (o *Own) process(f *scenario.Fault, r *fleet.Replica) (*Strike, error) {
	s := &Strike{Target: r.Name, Recover: func(ctx context.Context) error { return awaitCarried(ctx, o.operator, r.Incarnation) }}
	switch f.Do {
	case "kill":
		s.What = r.Name + " is killed (SIGKILL)"
		s.Begin = func(context.Context) error {
			o.leave(r)
			o.ended(r, "killed", true)
			return r.Kill()
		}
	case "stop":
		s.What = r.Name + " is told to stop (SIGTERM)"
		s.Begin = func(ctx context.Context) error {
			o.leave(r)
			if err := r.Stop(ctx); err != nil {
				return err
			}
			o.ended(r, "stopped", false)
			return nil
		}
	case "hold":
		s.What = r.Name + " is held (SIGSTOP), and goes on later"
		s.Begin = func(context.Context) error {
			if o.cfg.Told.Held != nil {
				o.cfg.Told.Held(r.Name)
			}
			return r.Hold()
		}
		if f.Until == scenario.Replaced {
			s.Until = s.Recover
		}
		s.End = func(context.Context) error { return r.Go() }
		s.Recover = func(ctx context.Context) error {
			err := await(ctx, r.Name+" knows that others have replaced it", func(ctx context.Context) (bool, error) {
				sums, err := r.Sums(ctx)
				return err == nil && sums["trestle_detached"] == 0, err
			})
			if err != nil {
				return err
			}
			return awaitCarried(ctx, o.operator)
		}
		return s, nil
	default:
		return nil, fmt.Errorf("%s is nothing that can be done to a replica", f.Do)
	}
	if f.For > 0 {
		s.What += ", and starts again"
		s.End = func(ctx context.Context) error { return o.launch(ctx, r.Name, r.Revision) }
	}
	return s, nil
}

// upgrade replaces each replica by one of the next revision, one after the
// other, as a rollout does.
func (o *Own) upgrade(ctx context.Context) error {
	o.mu.Lock()
	o.revision++
	o.mu.Unlock()
	for _, old := range o.fleet.Living() {
		if err := o.start(ctx, 1); err != nil {
			return err
		}
		o.leave(old)
		if err := old.Stop(ctx); err != nil {
			return err
		}
		o.ended(old, "replaced", false)
	}
	return nil
}

// awaitSpread returns when each replica carries something, if there are enough
// shards for that.
func (o *Own) awaitSpread(ctx context.Context) error {
	return await(ctx, "each replica carries something", func(ctx context.Context) (bool, error) {
		shards, err := o.operator.Shards(ctx)
		if err != nil || !carried(shards) {
			return false, err
		}
		owners := make(map[string]bool)
		for _, s := range shards {
			owners[operator.ReplicaName(s.GetOwner())] = true
		}
		return len(owners) >= min(len(o.fleet.Living()), len(shards)), nil
	})
}

// server makes a strike of what is done to a server, or to the connections of
// the service to it.
func (o *Own) server(f *scenario.Fault) (*Strike, error) {
	name := map[scenario.TargetKind]string{scenario.Postgres: "PostgreSQL", scenario.Redis: "Redis", scenario.Etcd: "etcd"}[f.Target.Kind]
	s := &Strike{Target: name, Recover: func(ctx context.Context) error { return o.awaitCalm(ctx) }}
	switch {
	case f.Connection():
		Connections(f, s, o.proxies[f.Target.Kind])
	case f.Do == "outage" && f.Target.Kind == scenario.Postgres:
		s.What = "PostgreSQL is stopped, and started again"
		s.Begin, s.End = o.alone(o.stack.Postgres.Stop), o.alone(o.stack.Postgres.Start)
	case f.Do == "outage" && f.Target.Kind == scenario.Etcd:
		s.What = "etcd is stopped, and started again"
		s.Begin, s.End = o.alone(func(context.Context) error { return o.stack.Etcd.Stop() }), o.alone(o.stack.Etcd.Start)
	case f.Do == "wipe":
		s.What = "etcd loses all that it holds"
		s.Begin = o.alone(o.stack.Etcd.Wipe)
	default:
		return nil, fmt.Errorf("%s is nothing that can be done to %s", f.Do, name)
	}
	return s, nil
}

// alone has a server started or stopped by one goroutine at a time.
func (o *Own) alone(f func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		o.servers.Lock()
		defer o.servers.Unlock()
		return f(ctx)
	}
}

// awaitCalm returns when no replica is cut off from etcd, each shard is carried,
// and nothing waits in the outbox for Redis.
func (o *Own) awaitCalm(ctx context.Context) error {
	err := await(ctx, "no replica is cut off from etcd, or behind with what it has to tell", func(ctx context.Context) (bool, error) {
		for _, r := range o.fleet.Living() {
			sums, err := r.Sums(ctx)
			if err != nil || sums["trestle_detached"] != 0 || sums["trestle_pipeline_outbox_behind"] != 0 {
				return false, err
			}
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	return awaitCarried(ctx, o.operator)
}

// Connections makes a strike of what is done to the connections through a proxy.
func Connections(f *scenario.Fault, s *Strike, proxies ...*faultproxy.Proxy) {
	each := func(f func(*faultproxy.Proxy)) func(context.Context) error {
		return func(context.Context) error {
			for _, p := range proxies {
				f(p)
			}
			return nil
		}
	}
	to := "connections to " + s.Target
	s.End = each((*faultproxy.Proxy).Up)
	switch f.Do {
	case "refuse", "outage":
		s.What, s.Begin = to+" are cut and refused", each((*faultproxy.Proxy).Down)
	case "cut":
		s.What, s.Begin, s.End = to+" are cut", each((*faultproxy.Proxy).Cut), nil
	case "freeze":
		s.What, s.Begin = "nothing passes on "+to, each((*faultproxy.Proxy).Freeze)
	case "delay":
		s.What, s.Begin = fmt.Sprintf("%s are late by %v each way", to, f.Delay), each(func(p *faultproxy.Proxy) { p.Delay(f.Delay) })
	case "lose-answers":
		s.What, s.Begin = "answers on "+to+" are thrown away", each((*faultproxy.Proxy).Swallow)
	}
}
