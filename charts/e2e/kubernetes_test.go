package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/trestle-bridge/trestle/loadtest"
	"github.com/trestle-bridge/trestle/loadtest/ledger"
	"github.com/trestle-bridge/trestle/loadtest/oracle"
)

const (
	release  = "trestle"
	clusters = 9
	// patience is how long anything may take before the test says that it does
	// not happen. It is no measure of speed.
	patience = 3 * time.Minute
	replicas = "component=ws-manager-bridge"
)

// world is an installation under load.
type world struct {
	t         *testing.T
	ctx       context.Context
	namespace string
	test      *loadtest.Test
	rows      []string // of the table of results
}

// do runs a command and gives what it prints.
func (w *world) do(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(w.ctx, 2*patience)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

func (w *world) must(name string, args ...string) string {
	w.t.Helper()
	out, err := w.do(name, args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) kubectl(args ...string) string {
	w.t.Helper()
	return w.must("kubectl", append([]string{"-n", w.namespace}, args...)...)
}

// helm installs or upgrades.
func (w *world) helm(args ...string) error {
	image := os.Getenv("TRESTLE_E2E_IMAGE")
	colon := strings.LastIndex(image, ":")
	_, err := w.do("helm", append([]string{"-n", w.namespace, "upgrade", "--install", release, "../trestle", "--timeout", "3m",
		"--set", "image.repository=" + image[:colon], "--set-string", "image.tag=" + image[colon+1:],
		"--set", "postgres.existingSecret=postgres", "--set", "redis.address=" + os.Getenv("TRESTLE_E2E_REDIS"),
		"--set", "etcd.endpoints={" + os.Getenv("TRESTLE_E2E_ETCD") + "}", "--set", "etcd.prefix=/" + w.namespace,
		"--set", "resources.requests.cpu=20m"}, args...)...)
	return err
}

type pod struct {
	Metadata struct {
		Name              string
		DeletionTimestamp string
	}
	Spec   struct{ NodeName string }
	Status struct {
		ContainerStatuses []struct{ ContainerID string }
		Conditions        []struct{ Type, Status string }
	}
}

func (p *pod) ready() bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c struct{ Type, Status string }) bool { return c.Type == "Ready" && c.Status == "True" })
}

// pods are those that are not told to end.
func (w *world) pods() []pod {
	w.t.Helper()
	var list struct{ Items []pod }
	if err := json.Unmarshal([]byte(w.kubectl("get", "pods", "-l", replicas, "-o", "json")), &list); err != nil {
		w.t.Fatal(err)
	}
	return slices.DeleteFunc(list.Items, func(p pod) bool { return p.Metadata.DeletionTimestamp != "" })
}

// epochs are those of all shards, as their owners hold them.
func (w *world) epochs() (map[string]float64, error) {
	all := make(map[string]float64)
	for _, p := range w.pods() {
		text, err := w.do("kubectl", "get", "--raw", fmt.Sprintf("/api/v1/namespaces/%s/pods/%s:9500/proxy/metrics", w.namespace, p.Metadata.Name))
		if err != nil {
			return nil, err
		}
		parser := expfmt.NewTextParser(model.UTF8Validation)
		families, err := parser.TextToMetricFamilies(strings.NewReader(text))
		if err != nil {
			return nil, err
		}
		for _, m := range families["trestle_shard_epoch"].GetMetric() {
			labels := make(map[string]string)
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if labels["kind"] == "observed" {
				all[labels["shard"]] = max(all[labels["shard"]], m.GetGauge().GetValue())
			}
		}
	}
	return all, nil
}

// settled waits until so many replicas are there, all ready, and carry every
// cluster; gives the epochs.
func (w *world) settled(count int) map[string]float64 {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		pods := w.pods()
		ready := 0
		for i := range pods {
			if pods[i].ready() {
				ready++
			}
		}
		if len(pods) == count && ready == count {
			if epochs, err := w.epochs(); err == nil && len(epochs) == clusters {
				return epochs
			}
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%d replicas that carry all clusters did not come about: %d pods, %d ready", count, len(pods), ready)
		}
		select {
		case <-time.After(300 * time.Millisecond):
		case <-w.ctx.Done():
			w.t.Fatal(w.ctx.Err())
		}
	}
}

// step does something and waits for its end; what happens to updates meanwhile
// becomes a row of the table.
func (w *world) step(name string, count int, do func()) (moves map[string]float64) {
	w.t.Helper()
	before := w.settled(count)
	// What it is like when nothing happens, as long as a step lasts about.
	quiet := w.during(func() { w.sent(10) })
	var after map[string]float64
	began := time.Now()
	meanwhile := w.during(func() {
		do()
		after = w.settled(w.count(count))
		w.sent(2)
	})
	moves = make(map[string]float64)
	most, total := 0.0, 0.0
	for shard, epoch := range after {
		moves[shard] = epoch - before[shard]
		most, total = max(most, moves[shard]), total+moves[shard]
	}
	ms := func(h ledger.Histogram, q float64) int64 { return h.Quantile(q).Milliseconds() }
	row := fmt.Sprintf("| %s | %.0f s | %.0f | %.0f | %d | %d | %d | %d | %d |", name, time.Since(began).Seconds(), total, most,
		ms(quiet, 0.5), ms(quiet, 0.999), ms(meanwhile, 0.5), ms(meanwhile, 0.999), ms(meanwhile, 1))
	w.rows = append(w.rows, row)
	w.t.Log(row)
	return moves
}

// count is how many replicas are wanted now.
func (w *world) count(int) int {
	w.t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(w.kubectl("get", "deployment", release, "-o", "jsonpath={.spec.replicas}")))
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *world) during(do func()) ledger.Histogram {
	before := w.test.Ledger().Latency()
	do()
	after := w.test.Ledger().Latency()
	return after.Since(&before)
}

// sent waits until the load of so many seconds has been sent.
func (w *world) sent(seconds float64) {
	w.t.Helper()
	goal := w.test.Ledger().Counts().Sent + int64(seconds*rate())
	deadline := time.Now().Add(patience)
	for w.test.Ledger().Counts().Sent < goal {
		if time.Now().After(deadline) {
			w.t.Fatal("the load has ended")
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-w.ctx.Done():
			w.t.Fatal(w.ctx.Err())
		}
	}
}

func rate() float64 {
	if r, err := strconv.ParseFloat(os.Getenv("TRESTLE_E2E_RATE"), 64); err == nil {
		return r
	}
	return 1000
}

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
	w.kubectl("create", "secret", "generic", "postgres", "--from-literal=url="+os.Getenv("TRESTLE_E2E_POSTGRES"))

	began := time.Now()
	if err := w.helm("--wait", "--set", "replicas=3"); err != nil {
		t.Fatal(err)
	}
	t.Logf("installed with 3 replicas in %v", time.Since(began).Round(100*time.Millisecond))
	w.must("helm", "-n", w.namespace, "test", release)

	postgres, stop := os.Getenv("TRESTLE_E2E_POSTGRES"), make(chan struct{})
	var err error
	w.test, err = loadtest.New(loadtest.Config{
		Work: loadtest.Work{
			Shape: loadtest.Steady, Seed: uint64(os.Getpid()), Clusters: clusters, Wave: 1500, Odd: 0.2,
			Rate: rate(), Instances: 1500 + int(rate()*loadFor.Seconds()/7), Duration: loadFor,
		},
		Postgres: postgres, Redis: os.Getenv("TRESTLE_E2E_REDIS"), Installation: "local", NeverDrop: true, Snapshots: 2,
		Settle: patience, Silence: 20 * time.Second, Ready: patience, Stop: stop,
		Listen:   func(int) string { return net.JoinHostPort(os.Getenv("TRESTLE_E2E_LISTEN"), "0") },
		Register: func(ctx context.Context, c []loadtest.Cluster) error { return loadtest.Register(ctx, postgres, c) },
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
	w.story()
	close(stop)
	r := <-results
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Logf("sent %d, changes %d, publishes %d, %+v", r.report.Sent, r.report.Changes, r.report.Publishes, r.report.Latency)
	t.Logf("verdict: %+v", r.report.Verdict)
	if !r.report.OK() && !repeatsOnly(r.report) {
		t.Errorf("it has not held: %s %+v", r.report.Unsettled, r.report.Verdict)
	}
	w.must("helm", "-n", w.namespace, "uninstall", release, "--wait")
	if left := strings.TrimSpace(w.kubectl("get", "all,configmaps,pdb,serviceaccounts", "-l", "app.kubernetes.io/instance="+release,
		"--field-selector", "metadata.deletionTimestamp=", "-o", "name", "--ignore-not-found")); strings.Contains(left, "deployment") || strings.Contains(left, "service/") {
		t.Errorf("uninstall left: %s", left)
	}
	t.Logf("| step | took | moves | most a shard | p50 before (ms) | p99.9 before | p50 meanwhile | p99.9 meanwhile | longest |\n%s", strings.Join(w.rows, "\n"))
}

// loadFor is how long updates are sent at most: the story fits into it.
const loadFor = 15 * time.Minute

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

// story is all that happens to the installation.
func (w *world) story() {
	t := w.t
	scale := func(n int) func() {
		return func() { w.kubectl("scale", "deployment", release, fmt.Sprintf("--replicas=%d", n)) }
	}
	moved := w.step("rolling upgrade to a new revision", 3, func() {
		if err := w.helm("--wait", "--set", "replicas=3", "--set", "podAnnotations.revision=two"); err != nil {
			t.Fatal(err)
		}
	})
	for _, shard := range slices.Sorted(maps.Keys(moved)) {
		if moved[shard] != 1 {
			t.Errorf("shard %s moved %v times in the upgrade, want once", shard, moved[shard])
		}
	}
	w.step("3 to 6 replicas", 3, scale(6))
	w.step("6 to 2 replicas", 6, scale(2))
	w.step("2 to 3 replicas", 2, scale(3))
	w.step("a pod is deleted", 3, func() { w.kubectl("delete", "pod", w.pods()[0].Metadata.Name, "--wait") })
	if kill := strings.Fields(os.Getenv("TRESTLE_E2E_KILL")); len(kill) > 0 {
		w.step("a container is killed with -9", 3, func() {
			victim := w.pods()[0]
			id := victim.Status.ContainerStatuses[0].ContainerID
			_, bare, _ := strings.Cut(id, "://")
			w.must(kill[0], append(kill[1:], victim.Spec.NodeName, bare)...)
		})
	} else {
		t.Log("TRESTLE_E2E_KILL is not set: no container is killed")
	}
	node := ""
	w.step("a node is drained", 3, func() {
		node = w.pods()[0].Spec.NodeName
		w.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--pod-selector", replicas, "--timeout=150s")
	})
	w.kubectl("uncordon", node)
	w.step("a bad upgrade, rolled back", 3, func() {
		if err := w.helm("--wait", "--timeout", "15s", "--set", "replicas=3", "--set-json", `config={"log":{"format":"neither"}}`); err == nil {
			t.Error("an upgrade to a broken configuration was taken for good")
		} else if errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		w.must("helm", "-n", w.namespace, "rollback", release, "--wait", "--timeout", "2m")
	})
}
