package ledger

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/trestle-bridge/trestle/loadtest/oracle"
	"github.com/trestle-bridge/trestle/loadtest/script"
	"github.com/trestle-bridge/trestle/loadtest/seed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a ledger of one instance of each script, and the tables as a faultless
// service would leave them.
type world struct {
	*Ledger
	t        *testing.T
	scripts  []*script.Script
	subjects []Subject
	now      time.Time
	// committed is when rows were last committed; zero: not known.
	committed time.Time
}

func newWorld(t *testing.T, published func(int)) *world {
	t.Helper()
	lib, err := script.NewLibrary(1)
	if err != nil {
		t.Fatal(err)
	}
	// It began a while ago: what is checked has happened.
	w := &world{t: t, scripts: slices.Concat(lib.Plain[:1], lib.Odd), now: time.Now().Add(-2 * time.Second)}
	for n, s := range w.scripts {
		region := "here"
		if s.Role == script.Foreign {
			region = "there"
		}
		w.subjects = append(w.subjects, Subject{
			Instance: seed.Instance{ID: script.NewIdentity(1, n), Type: s.Type, Region: region, Tokens: true, NeededImageBuild: n%2 == 0},
			Script:   s,
		})
	}
	w.Ledger, err = New(Config{Clusters: []string{"here"}, Count: len(w.subjects),
		Subject: func(n int) Subject { return w.subjects[n] }, Published: published})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// number is the instance that plays a scenario.
func (w *world) number(name string) int {
	w.t.Helper()
	n := slices.IndexFunc(w.scripts, func(s *script.Script) bool { return s.Name == name })
	if n < 0 {
		w.t.Fatalf("no scenario %q", name)
	}
	return n
}

func (w *world) tick() time.Time {
	w.now = w.now.Add(time.Millisecond)
	return w.now
}

// send sends the next steps of an instance.
func (w *world) send(n, steps int) {
	for range steps {
		w.Sent(n, w.tick())
	}
}

func (w *world) instancePublish(n int) string {
	s := w.subjects[n]
	b, err := json.Marshal(struct {
		OwnerID     string `json:"ownerID"`
		InstanceID  string `json:"instanceID"`
		WorkspaceID string `json:"workspaceID"`
	}{s.ID.Owner, script.FormatUUID(s.ID.Instance), s.ID.Workspace})
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

func (w *world) publish(n int) { w.Heard(channelInstances, w.instancePublish(n), w.tick()) }

func (w *world) prebuildPublish(n int, state, headless string) {
	s := w.subjects[n]
	m := map[string]string{"status": state, "prebuildID": script.FormatUUID(s.ID.Prebuild), "workspaceID": s.ID.Workspace, "projectID": s.ProjectID()}
	if o := s.OrganizationID(); o != "" {
		m["organizationID"] = o
	}
	b, _ := json.Marshal(m)
	w.Heard(channelPrebuilds, string(b), w.tick())
	b, _ = json.Marshal(map[string]string{"type": headless, "workspaceID": s.ID.Workspace})
	w.Heard(channelHeadless, string(b), w.tick())
}

// expected is what the tables must hold of an instance now.
func (w *world) expected(n int) oracle.Actual {
	r := w.record(n)
	times := make([]time.Time, len(r.sent))
	for i, d := range r.sent {
		times[i] = w.epoch.Add(d)
	}
	o := oracle.Expect(w.rules(0), StartOf(r.Subject), sentOf(r.Subject, times))
	a := oracle.Actual{Row: o.Row, Metrics: &o.Metrics, Prebuild: o.Prebuild}
	for _, token := range r.TokenRows() {
		switch {
		case o.Row == nil:
		case !token.Doomed:
			a.Survivors++
		case !o.StoppedOnce:
			a.Tokens = append(a.Tokens, token.Name)
		}
	}
	return a
}

// play plays all of an instance, with a publish after each change.
func (w *world) play(n int) {
	var said oracle.Outcome
	for i := range w.scripts[n].Steps {
		w.send(n, 1)
		if w.entries[n].applied[i] {
			w.publish(n)
		}
		r := w.record(n)
		o := oracle.Expect(w.rules(0), StartOf(r.Subject), sentOf(r.Subject, make([]time.Time, len(r.sent))))
		for k := len(said.Prebuilds); k < len(o.Prebuilds); k++ {
			w.prebuildPublish(n, o.Prebuilds[k], o.Headless[k])
		}
		said = o
	}
}

// verdict checks one instance as the tables have it.
func (w *world) verdict(n int, got oracle.Actual) *Verdict {
	v := &Verdict{}
	w.checkOne(v, n, got, w.committed)
	w.mu.Lock()
	defer w.mu.Unlock()
	v.add(w.faults...)
	return v
}

func TestWhatIsRightPasses(t *testing.T) {
	w := newWorld(t, nil)
	for n, s := range w.scripts {
		w.play(n)
		if v := w.verdict(n, w.expected(n)); !v.OK() {
			t.Errorf("%s: %v", s.Name, v.Differences)
		}
	}
	c := w.Counts()
	if c.Pending != 0 || c.Malformed != 0 || c.Strays != 0 || c.Publishes != c.Changes || c.Prebuilds == 0 || c.Prebuilds != c.Headless {
		t.Errorf("counts %+v", c)
	}
	if c.Sent != c.Changes+c.Repeats+c.Stale+c.Invalid+16 { // 2 x 8 of unknown and foreign instances
		t.Errorf("%d messages sent do not add up: %+v", c.Sent, c)
	}
	latency := w.Latency()
	if latency.Count() != c.Changes || latency.Quantile(0.5) < 900*time.Microsecond {
		t.Errorf("%d latencies, median %v", latency.Count(), latency.Quantile(0.5))
	}
}

func TestFoldedPublishesPass(t *testing.T) {
	w := newWorld(t, nil)
	n := w.number("prebuild")
	w.send(n, 8)
	w.publish(n)
	w.prebuildPublish(n, "available", "finish-success")
	if v := w.verdict(n, w.expected(n)); !v.OK() || v.Exact != 1 {
		t.Errorf("%+v", v)
	}
}

func TestEachFaultOfPublishingIsFound(t *testing.T) {
	for _, tc := range []struct {
		name, scenario string
		spoil          func(w *world, n int)
		count          func(v *Verdict) int
	}{
		{"missing", "lifecycle", func(w *world, n int) { w.send(n, 8) }, func(v *Verdict) int { return v.Unpublished }},
		{"missing after the last change", "lifecycle", func(w *world, n int) {
			w.send(n, 7)
			w.publish(n)
			w.send(n, 1)
		}, func(v *Verdict) int { return v.Unpublished }},
		{"missing after the last commit", "lifecycle", func(w *world, n int) {
			w.send(n, 8)
			w.publish(n)
			w.committed = w.tick()
		}, func(v *Verdict) int { return v.Unpublished }},
		{"before anything was sent", "lifecycle", func(w *world, n int) {
			w.publish(n)
			w.play(n)
		}, func(v *Verdict) int { return v.Early }},
		{"before its commit", "lifecycle", func(w *world, n int) {
			w.play(n)
			w.sampled(int32(n), 8, w.subjects[n].ID.Base)
		}, func(v *Verdict) int { return v.Early }},
		{"twice", "lifecycle", func(w *world, n int) {
			w.play(n)
			w.publish(n)
		}, func(v *Verdict) int { return v.Doubled }},
		{"of an instance that is not ours", "foreign-instance", func(w *world, n int) {
			w.play(n)
			w.publish(n)
		}, func(v *Verdict) int { return v.Early }},
		{"a row that went back", "lifecycle", func(w *world, n int) {
			w.send(n, 8)
			w.publish(n)
			w.sampled(int32(n), 1, 1<<60)
			w.sampled(int32(n), 1, 1<<60-1)
		}, func(v *Verdict) int { return v.Regressed }},
		{"a field too many", "lifecycle", func(w *world, n int) {
			w.play(n)
			w.Heard(channelInstances, strings.Replace(w.instancePublish(n), "}", `,"more":"x"}`, 1), w.tick())
		}, func(v *Verdict) int { return v.Malformed }},
		{"a wrong owner", "lifecycle", func(w *world, n int) {
			w.send(n, 8)
			owner := w.subjects[n].ID.Owner
			w.Heard(channelInstances, strings.Replace(w.instancePublish(n), owner, reversed(owner), 1), w.tick())
		}, func(v *Verdict) int { return v.Malformed }},
		{"a prebuild's final state missing", "prebuild", func(w *world, n int) {
			w.send(n, 8)
			w.publish(n)
			w.prebuildPublish(n, "building", "started")
		}, func(v *Verdict) int { return v.Unpublished }},
		{"a prebuild that goes back", "prebuild", func(w *world, n int) {
			w.send(n, 8)
			w.publish(n)
			w.prebuildPublish(n, "available", "finish-success")
			w.prebuildPublish(n, "building", "started")
		}, func(v *Verdict) int { return v.Regressed }},
		{"a prebuild's state twice", "prebuild", func(w *world, n int) {
			w.play(n)
			w.prebuildPublish(n, "available", "finish-success")
		}, func(v *Verdict) int { return v.Doubled }},
		{"an empty organization", "prebuild", func(w *world, n int) {
			w.send(n, 8)
			w.publish(n)
			w.Heard(channelPrebuilds, `{"status":"available","prebuildID":"`+script.FormatUUID(w.subjects[n].ID.Prebuild)+
				`","workspaceID":"`+w.subjects[n].ID.Workspace+`","projectID":"`+w.subjects[n].ProjectID()+`","organizationID":""}`, w.tick())
		}, func(v *Verdict) int { return v.Malformed }},
	} {
		w := newWorld(t, nil)
		n := w.number(tc.scenario)
		tc.spoil(w, n)
		if v := w.verdict(n, w.expected(n)); tc.count(v) == 0 {
			t.Errorf("%s: %+v", tc.name, v)
		}
	}
}

// reversed turns a text round: as long, and another.
func reversed(s string) string {
	b := []byte(s)
	slices.Reverse(b)
	// The dashes stay where they were only by chance; that is no matter here.
	return string(b)
}

func TestEachFaultOfTheTablesIsFound(t *testing.T) {
	w := newWorld(t, nil)
	n := w.number("lifecycle")
	w.play(n)
	for name, tc := range map[string]struct {
		spoil func(*oracle.Actual)
		count func(*Verdict) int
	}{
		"lost":      {func(a *oracle.Actual) { a.Row.Version -= 1 }, func(v *Verdict) int { return v.Lost }},
		"regressed": {func(a *oracle.Actual) { a.Row.Phase = "running" }, func(v *Verdict) int { return v.Regressed }},
		"wrong":     {func(a *oracle.Actual) { a.Row.IDEURL = "" }, func(v *Verdict) int { return v.Wrong }},
		"late":      {func(a *oracle.Actual) { a.Row.Stopped = w.now.Add(time.Second) }, func(v *Verdict) int { return v.Wrong }},
		"token":     {func(a *oracle.Actual) { a.Tokens = []string{"x"} }, func(v *Verdict) int { return v.Wrong }},
		"survivor":  {func(a *oracle.Actual) { a.Survivors-- }, func(v *Verdict) int { return v.Wrong }},
		"gone":      {func(a *oracle.Actual) { a.Row = nil }, func(v *Verdict) int { return v.Lost }},
	} {
		got := w.expected(n)
		tc.spoil(&got)
		if v := w.verdict(n, got); tc.count(v) != 1 || v.OK() {
			t.Errorf("%s: %+v", name, v)
		}
	}
	u := w.number("unknown-instance")
	w.play(u)
	if v := w.verdict(u, w.expected(n)); v.OK() {
		t.Error("a row for an unknown instance passes")
	}
}

func TestAfterACut(t *testing.T) {
	w := newWorld(t, nil)
	n := w.number("lifecycle")
	w.send(n, 3)
	w.publish(n)
	w.Cut(0)
	w.send(n, 5)
	heard := w.expected(n)
	heard.Row.Started = time.Time{} // RUNNING was lost
	w.publish(n)
	for range 8 {
		w.publish(n) // publishes may come again
	}
	if v := w.verdict(n, heard); !v.OK() || v.Exact != 0 {
		t.Errorf("%+v", v)
	}
	// An instance that is begun after the cut is exact again.
	later := w.number("metrics")
	w.play(later)
	if v := w.verdict(later, w.expected(later)); !v.OK() || v.Exact != 1 {
		t.Errorf("%+v", v)
	}
	// Overtaken ones may lose states, but are published once.
	over := w.number("timeout")
	w.send(over, 8)
	w.Overtaken(0)
	w.publish(over)
	if v := w.verdict(over, w.expected(over)); !v.OK() || v.Exact != 0 {
		t.Errorf("%+v", v)
	}
}

// What is told again after a failure is no fault; that the newest is not told,
// or a value is wrong, still is.
func TestAfterSomethingWasRetold(t *testing.T) {
	w := newWorld(t, nil)
	n := w.number("prebuild")
	w.play(n)
	w.Retold()
	w.publish(n)
	w.prebuildPublish(n, "building", "started")
	w.prebuildPublish(n, "available", "finish-success")
	if v := w.verdict(n, w.expected(n)); !v.OK() || v.Exact != 1 {
		t.Errorf("%+v", v)
	}
	got := w.expected(n)
	got.Row.Started = time.Time{}
	if v := w.verdict(n, got); v.Wrong != 1 {
		t.Errorf("a time that is missing: %+v", v)
	}
	w.prebuildPublish(n, "building", "started")
	if v := w.verdict(n, w.expected(n)); v.Unpublished != 1 {
		t.Errorf("an old state told last: %+v", v)
	}
	// What is begun after that is told once.
	later := w.number("lifecycle")
	w.play(later)
	w.publish(later)
	if v := w.verdict(later, w.expected(later)); v.Doubled != 1 {
		t.Errorf("begun later, and told twice: %+v", v)
	}
}

func TestWhoeverLooksOnIsTold(t *testing.T) {
	w := newWorld(t, nil)
	var sent, changes, publishes, followed int
	w.cfg.Sending = func(cluster int, at time.Time, change bool) {
		sent++
		if change {
			changes++
		}
		if cluster != 0 || !at.Equal(w.now) {
			t.Errorf("told of cluster %d at %v, want 0 at %v", cluster, at, w.now)
		}
	}
	w.cfg.Heard = func(_ int, _ time.Time, latencies []time.Duration) {
		publishes++
		followed += len(latencies)
	}
	n := w.number("repeats")
	w.send(n, len(w.scripts[n].Steps))
	w.publish(n)
	w.publish(n)
	if c := w.Counts(); int64(sent) != c.Sent || int64(changes) != c.Changes || publishes != 2 || followed != changes {
		t.Errorf("told of %d messages, %d changes, %d publishes that follow %d; counted %+v", sent, changes, publishes, followed, c)
	}
}

// Of an instance that stops, comes back and stops again, only the two stops are
// heard: the second one is no news.
func TestWhatIsNoNewsAfterACut(t *testing.T) {
	w := newWorld(t, nil)
	n := w.number("back")
	stops := len(w.scripts[n].Steps) - 3
	w.send(n, stops)
	w.publish(n)
	w.Cut(0)
	heard := w.expected(n)
	w.sampled(int32(n), w.entries[n].publishes, heard.Row.Version)
	w.send(n, 3)
	if c := w.Counts(); c.Pending != 1 {
		t.Fatalf("%+v", c)
	}
	if v := w.verdict(n, heard); !v.OK() {
		t.Fatalf("%+v", v)
	}
	if err := w.AwaitPublished(t.Context()); err != nil || w.Counts().Pending != 0 {
		t.Errorf("it is still waited for: %v", err)
	}
	// Without a cut it is lost.
	other := newWorld(t, nil)
	other.send(n, stops)
	other.publish(n)
	heard = other.expected(n)
	other.send(n, 3)
	if v := other.verdict(n, heard); v.Lost != 1 || v.Unpublished != 1 {
		t.Errorf("%+v", v)
	}
}

func TestFloodRaisesTheVersionThatIsAccepted(t *testing.T) {
	w := newWorld(t, nil)
	n := w.number("back-to-stay")
	w.play(n)
	got := w.expected(n)
	got.Row.Version += 100
	got.Row.Status.Version += 100
	if v := w.verdict(n, got); v.Regressed == 0 {
		t.Errorf("before the flood: %+v", v)
	}
	w.Flood(n, script.Repeat, 100, got.Row.Version)
	if v := w.verdict(n, got); !v.OK() {
		t.Errorf("after it: %+v", v)
	}
}

func TestAwaitPublished(t *testing.T) {
	settled := make(chan int, 1)
	w := newWorld(t, func(n int) { settled <- n })
	n := w.number("lifecycle")
	if err := w.AwaitPublished(t.Context()); err != nil {
		t.Error(err)
	}
	w.send(n, 2)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.AwaitPublished(ended); err == nil {
		t.Error("it does not wait")
	}
	go w.publish(n)
	if err := w.AwaitPublished(t.Context()); err != nil {
		t.Error(err)
	}
	if got := <-settled; got != n {
		t.Errorf("instance %d was reported", got)
	}
}

func TestScanInstance(t *testing.T) {
	w := newWorld(t, nil)
	n := w.number("lifecycle")
	p := w.instancePublish(n)
	if _, instance, workspace, ok := scanInstance(p); !ok || instance != script.FormatUUID(w.subjects[n].ID.Instance) || workspace != w.subjects[n].ID.Workspace {
		t.Errorf("%q: %q %q %v", p, instance, workspace, ok)
	}
	// Another order, spaces and short owners take the slow way.
	s := w.subjects[n]
	w.send(n, 1)
	w.Heard(channelInstances, `{ "workspaceID": "`+s.ID.Workspace+`", "ownerID": "`+s.ID.Owner+`", "instanceID": "`+script.FormatUUID(s.ID.Instance)+`" }`, w.tick())
	w.Heard(channelInstances, `{"ownerID":"a","instanceID":"00000000-0000-0000-0000-000000000000","workspaceID":"b"}`, w.tick())
	w.Heard(channelInstances, `nothing`, w.tick())
	if c := w.Counts(); c.Publishes != 1 || c.Strays != 1 || c.Malformed != 1 {
		t.Errorf("%+v", c)
	}
}

func TestHistogram(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	var h Histogram
	var all []time.Duration
	for range 20_000 {
		d := time.Duration(rng.ExpFloat64() * float64(3*time.Millisecond))
		all = append(all, d)
		h.Add(d)
	}
	slices.Sort(all)
	for _, q := range []float64{0, 0.5, 0.9, 0.99, 0.999, 1} {
		want := all[max(0, int(q*float64(len(all))+0.999999)-1)]
		got := h.Quantile(q)
		if got < want || float64(got) > float64(want)*1.017+1 {
			t.Errorf("quantile %g is %v, want %v", q, got, want)
		}
	}
	if h.Max() != all[len(all)-1] || h.Quantile(1) != h.Max() {
		t.Errorf("max %v and %v", h.Max(), h.Quantile(1))
	}
	var big Histogram
	big.Add(48 * time.Hour)
	big.Add(-time.Second)
	if big.Quantile(1) != 48*time.Hour || big.Quantile(0.5) != 0 || big.Count() != 2 {
		t.Errorf("beyond the buckets: %v %v", big.Quantile(0.5), big.Quantile(1))
	}
}

func TestHistogramsAddUp(t *testing.T) {
	var first, second, both Histogram
	for i := range 1000 {
		d := time.Duration(i*i) * time.Microsecond
		both.Add(d)
		if i%3 == 0 {
			first.Add(d)
		} else {
			second.Add(d)
		}
	}
	sum := first
	sum.Merge(&second)
	if sum != both {
		t.Error("merged, two histograms are not the one of both")
	}
	since := sum.Since(&first)
	since.max = second.max // not known of a difference
	if since != second {
		t.Error("what was added since is not the second one")
	}
}
