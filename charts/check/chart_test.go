// Package check holds the tests of the chart. It is a module of its own, since
// Helm, the types of Kubernetes and the rules of Prometheus are large, and the
// service needs none of them.
package check

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	yamlv3 "go.yaml.in/yaml/v3"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

const dir = "../trestle"

var update = flag.Bool("update", false, "write the golden files and the table of values anew")

// required is the least that has to be said.
const required = `{postgres: {existingSecret: pg}, redis: {address: "redis:6379"}, etcd: {endpoints: ["http://etcd:2379"]}}`

func load(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// values merges documents, the later over the earlier.
func values(t *testing.T, documents ...string) map[string]any {
	t.Helper()
	all := map[string]any{}
	for _, d := range documents {
		v := map[string]any{}
		if err := yaml.Unmarshal([]byte(d), &v); err != nil {
			t.Fatalf("%s: %v", d, err)
		}
		all = chartutil.CoalesceTables(v, all)
	}
	return all
}

// render gives the files that a release would have.
func render(c *chart.Chart, v map[string]any) (map[string]string, error) {
	return renderFor(kubernetes, c, v)
}

// kubernetes is the version for which charts are rendered.
const kubernetes = "v1.35.0"

func renderFor(version string, c *chart.Chart, v map[string]any) (map[string]string, error) {
	kube, err := chartutil.ParseKubeVersion(version)
	if err != nil {
		return nil, err
	}
	capabilities := chartutil.DefaultCapabilities.Copy()
	capabilities.KubeVersion = *kube
	r, err := chartutil.ToRenderValues(c, v, chartutil.ReleaseOptions{Name: "trestle", Namespace: "bridge", IsInstall: true, Revision: 1}, capabilities)
	if err != nil {
		return nil, err
	}
	return engine.Engine{Strict: true}.Render(c, r)
}

// decoder refuses what the types do not have. It takes longer to make than to use.
var decoder = sync.OnceValues(func() (runtime.Decoder, error) {
	s := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(s), monitoring.AddToScheme(s)); err != nil {
		return nil, err
	}
	return serializer.NewCodecFactory(s, serializer.EnableStrict).UniversalDeserializer(), nil
})

// objects decodes what was rendered, strictly: unknown fields, wrong types and
// keys that stand twice are errors.
func objects(files map[string]string) ([]runtime.Object, error) {
	decode, err := decoder()
	if err != nil {
		return nil, err
	}
	var all []runtime.Object
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !strings.HasSuffix(name, ".yaml") {
			continue
		}
		for _, document := range regexp.MustCompile(`(?m)^---$`).Split(files[name], -1) {
			if strings.TrimSpace(document) == "" {
				continue
			}
			o, _, err := decode.Decode([]byte(document), nil, nil)
			if err != nil {
				return nil, fmt.Errorf("%s: %w\n%s", name, err, document)
			}
			all = append(all, o)
		}
	}
	return all, nil
}

func TestLint(t *testing.T) {
	for name, v := range map[string]string{"required": required, "quickstart": `{quickstart: {enabled: true}}`} {
		linter := lint.AllWithKubeVersion(dir, values(t, v), "bridge", nil)
		for _, m := range linter.Messages {
			// As helm lint --strict: a warning is one too many.
			if m.Severity >= support.WarningSev {
				t.Errorf("%s: %v", name, m)
			}
		}
	}
}

// switches are what may be on or off, each with the values that it needs.
var switches = []struct{ name, on string }{
	{"redis by Secret", `{redis: {address: "", existingSecret: redis}}`},
	{"servers by TLS", `{redis: {tls: {enabled: true, existingSecret: redis-tls, clientCertificate: true}}, etcd: {endpoints: ["https://etcd:2379"], tls: {existingSecret: etcd-tls}}, postgres: {tls: {existingSecret: pg-tls}}}`},
	{"gRPC exposed", `{grpc: {expose: true, tls: {existingSecret: grpc}, tokens: {existingSecret: tokens}, roles: [{name: admin, role: operator}]}}`},
	{"static clusters", `{staticClusters: [{name: a, url: "a:8080", tlsSecret: a}, {name: b, url: "b:8080"}], config: {staticBridges: [{name: c, url: "c:8080"}]}}`},
	{"no Job", `{migrations: {job: false}}`},
	{"autoscaling", `{autoscaling: {enabled: true}}`},
	{"network policy", `{networkPolicy: {enabled: true, metricsFrom: [{namespaceSelector: {}}], grpcFrom: [{podSelector: {}}]}}`},
	{"monitoring", `{monitoring: {serviceMonitor: {enabled: true, labels: {a: b}}, prometheusRule: {enabled: true, labels: {a: b}}, dashboard: {enabled: true}}}`},
	{"pods", `{podLabels: {a: b}, podAnnotations: {a: b}, nodeSelector: {a: b}, tolerations: [{operator: Exists}], affinity: {nodeAffinity: {}}, topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule}], priorityClassName: high, image: {digest: "sha256:` + strings.Repeat("a", 64) + `", pullSecrets: [{name: p}]}, service: {annotations: {a: b}}, serviceAccount: {annotations: {a: b}}}`},
	{"nothing made", `{podDisruptionBudget: {enabled: false}, serviceAccount: {create: false}, replicas: null, extraEnv: []}`},
}

// All 1,024 combinations of what may be on or off, besides the quickstart and
// Sentinel, which stand apart.
func TestAllCombinations(t *testing.T) {
	c := load(t)
	if testing.Short() {
		t.Skip("a minute of rendering")
	}
	for set := range 1 << len(switches) {
		documents, names := []string{required}, []string{}
		for i, s := range switches {
			if set&(1<<i) != 0 {
				documents, names = append(documents, s.on), append(names, s.name)
			}
		}
		// A chart is changed by what is merged into it.
		files, err := render(c, values(t, documents...))
		if err != nil {
			t.Fatalf("%q: %v", names, err)
		}
		all, err := objects(files)
		if err != nil {
			t.Fatalf("%q: %v", names, err)
		}
		checkPods(t, names, all)
	}
	for _, v := range []string{
		`{quickstart: {enabled: true}}`,
		`{postgres: {existingSecret: pg}, etcd: {endpoints: ["etcd:2379"]}, redis: {existingSecret: r, sentinel: {master: main, addresses: ["s1:26379", "s2:26379"]}, tls: {enabled: true}, username: u}}`,
	} {
		files, err := render(c, values(t, v))
		if err != nil {
			t.Fatalf("%s: %v", v, err)
		}
		all, err := objects(files)
		if err != nil {
			t.Fatalf("%s: %v", v, err)
		}
		checkPods(t, []string{v}, all)
	}
}

// checkPods holds every pod against what is promised of all of them.
func checkPods(t *testing.T, names []string, all []runtime.Object) {
	t.Helper()
	deployments := 0
	for _, o := range all {
		d, is := o.(*appsv1.Deployment)
		if !is {
			continue
		}
		deployments++
		pod := d.Spec.Template.Spec
		if pod.SecurityContext == nil || pod.SecurityContext.RunAsNonRoot == nil || !*pod.SecurityContext.RunAsNonRoot {
			t.Fatalf("%q: %s may run as root", names, d.Name)
		}
		mounted := map[string]bool{}
		for _, v := range pod.Volumes {
			mounted[v.Name] = true
		}
		for _, container := range pod.Containers {
			s := container.SecurityContext
			if s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem || s.Capabilities == nil || !slices.Contains(s.Capabilities.Drop, corev1.Capability("ALL")) {
				t.Fatalf("%q: %s may write or has capabilities", names, d.Name)
			}
			if container.Resources.Requests.Cpu().IsZero() || container.Resources.Limits.Memory().IsZero() {
				t.Fatalf("%q: %s has no resources", names, d.Name)
			}
			for _, m := range container.VolumeMounts {
				if !mounted[m.Name] {
					t.Fatalf("%q: %s mounts %s, which is no volume", names, d.Name, m.Name)
				}
			}
		}
		for key, value := range d.Spec.Selector.MatchLabels {
			if d.Spec.Template.Labels[key] != value {
				t.Fatalf("%q: %s selects other pods than its own", names, d.Name)
			}
		}
	}
	if deployments == 0 {
		t.Fatalf("%q: no deployment", names)
	}
}

// release gives the objects of a release on a version of Kubernetes.
func release(t *testing.T, version, given string) []runtime.Object {
	t.Helper()
	files, err := renderFor(version, load(t), values(t, required, given))
	if err != nil {
		t.Fatal(err)
	}
	all, err := objects(files)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A Kubernetes that cannot sleep before it stops a pod is not asked to.
func TestDeploymentWithoutDelay(t *testing.T) {
	for _, c := range []struct{ version, values string }{{"v1.29.4", `{}`}, {kubernetes, `{shutdown: {delaySeconds: 0}}`}} {
		deployments := 0
		for _, o := range release(t, c.version, c.values) {
			if d, is := o.(*appsv1.Deployment); is {
				deployments++
				if pod := d.Spec.Template.Spec; pod.Containers[0].Lifecycle != nil || *pod.TerminationGracePeriodSeconds != 75 {
					t.Errorf("%s, %s: %v, then %d s", c.version, c.values, pod.Containers[0].Lifecycle, *pod.TerminationGracePeriodSeconds)
				}
			}
		}
		if deployments != 1 {
			t.Errorf("%s, %s: %d deployments", c.version, c.values, deployments)
		}
	}
}

func TestDeployment(t *testing.T) {
	for _, o := range release(t, kubernetes, `{shutdown: {delaySeconds: 7, drainSeconds: 100}}`) {
		switch o := o.(type) {
		case *appsv1.Deployment:
			if got := *o.Spec.Template.Spec.TerminationGracePeriodSeconds; got != 122 {
				t.Errorf("a grace period of %d s for a drain of 100 after 7", got)
			}
			if l := o.Spec.Template.Spec.Containers[0].Lifecycle; l == nil || l.PreStop.Sleep.Seconds != 7 {
				t.Errorf("before it stops: %v", l)
			}
			if o.Spec.Template.Labels["component"] != "ws-manager-bridge" {
				t.Error("the operator CLI would not find the pods")
			}
			if r := o.Spec.Strategy.RollingUpdate; r.MaxSurge.IntValue() != 1 || r.MaxUnavailable.IntValue() != 0 {
				t.Errorf("rolls with %v", r)
			}
		case *corev1.ConfigMap:
			if !strings.Contains(o.Data["trestle.yaml"], "timeoutSeconds: 100") {
				t.Errorf("the drain's deadline is not in the configuration:\n%s", o.Data["trestle.yaml"])
			}
		}
	}
}

// What is refused, and what the message names.
func TestRefused(t *testing.T) {
	c := load(t)
	for _, bad := range []struct{ values, names string }{
		{`{replica: 3}`, "replica"},
		{`{replicas: three}`, "replicas"},
		{`{replicas: -1}`, "replicas"},
		{`{postgres: {secret: pg}}`, "secret"},
		{`{postgres: {existingSecret: "Not A Name"}}`, "existingSecret"},
		{`{postgres: {url: "postgres://u:p@h/d"}}`, "url"},
		{`{redis: {address: redis}}`, "address"},
		{`{redis: {address: "redis://h:1"}}`, "address"},
		{`{redis: {password: p}}`, "password"},
		{`{redis: {sentinel: {master: m}, address: ""}}`, "redis.sentinel.addresses"},
		{`{redis: {sentinel: {master: m, addresses: ["s:1"]}}}`, "one of redis.address"},
		{`{etcd: {endpoints: "http://etcd:2379"}}`, "endpoints"},
		{`{etcd: {endpoints: ["etcd"]}}`, "endpoints"},
		{`{etcd: {endpoints: []}}`, "etcd.endpoints is required"},
		{`{etcd: {prefix: trestle}}`, "prefix"},
		{`{etcd: {leaseSeconds: 1}}`, "leaseSeconds"},
		{`{etcd: {tls: true}}`, "tls"},
		{`{grpc: {expose: true}}`, "grpc.tls.existingSecret"},
		{`{grpc: {expose: true, tls: {existingSecret: s}}}`, "grpc.tokens.existingSecret"},
		{`{grpc: {roles: [{name: a, role: viewer}]}}`, "grpc.tls.existingSecret"},
		{`{grpc: {port: 70000}}`, "port"},
		{`{grpc: {roles: [{name: a, role: admin}]}}`, "role"},
		{`{staticClusters: [{name: a}]}`, "url"},
		{`{staticClusters: [{name: a, url: "a:1", tsl: s}]}`, "tsl"},
		{`{image: {pullPolicy: Sometimes}}`, "pullPolicy"},
		{`{image: {digest: abc}}`, "digest"},
		{`{shutdown: {drainSeconds: 0}}`, "drainSeconds"},
		{`{shutdown: {delaySeconds: -1}}`, "delaySeconds"},
		{`{minReadySeconds: 5s}`, "minReadySeconds"},
		{`{podDisruptionBudget: {maxUnavailable: 0}}`, "maxUnavailable"},
		{`{autoscaling: {enabled: true, minReplicas: 5, maxReplicas: 2}}`, "minReplicas"},
		{`{monitoring: {serviceMonitor: {interval: 15}}}`, "interval"},
		{`{monitoring: {prometheusrule: {enabled: true}}}`, "prometheusrule"},
		{`{quickstart: {enabled: true}}`, "quickstart.enabled brings its own"},
		{`{quickstart: {enabled: "yes"}}`, "enabled"},
		{`{config: {http: {address: ":1"}}}`, "config.http"},
		{`{config: {shutdown: {timeoutSeconds: 1}}}`, "shutdown.drainSeconds"},
		{`{resources: {limit: {}}}`, "limit"},
	} {
		if _, err := render(c, values(t, required, bad.values)); err == nil || !strings.Contains(err.Error(), bad.names) {
			t.Errorf("%s: %v, want an error that names %q", bad.values, err, bad.names)
		}
	}
	if _, err := render(c, map[string]any{}); err == nil || !strings.Contains(err.Error(), "postgres.existingSecret is required") {
		t.Errorf("no values at all: %v", err)
	}
}

func TestGolden(t *testing.T) {
	files, err := render(load(t), values(t, required))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if text := strings.TrimSpace(files[name]); text != "" && !strings.HasSuffix(name, ".tpl") {
			fmt.Fprintf(&out, "# %s\n%s\n\n", name, text)
		}
	}
	same(t, "testdata/default.yaml", out.Bytes())
}

// same compares with a golden file, or writes it.
func same(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what comes out now; go test -update, and look at the difference", path)
	}
}

// The table of values in the chart's README is made from the comments.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile(dir + "/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(text, []byte("\n")); n >= 250 {
		t.Errorf("values.yaml has %d lines", n)
	}
	var root yamlv3.Node
	if err := yamlv3.Unmarshal(text, &root); err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	table.WriteString("| value | default | |\n|---|---|---|\n")
	rows(t, &table, "", root.Content[0])
	readme, err := os.ReadFile(dir + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- values -->\n", "<!-- end of values -->"
	head, rest, ok := strings.Cut(string(readme), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatal("README.md has no place for the table of values")
	}
	same(t, dir+"/README.md", []byte(head+begin+table.String()+end+tail))
}

func rows(t *testing.T, out *strings.Builder, path string, n *yamlv3.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := strings.TrimPrefix(path+"."+key.Value, ".")
		_, what, described := strings.Cut(key.HeadComment, "-- ")
		if !described && value.Kind == yamlv3.MappingNode && len(value.Content) > 0 {
			rows(t, out, name, value)
			continue
		}
		if !described {
			t.Errorf("%s has no comment", name)
		}
		var v any
		if err := value.Decode(&v); err != nil {
			t.Fatal(err)
		}
		plain, err := yaml.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		shown := strings.TrimSpace(string(plain))
		if strings.Contains(shown, "\n") {
			json, err := yaml.YAMLToJSON(plain)
			if err != nil {
				t.Fatal(err)
			}
			shown = string(json)
		}
		fmt.Fprintf(out, "| `%s` | `%s` | %s |\n", name, shown, strings.ReplaceAll(what, "|", `\|`))
	}
}
