package main

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/trestle-bridge/trestle/loadtest/ledger"
	"github.com/trestle-bridge/trestle/loadtest/oracle"
)

// watched is what a run of dev prints; seen is called with all of it whenever
// there is more.
type watched struct {
	text bytes.Buffer
	seen func(string)
}

func (w *watched) Write(b []byte) (int, error) {
	w.text.Write(b)
	w.seen(w.text.String())
	return len(b), nil
}

// locked is a log: several goroutines write to it.
type locked struct {
	// mu guards text.
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

// runDev runs dev until it ends, and leaves nothing behind.
func runDev(t *testing.T, ctx context.Context, seen func(string), args ...string) (code int, out, errOut string) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs PostgreSQL")
	}
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Setenv(asProgram, "yes") // the replicas are this binary
	stdout, stderr := &watched{seen: seen}, &locked{}
	code = run(ctx, append([]string{"dev", "--logs", t.TempDir()}, args...), streams{out: stdout, err: stderr}, func(string) (string, bool) { return "", false })
	return code, stdout.text.String(), stderr.text.String()
}

func TestDemo(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	code, out, log := runDev(t, ctx, func(string) {}, "--demo", "--duration=8s", "--rate=400", "--instances=200", "--clusters=3")
	if code != exitClean {
		t.Errorf("exits with %d\n%s\n%s", code, out, log)
	}
	for _, want := range []string{"psql 'postgres://", "redis-cli -h ", "/metrics", "sim-002 ", "sim-001 drops its subscriber",
		"replica-3 is killed", "replica-1 has handed everything over", "crash of replica-3", "upgrade of replica-1",
		"updates sent", "repeats", "stale", "folded", "rows written", "publishes", "p99", "lost", "regressed", "doubled", "wrong",
		"Every row and every publish is as it must be."} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing from\n%s", want, out)
		}
	}
	if strings.ContainsAny(out, "\x1b\r") {
		t.Errorf("control characters, though this is no terminal:\n%q", out)
	}
}

func TestDevGoesOnUntilItIsStopped(t *testing.T) {
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	code, out, log := runDev(t, ctx, func(out string) {
		if strings.Count(out, "published") >= 2 {
			stop()
		}
	}, "--rate=400", "--instances=100", "--clusters=2")
	if code != exitClean || !strings.Contains(out, "Every row and every publish is as it must be.") {
		t.Errorf("exits with %d\n%s\n%s", code, out, log)
	}
}

func TestDevStopsWhileStarting(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
	}{{nil, exitClean}, {[]string{"--demo"}, exitFailure}} {
		ctx, stop := context.WithCancel(t.Context())
		code, out, errOut := runDev(t, ctx, func(string) { stop() }, c.args...)
		if code != c.code {
			t.Errorf("%v exits with %d, want %d\n%s\n%s", c.args, code, c.code, out, errOut)
		}
		stop()
	}
}

func TestDevSaysWhatIsMissing(t *testing.T) {
	t.Setenv("PG_BIN", t.TempDir())
	code, _, errOut := call(t, nil, "dev", "--demo", "--logs", t.TempDir())
	if code != exitFailure || !strings.Contains(errOut, "PG_BIN") {
		t.Errorf("exits with %d: %s", code, errOut)
	}
}

func TestDevFlags(t *testing.T) {
	for _, args := range [][]string{
		{"--rate=0"}, {"--clusters=0"}, {"--instances=0"}, {"--duration=5s"}, {"--demo", "--duration=1ms"}, {"--config=x"}, {"more"},
	} {
		if code, out, _ := call(t, nil, append([]string{"dev"}, args...)...); code != exitUsage || out != "" {
			t.Errorf("%v exits with %d: %s", args, code, out)
		}
	}
}

func TestSummaryShowsWhatIsWrong(t *testing.T) {
	var out bytes.Buffer
	d := &dev{screen: newScreen(&out)}
	v := &ledger.Verdict{Instances: 20, Exact: 19, Lost: 12, Doubled: 1}
	for range 12 {
		v.Differences = append(v.Differences, oracle.Difference{Kind: oracle.Lost, Instance: "an-id", Field: "status_version", Want: "2", Got: "1"})
	}
	err := d.summary(&result{verdict: v})
	if err == nil || !strings.Contains(err.Error(), "13 differences") {
		t.Errorf("returns %v", err)
	}
	if n := strings.Count(out.String(), "lost: instance an-id"); n != 10 || !strings.Contains(out.String(), "and 2 more") {
		t.Errorf("shows %d differences:\n%s", n, out.String())
	}

	if err := d.summary(&result{verdict: &ledger.Verdict{}, unsettled: "3 wait"}); err == nil || !strings.Contains(err.Error(), "3 wait") {
		t.Errorf("returns %v", err)
	}
	if err := d.summary(&result{verdict: &ledger.Verdict{}}); err != nil {
		t.Error(err)
	}
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0.0 ms", 9940 * time.Microsecond: "9.9 ms", 12_300 * time.Microsecond: "12 ms", 1500 * time.Millisecond: "1.5 s",
	} {
		if got := short(d); got != want {
			t.Errorf("%v is shown as %q, want %q", d, got, want)
		}
	}
}
