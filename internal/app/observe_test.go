package app

import (
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"

	"github.com/trestle-bridge/trestle/internal/config"
	"github.com/trestle-bridge/trestle/internal/secret"
	"github.com/trestle-bridge/trestle/loadtest/script"
	"github.com/trestle-bridge/trestle/loadtest/sim"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

// contract is what dashboards query.
var contract = []struct {
	name    string
	kind    dto.MetricType
	labels  []string
	buckets []float64
}{
	{"workspace_startup_time", dto.MetricType_HISTOGRAM, []string{"neededImageBuild", "region"}, doubled(2, 10)},
	{"first_user_activity_time", dto.MetricType_HISTOGRAM, []string{"region"}, doubled(2, 10)},
	{"gitpod_ws_manager_bridge_cluster_score", dto.MetricType_GAUGE, []string{"workspace_cluster"}, nil},
	{"gitpod_ws_manager_bridge_cluster_cordoned", dto.MetricType_GAUGE, []string{"workspace_cluster"}, nil},
	{updatesTotal, dto.MetricType_COUNTER, []string{"known_instance", "workspace_cluster"}, nil},
	{staleTotal, dto.MetricType_COUNTER, nil, nil},
	{"gitpod_ws_manager_bridge_stale_prebuild_events_total", dto.MetricType_COUNTER, nil, nil},
	{startedTotal, dto.MetricType_COUNTER, []string{"workspace_cluster", "workspace_instance_type"}, nil},
	{completedTotal, dto.MetricType_HISTOGRAM, []string{"outcome", "workspace_cluster", "workspace_instance_type"}, doubled(0.05, 8)},
	{publishedTotal, dto.MetricType_COUNTER, []string{"error", "type"}, nil},
	{"gitpod_ws_manager_bridge_updates_published_total", dto.MetricType_COUNTER, []string{"error", "type"}, nil},
	{"gitpod_prebuilds_completed_total", dto.MetricType_COUNTER, []string{"state"}, nil},
	{"gitpod_ws_instances_marked_stopped_total", dto.MetricType_COUNTER, []string{"previous_phase"}, nil},
}

func doubled(first float64, n int) (buckets []float64) {
	for range n {
		buckets = append(buckets, first)
		first *= 2
	}
	return buckets
}

// The metrics that dashboards query are there, in type, labels and buckets,
// and say what happened.
func TestMetricsOfTheContract(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{clusters: 2, instances: 240, odd: 0.8, seed: 1_000_003})
	w.exec(`UPDATE workspace_cluster SET score = 70, state = 'cordoned' WHERE name = $1`, clusterName(1))
	s := w.serve()
	w.heard(2) // no more of them changes the counts
	w.sendAll(every)
	w.settle(false)
	// What is sent behind all the rest is accounted for behind it, in its lane
	// alone: so wait until nothing is on its way.
	w.until("every update is accounted for", func() bool {
		f := s.families(startedTotal, completedTotal)
		sent := w.ledger.Counts()
		return sum(f[startedTotal]) >= float64(sent.Sent-sent.Invalid) && sum(f[startedTotal]) == sum(f[completedTotal])
	})

	families := s.families()
	for _, want := range contract {
		family := families[want.name]
		if family == nil {
			t.Errorf("%s is missing", want.name)
			continue
		}
		if family.GetType() != want.kind {
			t.Errorf("%s is a %s, want %s", want.name, family.GetType(), want.kind)
		}
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName())
			}
			slices.Sort(labels)
			if !slices.Equal(labels, want.labels) {
				t.Errorf("%s has the labels %v, want %v", want.name, labels, want.labels)
			}
			for _, bound := range want.buckets {
				if !slices.ContainsFunc(m.GetHistogram().GetBucket(), func(b *dto.Bucket) bool { return b.GetUpperBound() == bound }) {
					t.Errorf("%s has no bucket of %v", want.name, bound)
				}
			}
		}
	}

	// What the scripts say happens.
	sent := w.ledger.Counts()
	var prebuilds, started, unknown, foreign float64
	prebuildEnds := map[string]float64{}
	types := map[string]float64{}
	for n := range w.plan.instances {
		sub := w.subject(n)
		valid := 0.0
		for _, step := range sub.Script.Steps {
			if step.Kind != script.Invalid {
				valid++
			}
		}
		switch sub.Script.Role {
		case script.Unknown:
			unknown += valid
			continue
		case script.Foreign:
			foreign += valid
			continue
		}
		types[string(sub.Type)] += valid
		if ask[bool](w, `SELECT started_time IS NOT NULL FROM workspace_instance WHERE id = $1`, sub.ID.Instance) {
			started++
		}
		if sub.Type == script.Prebuild {
			prebuilds++
			prebuildEnds[ask[string](w, `SELECT state FROM prebuilt_workspace WHERE id = $1`, sub.ID.Prebuild)]++
		}
	}
	if prebuilds == 0 || unknown == 0 || foreign == 0 {
		t.Fatalf("%v prebuilds, %v updates of unknown and %v of foreign instances: the seed is no good", prebuilds, unknown, foreign)
	}
	total := float64(sent.Sent - sent.Invalid)
	expect := func(what string, got, want float64) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	expect("updates started", sum(families[startedTotal]), total)
	expect("updates completed", sum(families[completedTotal]), total)
	expect("updates received", sum(families[updatesTotal]), total)
	for kind, n := range types {
		if got := sum(families[completedTotal], "workspace_instance_type="+kind); got < n {
			t.Errorf("updates of type %s: %v, want at least %v", kind, got, n)
		}
	}
	// A foreign row is not looked up again for a while.
	if got := sum(families[updatesTotal], "known_instance=false"); got < unknown || got > unknown+foreign {
		t.Errorf("updates of unknown instances: %v, want from %v to %v", got, unknown, unknown+foreign)
	}
	expect("errors", sum(families[completedTotal], "outcome=error"), 0)
	expect("instances started", sum(families["workspace_startup_time"]), started)
	expect("publishes of instances", sum(families[publishedTotal], "type=workspace-instance", "error=false"), float64(sent.Publishes))
	expect("publishes of prebuilds", sum(families[publishedTotal], "type=prebuild", "error=false"), float64(sent.Prebuilds))
	expect("headless publishes", sum(families[publishedTotal], "type=headless", "error=false"), float64(sent.Headless))
	expect("failed publishes", sum(families[publishedTotal], "error=true"), 0)
	for _, m := range families[publishedTotal].GetMetric() {
		var labels []string
		for _, l := range m.GetLabel() {
			labels = append(labels, l.GetName()+"="+l.GetValue())
		}
		expect("the other name, "+strings.Join(labels, " "), sum(families["gitpod_ws_manager_bridge_updates_published_total"], labels...), m.GetCounter().GetValue())
	}
	for _, state := range []string{"available", "timeout", "failed", "aborted"} {
		expect("prebuilds that ended as "+state, sum(families["gitpod_prebuilds_completed_total"], "state="+state), prebuildEnds[state])
	}
	expect("score", sum(families["gitpod_ws_manager_bridge_cluster_score"], "workspace_cluster="+clusterName(1)), 70)
	expect("cordoned", sum(families["gitpod_ws_manager_bridge_cluster_cordoned"], "workspace_cluster="+clusterName(1)), 1)
	expect("cordoned", sum(families["gitpod_ws_manager_bridge_cluster_cordoned"], "workspace_cluster="+clusterName(0)), 0)
	expect("waiting", sum(families[waitingInstances]), 0)
	expect("outbox behind", sum(families["trestle_pipeline_outbox_behind"]), 0)
	expect("build info", sum(families["trestle_build_info"], "version=v1.2.3", "revision=abc"), 1)
	for _, name := range []string{
		batches, "trestle_pipeline_commit_seconds", "trestle_pipeline_folded_updates_total", "trestle_pipeline_changes_total",
		"trestle_pipeline_oldest_waiting_seconds", "trestle_outbox_rows", "trestle_outbox_oldest_seconds", "trestle_upstream_stream_up",
		"go_goroutines", "process_start_time_seconds",
	} {
		if families[name] == nil {
			t.Errorf("%s is missing; there are %v", name, slices.Sorted(maps.Keys(families)))
		}
	}
	if got := sum(families["trestle_pipeline_folded_updates_total"]); got < sum(families["trestle_pipeline_changes_total"]) {
		t.Errorf("%v updates in %v changes", got, sum(families["trestle_pipeline_changes_total"]))
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{instances: 1})
	s := w.serve()
	w.until("it is ready", func() bool { code, _ := s.get("/readyz"); return code == http.StatusOK })
	for _, o := range []struct {
		what       string
		begin, end func()
	}{
		{"postgres", w.postgres.Down, w.postgres.Up},
		{"redis", w.redis.Down, w.redis.Up},
	} {
		o.begin()
		if code, body := s.get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, o.what+": failing") {
			t.Errorf("without %s /readyz answers %d: %s", o.what, code, body)
		}
		if code, body := s.get("/healthz"); code != http.StatusOK {
			t.Errorf("without %s /healthz answers %d: %s", o.what, code, body)
		}
		o.end()
		w.until("it is ready again", func() bool { code, _ := s.get("/readyz"); return code == http.StatusOK })
	}
	if code, _ := s.get("/debug/pprof/"); code != http.StatusNotFound {
		t.Errorf("/debug/pprof/ answers %d where metrics are served", code)
	}
	s.stop()
}

// Nothing that is secret is in the log, however much is logged and whatever
// goes wrong.
func TestNoSecretsInTheLog(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	secured, err := a.ServerTLS(a.server)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, plan{clusters: 3, instances: 120, odd: 0.9, unregistered: true, sim: func(n int, c *sim.Config) {
		c.NeverDrop = n > 0
		if n == 1 {
			c.TLS = secured
		}
	}})
	w.register(0)
	w.exec(`INSERT INTO workspace_cluster (name, url, tls) VALUES ($1, $2, $3)`, clusterName(1), w.clusters[1].Addr(), a.column(t))
	w.register(2)
	// The database's own messages quote rows; a key shows up in what it
	// refuses.
	w.exec(`ALTER TABLE workspace_instance ADD CONSTRAINT no_poison CHECK (status ->> 'message' IS DISTINCT FROM 'poison')`)
	w.exec(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		IF NEW.status ->> 'message' = 'told' THEN
			RAISE EXCEPTION 'refused: %', NEW.status USING ERRCODE = '22023', DETAIL = NEW.status::text, HINT = NEW.status ->> 'ownerToken';
		END IF;
		RETURN NEW;
	END $$`)
	w.exec(`CREATE TRIGGER refuse BEFORE UPDATE ON workspace_instance FOR EACH ROW EXECUTE FUNCTION refuse()`)

	s := w.serve(func(c *config.Config) {
		c.Postgres.StatementTimeout = 300 * time.Millisecond
		c.Lifecycle.Sink = secret.NewURL("log")
	})
	w.heard(1)
	const token = "hunter2-0123456789abcdef0123456789abcdef"
	says := func(text string) func(*wsman.WorkspaceStatus) {
		return func(s *wsman.WorkspaceStatus) {
			s.Message = text
			s.Auth.OwnerToken = token
		}
	}
	w.sendAll(3)
	const highest = 1 << 62
	var known []int // those that have a row which is their cluster's
	for n := range w.plan.instances {
		if w.subject(n).Script.Role == script.Known {
			known = append(known, n)
		}
	}
	w.say(known[0], w.status(known[0], highest, says("poison")))
	w.say(known[1], w.status(known[1], highest, says("told")))
	w.say(known[2], w.status(known[2], highest, func(s *wsman.WorkspaceStatus) { says("invalid")(s); s.Conditions = nil }))
	w.mumble(known[2], sim.NewMessage([]byte("\x0a\x64"+token)))
	unlock := w.lock(known[3])
	w.say(known[3], w.status(known[3], highest, says("late")))
	w.until("an attempt has failed", func() bool { return s.metric(failedAttempts) > 0 })
	unlock()
	w.until("two are in quarantine", func() bool { return ask[int](w, `SELECT count(*) FROM trestle_quarantine`) == 2 })
	w.postgres.Cut()
	w.redis.Down()
	w.sendAll(every)
	for _, c := range w.clusters {
		c.CutStreams()
	}
	w.redis.Up()
	if err := w.clusters[2].Stop(w.ctx); err != nil {
		t.Fatal(err)
	}
	w.until("it is missed", func() bool { return s.metric("trestle_upstream_reconnects_total", "reason=unavailable") > 0 })
	s.stop()

	log := s.log.String()
	if !strings.Contains(log, `"level":"DEBUG"`) || !strings.Contains(log, "quarantine") {
		t.Error("the log does not tell what happened")
	}
	tokens := map[string]bool{token: true, "hunter2": true, string(a.client.Key[28:60]): true, "PRIVATE KEY": true}
	for n := range w.plan.instances {
		sub := w.subject(n)
		for i := range sub.Script.Steps {
			step := &sub.Script.Steps[i]
			if status := step.Frame.Decode(&sub.ID, 1); status.GetAuth().GetOwnerToken() != "" {
				tokens[status.Auth.OwnerToken] = true
			}
		}
	}
	if len(tokens) < 6 {
		t.Fatalf("only %d secrets were sent", len(tokens))
	}
	for text := range tokens {
		if at := strings.Index(log, text); at >= 0 {
			t.Errorf("the log shows %q: …%s…", text, log[max(0, at-200):min(len(log), at+100)])
		}
	}
	if reasons := ask[string](w, `SELECT string_agg(reason, ' ') FROM trestle_quarantine`); strings.Contains(reasons, "hunter2") {
		t.Errorf("the quarantine shows a token: %s", reasons)
	}
}

// receiver takes spans.
type receiver struct {
	collector.UnimplementedTraceServiceServer

	mu    sync.Mutex        // guards what follows
	spans map[string]string // name by trace
	// more is closed and replaced when spans have come.
	more chan struct{}
}

func (r *receiver) Export(_ context.Context, request *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, resource := range request.GetResourceSpans() {
		for _, scope := range resource.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				r.spans[hex.EncodeToString(span.GetTraceId())] = span.GetName() + " in " + hex.EncodeToString(span.GetParentSpanId())
			}
		}
	}
	close(r.more)
	r.more = make(chan struct{})
	return &collector.ExportTraceServiceResponse{}, nil
}

// An update that brings a trace context is written in a span of that trace.
func TestTracesAreContinued(t *testing.T) {
	t.Parallel()
	r := &receiver{spans: map[string]string{}, more: make(chan struct{})}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, r)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	w := newWorld(t, plan{instances: 3})
	s := w.serve(func(c *config.Config) { c.Tracing.Endpoint = listener.Addr().String() })
	w.heard(1)
	const w3c, jaeger, parent = "0af7651916cd43dd8448eb211c80319c", "1bf7651916cd43dd8448eb211c80319d", "b7ad6b7169203331"
	for n, header := range []map[string]string{
		{"traceparent": fmt.Sprintf("00-%s-%s-01", w3c, parent)},
		{"uber-trace-id": fmt.Sprintf("%s:%s:0:1", jaeger, parent)},
		{"traceparent": "nonsense"},
	} {
		m := w.message(w.status(n, 1, nil))
		w.publish(0, sim.Update{ID: w.subject(n).ID.Instance, Message: m.WithHeader(header)})
	}
	for n := range 3 {
		w.until("it is written", func() bool { return w.version(n) == 1 })
	}
	s.stop() // sends what is left
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, trace := range []string{w3c, jaeger} {
		if got, want := r.spans[trace], "write instance status in "+parent; got != want {
			t.Errorf("the span of trace %s is %q, want %q", trace, got, want)
		}
	}
}
