package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/trestle-bridge/trestle/loadtest"
)

const (
	release  = "trestle"
	clusters = 9
	// patience is how long anything may take before the test says that it does
	// not happen. It is no measure of speed.
	patience = 3 * time.Minute
	replicas = "component=ws-manager-bridge"
)

// world is an installation, under load for most of the time.
type world struct {
	t         *testing.T
	ctx       context.Context
	namespace string
	api       string // URL of the API server, by way of kubectl proxy
	db        *pgxpool.Pool
	rows      []string // of the table of results

	test   *loadtest.Test
	prefix string // of the names of the test's clusters
	story  story
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
		"--set", "etcd.endpoints={" + os.Getenv("TRESTLE_E2E_ETCD") + "}", "--set", "etcd.prefix=/" + w.namespace}, args...)...)
	return err
}

// condition is of a pod.
type condition struct {
	Type, Status       string
	LastTransitionTime time.Time
}

type pod struct {
	Metadata struct {
		Name              string
		CreationTimestamp time.Time
		DeletionTimestamp string
	}
	Spec   struct{ NodeName string }
	Status struct {
		ContainerStatuses []struct{ ContainerID string }
		Conditions        []condition
	}
}

// ready says since when the pod has been, in whole seconds; zero if it is not.
func (p *pod) ready() time.Time {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" && c.Status == "True" {
			return c.LastTransitionTime
		}
	}
	return time.Time{}
}

// proxy begins to speak to the API server for the test, until its end. kubectl
// itself would take more of a small machine, every time that something is looked
// at, than the service does.
func (w *world) proxy() {
	w.t.Helper()
	cmd := exec.CommandContext(w.ctx, "kubectl", "proxy", "--port=0")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	_, address, found := strings.Cut(strings.TrimSpace(line), "Starting to serve on ")
	if !found {
		w.t.Fatalf("kubectl proxy says %q: %v", line, err)
	}
	w.api = "http://" + address
}

// get asks the API server.
func (w *world) get(path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, w.api+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %.300s", path, response.Status, body)
	}
	return body, err
}

// look asks for an object.
func (w *world) look(into any, path string) {
	w.t.Helper()
	body, err := w.get(path)
	if err == nil {
		err = json.Unmarshal(body, into)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// pods are those that are not told to end.
func (w *world) pods() []pod {
	w.t.Helper()
	var list struct{ Items []pod }
	w.look(&list, fmt.Sprintf("/api/v1/namespaces/%s/pods?labelSelector=%s", w.namespace, url.QueryEscape(replicas)))
	return slices.DeleteFunc(list.Items, func(p pod) bool { return p.Metadata.DeletionTimestamp != "" })
}

// deployment is how many replicas are wanted and ready.
type deployment struct {
	Spec   struct{ Replicas int }
	Status struct{ ReadyReplicas int }
}

func (w *world) deployment() (d deployment) {
	w.t.Helper()
	w.look(&d, fmt.Sprintf("/apis/apps/v1/namespaces/%s/deployments/%s", w.namespace, release))
	return d
}

// metrics are those of a replica.
func (w *world) metrics(p *pod) (map[string]*dto.MetricFamily, error) {
	text, err := w.get(fmt.Sprintf("/api/v1/namespaces/%s/pods/%s:9500/proxy/metrics", w.namespace, p.Metadata.Name))
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(bytes.NewReader(text))
}

// carried is how many of the clusters under load have an owner who says so.
func (w *world) carried(pods []pod) (int, error) {
	all := make(map[string]bool)
	for i := range pods {
		families, err := w.metrics(&pods[i])
		if err != nil {
			return 0, err
		}
		for _, m := range families["trestle_shard_epoch"].GetMetric() {
			labels := make(map[string]string)
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if labels["kind"] == "observed" && strings.HasPrefix(labels["shard"], w.prefix+"-") {
				all[labels["shard"]] = true
			}
		}
	}
	return len(all), nil
}

// settled waits until so many replicas are there, all ready, and carry every
// cluster.
func (w *world) settled(count int) []pod {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		pods := w.pods()
		ready, carried := 0, 0
		for i := range pods {
			if !pods[i].ready().IsZero() {
				ready++
			}
		}
		if len(pods) == count && ready == count {
			var err error
			if carried, err = w.carried(pods); err == nil && carried == clusters {
				return pods
			}
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%d replicas that carry all clusters did not come about: %d pods, %d ready, %d clusters carried", count, len(pods), ready, carried)
		}
		w.pause(3 * time.Second) // a look costs processor time that pods share
	}
}

// pause is between two looks.
func (w *world) pause(d time.Duration) {
	w.t.Helper()
	select {
	case <-time.After(d):
	case <-w.ctx.Done():
		w.t.Fatal(w.ctx.Err())
	}
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
		w.pause(50 * time.Millisecond)
	}
}

func rate() float64 {
	if r, err := strconv.ParseFloat(os.Getenv("TRESTLE_E2E_RATE"), 64); err == nil {
		return r
	}
	return 1000
}

// usage is what a replica uses.
type usage struct {
	at         time.Time
	cpu, bytes float64 // seconds since its start; resident
}

func (w *world) usage(pods []pod) map[string]usage {
	w.t.Helper()
	all := make(map[string]usage)
	for i := range pods {
		families, err := w.metrics(&pods[i])
		if err != nil {
			w.t.Fatal(err)
		}
		gauge := func(name string) float64 {
			for _, m := range families[name].GetMetric() {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
			w.t.Fatalf("%s does not tell %s", pods[i].Metadata.Name, name)
			return 0
		}
		all[pods[i].Metadata.Name] = usage{at: time.Now(), cpu: gauge("process_cpu_seconds_total"), bytes: gauge("process_resident_memory_bytes")}
	}
	return all
}

// compare says what replicas used between two looks.
func compare(before, after map[string]usage) string {
	var cores, most, bytes float64
	for name, a := range after {
		b := before[name]
		each := (a.cpu - b.cpu) / a.at.Sub(b.at).Seconds()
		cores, most, bytes = cores+each, max(most, each), max(bytes, a.bytes)
	}
	return fmt.Sprintf("%d replicas at %.0f updates/s: %.3f cores in all, %.3f the busiest, at most %.0f MiB", len(after), rate(), cores, most, bytes/(1<<20))
}
