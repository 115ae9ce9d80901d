package observe_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/trestle-bridge/trestle/internal/observe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestLogger(t *testing.T) {
	var out bytes.Buffer
	var level slog.LevelVar
	log, err := observe.NewLogger(&out, "json", &level)
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("hidden")
	level.Set(slog.LevelDebug)
	log.Debug("seen", "n", 1)
	var line struct {
		Msg   string
		Level string
		N     int
	}
	if err := json.Unmarshal(out.Bytes(), &line); err != nil || line.Msg != "seen" || line.Level != "DEBUG" || line.N != 1 {
		t.Errorf("logged %s (%v)", out.String(), err)
	}

	out.Reset()
	log, err = observe.NewLogger(&out, "text", slog.LevelWarn)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("hidden")
	log.Warn("seen")
	if !strings.Contains(out.String(), "level=WARN msg=seen\n") || strings.Contains(out.String(), "hidden") {
		t.Errorf("logged %s", out.String())
	}

	out.Reset()
	always := observe.Unfiltered(log.With("component", "audit")).With("who", "ann").WithGroup("g")
	always.Info("seen", "n", 1)
	if !strings.Contains(out.String(), "level=INFO msg=seen component=audit who=ann g.n=1\n") {
		t.Errorf("logged %s", out.String())
	}

	if _, err := observe.NewLogger(&out, "xml", slog.LevelWarn); err == nil {
		t.Error("a format that does not exist is taken")
	}
}

func checks(c ...observe.Check) func(context.Context) []observe.Check {
	return func(context.Context) []observe.Check { return c }
}

// start runs a server until the test ends.
func start(t *testing.T, config observe.ServerConfig) (address string) {
	t.Helper()
	config.Address, config.Logger = "127.0.0.1:0", quiet()
	if config.Healthy == nil {
		config.Healthy, config.Ready = checks(), checks()
	}
	if config.Gatherer == nil {
		config.Gatherer = prometheus.NewRegistry()
	}
	server, err := observe.NewServer(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	return server.Addr().String()
}

func get(t *testing.T, url, accept string) (code int, contentType, body string) {
	t.Helper()
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if accept != "" {
		request.Header.Set("Accept", accept)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, response.Header.Get("Content-Type"), string(data)
}

func TestHealth(t *testing.T) {
	well := observe.Check{Name: "loops"}
	ill := observe.Check{Name: "postgres", Err: errors.New("no answer\nfor 5s")}
	address := start(t, observe.ServerConfig{Healthy: checks(well), Ready: checks(well, ill)})

	for _, c := range []struct {
		path, accept string
		code         int
		contentType  string
		body         string
	}{
		{"/healthz", "", 200, "text/plain; charset=utf-8", "ok\nloops: ok\n"},
		{"/healthz", "text/html, application/json;q=0.9", 200, "application/json", `{"status":"ok","checks":[{"name":"loops","status":"ok"}]}` + "\n"},
		{"/readyz", "*/*", 503, "text/plain; charset=utf-8", "failing\nloops: ok\npostgres: failing: no answer for 5s\n"},
		{"/readyz", "application/json", 503, "application/json",
			`{"status":"failing","checks":[{"name":"loops","status":"ok"},{"name":"postgres","status":"failing","error":"no answer for 5s"}]}` + "\n"},
	} {
		code, contentType, body := get(t, "http://"+address+c.path, c.accept)
		if code != c.code || contentType != c.contentType || body != c.body {
			t.Errorf("%s with Accept %q answers %d %s\n%s", c.path, c.accept, code, contentType, body)
		}
	}

	// Profiles and the level of the log are on the console's address alone.
	for _, path := range []string{"/other", "/", "/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/profile?seconds=1", "/debug/vars", "/loglevel", "/log/level", "/log-level", "/api/log-level"} {
		if code, _, _ := get(t, "http://"+address+path, ""); code != http.StatusNotFound {
			t.Errorf("%s answers %d", path, code)
		}
	}
	response, err := http.Post("http://"+address+"/healthz", "text/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST answers %d", response.StatusCode)
	}
}

func TestHealthWithoutChecks(t *testing.T) {
	address := start(t, observe.ServerConfig{})
	if _, _, body := get(t, "http://"+address+"/readyz", "application/json"); body != `{"status":"ok","checks":[]}`+"\n" {
		t.Errorf("answers %s", body)
	}
}

func TestMetrics(t *testing.T) {
	address := start(t, observe.ServerConfig{Gatherer: observe.NewRegistry()})
	code, _, body := get(t, "http://"+address+"/metrics", "")
	if code != http.StatusOK {
		t.Fatalf("answers %d: %s", code, body)
	}
	for _, want := range []string{"go_goroutines ", "process_resident_memory_bytes "} {
		if !strings.Contains(body, want) {
			t.Errorf("%s is missing from\n%s", want, body)
		}
	}
}

// Who connects and says nothing, or a header without end, is not waited for.
func TestServerLimits(t *testing.T) {
	address := start(t, observe.ServerConfig{})
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// The server ends it before all is written, or refuses it.
	_, _ = io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 1<<20))
	answer, _ := io.ReadAll(conn)
	if len(answer) > 0 && !strings.Contains(string(answer), "431") {
		t.Errorf("a header of 1 MiB is answered %s", answer)
	}
	if code, _, _ := get(t, "http://"+address+"/healthz", ""); code != http.StatusOK {
		t.Errorf("afterwards it answers %d", code)
	}
}

func TestServerConfig(t *testing.T) {
	if _, err := observe.NewServer(observe.ServerConfig{Address: "127.0.0.1:0"}); err == nil {
		t.Error("a server without gatherer and log is made")
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, err = observe.NewServer(observe.ServerConfig{Address: taken.Addr().String(), Gatherer: prometheus.NewRegistry(), Healthy: checks(), Ready: checks(), Logger: quiet()})
	if err == nil || !strings.Contains(err.Error(), taken.Addr().String()) {
		t.Errorf("an address in use gives %v", err)
	}

	server, err := observe.NewServer(observe.ServerConfig{Address: "127.0.0.1:0", Gatherer: prometheus.NewRegistry(), Healthy: checks(), Ready: checks(), Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if err := server.Run(context.Background()); err == nil {
		t.Error("a closed server runs")
	}
}
