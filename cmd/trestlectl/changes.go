package main

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
	"github.com/trestle-bridge/trestle/shard"
)

// wish is what every change of the fleet comes with.
type wish struct {
	reason, author string
	lasts          time.Duration
}

func (w *wish) validFor() *durationpb.Duration {
	if w.lasts == 0 {
		return nil
	}
	return durationpb.New(w.lasts)
}

// author is who asks, as far as the machine knows.
func author() string {
	name := "unknown"
	if u, err := user.Current(); err == nil && u.Username != "" {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}

// changing completes a command that changes something. lasts says for people
// what --for means, and is empty where it means nothing.
func (p *program) changing(c *cobra.Command, args []argument, lasts string, do func(context.Context, *replica, []string, *wish) (answer proto.Message, said string, err error)) *cobra.Command {
	p.takes(c, args)
	w := &wish{}
	c.Flags().StringVar(&w.reason, "reason", "", "why, for those who wonder later; required")
	c.Flags().StringVar(&w.author, "author", author(), "who asks for it")
	if lasts != "" {
		c.Flags().DurationVar(&w.lasts, "for", 0, lasts+", such as 90m; without it there is no end")
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		p.started = true
		switch {
		case strings.TrimSpace(w.reason) == "":
			return usage("--reason is missing: say why, for those who wonder later")
		case strings.TrimSpace(w.author) == "":
			return usage("--author is empty: say who asks for it")
		case c.Flags().Changed("for") && w.lasts <= 0:
			return usage("--for %s: give a time above 0, such as 90m, or leave it out for no end", w.lasts)
		}
		return p.change(c.Context(), func(ctx context.Context, r *replica) error {
			answer, said, err := do(ctx, r, args, w)
			if err != nil {
				return err
			}
			return p.print(answer, func(g *page) { g.line("%s", said) })
		})
	}
	return c
}

// tracked is changing for what the leader acts on, and lists.
func (p *program) tracked(c *cobra.Command, args []argument, lasts string, do func(context.Context, *replica, []string, *wish) (proto.Message, string, error)) *cobra.Command {
	return p.changing(c, args, lasts, func(ctx context.Context, r *replica, args []string, w *wish) (proto.Message, string, error) {
		p.trace = "trestlectl commands"
		answer, said, err := do(ctx, r, args, w)
		if w.lasts > 0 && strings.HasPrefix(lasts, holds) {
			said += fmt.Sprintf(" It lapses in %s.", w.lasts)
		}
		return answer, said, err
	})
}

// What --for means.
const (
	holds = "how long it holds"
	waits = "how long it may wait for a leader to act on it"
)

func (p *program) pin() *cobra.Command {
	return p.tracked(&cobra.Command{
		Use:   "pin",
		Short: "Tie a shard to a replica, as long as that lives and does not drain",
	}, []argument{{"SHARD", p.knownShards}, {"REPLICA", p.knownReplicas}}, holds, func(ctx context.Context, r *replica, args []string, w *wish) (proto.Message, string, error) {
		answer, err := r.shards().Pin(ctx, &trestlev1.PinRequest{Shard: args[0], Replica: args[1], Reason: w.reason, Author: w.author, ValidFor: w.validFor()})
		return answer, fmt.Sprintf("%s is pinned to %s, and moves there soon if it is elsewhere.", args[0], args[1]), err
	})
}

func (p *program) unpin() *cobra.Command {
	return p.tracked(&cobra.Command{
		Use:   "unpin",
		Short: "Let a shard go where the planner wants it",
	}, []argument{{"SHARD", p.knownShards}}, waits, func(ctx context.Context, r *replica, args []string, w *wish) (proto.Message, string, error) {
		answer, err := r.shards().Unpin(ctx, &trestlev1.UnpinRequest{Shard: args[0], Reason: w.reason, Author: w.author, ValidFor: w.validFor()})
		return answer, fmt.Sprintf("%s is not pinned any more.", args[0]), err
	})
}

func (p *program) drain() *cobra.Command {
	return p.tracked(&cobra.Command{
		Use:   "drain",
		Short: "Move all shards of a replica to others, and keep it empty over its restarts",
	}, []argument{{"REPLICA", p.knownReplicas}}, holds, func(ctx context.Context, r *replica, args []string, w *wish) (proto.Message, string, error) {
		answer, err := r.shards().DrainReplica(ctx, &trestlev1.DrainReplicaRequest{Replica: args[0], Reason: w.reason, Author: w.author, ValidFor: w.validFor()})
		return answer, fmt.Sprintf("%s is being emptied; watch it with trestlectl shards --watch.", args[0]), err
	})
}

func (p *program) undrain() *cobra.Command {
	return p.tracked(&cobra.Command{
		Use:   "undrain",
		Short: "Let a drained replica take shards again",
	}, []argument{{"REPLICA", p.knownDrains}}, waits, func(ctx context.Context, r *replica, args []string, w *wish) (proto.Message, string, error) {
		answer, err := r.shards().UndrainReplica(ctx, &trestlev1.UndrainReplicaRequest{Replica: args[0], Reason: w.reason, Author: w.author, ValidFor: w.validFor()})
		return answer, fmt.Sprintf("%s takes shards again.", args[0]), err
	})
}

func (p *program) freeze() *cobra.Command {
	return p.tracked(&cobra.Command{
		Use:   "freeze",
		Short: "Let nothing move but shards without an owner",
	}, nil, holds, func(ctx context.Context, r *replica, _ []string, w *wish) (proto.Message, string, error) {
		answer, err := r.shards().Freeze(ctx, &trestlev1.FreezeRequest{Reason: w.reason, Author: w.author, ValidFor: w.validFor()})
		return answer, "Frozen: only shards without an owner move. trestlectl unfreeze ends it.", err
	})
}

func (p *program) unfreeze() *cobra.Command {
	return p.tracked(&cobra.Command{
		Use:   "unfreeze",
		Short: "Let shards move again",
	}, nil, waits, func(ctx context.Context, r *replica, _ []string, w *wish) (proto.Message, string, error) {
		answer, err := r.shards().Unfreeze(ctx, &trestlev1.UnfreezeRequest{Reason: w.reason, Author: w.author, ValidFor: w.validFor()})
		return answer, "Shards move again.", err
	})
}

func (p *program) slices() *cobra.Command {
	var n int32
	c := p.tracked(&cobra.Command{
		Use:   "slices",
		Short: "List how clusters are cut, or cut one into N slices, each with an owner of its own",
		Long: `List how clusters are cut, or cut one into N slices, each with an owner of its own;
1 makes it whole.

The whole cluster moves: nobody writes it for some seconds, and what it says
meanwhile is caught up with. Pins of its shards end with them.`,
	}, []argument{{"CLUSTER", p.knownClusters}, {"N", nil}}, waits, func(ctx context.Context, r *replica, args []string, w *wish) (proto.Message, string, error) {
		answer, err := r.shards().SetSlices(ctx, &trestlev1.SetSlicesRequest{Cluster: args[0], Slices: n, Reason: w.reason, Author: w.author, ValidFor: w.validFor()})
		said := fmt.Sprintf("%s is being cut into %d; see trestlectl explain %s.", args[0], n, args[0])
		if unpinned := answer.GetUnpinned(); len(unpinned) > 0 {
			said += fmt.Sprintf(" The pins of %s END with these shards; pin the new ones if they should stay where they were.", strings.Join(unpinned, ", "))
		}
		return answer, said, err
	})
	c.Use = "slices [CLUSTER N]"
	enough, cut := c.Args, c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			p.started = true
			return p.listSlices(c.Context())
		}
		return cut(c, args)
	}
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		if err := enough(c, args); err != nil {
			return err
		}
		parsed, err := strconv.ParseInt(args[1], 10, 32)
		if err != nil || parsed < 1 || parsed > shard.MaxSlices {
			return fmt.Errorf("%q: give a number of slices from 1 to %d", args[1], shard.MaxSlices)
		}
		n = int32(parsed)
		return nil
	}
	return c
}

func (p *program) brake() *cobra.Command {
	c := group(&cobra.Command{Use: "brake", Short: "Let go of the brake that a loss of many replicas applies"})
	c.AddCommand(p.tracked(&cobra.Command{
		Use:   "release",
		Short: "Let shards move again after a loss of many replicas",
	}, nil, waits, func(ctx context.Context, r *replica, _ []string, w *wish) (proto.Message, string, error) {
		answer, err := r.shards().ReleaseBrake(ctx, &trestlev1.ReleaseBrakeRequest{Reason: w.reason, Author: w.author, ValidFor: w.validFor()})
		return answer, "The brake is off: shards without an owner are given one.", err
	}))
	return c
}

func (p *program) sweep() *cobra.Command {
	c := group(&cobra.Command{Use: "sweep", Short: "Have rows stopped of instances that their cluster has lost"})
	c.AddCommand(
		p.changing(&cobra.Command{
			Use:   "request",
			Short: "Have the leader look at a cluster now",
		}, []argument{{"CLUSTER", p.knownClusters}}, "", func(ctx context.Context, r *replica, args []string, w *wish) (proto.Message, string, error) {
			answer, err := r.shards().RequestSweep(ctx, &trestlev1.RequestSweepRequest{Cluster: args[0], Reason: w.reason, Author: w.author})
			return answer, fmt.Sprintf("The leader looks at %s now; the log of the leader says what it finds.", args[0]), err
		}),
		p.changing(&cobra.Command{
			Use:   "confirm",
			Short: "Have rows stopped for which a cluster is held back, as it misses too many at once",
		}, []argument{{"CLUSTER", p.knownClusters}}, "", func(ctx context.Context, r *replica, args []string, w *wish) (proto.Message, string, error) {
			answer, err := r.shards().ConfirmSweep(ctx, &trestlev1.ConfirmSweepRequest{Cluster: args[0], Reason: w.reason, Author: w.author})
			return answer, fmt.Sprintf("What %s misses is confirmed to be gone, and is stopped at the next look.", args[0]), err
		}),
	)
	return c
}
