package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

func TestReadyAsks(t *testing.T) {
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/never/"), strings.HasPrefix(r.URL.Path, "/later/") && asked.Add(1) == 1:
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, "etcd: failing")
		case strings.HasSuffix(r.URL.Path, "/readyz"):
			fmt.Fprintln(w, "etcd: ok")
		default:
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	for _, c := range []struct {
		name     string
		args     []string
		code     int
		out, err string
	}{
		{"ready", []string{server.URL}, exitClean, "etcd: ok", ""},
		{"with a slash", []string{server.URL + "/"}, exitClean, "etcd: ok", ""},
		{"not ready", []string{server.URL + "/never"}, exitFailure, "etcd: failing", "503"},
		{"ready later", []string{"--wait", "60s", server.URL + "/later"}, exitClean, "etcd: ok", ""},
		{"nobody there", []string{"http://127.0.0.1:1"}, exitFailure, "", "connection refused"},
		{"two addresses", []string{server.URL, server.URL}, exitUsage, "", "at most 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			code := run(t.Context(), append([]string{"ready"}, c.args...), streams{&out, &errs}, func(string) (string, bool) { return "", false })
			if code != c.code || !strings.Contains(out.String(), c.out) || !strings.Contains(errs.String(), c.err) {
				t.Errorf("code %d, output %q, errors %q", code, &out, &errs)
			}
		})
	}
}
