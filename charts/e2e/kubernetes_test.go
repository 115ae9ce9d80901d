package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trestle-bridge/trestle/loadtest"
	"github.com/trestle-bridge/trestle/loadtest/ledger"
	"github.com/trestle-bridge/trestle/loadtest/oracle"
)

// lateAtMost is how much later the updates of shards that are moved in order may
// be published than those of shards that stay, at the quantile 0.999. Where updates
// are as late as that while nothing happens, the machine is too small for the load,
// and lateness says nothing of moves.
const lateAtMost = 100 * time.Millisecond

// How long updates are sent at most: what happens meanwhile fits into it.
const (
	plannedLoad = 12 * time.Minute
	crashLoad   = 6 * time.Minute
)

func TestChartUnderLoad(t *testing.T) {
	for _, name := range []string{"IMAGE", "POSTGRES", "REDIS", "ETCD", "LISTEN"} {
		if os.Getenv("TRESTLE_E2E_"+name) == "" {
			t.Skipf("TRESTLE_E2E_%s is not set: there is no Kubernetes to try the chart on; see the package's comment", name)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 35*time.Minute)
	defer cancel()
	w := &world{t: t, ctx: ctx, namespace: fmt.Sprintf("trestle-e2e-%d", os.Getpid())}
	if _, err := w.do("kubectl", "version"); err != nil {
		t.Skipf("no Kubernetes answers: %v", err)
	}
	w.proxy()
	w.must("kubectl", "create", "namespace", w.namespace)
	defer func() {
		w.ctx = context.WithoutCancel(ctx)
		if t.Failed() {
			out, _ := w.do("kubectl", "-n", w.namespace, "get", "pods,events", "-o", "wide")
			t.Log(out)
		}
		if _, err := w.do("kubectl", "delete", "namespace", w.namespace, "--wait=false"); err != nil {
			t.Error(err)
		}
	}()
	postgres := os.Getenv("TRESTLE_E2E_POSTGRES")
	w.kubectl("create", "secret", "generic", "postgres", "--from-literal=url="+postgres)
	var err error
	if w.db, err = pgxpool.New(ctx, postgres); err != nil {
		t.Fatal(err)
	}
	defer w.db.Close()

	began := time.Now()
	if err := w.helm("--wait", "--set", "replicas=3"); err != nil {
		t.Fatal(err)
	}
	t.Logf("installed with 3 replicas in %v, slowest to become ready: %v", time.Since(began).Round(100*time.Millisecond), slowest(w.pods(), began))
	w.must("helm", "-n", w.namespace, "test", release)

	r := w.load("planned", plannedLoad, w.planned)
	if !r.OK() {
		t.Errorf("what was planned: it has not held: %s %+v", r.Unsettled, r.Verdict)
	}
	if kill := strings.Fields(os.Getenv("TRESTLE_E2E_KILL")); len(kill) > 0 {
		if r := w.load("crash", crashLoad, func() { w.crash(kill) }); !r.OK() && !repeatsOnly(r) {
			t.Errorf("the crash: it has not held: %s %+v", r.Unsettled, r.Verdict)
		}
	} else {
		t.Log("TRESTLE_E2E_KILL is not set: no container is killed")
	}

	w.must("helm", "-n", w.namespace, "uninstall", release, "--wait")
	w.gone()
	t.Logf("| step | took | pods ready within | moves (most of one shard) | longest update | p99.9 of shards that moved | of those that stayed |\n|---|---|---|---|---|---|---|\n%s", strings.Join(w.rows, "\n"))
}

// load sends updates while something happens, and gives the verdict.
func (w *world) load(name string, most time.Duration, happens func()) *loadtest.Report {
	w.t.Helper()
	t, ctx, postgres, stop := w.t, w.ctx, os.Getenv("TRESTLE_E2E_POSTGRES"), make(chan struct{})
	w.prefix = name
	w.story.begin()
	var err error
	w.test, err = loadtest.New(loadtest.Config{
		Work: loadtest.Work{
			Shape: loadtest.Steady, Seed: uint64(os.Getpid())<<8 | uint64(name[0]), Name: name, Clusters: clusters, Wave: 1500, Odd: 0.2,
			Rate: rate(), Instances: 1500 + int(rate()*most.Seconds()/7), Duration: most,
		},
		Postgres: postgres, Redis: os.Getenv("TRESTLE_E2E_REDIS"), Installation: "local", NeverDrop: true, Snapshots: 2,
		Settle: patience, Silence: 20 * time.Second, Ready: patience, Stop: stop, Heard: w.story.heard,
		Listen:   func(int) string { return net.JoinHostPort(os.Getenv("TRESTLE_E2E_LISTEN"), "0") },
		Register: func(ctx context.Context, c []loadtest.Cluster) error { return loadtest.Register(ctx, postgres, c) },
		Finally: func(ctx context.Context) error {
			_, err := w.db.Exec(ctx, `DELETE FROM workspace_cluster WHERE starts_with(name, $1)`, name+"-")
			return err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		report *loadtest.Report
		err    error
	}
	results := make(chan result, 1) // a step may end the test
	go func() {
		report, err := w.test.Run(ctx)
		results <- result{report, err}
	}()
	watching, end := context.WithCancel(ctx)
	watched := make(chan error, 1) // the same
	go func() { watched <- w.watch(watching) }()
	defer end()

	happens()
	close(stop)
	r := <-results
	end()
	if err := <-watched; err != nil {
		t.Error(err)
	}
	if r.err != nil {
		t.Fatal(r.err)
	}
	v := r.report.Verdict
	t.Logf("%s: sent %d, changes %d, publishes %d, dropped %d; checked %d instances, %d of them exactly: lost %d, regressed %d, wrong %d, unpublished %d, doubled %d, early %d, malformed %d",
		name, r.report.Sent, r.report.Changes, r.report.Publishes, r.report.Drops, v.Instances, v.Exact, v.Lost, v.Regressed, v.Wrong, v.Unpublished, v.Doubled, v.Early, v.Malformed)
	return r.report
}

// repeatsOnly: after a crash the last publishes may come again.
func repeatsOnly(r *loadtest.Report) bool {
	v := r.Verdict
	if r.Unsettled != "" || v.Lost+v.Wrong+v.Unpublished+v.Early+v.Malformed > 0 {
		return false
	}
	for _, d := range v.Differences {
		if d.Kind == oracle.Regressed && !strings.HasPrefix(d.Field, "chan:") {
			return false
		}
	}
	return true
}

// step does something and waits for its end; what happens to updates meanwhile
// becomes a row of the table. Before is what it is like when nothing happens.
func (w *world) step(name string, count int, do func()) (before, l *latencies) {
	w.t.Helper()
	pods := w.settled(count)
	used, quiet := w.usage(pods), time.Now()
	w.sent(10)
	w.t.Logf("before %q: %s", name, compare(used, w.usage(pods)))
	began := time.Now()
	do()
	pods = w.settled(w.deployment().Spec.Replicas)
	took := time.Since(began)
	w.sent(2)
	until := time.Now()
	w.sent(1) // so that they are published
	before, l = w.story.during(quiet, began), w.story.during(began, until)
	total, most := 0, 0
	for _, n := range l.moves {
		total, most = total+n, max(most, n)
	}
	ms := func(h *ledger.Histogram, q float64) string {
		if h.Count() == 0 {
			return "–"
		}
		return fmt.Sprintf("%d ms", h.Quantile(q).Milliseconds())
	}
	row := fmt.Sprintf("| %s | %.0f s | %v | %d (%d) | %s | %s | %s |", name, took.Seconds(), slowest(pods, began), total, most, ms(&l.all, 1), ms(&l.moving, 0.999), ms(&l.staying, 0.999))
	w.rows = append(w.rows, row)
	w.t.Logf("%s before: p50 %s, p99.9 %s, longest %s; meanwhile: p50 %s, p99.9 %s", row, ms(&before.all, 0.5), ms(&before.all, 0.999), ms(&before.all, 1), ms(&l.all, 0.5), ms(&l.all, 0.999))
	return before, l
}

// slowest is how long the slowest of the pods made since then took to become
// ready, in whole seconds as Kubernetes tells it.
func slowest(pods []pod, since time.Time) string {
	most := time.Duration(-1)
	for i := range pods {
		if made, ready := pods[i].Metadata.CreationTimestamp, pods[i].ready(); !made.Before(since.Truncate(time.Second)) && !ready.IsZero() {
			most = max(most, ready.Sub(made))
		}
	}
	if most < 0 {
		return "–"
	}
	return most.String()
}

// planned is all that is done in order.
func (w *world) planned() {
	t := w.t
	var together latencies
	var quiet ledger.Histogram
	moves := 0
	step := func(name string, count int, do func()) map[int]int {
		t.Helper()
		before, l := w.step(name, count, do)
		quiet.Merge(&before.all)
		together.moving.Merge(&l.moving)
		together.staying.Merge(&l.staying)
		for _, n := range l.moves {
			moves += n
		}
		return l.moves
	}
	scale := func(n int) func() {
		return func() { w.kubectl("scale", "deployment", release, fmt.Sprintf("--replicas=%d", n)) }
	}
	moved := step("rolling upgrade to a new revision", 3, func() {
		if err := w.helm("--wait", "--set", "replicas=3", "--set", "podAnnotations.revision=two"); err != nil {
			t.Fatal(err)
		}
	})
	for c := range clusters {
		if moved[c] != 1 {
			t.Errorf("cluster %d moved %d times in the upgrade, want once", c, moved[c])
		}
	}
	step("3 to 6 replicas", 3, scale(6))
	step("6 to 2 replicas", 6, scale(2))
	step("2 to 3 replicas", 2, scale(3))
	step("a pod is deleted", 3, func() { w.kubectl("delete", "pod", w.pods()[0].Metadata.Name, "--wait") })
	w.drain(step)
	step("a bad upgrade, rolled back", 3, func() {
		if err := w.helm("--wait", "--timeout", "15s", "--set", "replicas=3", "--set-json", `config={"log":{"format":"neither"}}`); err == nil {
			t.Error("an upgrade to a broken configuration was taken for good")
		}
		w.must("helm", "-n", w.namespace, "rollback", release, "--wait", "--timeout", "2m")
	})
	moving, staying, usual := together.moving.Quantile(0.999), together.staying.Quantile(0.999), quiet.Quantile(0.999)
	t.Logf("%d planned moves: p99.9 of %d updates of shards that moved %v, of %d of those that stayed %v, of %d while nothing happened %v", moves,
		together.moving.Count(), moving, together.staying.Count(), staying, quiet.Count(), usual)
	if together.moving.Count() == 0 || together.staying.Count() == 0 {
		t.Error("no shard was seen to move while another stayed")
	}
	switch late := moving - staying; {
	case usual > lateAtMost:
		t.Logf("the machine does not keep up with the load: it is not judged that moves made updates late by %v", late)
	case late > lateAtMost:
		t.Errorf("planned moves make updates late by %v, want at most %v", late, lateAtMost)
	}
}

// drain empties two nodes at once, which the PodDisruptionBudget turns into one
// pod after the other.
func (w *world) drain(step func(string, int, func()) map[int]int) {
	nodes := strings.Fields(w.must("kubectl", "get", "nodes", "--field-selector", "spec.unschedulable=false", "-o", "jsonpath={.items[*].metadata.name}"))
	if len(nodes) < 2 {
		w.t.Log("there is one node: it is not drained")
		return
	}
	var busy []string
	for _, p := range w.pods() {
		if !slices.Contains(busy, p.Spec.NodeName) {
			busy = append(busy, p.Spec.NodeName)
		}
	}
	busy = busy[:min(len(busy), len(nodes)-1, 2)] // one is left for the pods
	defer func() {
		for _, node := range busy {
			w.must("kubectl", "uncordon", node)
		}
	}()
	step(fmt.Sprintf("%d nodes are drained at once", len(busy)), 3, func() {
		drained := make(chan error, len(busy)) // the test may end before they do
		for _, node := range busy {
			go func() {
				_, err := w.do("kubectl", "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--pod-selector", replicas, "--timeout=150s")
				drained <- err
			}()
		}
		for left := len(busy); left > 0; {
			if n := w.deployment().Status.ReadyReplicas; n < 2 {
				w.t.Errorf("%d replicas are ready in the drain, want 2 of 3", n)
			}
			select {
			case err := <-drained:
				left--
				if err != nil {
					w.t.Error(err)
				}
			case <-time.After(200 * time.Millisecond):
			}
		}
	})
}

// crash kills the process of a container.
func (w *world) crash(kill []string) {
	w.step("a container is killed with -9", 3, func() {
		victim := w.pods()[0]
		_, id, _ := strings.Cut(victim.Status.ContainerStatuses[0].ContainerID, "://")
		w.must(kill[0], append(kill[1:], victim.Spec.NodeName, id)...)
	})
}

// gone waits until nothing of the release is left.
func (w *world) gone() {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		left := w.kubectl("get", "all,configmaps,secrets,serviceaccounts,poddisruptionbudgets,networkpolicies,horizontalpodautoscalers,endpointslices", "-l", "app.kubernetes.io/instance="+release, "-o", "name") +
			w.kubectl("get", "secrets", "-l", "owner=helm", "-o", "name")
		if strings.TrimSpace(left) == "" {
			return
		}
		if time.Now().After(deadline) {
			w.t.Errorf("uninstall leaves:\n%s", left)
			return
		}
		w.pause(time.Second)
	}
}
