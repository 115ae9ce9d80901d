package process_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/trestle-bridge/trestle/internal/devstack/process"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// run starts a shell script and returns when it has printed a line.
func run(t *testing.T, script string) *process.Process {
	t.Helper()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", script)
	cmd.Stdout = writer
	p, err := process.Start(cmd, syscall.SIGKILL, nil)
	if err := errors.Join(err, writer.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(reader).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(p.Kill(), reader.Close()); err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestKillReachesOtherSessions(t *testing.T) {
	p := run(t, `setsid sh -c 'sleep 1000 & echo ready; wait' & wait`)
	pids, err := p.PIDs()
	if err != nil || len(pids) != 3 || pids[0] != p.PID {
		t.Fatalf("processes %v of %d, %v", pids, p.PID, err)
	}
	if _, err := p.CPU(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := p.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	if !p.Ended() {
		t.Error("it lives")
	}
	if slices.ContainsFunc(pids, func(pid int) bool {
		content, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
		return err == nil && !strings.Contains(string(content), ") Z ")
	}) {
		t.Errorf("one of %v lives", pids)
	}
	if pids, err := p.PIDs(); err != nil || len(pids) > 0 {
		t.Errorf("it has processes %v, %v", pids, err)
	}
}

func TestStop(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(log, []byte("last words\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	asked := run(t, `trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done`)
	if err := asked.Stop(t.Context(), syscall.SIGTERM, log); err != nil {
		t.Error(err)
	}
	if err := asked.Stop(t.Context(), syscall.SIGTERM, log); err == nil || !strings.Contains(err.Error(), "last words") {
		t.Errorf("stopped twice: %v", err)
	}

	failing := run(t, `trap 'exit 1' TERM; echo ready; while :; do sleep 0.01; done`)
	if err := failing.Stop(t.Context(), syscall.SIGTERM, log); err == nil || !strings.Contains(err.Error(), "last words") {
		t.Errorf("ended with an error: %v", err)
	}

	deaf := run(t, `trap '' TERM; echo ready; while :; do sleep 0.01; done`)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := deaf.Stop(ctx, syscall.SIGTERM, log); !errors.Is(err, context.Canceled) {
		t.Errorf("stopping a deaf one: %v", err)
	}
	if deaf.Ended() {
		t.Error("the deaf one ended")
	}
}

func TestRun(t *testing.T) {
	if err := process.Run(t.Context(), exec.Command("true"), nil); err != nil {
		t.Error(err)
	}
	err := process.Run(t.Context(), exec.Command("sh", "-c", "echo my reason; exit 3"), nil)
	if err == nil || !strings.Contains(err.Error(), "my reason") {
		t.Error(err)
	}
	if err := process.Run(t.Context(), exec.Command("/does/not/exist"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := process.Run(ctx, exec.Command("sleep", "1000"), nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
