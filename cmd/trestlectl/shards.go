package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
)

func (p *program) shards() *cobra.Command {
	var cluster, of string
	var watch bool
	c := p.reading(&cobra.Command{
		Use:   "shards",
		Short: "List which replica carries which shard",
		Long: `List which replica carries which shard: a cluster, or one slice of it.

EPOCH is the one that the owner is to write under; if it says that it writes
under another, that one follows. With --watch, shards that change are listed
again, each with its new state, until this is interrupted.`,
	}, nil, func(c *cobra.Command, _ []string) error {
		if watch {
			return p.watchShards(c.Context(), cluster)
		}
		return p.listShards(c.Context(), cluster, of)
	})
	c.Flags().StringVar(&cluster, "cluster", "", "only those of this cluster")
	c.Flags().StringVar(&of, "replica", "", "only those that this replica has or is to have, by name or incarnation")
	c.Flags().BoolVarP(&watch, "watch", "w", false, "go on and list what changes")
	c.MarkFlagsMutuallyExclusive("replica", "watch")
	p.completeFlag(c, "cluster", p.knownClusters)
	p.completeFlag(c, "replica", p.knownReplicas)
	return c
}

// allShards asks for every page.
func allShards(ctx context.Context, r *replica, cluster, of string) (*trestlev1.ListShardsResponse, error) {
	all := &trestlev1.ListShardsResponse{}
	for token := ""; ; {
		page, err := r.shards().ListShards(ctx, &trestlev1.ListShardsRequest{Cluster: cluster, Replica: of, PageToken: token})
		if err != nil {
			return nil, err
		}
		all.Shards = append(all.Shards, page.GetShards()...)
		all.Detached = all.Detached || page.GetDetached()
		if token = page.GetNextPageToken(); token == "" {
			return all, nil
		}
	}
}

func (p *program) listShards(ctx context.Context, cluster, of string) error {
	var all *trestlev1.ListShardsResponse
	err := p.ask(ctx, func(ctx context.Context, r *replica) (err error) {
		all, err = allShards(ctx, r, cluster, of)
		return err
	})
	if err != nil {
		return err
	}
	p.warnDetached(all.GetDetached())
	return p.print(all, func(g *page) {
		if len(all.GetShards()) == 0 {
			g.line("There are no shards.")
			return
		}
		rows := make([][]string, len(all.GetShards()))
		for i, s := range all.GetShards() {
			rows[i] = shardRow(g, s)
		}
		g.table(shardColumns(), rows)
	})
}

func shardColumns() []column {
	return []column{
		{title: "SHARD"}, {title: "REPLICA"}, {title: "PHASE"}, {title: "NEXT"}, {title: "EPOCH", number: true}, {title: "SINCE", right: true}, {title: "REASON"},
		{title: "UPDATES/S", right: true}, {title: "LIVE", right: true}, {title: "LAG", right: true}, {title: "HEARD", right: true},
		{title: "PIN", wide: true}, {title: "WEIGHT", wide: true, right: true}, {title: "GENERATION", wide: true, right: true},
		{title: "PROCESS", wide: true}, {title: "WHY", wide: true},
	}
}

const (
	ownerColumn = 1
	phaseColumn = 2
	nextColumn  = 3
	// steady is how many columns, from the first, a watch looks at: the others
	// change all the time.
	steady = 5
)

func shardRow(g *page, s *trestlev1.Shard) []string {
	rate, live, late, heard := "-", "-", "-", "-"
	if m := s.GetMeasured(); m != nil {
		rate, live, late, heard = number(m.GetRate()), fmt.Sprint(m.GetLiveInstances()), lag(m), g.age(m.GetLastEvent())
		if m.GetDeaf() {
			heard = "DEAF"
		}
	}
	return []string{
		s.GetId(), who(s.GetOwner()), phaseName(s.GetPhase()), who(s.GetNext()), epoch(s), g.age(s.GetSince()), reasonName(s.GetReason()),
		rate, live, late, heard,
		pinned(g, s.GetPin()), number(s.GetWeight()), fmt.Sprint(s.GetGeneration()), orNone(s.GetOwner().GetIncarnation()), orNone(s.GetText()),
	}
}

func (p *program) replicas() *cobra.Command {
	return p.reading(&cobra.Command{
		Use:   "replicas",
		Short: "List the replicas, who leads, and what holds back the fleet",
	}, nil, func(c *cobra.Command, _ []string) error {
		var answer *trestlev1.ListReplicasResponse
		err := p.ask(c.Context(), func(ctx context.Context, r *replica) (err error) {
			answer, err = r.shards().ListReplicas(ctx, &trestlev1.ListReplicasRequest{})
			return err
		})
		if err != nil {
			return err
		}
		p.warnDetached(answer.GetFleet().GetDetached())
		return p.print(answer, func(g *page) { showReplicas(g, answer) })
	})
}

func showReplicas(g *page, answer *trestlev1.ListReplicasResponse) {
	var rows [][]string
	for _, r := range answer.GetReplicas() {
		var notes []string
		if r.GetLeads() {
			notes = append(notes, "leads")
		}
		if r.GetAnswers() {
			notes = append(notes, "answers")
		}
		switch drain := r.GetDrain(); {
		case drain != nil:
			notes = append(notes, fmt.Sprintf("drained%s by %s: %s", g.ends(drain.GetUntil()), drain.GetAuthor(), drain.GetReason()))
		case r.GetState() == trestlev1.ReplicaState_REPLICA_STATE_DRAINING:
			notes = append(notes, "about to stop")
		}
		if r.GetGone() != nil {
			notes = append(notes, "gone since "+g.age(r.GetGone()))
		}
		rows = append(rows, []string{
			orNone(r.GetName()), stateName(r.GetState()), fmt.Sprint(r.GetShards()), number(r.GetLoad()), limit(r.GetCap()), orNone(r.GetRevision()),
			g.age(r.GetJoined()), number(r.GetCapacity()), orNone(r.GetPeerAddress()), r.GetIncarnation(), g.age(r.GetHeard()), orNone(strings.Join(notes, ", ")),
		})
	}
	if len(rows) == 0 {
		g.line("There are no replicas.")
	} else {
		g.table([]column{
			{title: "REPLICA"}, {title: "STATE"}, {title: "SHARDS", right: true}, {title: "LOAD", right: true}, {title: "CAP", right: true}, {title: "REVISION"},
			{title: "JOINED", right: true}, {title: "CAPACITY", wide: true, right: true}, {title: "PEER", wide: true}, {title: "PROCESS", wide: true},
			{title: "TOLD", wide: true, right: true}, {title: "NOTES"},
		}, rows)
	}
	g.line("")
	g.concerns(answer.GetFleet())
	for _, d := range answer.GetOtherDrains() {
		g.line("%s, which is not here, is drained%s by %s: %s.", d.GetReplica(), g.ends(d.GetUntil()), d.GetAuthor(), d.GetReason())
	}
}

func (p *program) commands() *cobra.Command {
	return p.reading(&cobra.Command{
		Use:   "commands",
		Short: "List what operators have asked for, and what came of it, newest first",
	}, nil, func(c *cobra.Command, _ []string) error {
		var answer *trestlev1.ListCommandsResponse
		err := p.ask(c.Context(), func(ctx context.Context, r *replica) (err error) {
			answer, err = r.shards().ListCommands(ctx, &trestlev1.ListCommandsRequest{})
			return err
		})
		if err != nil {
			return err
		}
		p.warnDetached(answer.GetDetached())
		return p.print(answer, func(g *page) { showCommands(g, answer.GetCommands()) })
	})
}

func showCommands(g *page, commands []*trestlev1.Command) {
	if len(commands) == 0 {
		g.line("Nobody has asked for anything.")
		return
	}
	rows := make([][]string, len(commands))
	for i, c := range commands {
		var what []string
		for _, name := range []string{c.GetShard(), c.GetCluster(), c.GetReplica()} {
			if name != "" {
				what = append(what, name)
			}
		}
		if c.GetSlices() != 0 {
			what = append(what, fmt.Sprint(c.GetSlices()))
		}
		state := strings.ToLower(strings.TrimPrefix(c.GetState().String(), "COMMAND_STATE_"))
		if c.GetRefused() != "" {
			state += ": " + c.GetRefused()
		}
		until := "-"
		if c.GetUntil() != nil {
			until = c.GetUntil().AsTime().Format("2006-01-02 15:04:05Z")
		}
		rows[i] = []string{g.age(c.GetAt()), kindName(c.GetKind()), orNone(strings.Join(what, " ")), c.GetAuthor(), c.GetReason(), until, g.age(c.GetDone()), state}
	}
	g.table([]column{
		{title: "ASKED", right: true}, {title: "COMMAND"}, {title: "OF"}, {title: "BY"}, {title: "WHY"},
		{title: "UNTIL", wide: true}, {title: "ANSWERED", wide: true, right: true}, {title: "CAME OF IT"},
	}, rows)
}
