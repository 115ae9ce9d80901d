package main

import (
	"context"
	"fmt"

	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
)

func (p *program) listSlices(ctx context.Context) error {
	var answer *trestlev1.ListSlicesResponse
	err := p.ask(ctx, func(ctx context.Context, r *replica) (err error) {
		answer, err = r.shards().ListSlices(ctx, &trestlev1.ListSlicesRequest{})
		return err
	})
	if err != nil {
		return err
	}
	p.warnDetached(answer.GetDetached())
	return p.print(answer, func(g *page) {
		if len(answer.GetCuts()) == 0 {
			g.line("There are no clusters that are heard.")
			return
		}
		rows := make([][]string, len(answer.GetCuts()))
		for i, c := range answer.GetCuts() {
			note := ""
			if re := c.GetReslice(); re != nil {
				note = fmt.Sprintf("being cut into %d: %s", re.GetTo(), reslicePhase(re.GetPhase()))
			} else if proposal := c.GetProposal(); proposal != nil {
				note = fmt.Sprintf("%d are proposed: %s", proposal.GetSlices(), proposal.GetText())
			}
			rows[i] = []string{
				c.GetCluster(), fmt.Sprint(c.GetSlices()), fmt.Sprint(c.GetGeneration()), fmt.Sprint(len(c.GetOwners())), number(c.GetRate()),
				fmt.Sprint(c.GetLiveInstances()), number(c.GetWeight()), fmt.Sprint(c.GetPinned()), orNone(note),
			}
		}
		g.table([]column{
			{title: "CLUSTER"}, {title: "SLICES", right: true}, {title: "GENERATION", right: true, wide: true}, {title: "REPLICAS", right: true},
			{title: "UPDATES/S", right: true}, {title: "LIVE", right: true}, {title: "WEIGHT", right: true}, {title: "PINS", right: true}, {title: "NOTES"},
		}, rows)
	})
}
