package check

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// The configuration that the chart writes is one that the service takes, together
// with the environment that the chart gives it.
func TestServiceTakesTheConfiguration(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "trestle")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "./cmd/trestle")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	const server, tokens = "crt: /etc/trestle/tls/grpc/tls.crt", "tokenFile: /etc/trestle/tokens/"
	c := load(t)
	for name, test := range map[string]struct {
		values []string
		says   []string // what is then in force
	}{
		"required":   {[]string{required}, []string{"address: redis:6379", "host: localhost", "port: 8080"}},
		"quickstart": {[]string{`{quickstart: {enabled: true}}`}, []string{"address: trestle-quickstart-redis:6379", "atStart: true"}},
		"all": {[]string{required, `{redis: {tls: {enabled: true, existingSecret: r, clientCertificate: true}}, etcd: {endpoints: ["https://a:1"], tls: {existingSecret: e}}, staticClusters: [{name: a, url: "a:8080", tlsSecret: a, score: 7, govern: false}]}`},
			[]string{"url: rediss://redis:6379", "ca: /etc/trestle/tls/redis/ca.crt", "crt: /etc/trestle/tls/redis/tls.crt", "key: /etc/trestle/tls/redis/tls.key", "crt: /etc/trestle/tls/etcd/tls.crt", "ca: /etc/trestle/clusters/a/ca.crt"}},
		"Redis by Secret":   {[]string{required, `{redis: {address: "", existingSecret: r}}`}, []string{"url: redis://"}},
		"Redis by password": {[]string{required, `{redis: {existingSecret: r, username: u}}`}, []string{"address: redis:6379", "username: u"}},
		"Redis over TLS":    {[]string{required, `{redis: {tls: {enabled: true}}}`}, []string{"url: rediss://redis:6379"}},
		"Sentinel": {[]string{required, `{redis: {address: "", existingSecret: r, username: u, sentinel: {master: main, addresses: ["s1:26379", "s2:26379"]}, tls: {enabled: true}}}`},
			[]string{"url: rediss://s1:26379?master_name=main&addr=s2%3A26379"}},
		"gRPC by certificates":   {[]string{required, `{grpc: {expose: true, tls: {existingSecret: g}, roles: [{name: admin, role: operator}, {name: ci, role: viewer}]}}`}, []string{`host: ""`, server, "ca: /etc/trestle/tls/grpc/ca.crt", "role: viewer"}},
		"gRPC by tokens":         {[]string{required, `{grpc: {expose: true, tls: {existingSecret: g}, tokens: {existingSecret: t, key: file}}}`}, []string{`host: ""`, server, tokens + "file"}},
		"gRPC by both":           {[]string{required, `{grpc: {expose: true, port: 9000, tls: {existingSecret: g}, tokens: {existingSecret: t}, roles: [{name: admin, role: operator}]}}`}, []string{"port: 9000", server, tokens + "tokens", "role: operator"}},
		"gRPC for port-forwards": {[]string{required, `{grpc: {tls: {existingSecret: g}, tokens: {existingSecret: t}}}`}, []string{"host: localhost", server, tokens + "tokens"}},
		"predecessor": {[]string{required, `{config: {controllerIntervalSeconds: 60, timeouts: {metaInstanceCheckIntervalSeconds: 60, pendingPhaseSeconds: 3600}, clusterService: {host: localhost, port: 8080},
			staticBridges: [{name: dev, url: "localhost:12001", state: available, score: 50, maxScore: 100, govern: true, applicationCluster: x}]}}`}, []string{"name: dev"}},
	} {
		t.Run(name, func(t *testing.T) {
			files, err := render(c, values(t, test.values...))
			if err != nil {
				t.Fatal(err)
			}
			all, err := objects(files)
			if err != nil {
				t.Fatal(err)
			}
			var text string
			env := os.Environ()
			for _, o := range all {
				switch o := o.(type) {
				case *corev1.ConfigMap:
					text += o.Data["trestle.yaml"]
				case *appsv1.Deployment:
					if o.Name == "trestle" {
						env = append(env, environment(t, o)...)
					}
				}
			}
			path := filepath.Join(t.TempDir(), "trestle.yaml")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			// What serve needs is asked for by serve alone: it fails on the files
			// that no Secret has been mounted for, and on nothing else.
			var out, errs bytes.Buffer
			cmd := exec.Command(binary, "config", "--config", path)
			cmd.Env, cmd.Stdout, cmd.Stderr = env, &out, &errs
			if err := cmd.Run(); err != nil || name != "predecessor" && errs.Len() > 0 {
				t.Errorf("%v\n%s\n%s", err, &errs, text)
			}
			lines := strings.Split(out.String(), "\n")
			for _, want := range test.says {
				if !slices.ContainsFunc(lines, func(line string) bool {
					setting, _, _ := strings.Cut(strings.TrimLeft(line, " -"), " #")
					return setting == want || strings.HasSuffix(want, "://") && strings.HasPrefix(setting, want)
				}) {
					t.Errorf("%s is not in force:\n%s", want, &out)
				}
			}
		})
	}
}

// environment is what the chart gives the service, Secrets filled in.
func environment(t *testing.T, d *appsv1.Deployment) (env []string) {
	t.Helper()
	secrets := map[string]string{"TRESTLE_POSTGRES_URL": "postgres://h/d", "TRESTLE_REDIS_URL": "redis://h:6379", "REDIS_PASSWORD": "p"}
	for _, e := range d.Spec.Template.Spec.Containers[0].Env {
		switch {
		case e.Value != "":
			env = append(env, e.Name+"="+strings.ReplaceAll(e.Value, "$(POD_IP)", "10.0.0.1"))
		case e.ValueFrom != nil && e.ValueFrom.FieldRef != nil:
			env = append(env, e.Name+"=a-1")
		case secrets[e.Name] != "":
			env = append(env, e.Name+"="+secrets[e.Name])
		default:
			t.Errorf("%s has no value", e.Name)
		}
	}
	return env
}

// The published dashboard of ws-manager-bridge finds pods, container and
// Deployment by their name, and what they say by the job. The operator CLI finds
// pods by their label.
func TestNamesOfThePredecessor(t *testing.T) {
	files, err := render(load(t), values(t, required, `{fullnameOverride: ws-manager-bridge}`))
	if err != nil {
		t.Fatal(err)
	}
	all, err := objects(files)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, o := range all {
		if d, is := o.(*appsv1.Deployment); is {
			found = true
			template := d.Spec.Template
			if d.Name != "ws-manager-bridge" || template.Spec.Containers[0].Name != d.Name || template.Labels["component"] != d.Name {
				t.Errorf("Deployment %s, container %s, labels %v", d.Name, template.Spec.Containers[0].Name, template.Labels)
			}
		}
	}
	if !found {
		t.Error("no Deployment")
	}
}
