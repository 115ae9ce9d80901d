package oracle

import (
	"fmt"
	"reflect"
	"slices"
	"time"
)

// Mode says how much of what was sent must have been heard.
type Mode byte

const (
	// Exact: every update, in order.
	Exact Mode = iota
	// Latest: the latest state, and any of the ones before it. A stream that
	// is cut, and a snapshot that overtakes the stream, lose states in between.
	Latest
)

// Kind is what is wrong with a value.
type Kind byte

const (
	// Wrong: another value than the updates make.
	Wrong Kind = iota
	// Lost: the row has not come to the last update, or is gone.
	Lost
	// Regressed: the row has gone back, or is ahead of all updates.
	Regressed
	// Unpublished: a change without a publish after it.
	Unpublished
	// Doubled: more publishes than changes.
	Doubled
	// Early: a publish before its commit, or before there was anything to tell.
	Early
	// Malformed: a publish with other fields than the contract's.
	Malformed
)

func (k Kind) String() string {
	return [...]string{"wrong", "lost", "regressed", "unpublished", "doubled", "early", "malformed"}[k]
}

// MarshalText writes the kind's name.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Difference is one value that is not as it must be.
type Difference struct {
	Kind     Kind   `json:"kind"`
	Instance string `json:"instance"`
	// Scenario is the name of the instance's script, if known.
	Scenario string `json:"scenario,omitempty"`
	Field    string `json:"field"`
	Want     string `json:"want"`
	Got      string `json:"got"`
}

func (d Difference) String() string {
	return fmt.Sprintf("%s: instance %s (%s): %s is %s, want %s", d.Kind, d.Instance, d.Scenario, d.Field, d.Got, d.Want)
}

// clockSlack covers the rounding of times on their way into the table.
const clockSlack = time.Millisecond

// Compare says where the tables are not what the updates make of start. No
// observed time may be later than until.
func Compare(rules Rules, start Start, sent []Sent, mode Mode, got Actual, until time.Time) []Difference {
	full := Expect(rules, start, sent)
	diffs := full.compare(start, got, until)
	if mode == Exact || len(diffs) == 0 || full.Row == nil {
		return diffs
	}
	// In mode Latest, what matters is that some choice of updates explains the
	// tables. Those of a single cut come first.
	explained := func(chosen []Sent) bool {
		o := Expect(rules, start, chosen)
		// The latest state may be a repeat of what was heard before the gap: then
		// it is reached, and its version is not.
		if o.HighestVersion < full.LowestVersion || o.Row.Version > full.HighestVersion {
			return false // does not reach the latest state
		}
		o.HighestVersion = full.HighestVersion
		d := o.compare(start, got, until)
		if len(d) < len(diffs) {
			diffs = d
		}
		return len(d) == 0
	}
	for from := range sent {
		for to := from + 1; to <= len(sent); to++ {
			if explained(slices.Concat(sent[:from], sent[to:])) {
				return nil
			}
		}
	}
	// Two cuts or more: any choice, as long as there are not too many.
	const most = 14
	if len(sent) > most {
		return diffs
	}
	chosen := make([]Sent, 0, most)
	for mask := range 1 << len(sent) {
		chosen = chosen[:0]
		for i, s := range sent {
			if mask>>i&1 == 1 {
				chosen = append(chosen, s)
			}
		}
		if explained(chosen) {
			return nil
		}
	}
	return diffs
}

// compare says where the tables are not as the outcome.
func (o *Outcome) compare(start Start, got Actual, until time.Time) []Difference {
	var c comparison
	if o.Row == nil {
		c.check(Wrong, "row", got.Row == nil, "no row", "a row")
		return c.diffs
	}
	if got.Row == nil {
		c.add(Lost, "row", "a row", "no row")
		return c.diffs
	}
	c.row(o, got.Row, until)
	c.metrics(o.Metrics, got.Metrics)
	if o.Prebuild != nil {
		if got.Prebuild == nil {
			c.add(Wrong, "prebuild", "a row", "no row")
		} else {
			equal(&c, "prebuild.state", o.Prebuild.State, got.Prebuild.State)
			equal(&c, "prebuild.error", o.Prebuild.Error, got.Prebuild.Error)
			equal(&c, "prebuild.snapshot", o.Prebuild.Snapshot, got.Prebuild.Snapshot)
		}
	}
	if o.StoppedOnce {
		c.check(Wrong, "tokens", len(got.Tokens) == 0, "none", got.Tokens)
	}
	return c.diffs
}

type comparison struct{ diffs []Difference }

func (c *comparison) add(kind Kind, field string, want, got any) {
	c.diffs = append(c.diffs, Difference{Kind: kind, Field: field, Want: fmt.Sprint(want), Got: fmt.Sprint(got)})
}

func (c *comparison) check(kind Kind, field string, ok bool, want, got any) {
	if !ok {
		c.add(kind, field, want, got)
	}
}

func equal[T comparable](c *comparison, field string, want, got T) {
	if want != got {
		c.add(Wrong, field, fmt.Sprintf("%#v", want), fmt.Sprintf("%#v", got))
	}
}

func equalBool(c *comparison, field string, want, got *bool) {
	text := func(b *bool) string {
		if b == nil {
			return "absent"
		}
		return fmt.Sprint(*b)
	}
	equal(c, field, text(want), text(got))
}

func (c *comparison) row(o *Outcome, got *Row, until time.Time) {
	want := o.Row
	behind := false
	switch {
	case got.Version < o.LowestVersion:
		behind = true
		c.add(Lost, "status_version", o.LowestVersion, got.Version)
	case got.Version > o.HighestVersion:
		c.add(Regressed, "status_version", fmt.Sprintf("at most %d", o.HighestVersion), got.Version)
	}
	equal(c, "status.version", got.Version, got.Status.Version)
	if want.Phase != got.Phase {
		kind := Wrong
		if !behind && phaseRank(got.Phase) < phaseRank(want.Phase) {
			kind = Regressed
		}
		c.add(kind, "phase", want.Phase, got.Phase)
	}
	equal(c, "region", want.Region, got.Region)
	equal(c, "ide_url", want.IDEURL, got.IDEURL)
	c.time("deployed_time", want.Deployed, got.Deployed, until)
	c.time("started_time", want.Started, got.Started, until)
	c.time("stopping_time", want.Stopping, got.Stopping, until)
	c.time("stopped_time", want.Stopped, got.Stopped, until)

	w, g := &want.Status, &got.Status
	equal(c, "status.phase", w.Phase, g.Phase)
	equal(c, "status.message", w.Message, g.Message)
	equal(c, "status.timeout", w.Timeout, g.Timeout)
	equal(c, "status.nodeName", w.NodeName, g.NodeName)
	equal(c, "status.podName", w.PodName, g.PodName)
	equal(c, "status.nodeIp", w.NodeIP, g.NodeIP)
	// A token is a secret even here: say that it differs, not how.
	c.check(Wrong, "status.ownerToken", w.OwnerToken == g.OwnerToken, "what was sent last", "another token")
	if !reflect.DeepEqual(w.ExposedPorts, g.ExposedPorts) {
		c.add(Wrong, "status.exposedPorts", fmt.Sprintf("%#v", w.ExposedPorts), fmt.Sprintf("%#v", g.ExposedPorts))
	}
	equal(c, "status.metrics.image", w.Metrics.Image, g.Metrics.Image)

	wc, gc := &w.Conditions, &g.Conditions
	equal(c, "status.conditions.failed", wc.Failed, gc.Failed)
	equal(c, "status.conditions.timeout", wc.Timeout, gc.Timeout)
	equal(c, "status.conditions.firstUserActivity", wc.FirstUserActivity, gc.FirstUserActivity)
	equal(c, "status.conditions.headlessTaskFailed", wc.HeadlessTaskFailed, gc.HeadlessTaskFailed)
	equalBool(c, "status.conditions.pullingImages", wc.PullingImages, gc.PullingImages)
	equalBool(c, "status.conditions.deployed", wc.Deployed, gc.Deployed)
	equalBool(c, "status.conditions.stoppedByRequest", wc.StoppedByRequest, gc.StoppedByRequest)
	equalBool(c, "status.conditions.neededImageBuild", wc.NeededImageBuild, gc.NeededImageBuild)
}

// time checks that an observed time lies between sending and until.
func (c *comparison) time(field string, want, got, until time.Time) {
	const layout = "15:04:05.000000"
	switch {
	case want.IsZero() && got.IsZero():
	case want.IsZero():
		c.add(Wrong, field, "null", got.Format(layout))
	case got.IsZero():
		c.add(Wrong, field, "from "+want.Format(layout), "null")
	case got.Before(want.Add(-clockSlack)) || got.After(until.Add(clockSlack)):
		c.add(Wrong, field, want.Format(layout)+" to "+until.Format(layout), got.Format(layout))
	}
}

func (c *comparison) metrics(want Metrics, got *Metrics) {
	if got == nil {
		got = new(Metrics)
	}
	equal(c, "metrics.image", want.Image, got.Image)
	equal(c, "metrics.initializerMetrics", want.InitializerMetrics, got.InitializerMetrics)
}

// phaseRank orders the phases of a life.
func phaseRank(phase string) int {
	return slices.Index([]string{"preparing", "building", "pending", "creating", "initializing", "running", "interrupted", "stopping", "stopped"}, phase)
}
