package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
)

func (p *program) explain() *cobra.Command {
	return p.reading(&cobra.Command{
		Use:   "explain",
		Short: "Say all there is to say of one cluster: who carries it, since when and why",
	}, []argument{{"CLUSTER", p.knownClusters}}, func(c *cobra.Command, args []string) error {
		var answer *trestlev1.ExplainClusterResponse
		err := p.ask(c.Context(), func(ctx context.Context, r *replica) (err error) {
			answer, err = r.shards().ExplainCluster(ctx, &trestlev1.ExplainClusterRequest{Cluster: args[0]})
			return err
		})
		if err != nil {
			return err
		}
		p.warnDetached(answer.GetFleet().GetDetached())
		return p.print(answer, func(g *page) { showExplained(g, answer) })
	})
}

func showExplained(g *page, answer *trestlev1.ExplainClusterResponse) {
	if answer.GetSlices() > 1 {
		g.line("%s is cut into %d slices.", answer.GetCluster(), answer.GetSlices())
	} else {
		g.line("%s is one shard.", answer.GetCluster())
	}
	if r := answer.GetReslice(); r != nil {
		g.line("It is being cut from %d into %d, by %s: %s; %s.", r.GetFrom(), r.GetTo(), r.GetAuthor(), r.GetReason(), reslicePhase(r.GetPhase()))
	}
	for _, proposal := range answer.GetProposals() {
		g.line("The planner proposes %d slices: %s.", proposal.GetSlices(), proposal.GetText())
	}
	for _, s := range answer.GetShards() {
		g.line("")
		showExplainedShard(g, s)
	}
	g.line("")
	g.concerns(answer.GetFleet())
}

func showExplainedShard(g *page, e *trestlev1.ExplainedShard) {
	s := e.GetShard()
	switch {
	case s.GetOwner() != nil:
		g.line("%s is carried by %s (%s), %s since %s.", s.GetId(), who(s.GetOwner()), s.GetOwner().GetIncarnation(), phaseName(s.GetPhase()), g.age(s.GetSince()))
	case s.GetFormer() != nil:
		g.line("%s is carried by NOBODY, %s since %s; %s had it last.", s.GetId(), phaseName(s.GetPhase()), g.age(s.GetSince()), who(s.GetFormer()))
	default:
		g.line("%s is carried by NOBODY, %s since %s.", s.GetId(), phaseName(s.GetPhase()), g.age(s.GetSince()))
	}
	if s.GetNext() != nil {
		g.line("  %s is to take it over.", who(s.GetNext()))
	}
	g.line("  It is there because: %s.", because(s))
	switch held := s.GetEpochObserved(); {
	case s.GetOwner() == nil:
	case held == s.GetEpochIntended():
		g.line("  Its owner writes under epoch %d, as it should.", held)
	case held == 0:
		g.line("  Its owner does NOT write: it is to write under epoch %d.", s.GetEpochIntended())
	default:
		g.line("  Its owner writes under epoch %d, and is to write under %d.", held, s.GetEpochIntended())
	}
	if m := s.GetMeasured(); m != nil {
		heard := "never heard"
		if m.GetLastEvent() != nil {
			heard = "last heard " + g.age(m.GetLastEvent()) + " ago"
		}
		g.line("  %s updates/s, %d live instances, the oldest update that waits is %s old, %s; weight %s.",
			number(m.GetRate()), m.GetLiveInstances(), lag(m), heard, number(s.GetWeight()))
		if m.GetDeaf() {
			g.line("  Its owner CANNOT HEAR the cluster.")
		}
	}
	if pin := s.GetPin(); pin != nil {
		g.line("  Pinned to %s%s by %s: %s.", pin.GetReplica(), g.ends(pin.GetUntil()), pin.GetAuthor(), pin.GetReason())
	}
	if e.GetUnplaced() != trestlev1.UnplacedReason_UNPLACED_REASON_UNSPECIFIED {
		g.line("  It stays without an owner: %s.", unplacedText(e.GetUnplaced()))
	}
	if m := e.GetPlanned(); m != nil {
		g.line("  The planner would move it to %s (%s): %s.", who(m.GetTo()), reasonName(m.GetReason()), m.GetText())
	}
	if len(s.GetMoves()) > 0 {
		g.line("  It came this way, newest last:")
		rows := make([][]string, len(s.GetMoves()))
		for i, m := range s.GetMoves() {
			rows[i] = []string{"  " + g.age(m.GetAt()) + " ago", who(m.GetFrom()), who(m.GetTo()), fmt.Sprint(m.GetEpoch()), reasonName(m.GetReason())}
		}
		g.table([]column{{title: "  WHEN"}, {title: "FROM"}, {title: "TO"}, {title: "EPOCH", right: true}, {title: "REASON"}}, rows)
	}
	if len(e.GetPreferences()) > 0 {
		g.line("  It prefers, best first:")
		rows := make([][]string, len(e.GetPreferences()))
		for i, r := range e.GetPreferences() {
			note := "-"
			if r.GetDraining() {
				note = "takes no shards"
			}
			rows[i] = []string{"  " + who(r.GetReplica()), number(r.GetLoad()), number(r.GetFair()), limit(r.GetCap()), fmt.Sprintf("%.3f", r.GetScore()), note}
		}
		g.table([]column{
			{title: "  REPLICA"}, {title: "LOAD", right: true}, {title: "FAIR", right: true}, {title: "CAP", right: true}, {title: "SCORE", wide: true, right: true},
			{title: "NOTES"},
		}, rows)
	}
}

func because(s *trestlev1.Shard) string {
	reason := reasonName(s.GetReason())
	if s.GetText() != "" {
		return reason + ", " + s.GetText()
	}
	return reason
}

func (p *program) plan() *cobra.Command {
	return p.reading(&cobra.Command{
		Use:   "plan",
		Short: "Say what the planner would do now if nothing were frozen; nothing is done",
	}, nil, func(c *cobra.Command, _ []string) error {
		var answer *trestlev1.PlanRebalanceResponse
		err := p.ask(c.Context(), func(ctx context.Context, r *replica) (err error) {
			answer, err = r.shards().PlanRebalance(ctx, &trestlev1.PlanRebalanceRequest{})
			return err
		})
		if err != nil {
			return err
		}
		p.warnDetached(answer.GetFleet().GetDetached())
		return p.print(answer, func(g *page) { showPlan(g, answer) })
	})
}

func showPlan(g *page, answer *trestlev1.PlanRebalanceResponse) {
	if len(answer.GetMoves()) == 0 {
		g.line("Nothing would move.")
	} else {
		rows := make([][]string, len(answer.GetMoves()))
		for i, m := range answer.GetMoves() {
			rows[i] = []string{m.GetShard(), who(m.GetFrom()), who(m.GetTo()), reasonName(m.GetReason()), orNone(m.GetText())}
		}
		g.table([]column{{title: "SHARD"}, {title: "FROM"}, {title: "TO"}, {title: "REASON"}, {title: "WHY"}}, rows)
	}
	for _, id := range answer.GetCancelled() {
		g.line("The hand-over of %s would be given up.", id)
	}
	for _, u := range answer.GetUnplaced() {
		g.line("%s stays without an owner: %s.", u.GetShard(), unplacedText(u.GetReason()))
	}
	for _, r := range answer.GetOverloaded() {
		g.line("%s would carry more than its cap.", who(r))
	}
	for _, proposal := range answer.GetProposals() {
		g.line("To be decided: %s into %d slices: %s.", proposal.GetCluster(), proposal.GetSlices(), proposal.GetText())
	}
	before, after := answer.GetBefore(), answer.GetAfter()
	g.line("Load: most %s, mean %s (%.2f); with the plan most %s (%.2f). The heaviest shard weighs %s.",
		number(before.GetMax()), number(before.GetMean()), before.GetRatio(), number(after.GetMax()), after.GetRatio(), number(before.GetHeaviest()))
	g.concerns(answer.GetFleet())
}
