package check

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// The configuration that the chart writes is one that the service takes.
func TestServiceTakesTheConfiguration(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "trestle")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "./cmd/trestle")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	c := load(t)
	for name, v := range map[string][]string{
		"required":   {required},
		"quickstart": {`{quickstart: {enabled: true}}`},
		"all":        {required, `{redis: {tls: {enabled: true, existingSecret: r, clientCertificate: true}}, etcd: {endpoints: ["https://a:1"], tls: {existingSecret: e}}, staticClusters: [{name: a, url: "a:8080", tlsSecret: a, score: 7, govern: false}]}`},
		"Sentinel":   {required, `{redis: {address: "", existingSecret: r, username: u, sentinel: {master: main, addresses: ["s1:26379", "s2:26379"]}, tls: {enabled: true}}}`},
		"predecessor": {required, `{config: {controllerIntervalSeconds: 60, timeouts: {metaInstanceCheckIntervalSeconds: 60, pendingPhaseSeconds: 3600}, clusterService: {host: localhost, port: 8080},
			staticBridges: [{name: dev, url: "localhost:12001", state: available, score: 50, maxScore: 100, govern: true, applicationCluster: x}]}}`},
	} {
		t.Run(name, func(t *testing.T) {
			files, err := render(c, values(t, v...))
			if err != nil {
				t.Fatal(err)
			}
			all, err := objects(files)
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range all {
				m, is := o.(*corev1.ConfigMap)
				if !is || m.Data["trestle.yaml"] == "" {
					continue
				}
				path := filepath.Join(t.TempDir(), "trestle.yaml")
				if err := os.WriteFile(path, []byte(m.Data["trestle.yaml"]), 0o600); err != nil {
					t.Fatal(err)
				}
				cmd := exec.Command(binary, "config", "--config", path)
				cmd.Env = append(os.Environ(), "TRESTLE_POSTGRES_URL=postgres://h/d", "REDIS_PASSWORD=p", "TRESTLE_PEER_ADVERTISE=10.0.0.1:7070")
				out, err := cmd.CombinedOutput()
				if err != nil || name != "predecessor" && strings.Contains(string(out), "warning") {
					t.Errorf("%v\n%s\n%s", err, out, m.Data["trestle.yaml"])
				}
			}
		})
	}
}
