package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
)

func (p *program) instance() *cobra.Command {
	c := group(&cobra.Command{Use: "instance", Short: "Find out why the row of an instance is as it is"})
	c.AddCommand(p.reading(&cobra.Command{
		Use:   "trace",
		Short: "Show the row of an instance, who hears it, and what was decided of its last updates",
		Long: `Show the row of an instance, who hears it, and what was decided of its last updates.

All living replicas are asked, as each remembers what it has decided itself, under
whatever epoch: about four entries for an instance and term of ownership, of those
instances that it has heard last. Updates that change nothing, several in a row,
are one entry. FROM is the version that the row had before, TO that of the update;
FROM is unknown (?) for the first update that a replica wrote in its term.

  applied      written and told; those folded into it are counted in UPDATES
  unchanged    the database found that it says what the row says
  repeat       the same as the one before, but for its version
  stale        not above the version that is stored or was heard
  unknown      no row has this instance
  foreign      the row belongs to another cluster
  fenced       another owner had raised the fence; it is that one's to write
  quarantined  the database refused it; see trestlectl quarantine show
  invalid      could not be decoded
  forgotten    a sweep stopped the row, or a retry was asked for: the same status
               heard again counts`,
		Example: "  trestlectl instance trace 00000000-0000-4000-8000-000000000001",
	}, []argument{{"INSTANCE", nil}}, func(c *cobra.Command, args []string) error {
		var answer *trestlev1.TraceInstanceResponse
		err := p.ask(c.Context(), func(ctx context.Context, r *replica) (err error) {
			answer, err = r.instances().TraceInstance(ctx, &trestlev1.TraceInstanceRequest{Instance: args[0]})
			return err
		})
		if err != nil {
			return err
		}
		p.warnDetached(answer.GetDetached())
		for _, u := range answer.GetUnheard() {
			p.warn("%s could not be asked, so what it remembers is missing: %s", plain(who(u.GetReplica())), plain(u.GetReason()))
		}
		return p.print(answer, func(g *page) { showTrace(g, answer) })
	}))
	return c
}

func decisionName(d trestlev1.Decision) string {
	return strings.ToLower(strings.TrimPrefix(d.String(), "DECISION_"))
}

func versionOf(v *uint64) string {
	if v == nil {
		return "?"
	}
	return fmt.Sprint(*v)
}

// clock is a time of day, and the day if that is another one.
func (g *page) clock(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	at := t.AsTime().UTC()
	if at.Format(time.DateOnly) == g.now.UTC().Format(time.DateOnly) {
		return at.Format("15:04:05.00")
	}
	return at.Format("2006-01-02 15:04:05.00")
}

func showTrace(g *page, a *trestlev1.TraceInstanceResponse) {
	if row := a.GetRow(); row != nil {
		showRow(g, a.GetInstance(), row)
	} else {
		g.line("Instance %s has no row in the database.", a.GetInstance())
	}
	switch s := a.GetShard(); {
	case s == nil && a.GetRow() != nil:
		g.line("No replica hears it: %q is no cluster that is heard here.", a.GetRow().GetRegion())
	case s == nil:
	case s.GetOwner() == nil:
		g.line("Its shard %s is carried by NOBODY, %s since %s.", s.GetId(), phaseName(s.GetPhase()), g.age(s.GetSince()))
	default:
		g.line("Its shard %s is carried by %s under epoch %s, %s since %s.", s.GetId(), who(s.GetOwner()), epoch(s), phaseName(s.GetPhase()), g.age(s.GetSince()))
		if s.GetMeasured().GetDeaf() {
			g.line("Its owner CANNOT HEAR the cluster.")
		}
	}
	for _, q := range a.GetQuarantined() {
		g.line("In quarantine for %s: version %d, refused %d times: %s (SQLSTATE %s)%s.",
			g.age(q.GetFirst()), q.GetVersion(), q.GetTimes(), q.GetReason(), q.GetSqlstate(), pastNote(q))
	}
	g.line("")
	if len(a.GetDecisions()) == 0 {
		g.line("No replica remembers what was decided of its updates: none has heard it of late, or those that did have stopped.")
	} else {
		rows := make([][]string, len(a.GetDecisions()))
		for i, d := range a.GetDecisions() {
			from := versionOf(d.Stored)
			if d.GetDecision() == trestlev1.Decision_DECISION_UNKNOWN || d.GetDecision() == trestlev1.Decision_DECISION_FOREIGN {
				from = "-"
			}
			rows[i] = []string{
				g.clock(d.GetAt()), g.age(d.GetAt()) + " ago", decisionName(d.GetDecision()), from, fmt.Sprint(d.GetVersion()),
				orNone(d.GetPhase()), fmt.Sprint(d.GetUpdates()), who(d.GetReplica()), epochOf(d.GetEpoch()), d.GetShard(), d.GetReplica().GetIncarnation(),
			}
		}
		g.table([]column{
			{title: "AT (UTC)"}, {title: "AGE", right: true}, {title: "DECISION"}, {title: "FROM", right: true}, {title: "TO", right: true}, {title: "PHASE"},
			{title: "UPDATES", right: true}, {title: "REPLICA"}, {title: "EPOCH", right: true}, {title: "SHARD", wide: true}, {title: "PROCESS", wide: true},
		}, rows)
	}
	for _, w := range a.GetWaiting() {
		how := "waits to be written by " + who(w.GetReplica())
		switch {
		case w.GetInFlight():
			how = "is being written by " + who(w.GetReplica())
		case w.GetEpoch() == 0:
			how = "waits at " + who(w.GetReplica()) + ", which only prepares to take the shard over"
		}
		g.line("Heard and not decided: version %d (%s, %d updates since %s ago) %s.",
			w.GetVersion(), orNone(w.GetPhase()), w.GetUpdates(), g.age(w.GetSince()), how)
	}
}

func epochOf(e int64) string {
	if e == 0 {
		return "-"
	}
	return fmt.Sprint(e)
}

func pastNote(q *trestlev1.QuarantinedChange) string {
	if q.GetPast() {
		return fmt.Sprintf("; a later update was written, version %d", q.GetStored())
	}
	return ""
}

func showRow(g *page, id string, row *trestlev1.InstanceRow) {
	g.line("Instance %s is %s at version %d.", id, strings.ToUpper(row.GetPhase()), row.GetVersion())
	pairs := [][]string{
		{"  workspace", orNone(row.GetWorkspace())}, {"  type", orNone(row.GetType())}, {"  region", orNone(row.GetRegion())},
	}
	for _, t := range []struct {
		name string
		at   *timestamppb.Timestamp
	}{
		{"created", row.GetCreated()}, {"deployed", row.GetDeployed()}, {"started", row.GetStarted()}, {"stopping", row.GetStopping()}, {"stopped", row.GetStopped()},
	} {
		if t.at != nil {
			pairs = append(pairs, []string{"  " + t.name, fmt.Sprintf("%s (%s ago)", g.clock(t.at), g.age(t.at))})
		}
	}
	for _, t := range []struct{ name, text string }{
		{"message", row.GetMessage()}, {"failed", row.GetFailed()}, {"timeout", row.GetTimeout()}, {"headless task failed", row.GetHeadlessTaskFailed()}, {"node", row.GetNode()},
	} {
		if t.text != "" {
			pairs = append(pairs, []string{"  " + t.name, t.text})
		}
	}
	if row.GetSwept() {
		pairs = append(pairs, []string{"  swept", "a sweep has stopped it, and nothing was heard of it since"})
	}
	if row.GetDeleted() {
		pairs = append(pairs, []string{"  deleted", "yes"})
	}
	if b := row.GetPrebuild(); b != nil {
		text := fmt.Sprintf("%s is %s at version %d", b.GetId(), b.GetState(), b.GetVersion())
		if b.GetInstance() != "" && b.GetInstance() != id {
			text += " of instance " + b.GetInstance()
		}
		if b.GetError() != "" {
			text += ": " + b.GetError()
		}
		pairs = append(pairs, []string{"  prebuild", text})
	}
	for _, p := range pairs {
		g.line("%-22s %s", p[0], p[1])
	}
}

func (p *program) quarantine() *cobra.Command {
	c := group(&cobra.Command{Use: "quarantine", Short: "See what the database has refused, and try it again"})
	var cluster string
	list := p.reading(&cobra.Command{
		Use:   "list",
		Short: "List the updates that the database refused for their own sake, the last refused first",
	}, nil, func(c *cobra.Command, _ []string) error { return p.listQuarantine(c.Context(), cluster, "") })
	list.Flags().StringVar(&cluster, "cluster", "", "only those heard from this cluster")
	p.completeFlag(list, "cluster", p.knownClusters)
	instance := argument{"INSTANCE", p.knownQuarantined}
	c.AddCommand(list,
		p.reading(&cobra.Command{
			Use:   "show",
			Short: "Show all that was refused of one instance",
		}, []argument{instance}, func(c *cobra.Command, args []string) error { return p.listQuarantine(c.Context(), "", args[0]) }),
		p.changing(&cobra.Command{
			Use:   "retry",
			Short: "Have what was refused of an instance tried again, as after its cause was mended",
			Long: `Have what was refused of an instance tried again, as after its cause was mended.

What the update said is not stored. The owner forgets what it has heard of the
instance, asks the cluster for a snapshot, and writes what that says. The command
ends when that is decided. If the cluster does not speak of the instance any more,
there is nothing to try; a sweep then stops its row.`,
		}, []argument{instance}, "", func(ctx context.Context, r *replica, args []string, w *wish) (proto.Message, string, error) {
			p.trace = "trestlectl instance trace " + args[0]
			answer, err := r.quarantine().RetryQuarantined(ctx, &trestlev1.RetryQuarantinedRequest{Instance: args[0], Reason: w.reason, Author: w.author})
			if err == nil && answer.GetDecision() == trestlev1.Decision_DECISION_QUARANTINED {
				err = &againError{retried(args[0], answer)}
			}
			return answer, retried(args[0], answer), err
		}),
		p.changing(&cobra.Command{
			Use:   "drop",
			Short: "Remove the records of an instance; nothing is tried",
			Long: `Remove the records of an instance; nothing is tried.

The owner goes on to skip what was refused until its term of ownership ends; the
next owner tries it when the cluster says it again.`,
		}, []argument{instance}, "", func(ctx context.Context, r *replica, args []string, w *wish) (proto.Message, string, error) {
			p.trace = "trestlectl quarantine show " + args[0]
			answer, err := r.quarantine().DropQuarantined(ctx, &trestlev1.DropQuarantinedRequest{Instance: args[0], Reason: w.reason, Author: w.author})
			return answer, fmt.Sprintf("%d records of %s are removed.", answer.GetRemoved(), args[0]), err
		}),
	)
	return c
}

func retried(instance string, a *trestlev1.RetryQuarantinedResponse) string {
	by := fmt.Sprintf("version %d, by %s, owner of %s", a.GetVersion(), who(a.GetReplica()), a.GetShard())
	switch a.GetDecision() {
	case trestlev1.Decision_DECISION_UNSPECIFIED:
		return fmt.Sprintf("The cluster does not speak of %s any more: there was nothing to try. If it does again, that is tried.", instance)
	case trestlev1.Decision_DECISION_APPLIED:
		return fmt.Sprintf("%s is written: %s.", instance, by)
	case trestlev1.Decision_DECISION_QUARANTINED:
		why := ""
		if left := a.GetLeft(); len(left) > 0 {
			why = fmt.Sprintf(": %s (SQLSTATE %s)", left[0].GetReason(), left[0].GetSqlstate())
		}
		return fmt.Sprintf("%s was REFUSED AGAIN (%s)%s.", instance, by, why)
	}
	return fmt.Sprintf("%s was tried, and is %s: %s.", instance, decisionName(a.GetDecision()), by)
}

func (p *program) listQuarantine(ctx context.Context, cluster, instance string) error {
	var answer *trestlev1.ListQuarantineResponse
	err := p.ask(ctx, func(ctx context.Context, r *replica) (err error) {
		answer, err = r.quarantine().ListQuarantine(ctx, &trestlev1.ListQuarantineRequest{Cluster: cluster, Instance: instance})
		return err
	})
	if err != nil {
		return err
	}
	return p.print(answer, func(g *page) {
		if len(answer.GetChanges()) == 0 {
			switch {
			case instance != "":
				g.line("Nothing of %s is in quarantine.", instance)
			case cluster != "":
				g.line("Nothing that %s said is in quarantine.", cluster)
			default:
				g.line("Nothing is in quarantine.")
			}
			return
		}
		rows := make([][]string, len(answer.GetChanges()))
		for i, q := range answer.GetChanges() {
			row := "-"
			if q.Stored != nil {
				row = fmt.Sprint(q.GetStored())
			}
			note := "the row lacks it"
			switch {
			case q.GetPast():
				note = "past: a later update was written"
			case q.Stored == nil:
				note = "there is no row"
			}
			rows[i] = []string{
				q.GetInstance(), q.GetCluster(), q.GetType(), fmt.Sprint(q.GetVersion()), row, g.age(q.GetFirst()), g.age(q.GetLast()), fmt.Sprint(q.GetTimes()),
				q.GetSqlstate(), note, q.GetReason(),
			}
		}
		g.table([]column{
			{title: "INSTANCE"}, {title: "CLUSTER"}, {title: "TYPE", wide: true}, {title: "VERSION", right: true}, {title: "ROW AT", right: true},
			{title: "FIRST", wide: true, right: true}, {title: "LAST", right: true}, {title: "TIMES", right: true}, {title: "SQLSTATE"}, {title: "NOTE"}, {title: "REASON"},
		}, rows)
		if more := answer.GetTotal() - int64(len(rows)); more > 0 {
			g.line("And %d more; --cluster shows those of one cluster.", more)
		}
	})
}

func (p *program) knownQuarantined(ctx context.Context) (ids []string, err error) {
	err = p.ask(ctx, func(ctx context.Context, r *replica) error {
		answer, err := r.quarantine().ListQuarantine(ctx, &trestlev1.ListQuarantineRequest{})
		for _, q := range answer.GetChanges() {
			ids = append(ids, q.GetInstance())
		}
		return err
	})
	return ids, err
}
