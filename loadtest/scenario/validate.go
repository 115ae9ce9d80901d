package scenario

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/trestle-bridge/trestle/loadtest"
	"github.com/trestle-bridge/trestle/loadtest/script"
)

// Error is everything that is wrong with a scenario.
type Error struct {
	Problems []Problem // at least one
}

// Error lists the problems, one a line if there are several.
func (e *Error) Error() string {
	if len(e.Problems) == 1 {
		return "scenario: " + e.Problems[0].String()
	}
	var out strings.Builder
	fmt.Fprintf(&out, "scenario: %d problems", len(e.Problems))
	for _, p := range e.Problems {
		out.WriteString("\n  " + p.String())
	}
	return out.String()
}

// Problem is one thing that is wrong.
type Problem struct {
	// Source is the file, Line in it counted from 1; empty and 0: unknown.
	Source string
	Line   int
	// Key is the path of the key, such as faults[2].target.
	Key string
	// What is wrong, and what is allowed instead.
	What string
}

// String is the problem in one line, the place first.
func (p Problem) String() string {
	var parts []string
	switch {
	case p.Line > 0:
		parts = append(parts, fmt.Sprintf("%s:%d", p.Source, p.Line))
	case p.Source != "":
		parts = append(parts, p.Source)
	}
	if p.Key != "" {
		parts = append(parts, p.Key)
	}
	return strings.Join(append(parts, p.What), ": ")
}

// Limits keep a slip of the finger from filling a machine.
const (
	maxRate      = 200_000
	maxClusters  = 1000
	maxInstances = 2_000_000
	maxReplicas  = 32
	maxDuration  = 24 * time.Hour
)

var shapes = []loadtest.Shape{loadtest.Storm, loadtest.Steady, loadtest.Closed, loadtest.Repeats, loadtest.Stale}

var nameForm = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

// Complete fills in the defaults and checks. The error is an *Error.
func (s *Scenario) Complete() error {
	s.complete()
	if problems := s.problems(); len(problems) > 0 {
		return &Error{problems}
	}
	return nil
}

// checks gathers problems.
type checks struct{ problems []Problem }

func (c *checks) must(ok bool, key, what string, args ...any) {
	if !ok {
		c.problems = append(c.problems, Problem{Key: key, What: fmt.Sprintf(what, args...)})
	}
}

func (s *Scenario) problems() []Problem {
	var c checks
	c.must(nameForm.MatchString(s.Name), "name", "%q; give lower case letters, digits and single dashes between them", s.Name)
	c.must(s.Summary != "" && !strings.Contains(s.Summary, "\n"), "summary", "give one line that says what is played")
	f := &s.Fleet
	c.must(f.Replicas >= 1 && f.Replicas <= maxReplicas, "fleet.replicas", "%d; give a number from 1 to %d", f.Replicas, maxReplicas)
	c.must(f.Lease >= 2*time.Second && f.Lease <= time.Hour && f.Lease%time.Second == 0, "fleet.lease", "%v; give whole seconds from 2s to 1h", f.Lease)
	for i, flag := range f.Serve {
		c.must(strings.HasPrefix(flag, "--"), fmt.Sprintf("fleet.serve[%d]", i), "%q is no flag; give one as in --pipeline.lanes=2", flag)
	}
	s.Work.check(&c)
	for i := range s.Faults {
		s.Faults[i].check(&c, fmt.Sprintf("faults[%d]", i), &s.Work)
	}
	return c.problems
}

func (w *Work) check(c *checks) {
	if !slices.Contains(shapes, w.Shape) {
		c.must(false, "work.shape", "%q; give one of %s", w.Shape, words(shapes))
		return
	}
	flood := w.Shape == loadtest.Repeats || w.Shape == loadtest.Stale
	steady := w.Shape == loadtest.Steady
	c.must(w.Duration >= 0 && w.Duration <= maxDuration, "work.duration", "%v; give a time up to %v", w.Duration, maxDuration)
	c.must(!steady || w.Rate > 0 && w.Rate <= maxRate, "work.rate", "%g; the shape steady needs updates a second, more than 0 and up to %d", w.Rate, maxRate)
	c.must(steady || w.Rate == 0, "work.rate", "only the shape steady has a rate; the others send as fast as it goes")
	c.must(!steady || w.Duration > 0 || w.Instances > 0, "work.duration", "the shape steady needs a duration, or a number of instances to play")
	c.must(steady || w.Instances > 0, "work.instances", "the shape %s needs a number of instances", w.Shape)
	c.must(w.Instances >= 0 && w.Instances <= maxInstances, "work.instances", "%d; give a number up to %d", w.Instances, maxInstances)
	c.must(w.Clusters >= 1 && w.Clusters <= maxClusters, "work.clusters", "%d; give a number from 1 to %d", w.Clusters, maxClusters)
	c.must(w.Live >= 1 && w.Live <= maxInstances, "work.live", "%d; give a number from 1 to %d", w.Live, maxInstances)
	c.must(!flood || w.Messages > 0 && w.Messages < script.FloodRoom, "work.messages", "%d; the shape %s needs a number of messages", w.Messages, w.Shape)
	c.must(flood || w.Messages == 0, "work.messages", "only the shapes %s and %s have it", loadtest.Repeats, loadtest.Stale)
	c.must(w.Hot >= 0 && w.Hot <= 1, "work.hot", "%g; give a share from 0 to 1", w.Hot)
	c.must(w.Odd >= 0 && w.Odd <= 1, "work.odd", "%g; give a share from 0 to 1", w.Odd)
	c.must(w.Odd == 0 || w.Shape == loadtest.Storm || steady, "work.odd", "only the shapes %s and %s have odd instances", loadtest.Storm, loadtest.Steady)
	c.must(w.Burst >= 1 && w.Burst <= 1000, "work.burst", "%d; give a number from 1 to 1000", w.Burst)
	c.must(w.Burst <= 1 || steady, "work.burst", "only the shape steady has bursts")
	c.must(!w.Short || !flood, "work.short", "the shape %s has a life of its own", w.Shape)
	c.must(w.Buffer >= 1 && w.Buffer <= 1_000_000, "work.buffer", "%d; give a number from 1 to 1000000", w.Buffer)
	c.must(w.SlowSubscribers == Drop || w.SlowSubscribers == Wait, "work.slowSubscribers", "%q; give %s or %s", w.SlowSubscribers, Drop, Wait)
}

func (f *Fault) check(c *checks, key string, w *Work) {
	a := actionOf(f.Do)
	if a == nil {
		var names []string
		for _, a := range Actions() {
			names = append(names, a.Name)
		}
		c.must(false, key+".do", "%q; give one of %s", f.Do, strings.Join(names, ", "))
		return
	}
	c.must(f.At >= 0 && f.At <= maxDuration, key+".at", "%v; give a time up to %v", f.At, maxDuration)
	c.must(w.Duration == 0 || f.At <= w.Duration, key+".at", "%v is after the end of sending, %v (work.duration)", f.At, w.Duration)
	c.must(f.For >= 0 && f.For <= maxDuration, key+".for", "%v; give a time up to %v", f.For, maxDuration)
	c.must(a.takes(f.Target.Kind), key+".target", "%q; %s takes %s", f.Target, f.Do, a.allowedTargets())
	if f.Target.Kind == OwnerOf || f.Target.Kind == OneCluster {
		c.must(f.Target.Cluster < w.Clusters, key+".target", "there is no cluster %d; there are %d, counted from 0", f.Target.Cluster, w.Clusters)
	}
	c.must(a.lasts != moment || f.For == 0, key+".for", "%s takes no time to last for", f.Do)
	c.must(a.lasts != mustLast || f.For > 0 || f.Until != "", key+".for", "%s needs a time to last for, as in 5s", f.Do)
	c.must(f.Until == "" || a.untilChanges && f.Until == Replaced, key+".until", "%q; only hold takes it, as in until: %s", f.Until, Replaced)
	c.must(!a.count || f.Count >= 1 && f.Count <= maxReplicas, key+".count", "%d; give a number from 1 to %d", f.Count, maxReplicas)
	c.must(a.count || f.Count == 0, key+".count", "%s takes none", f.Do)
	c.must(!a.delay || f.Delay > 0 && f.Delay <= time.Minute, key+".delay", "%v; give a time up to 1m, as in 50ms", f.Delay)
	c.must(a.delay || f.Delay == 0, key+".delay", "%s takes none", f.Do)
	c.must(!a.slices || f.Slices >= 1 && f.Slices <= 64, key+".slices", "%d; give a number from 1 to 64", f.Slices)
	c.must(a.slices || f.Slices == 0, key+".slices", "%s takes none", f.Do)
}

func words[T ~string](list []T) string {
	texts := make([]string, len(list))
	for i, w := range list {
		texts[i] = string(w)
	}
	return strings.Join(texts, ", ")
}
