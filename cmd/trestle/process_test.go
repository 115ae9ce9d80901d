package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/trestle-bridge/trestle/internal/devstack"
	"github.com/trestle-bridge/trestle/internal/devstack/devstacktest"
	"github.com/trestle-bridge/trestle/internal/devstack/faultproxy"
	"github.com/trestle-bridge/trestle/loadtest"
)

// patience is how long anything may take before a test says that it does not
// happen. It is no measure of speed.
const patience = 90 * time.Second

// asProgram makes this test binary the program itself. It is not named like a
// setting: those are not handed on to replicas.
const asProgram = "TEST_AS_TRESTLE"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main() // exits
	}
	os.Exit(devstacktest.Run(m))
}

// process is a running trestle.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	ended chan struct{}

	// mu guards what follows.
	mu  sync.Mutex
	log bytes.Buffer // its standard error
	// more is closed and replaced when the log has grown.
	more chan struct{}
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log.Write(b)
	close(p.more)
	p.more = make(chan struct{})
	return len(b), nil
}

// begin starts the program with these arguments, and kills it when the test
// ends, if it has not ended by then.
func begin(t *testing.T, args ...string) *process {
	t.Helper()
	return beginWith(t, nil, args...)
}

// beginWith is begin with more in the environment.
func beginWith(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, ended: make(chan struct{}), more: make(chan struct{})}
	p.cmd = exec.Command(self, args...)
	p.cmd.Env = append(append(os.Environ(), asProgram+"=yes"), env...)
	p.cmd.Stderr = p
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // the state says all
	}()
	t.Cleanup(func() {
		p.signal(syscall.SIGKILL)
		<-p.ended
		if t.Failed() {
			log := p.said()
			t.Logf("the end of the log:\n%s", log[max(0, len(log)-6000):])
		}
	})
	return p
}

// signal sends one; to a process that has ended it does nothing.
func (p *process) signal(s syscall.Signal) {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Error(err)
	}
}

func (p *process) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// says waits until the log has a text, and gives the line.
func (p *process) says(text string) string {
	p.t.Helper()
	deadline := time.After(patience)
	for {
		p.mu.Lock()
		log, more := p.log.String(), p.more
		p.mu.Unlock()
		for line := range strings.Lines(log) {
			if strings.Contains(line, text) && strings.HasSuffix(line, "\n") {
				return line
			}
		}
		select {
		case <-more:
		case <-p.ended:
			if !strings.Contains(p.said(), text) {
				p.t.Fatalf("it has ended (%s) and did not say %q", p.cmd.ProcessState, text)
			}
		case <-deadline:
			p.t.Fatalf("it does not say %q", text)
		}
	}
}

// exits waits for the end.
func (p *process) exits(code int) {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatal("the process does not end")
	}
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		p.t.Errorf("the process ended with %s, want exit code %d", p.cmd.ProcessState, code)
	}
}

// kill is kill -9.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.ended
}

// families are all its metrics.
func (p *process) families() map[string]*dto.MetricFamily {
	p.t.Helper()
	var up struct{ HTTP string }
	if err := json.Unmarshal([]byte(p.says("trestle is up")), &up); err != nil {
		p.t.Fatal(err)
	}
	response, err := http.Get("http://" + up.HTTP + "/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		p.t.Fatal(err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	return families
}

// updates is how many updates it has begun to process.
func (p *process) updates() (sum float64) {
	p.t.Helper()
	for _, m := range p.families()["gitpod_ws_manager_bridge_workspace_instance_update_started_total"].GetMetric() {
		sum += m.GetCounter().GetValue()
	}
	return sum
}

// completed is how many it has processed.
func (p *process) completed() (sum float64) {
	p.t.Helper()
	for _, m := range p.families()["gitpod_ws_manager_bridge_workspace_instance_update_completed_seconds"].GetMetric() {
		sum += float64(m.GetHistogram().GetSampleCount())
	}
	return sum
}

// world is what is around the process.
type world struct {
	t               *testing.T
	ctx             context.Context
	stack           *devstack.Stack
	url             string // of the database, past the proxy
	db              *pgx.Conn
	postgres, redis *faultproxy.Proxy
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t}
	w.stack = devstacktest.OwnStack(t, devstack.Config{
		// Commit times let a publish be held against its commit.
		Postgres: &devstack.PostgresConfig{Settings: map[string]string{"track_commit_timestamp": "on", "fsync": "off"}},
		Redis:    &devstack.RedisConfig{RequireServer: true},
		Etcd:     &devstack.EtcdConfig{UnsafeNoFsync: true},
	})
	var cancel context.CancelFunc
	w.ctx, cancel = context.WithTimeout(context.Background(), 4*patience)
	var parts sync.WaitGroup
	t.Cleanup(func() { cancel(); parts.Wait() })
	var err error
	if w.url, err = w.stack.Postgres.NewDatabase(w.ctx, "trestle"); err != nil {
		t.Fatal(err)
	}
	for proxy, addr := range map[**faultproxy.Proxy]string{&w.postgres: w.stack.Postgres.Addr(), &w.redis: w.stack.Redis.Addr()} {
		if *proxy, err = faultproxy.New(addr); err != nil {
			t.Fatal(err)
		}
		parts.Go(func() {
			if err := (*proxy).Run(w.ctx); err != nil {
				t.Error(err)
			}
		})
	}
	begin(t, "migrate", "--postgres.url", w.url).exits(exitClean)
	if w.db, err = pgx.Connect(w.ctx, w.url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.db.Close(context.Background()) })
	return w
}

// serve starts the service.
func (w *world) serve(args ...string) *process {
	w.t.Helper()
	return begin(w.t, w.serving(args...)...)
}

// serving are the arguments of serve.
func (w *world) serving(more ...string) []string {
	w.t.Helper()
	return append([]string{"serve", "--postgres.url", w.through(), "--redis.url", "redis://" + w.redis.Addr(),
		"--etcd.endpoints", w.stack.Etcd.Endpoints()[0], "--etcd.leaseSeconds", "2", "--peer.listen", "127.0.0.1:0",
		// The same name at every start: the loss of many names at once is
		// taken for the fault of a network.
		"--replica.id", "replica",
		"--http.address", "127.0.0.1:0", "--clusterService.address", "127.0.0.1:0", "--console.address", "127.0.0.1:0", "--wsClusterDBReconcileIntervalSeconds", "1"}, more...)
}

// through is the database's URL by way of its proxy.
func (w *world) through() string {
	w.t.Helper()
	u, err := url.Parse(w.url)
	if err != nil {
		w.t.Fatal(err)
	}
	u.Host = w.postgres.Addr()
	return u.String()
}

// register puts the clusters of a load test into the registry.
func (w *world) register(ctx context.Context, clusters []loadtest.Cluster) error {
	return loadtest.Register(ctx, w.url, clusters)
}

// play runs a load test, and story beside it.
func (w *world) play(cfg loadtest.Config, story func(*loadtest.Test)) {
	w.t.Helper()
	cfg.Postgres, cfg.Redis, cfg.Installation = w.url, w.stack.Redis.URL(), "local"
	cfg.NeverDrop, cfg.Sample = true, true
	// A process that begins again publishes what it finds in the outbox long
	// before it has heard the clusters: silence says nothing here.
	cfg.Settle, cfg.Silence, cfg.Ready = patience, patience, patience
	if cfg.Register == nil {
		cfg.Register = w.register
	}
	test, err := loadtest.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	type result struct {
		report *loadtest.Report
		err    error
	}
	results := make(chan result, 1) // the story may end the test
	go func() {
		report, err := test.Run(w.ctx)
		results <- result{report, err}
	}()
	defer func() {
		r := <-results
		if r.err != nil {
			w.t.Fatal(r.err)
		}
		if !r.report.OK() {
			w.t.Errorf("%s\n%+v", r.report.Unsettled, r.report.Verdict)
		}
		if r.report.Gaps > 0 {
			w.t.Errorf("the test has lost its own subscription %d times", r.report.Gaps)
		}
	}()
	story(test)
}

// sent waits until a load test has sent so much. Nothing gives a sign of it.
func (w *world) sent(test *loadtest.Test, messages int64) {
	w.t.Helper()
	w.until(fmt.Sprintf("%d messages are sent", messages), func() bool { return test.Ledger().Counts().Sent >= messages })
}

// until asks now and then whether something has become true that nothing gives
// a sign of.
func (w *world) until(what string, is func() bool) {
	w.t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for !is() {
		select {
		case <-ticker.C:
		case <-w.ctx.Done():
			w.t.Fatalf("this did not come about: %s", what)
		}
	}
}

func (w *world) outboxRows() (n int) {
	w.t.Helper()
	conn, err := pgx.Connect(w.ctx, w.url) // the load test has the other one
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close(w.ctx)
	if err := conn.QueryRow(w.ctx, `SELECT count(*) FROM trestle_outbox`).Scan(&n); err != nil {
		w.t.Fatal(err)
	}
	return n
}

func TestKilledInMidStream(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.serve()
	work := loadtest.Work{Shape: loadtest.Steady, Seed: 1, Clusters: 3, Instances: 500, Wave: 150, Rate: 1500, Odd: 0.3}
	w.play(loadtest.Config{Work: work}, func(test *loadtest.Test) {
		for _, at := range []int64{600, 1500, 2500} {
			w.sent(test, at)
			p.kill()
			p = w.serve()
		}
	})
	p.signal(syscall.SIGTERM)
	p.exits(exitClean)
	if n := w.outboxRows(); n != 0 {
		t.Errorf("%d rows in the outbox", n)
	}
}

// What a process had committed and not yet told when it was killed, the next
// one tells.
func TestKilledWithAFullOutbox(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.serve("--pipeline.batchLimit=50") // a batch is a row of the outbox for each cluster
	work := loadtest.Work{Shape: loadtest.Storm, Seed: 2, Clusters: 2, Instances: 300, Odd: 0.3}
	w.play(loadtest.Config{Work: work, Begin: w.redis.Down}, func(test *loadtest.Test) {
		w.until("the outbox fills", func() bool { return w.outboxRows() >= 5 })
		p.kill()
		w.redis.Up()
		if w.outboxRows() == 0 {
			t.Error("the outbox is empty")
		}
		p = w.serve()
	})
	p.signal(syscall.SIGTERM)
	p.exits(exitClean)
	if n := w.outboxRows(); n != 0 {
		t.Errorf("%d rows in the outbox", n)
	}
}

// SIGTERM while everything waits for the database: what was heard is written
// and told before the end.
func TestTerminatedWithAFullPipeline(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.serve("--shutdown.timeoutSeconds", "80")
	lock, err := pgx.Connect(w.ctx, w.url)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close(context.Background())
	tx, err := lock.Begin(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	work := loadtest.Work{Shape: loadtest.Storm, Seed: 3, Clusters: 2, Instances: 400}
	w.play(loadtest.Config{Work: work, Begin: func() {
		if _, err := tx.Exec(w.ctx, `LOCK TABLE prebuilt_workspace, workspace_instance IN EXCLUSIVE MODE`); err != nil {
			t.Error(err)
		}
	}}, func(test *loadtest.Test) {
		w.sent(test, 400*8)
		w.until("everything is heard", func() bool { return p.updates() >= 400*8 })
		p.signal(syscall.SIGTERM)
		p.says("stopping: all shards")
		if err := tx.Rollback(w.ctx); err != nil {
			t.Error(err)
		}
		p.exits(exitClean)
		p.says("everything heard was written and published or handed over")
	})
	if n := w.outboxRows(); n != 0 {
		t.Errorf("%d rows in the outbox", n)
	}
}

// stuck gives a process that has heard of instances which it cannot write.
func stuck(t *testing.T, args ...string) (*world, *process) {
	w := newWorld(t)
	p := w.serve(args...)
	work := loadtest.Work{Shape: loadtest.Storm, Seed: 4, Instances: 20}
	test, err := loadtest.New(loadtest.Config{Work: work, Postgres: w.url, Redis: w.stack.Redis.URL(), Register: w.register, Begin: w.postgres.Down})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// It is broken off: what it says is no matter.
		_, _ = test.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-ended })
	w.sent(test, 20*8)
	w.until("everything is heard", func() bool { return p.updates() >= 20*8 })
	return w, p
}

func TestTerminatedWithoutADatabase(t *testing.T) {
	t.Parallel()
	_, p := stuck(t, "--shutdown.timeoutSeconds", "1")
	p.signal(syscall.SIGTERM)
	p.exits(exitIncomplete)
	if line := p.says("trestle ends with an error"); !strings.Contains(line, "20 instances have updates that were not written") {
		t.Errorf("the last words do not say what is left: %s", line)
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	_, p := stuck(t, "--shutdown.timeoutSeconds", "3600")
	p.signal(syscall.SIGTERM)
	p.says("stopping: all shards")
	// The first signal gives the handling of the next back to the system, a
	// moment later: until then more are the same one.
	for ended := false; !ended; {
		p.signal(syscall.SIGTERM)
		select {
		case <-p.ended:
			ended = true
		case <-time.After(20 * time.Millisecond):
		}
	}
	if state, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !state.Signaled() || state.Signal() != syscall.SIGTERM {
		t.Errorf("the process ended with %s", p.cmd.ProcessState)
	}
}

func TestWrongConfigurationOfAProcess(t *testing.T) {
	t.Parallel()
	path := file(t, "installation: x\nstaticBrigdes: []\n")
	p := begin(t, "serve", "--config", path)
	p.exits(exitUsage)
	if said := p.said(); !strings.Contains(said, path+":2") || !strings.Contains(said, "staticBrigdes") {
		t.Errorf("it does not name file and key: %s", said)
	}
}
