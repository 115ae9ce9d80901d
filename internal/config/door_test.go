package config

import (
	"errors"
	"strings"
	"testing"

	"github.com/trestle-bridge/trestle/internal/config/settings"
)

// Who may call is decided before anything is started.
func TestDoor(t *testing.T) {
	const tls = `tls: {crt: a, key: b}, `
	for _, c := range []struct {
		what, service string
		wrong         string // the key that is to blame; empty for none
		says          string
	}{
		{"the default", ``, "", ""},
		{"loopback", `host: "::1"`, "", ""},
		{"a name", `host: grpc.example.com`, "", ""}, // looked up at start
		{"all addresses", `host: ""`, "clusterService.host", "not encrypted"},
		{"all addresses of IPv4", `host: 0.0.0.0`, "clusterService.host", "clusterService.insecure"},
		{"another address", `host: 10.1.2.3`, "clusterService.host", "reached by others"},
		{"insecure", `host: 0.0.0.0, insecure: true`, "", ""},
		{"tokens in plain text", `host: 0.0.0.0, tokenFile: t`, "clusterService.host", "not encrypted"},
		{"TLS for everybody", tls + `host: 0.0.0.0`, "clusterService.host", "who they are"},
		{"TLS and tokens", tls + `host: 0.0.0.0, tokenFile: t`, "", ""},
		{"TLS and roles", `tls: {ca: c, crt: a, key: b}, host: 0.0.0.0, roles: [{name: ops, role: operator}]`, "", ""},
		{"tokens on loopback", `tokenFile: t`, "", ""},
		{"a certificate without its key", `tls: {crt: a}`, "clusterService.tls.crt", "clusterService.tls.key"},
		{"a key without its certificate", `tls: {key: a}`, "clusterService.tls.key", "clusterService.tls.crt"},
		{"an authority alone", `tls: {ca: a}`, "clusterService.tls.ca", "certificate of our own"},
		{"an authority without roles", `tls: {ca: c, crt: a, key: b}`, "clusterService.tls.ca", "clusterService.roles"},
		{"roles without an authority", tls + `roles: [{name: ops, role: viewer}]`, "clusterService.roles", "clusterService.tls.ca"},
		{"a role twice", `tls: {ca: c, crt: a, key: b}, roles: [{name: ops, role: viewer}, {name: ops, role: operator}]`, "clusterService.roles[1].name", "roles[0]"},
		{"a role without a name", `tls: {ca: c, crt: a, key: b}, roles: [{role: viewer}]`, "clusterService.roles[0].name", "missing"},
		{"a name without a role", `tls: {ca: c, crt: a, key: b}, roles: [{name: ops}]`, "clusterService.roles[0].role", "viewer, operator"},
		{"a role that is none", `tls: {ca: c, crt: a, key: b}, roles: [{name: ops, role: admin}]`, "clusterService.roles[0].role", "viewer, operator"},
		{"no calls at all", `callsAtOnce: 0`, "clusterService.callsAtOnce", "from 1"},
		{"calls without limit", `callsPerSecond: 1e9`, "clusterService.callsPerSecond", "100000"},
	} {
		t.Run(c.what, func(t *testing.T) {
			_, _, err := Load(Input{Path: writeFile(t, "trestle.yaml", "clusterService: {"+c.service+"}")})
			if c.wrong == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var wrong *settings.Error
			if !errors.As(err, &wrong) || len(wrong.Problems) != 1 {
				t.Fatalf("want one problem, got %v", err)
			}
			if p := wrong.Problems[0]; p.Key != c.wrong || !strings.Contains(p.String(), c.says) {
				t.Errorf("%s, want one of %s that says %q", p, c.wrong, c.says)
			}
		})
	}
}
