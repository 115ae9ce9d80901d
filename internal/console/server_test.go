package console_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/coordinator"
	"github.com/trestle-bridge/trestle/coordinator/table"
	"github.com/trestle-bridge/trestle/internal/console"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/shard"
)

// request is one to the console; headers are "Name: value".
func request(t *testing.T, method, url, body string, headers ...string) (status int, answer string, header http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			r.Host = value
		}
		r.Header.Set(name, value)
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(content), response.Header
}

const wantJSON = "Accept: application/json"

func TestDocument(t *testing.T) {
	f := newFleet(2, 3)
	f.change(func(s *coordinator.State) {
		moved(s, "eu01", 2, shard.ReasonLevel)
		of(s, "eu02").Stored.Pin = shard.Pin{Replica: "replica-2", Reason: "near its data", Author: "ops"}
		of(s, "eu03").Stored.Pin = shard.Pin{Replica: "replica-2", Until: began} // lapsed
		of(s, "eu03").Measured = coordinator.Measured{Rate: 1234.567, Lag: 1500 * time.Millisecond, Deaf: true}
		s.Freeze = shard.Freeze{On: true, Reason: "calm", Author: "ops"}
		s.Brake = shard.Brake{Since: began, Roster: 5}
		s.Drains = map[string]table.Drain{"replica-2": {At: began, Reason: "kernel", Author: "ops"}}
		s.Replicas[1].Draining = true
		s.Commands = []coordinator.Command{{Kind: coordinator.CommandFreeze, Reason: "calm", Author: "ops", At: began, Done: began}}
	})
	health := new(fakeHealth)
	health.fail("redis", "dial tcp:\nrefused")
	cfg := config(f)
	cfg.Checks = health.check
	cfg.Quarantine = &fakeQuarantine{counts: []store.QuarantineCount{{Cluster: "eu01", Changes: 2, Last: began}, {Cluster: "eu03", Changes: 1, Last: began}}}
	address, _ := serve(t, cfg)

	status, body, header := request(t, http.MethodGet, "http://"+address+"/", "", wantJSON)
	if status != http.StatusOK || header.Get("Content-Type") != "application/json" {
		t.Fatalf("status %d, %v", status, header)
	}
	var d struct {
		Version   int
		Answering struct {
			Name, Installation, Version string
			Known, Detached             bool
		}
		Fleet struct {
			Leader struct{ Name string }
			Freeze struct{ Reason, Author string }
			Brake  struct{ Roster int }
		}
		Health struct {
			Checks []struct {
				Name  string
				OK    bool
				Error string
			}
			Quarantine struct{ Changes int }
		}
		Replicas []struct {
			Name, State, Address string
			Leads                bool
			Drain                struct{ Reason string }
		}
		Shards []struct {
			ID, Phase, Reason string
			Owner             struct{ Name, Incarnation string }
			Epoch, Held       int
			Pin               *struct{ Replica, Author string }
			Measured          struct {
				Rate, LagSeconds float64
				Deaf             bool
			}
		}
		Moves []struct {
			Shard, Reason string
			From, To      struct{ Name string }
		}
		Commands []struct{ Kind, Author string }
	}
	if err := json.Unmarshal([]byte(body), &d); err != nil {
		t.Fatal(err)
	}
	check := func(what string, ok bool) {
		t.Helper()
		if !ok {
			t.Errorf("%s: %s", what, body)
		}
	}
	check("version", d.Version == console.DocumentVersion)
	check("answering", d.Answering.Name == "replica-1" && d.Answering.Installation == "eu01" && d.Answering.Known && !d.Answering.Detached)
	check("fleet", d.Fleet.Leader.Name == "replica-1" && d.Fleet.Freeze.Author == "ops" && d.Fleet.Brake.Roster == 5)
	check("health", len(d.Health.Checks) == 5 && d.Health.Checks[3].OK && !d.Health.Checks[4].OK && d.Health.Checks[4].Error == "dial tcp: refused")
	check("quarantine", d.Health.Quarantine.Changes == 3)
	check("replicas", len(d.Replicas) == 2 && d.Replicas[0].Leads && d.Replicas[1].State == "draining" && d.Replicas[1].Drain.Reason == "kernel")
	check("shards", len(d.Shards) == 3 && d.Shards[0].Owner.Name == "replica-2" && d.Shards[0].Epoch == 4 && d.Shards[0].Held == 4 && d.Shards[0].Reason == "level")
	check("pins", d.Shards[0].Pin == nil && d.Shards[1].Pin.Author == "ops" && d.Shards[2].Pin == nil)
	check("measured", d.Shards[2].Measured.Rate == 1230 && d.Shards[2].Measured.LagSeconds == 1.5 && d.Shards[2].Measured.Deaf)
	check("moves", len(d.Moves) == 4 && d.Moves[0].Shard == "eu01" && d.Moves[0].From.Name == "replica-1" && d.Moves[0].To.Name == "replica-2")
	check("commands", len(d.Commands) == 1 && d.Commands[0].Kind == "freeze")
}

func TestExplanation(t *testing.T) {
	f := newFleet(2, 2)
	id := shard.Whole("eu02")
	f.ranked = []shard.Ranked{{Replica: incarnation(1), Score: 3.5, Load: 10, Fair: 12}, {Replica: incarnation(2), Score: 0.5, Draining: true}}
	f.plan = shard.Plan{
		Moves:     []shard.Move{{Shard: id, From: incarnation(2), To: incarnation(1), Reason: shard.ReasonDrain, Text: "replica-2 drains"}},
		Proposals: []shard.Proposal{{Cluster: "eu02", Slices: 2, Text: "cut it in two"}, {Cluster: "eu01", Text: "not this one"}},
	}
	f.change(func(s *coordinator.State) {
		moved(s, "eu02", 1, shard.ReasonLevel)
		s.Commands = []coordinator.Command{
			{Kind: coordinator.CommandPin, Shard: "eu01", Author: "a"}, {Kind: coordinator.CommandPin, Shard: "eu02", Author: "b"},
			{Kind: coordinator.CommandSlices, Cluster: "eu02", Author: "c"},
		}
	})
	cfg := config(f)
	quarantine := &fakeQuarantine{poisons: []store.Poison{{Cluster: "eu02", Fault: store.Fault{SQLState: "22003", Reason: "numeric value out of range"}, Times: 3}}}
	cfg.Quarantine = quarantine
	address, _ := serve(t, cfg)

	status, body, _ := request(t, http.MethodGet, "http://"+address+"/cluster?name=eu02", "", wantJSON)
	var e struct {
		Cluster string
		Shards  []struct {
			ID          string
			Preferences []struct {
				Replica  struct{ Name string }
				Score    float64
				Draining bool
			}
			Planned struct {
				To   struct{ Name string }
				Text string
			}
			Moves []struct{ Epoch int }
		}
		Proposals  []string
		Commands   []struct{ Author string }
		Quarantine struct {
			Changes []struct {
				Reason string
				Times  int
			}
		}
	}
	if err := json.Unmarshal([]byte(body), &e); err != nil || status != http.StatusOK {
		t.Fatal(status, err)
	}
	if len(e.Shards) != 1 || len(e.Shards[0].Preferences) != 2 || e.Shards[0].Preferences[0].Replica.Name != "replica-1" || !e.Shards[0].Preferences[1].Draining ||
		e.Shards[0].Planned.Text != "replica-2 drains" || len(e.Shards[0].Moves) != 2 || e.Shards[0].Moves[0].Epoch != 4 ||
		len(e.Proposals) != 1 || len(e.Commands) != 2 || e.Commands[0].Author != "c" ||
		len(e.Quarantine.Changes) != 1 || e.Quarantine.Changes[0].Times != 3 {
		t.Errorf("%s", body)
	}

	for _, c := range []struct {
		query  string
		status int
		says   string
	}{
		{"?name=eu99", http.StatusNotFound, `\"eu99\"`},
		{"", http.StatusBadRequest, "name a cluster"},
		{"?name=" + strings.Repeat("x", 300), http.StatusBadRequest, "256 bytes"},
	} {
		if status, body, _ := request(t, http.MethodGet, "http://"+address+"/cluster"+c.query, "", wantJSON); status != c.status || !strings.Contains(body, c.says) {
			t.Errorf("%s: %d %s", c.query, status, body)
		}
	}
	// A browser that follows a link is led to the page.
	status, _, header := request(t, http.MethodGet, "http://"+address+"/cluster?name=a%26b%20c", "", "Accept: text/html,*/*")
	if status != http.StatusSeeOther || header.Get("Location") != "/#cluster=a%26b+c" {
		t.Errorf("%d to %s", status, header.Get("Location"))
	}
	quarantine.err = errors.New("the database is away")
	if status, body, _ := request(t, http.MethodGet, "http://"+address+"/cluster?name=eu02", "", wantJSON); status != http.StatusOK || !strings.Contains(body, "the database is away") {
		t.Errorf("%d %s", status, body)
	}
	f.change(func(s *coordinator.State) { s.Known = false })
	if status, body, _ := request(t, http.MethodGet, "http://"+address+"/cluster?name=eu02", ""); status != http.StatusServiceUnavailable || !strings.Contains(body, "etcd") {
		t.Errorf("%d %s", status, body)
	}
}

func TestOthersAreKeptOut(t *testing.T) {
	var level slog.LevelVar
	cfg := config(newFleet(1, 1))
	cfg.Level, cfg.Hosts = &level, []string{"console.example"}
	address, _ := serve(t, cfg)
	_, port, _ := net.SplitHostPort(address)
	for _, c := range []struct {
		name    string
		method  string
		path    string
		headers []string
		status  int
	}{
		{"a program", "GET", "/", nil, 200},
		{"localhost", "GET", "/", []string{"Host: localhost:" + port}, 200},
		{"another address", "GET", "/", []string{"Host: 192.0.2.7"}, 200},
		{"IPv6", "GET", "/", []string{"Host: [::1]:" + port}, 200},
		{"a name that is configured", "GET", "/", []string{"Host: Console.Example:80"}, 200},
		{"a rebound name", "GET", "/", []string{"Host: evil.example:" + port}, 421},
		{"a rebound name, changes", "PUT", "/log/level", []string{"Host: evil.example", "Origin: http://evil.example", "Sec-Fetch-Site: same-origin"}, 421},
		{"a name that looks like an address", "GET", "/", []string{"Host: 127.0.0.1.evil.example"}, 421},
		{"a name that looks like localhost", "GET", "/", []string{"Host: localhost.evil.example"}, 421},
		{"a stream for another site", "GET", "/events", []string{"Sec-Fetch-Site: cross-site"}, 403},
		{"a link from elsewhere", "GET", "/", []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"}, 200},
		{"a fetch from elsewhere", "GET", "/", []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"}, 403},
		{"a profile for another site", "GET", "/debug/pprof/profile?seconds=1", []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"}, 403},
		{"another port of this machine", "GET", "/debug/pprof/heap", []string{"Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: no-cors"}, 403},
		{"a change for another site", "PUT", "/log/level", []string{"Sec-Fetch-Site: cross-site"}, 403},
		{"a change for another port", "PUT", "/log/level", []string{"Sec-Fetch-Site: same-site"}, 403},
		{"a change in an old browser", "PUT", "/log/level", []string{"Origin: http://evil.example"}, 403},
		{"a change from our page", "PUT", "/log/level", []string{"Sec-Fetch-Site: same-origin", "Origin: http://" + address}, 200},
		{"another method", "POST", "/", nil, 405},
		{"no such page", "GET", "/nowhere", nil, 404},
		{"no such asset", "GET", "/assets/..%2f..%2fgo.mod", nil, 404},
		{"the command line", "GET", "/debug/pprof/cmdline", nil, 404},
	} {
		status, body, header := request(t, c.method, "http://"+address+c.path, "info", c.headers...)
		if status != c.status {
			t.Errorf("%s: %d %s, want %d", c.name, status, body, c.status)
		}
		policy := header.Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none'; ") || strings.Contains(policy, "unsafe") || header.Get("X-Content-Type-Options") != "nosniff" ||
			header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: headers %v", c.name, header)
		}
	}
}

func TestPageIsComplete(t *testing.T) {
	address, _ := serve(t, config(newFleet(1, 1)))
	_, body, header := request(t, http.MethodGet, "http://"+address+"/", "", "Accept: text/html,application/json")
	if header.Get("Content-Type") != "text/html; charset=utf-8" || !strings.Contains(body, `<html lang="en">`) {
		t.Errorf("%v", header)
	}
	for _, inline := range []string{"<script>", " style=", "onclick", "//cdn", "https://"} {
		if strings.Contains(body, inline) {
			t.Errorf("the page has %q", inline)
		}
	}
	_, _, header = request(t, http.MethodGet, "http://"+address+"/assets/main.js", "")
	etag := header.Get("ETag")
	if header.Get("Content-Type") != "text/javascript; charset=utf-8" || etag == "" {
		t.Errorf("%v", header)
	}
	if status, body, _ := request(t, http.MethodGet, "http://"+address+"/assets/main.js", "", "If-None-Match: "+etag); status != http.StatusNotModified || body != "" {
		t.Errorf("%d %q", status, body)
	}
}

// lines is a writer that keeps what was written.
type lines struct {
	// mu guards text.
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func TestLogLevel(t *testing.T) {
	var level slog.LevelVar
	level.Set(slog.LevelError)
	out := new(lines)
	cfg := config(newFleet(1, 1))
	cfg.Level, cfg.Logger = &level, slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: &level}))
	address, _ := serve(t, cfg)
	url := "http://" + address + "/log/level"
	for _, c := range []struct {
		method, body, kind string
		status             int
		answer             string
		after              slog.Level
	}{
		{"GET", "", "", 200, "error", slog.LevelError},
		{"PUT", "debug", "", 200, "debug", slog.LevelDebug},
		{"PUT", `{"level": "WARN"}`, "application/json", 200, "warn", slog.LevelWarn},
		{"PUT", "verbose", "", 400, `there is no level "verbose"`, slog.LevelWarn},
		{"PUT", "", "", 400, "there is no level", slog.LevelWarn},
		{"PUT", "{", "application/json", 400, "send {", slog.LevelWarn},
		{"PUT", strings.Repeat("x", 1000), "", 400, "nothing but the level", slog.LevelWarn},
	} {
		headers := []string{"Accept: */*"}
		if c.kind != "" {
			headers = append(headers, "Content-Type: "+c.kind)
		}
		status, body, _ := request(t, c.method, url, c.body, headers...)
		if status != c.status || !strings.Contains(body, c.answer) || level.Level() != c.after {
			t.Errorf("%s %.20q: %d %s, level %v", c.method, c.body, status, body, level.Level())
		}
	}
	if _, body, _ := request(t, http.MethodGet, url, "", wantJSON); body != "{\"level\":\"warn\"}\n" {
		t.Errorf("%s", body)
	}
	// Whatever the level was or is, the change is told.
	if n := strings.Count(out.String(), "the level of the log is changed"); n != 2 {
		t.Errorf("told %d times:\n%s", n, out)
	}

	address, _ = serve(t, config(newFleet(1, 1)))
	if status, _, _ := request(t, http.MethodGet, "http://"+address+"/log/level", ""); status != http.StatusNotFound {
		t.Errorf("a level that is not ours to change: %d", status)
	}
}

func TestProfiles(t *testing.T) {
	address, _ := serve(t, config(newFleet(1, 1)))
	if status, body, _ := request(t, http.MethodGet, "http://"+address+"/debug/pprof/", ""); status != 200 || !strings.Contains(body, "goroutine") {
		t.Errorf("%d %s", status, body)
	}
	if status, body, _ := request(t, http.MethodGet, "http://"+address+"/debug/pprof/heap", ""); status != 200 || !strings.HasPrefix(body, "\x1f\x8b") {
		t.Errorf("%d, %d bytes", status, len(body))
	}
	for _, seconds := range []string{"301", "-1", "NaN", "long"} {
		if status, _, _ := request(t, http.MethodGet, "http://"+address+"/debug/pprof/profile?seconds="+seconds, ""); status != http.StatusBadRequest {
			t.Errorf("%s seconds: %d", seconds, status)
		}
	}
}

func TestAddress(t *testing.T) {
	cfg := config(newFleet(1, 1))
	cfg.Address = ":0"
	if _, err := console.New(cfg); err == nil || !strings.Contains(err.Error(), "no login") || !strings.Contains(err.Error(), "console.exposed") {
		t.Errorf("open to all: %v", err)
	}
	cfg.Exposed = true
	server, err := console.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Address = server.Addr().String()
	if _, err := console.New(cfg); err == nil || !strings.Contains(err.Error(), "console.address") {
		t.Errorf("taken: %v", err)
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if _, err := console.New(console.Config{Address: "127.0.0.1:0"}); err == nil {
		t.Error("nothing was given")
	}
}
