// Package fleet runs replicas of the service as processes, for demonstrations,
// benchmarks and tests: they can be killed, held, upgraded and asked.
//
// It knows the service by its command line, its log and its addresses alone.
// Replicas die with the process that started them.
package fleet

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/trestle-bridge/trestle/internal/devstack/process"
)

// Config says what to run. All but Args and Env is required.
type Config struct {
	// Binary is the path of trestle.
	Binary string
	// Args are the flags of serve that all replicas have in common: the servers,
	// the name of the installation.
	Args []string
	// Env is added to the environment, from which all settings of the service
	// have been taken out.
	Env []string
	// Dir is where the logs go, one file a replica. It exists.
	Dir string
	// Stop is how long a replica may take to end in order.
	Stop time.Duration
}

// Fleet starts replicas. Its methods may be called at once.
type Fleet struct {
	cfg Config

	// mu guards replicas.
	mu       sync.Mutex
	replicas []*Replica
}

// New starts nothing.
func New(cfg Config) (*Fleet, error) {
	if cfg.Binary == "" || cfg.Dir == "" || cfg.Stop <= 0 {
		return nil, errors.New("a fleet needs a binary, a folder and a time to stop")
	}
	return &Fleet{cfg: cfg}, nil
}

// Replica is one process.
type Replica struct {
	// Name and Revision as it was told them.
	Name, Revision string
	// HTTP, GRPC, Peer and Console are its addresses, host:port; Incarnation is
	// what it calls itself in this life.
	HTTP, GRPC, Peer, Console, Incarnation string
	// Log is the path of its log.
	Log string

	proc *process.Process
	stop time.Duration
	// begun is how long the log was before: another test may have had one of this
	// name in the folder.
	begun int64
}

// Start starts a replica and returns when it is ready for shards.
func (f *Fleet) Start(ctx context.Context, name, revision string) (*Replica, error) {
	r, err := f.Launch(ctx, name, revision)
	if err != nil {
		return nil, err
	}
	if err := r.proc.AwaitReady(ctx, r.Log, r.Ready); err != nil {
		return nil, errors.Join(fmt.Errorf("wait for %s: %w", name, err), r.proc.Kill())
	}
	return r, nil
}

// Launch starts a replica and returns when it serves; whether it is ready for
// shards is another matter.
func (f *Fleet) Launch(ctx context.Context, name, revision string) (*Replica, error) {
	f.mu.Lock()
	number := len(f.replicas) + 1
	f.mu.Unlock()
	r := &Replica{Name: name, Revision: revision, Log: filepath.Join(f.cfg.Dir, fmt.Sprintf("%03d-%s.log", number, name)), stop: f.cfg.Stop}
	log, err := process.OpenLog(r.Log)
	if err != nil {
		return nil, err
	}
	info, err := log.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("look at the log of %s: %w", name, err), log.Close())
	}
	r.begun = info.Size()
	args := append([]string{"serve", "--replica.id", name, "--replica.revision", revision, "--log.format", "json",
		"--http.address", "127.0.0.1:0", "--clusterService.address", "127.0.0.1:0", "--peer.listen", "127.0.0.1:0",
		"--console.address", "127.0.0.1:0"}, f.cfg.Args...)
	cmd := exec.Command(f.cfg.Binary, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(WithoutSettings(os.Environ()), f.cfg.Env...)
	r.proc, err = process.Start(cmd, syscall.SIGKILL, nil)
	if err := errors.Join(err, log.Close()); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	if err := r.proc.AwaitReady(ctx, r.Log, r.readAddresses); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), r.proc.Kill())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.replicas = append(f.replicas, r)
	return r, nil
}

// WithoutSettings leaves out of an environment what would change what the service
// does.
func WithoutSettings(env []string) (out []string) {
	for _, e := range env {
		if !strings.HasPrefix(e, "TRESTLE_") && !strings.HasPrefix(e, "REDIS_") {
			out = append(out, e)
		}
	}
	return out
}

// readAddresses finds them in what this process has written to the log.
func (r *Replica) readAddresses(context.Context) error {
	content, err := os.ReadFile(r.Log)
	if err != nil {
		return err
	}
	content = content[min(r.begun, int64(len(content))):]
	for scanner := bufio.NewScanner(bytes.NewReader(content)); scanner.Scan(); {
		if !bytes.Contains(scanner.Bytes(), []byte("trestle is up")) {
			continue
		}
		var up struct{ HTTP, GRPC, Peer, Console, Incarnation string }
		if err := json.Unmarshal(scanner.Bytes(), &up); err != nil {
			return err
		}
		r.HTTP, r.GRPC, r.Peer, r.Console, r.Incarnation = up.HTTP, up.GRPC, up.Peer, up.Console, up.Incarnation
		return nil
	}
	return errors.New("it has not said where it listens")
}

// Living are the replicas whose processes have not ended.
func (f *Fleet) Living() []*Replica {
	f.mu.Lock()
	defer f.mu.Unlock()
	var living []*Replica
	for _, r := range f.replicas {
		if !r.proc.Ended() {
			living = append(living, r)
		}
	}
	return living
}

// All are all replicas that were ever started.
func (f *Fleet) All() []*Replica {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.replicas)
}

// Close kills what lives.
func (f *Fleet) Close() error {
	var errs []error
	for _, r := range f.Living() {
		errs = append(errs, r.proc.Kill())
	}
	return errors.Join(errs...)
}

// Kill is kill -9; it returns when the process is gone.
func (r *Replica) Kill() error { return r.proc.Kill() }

// Hold stops the process where it is, as a machine that stalls would; Go lets it
// go on.
func (r *Replica) Hold() error { return r.proc.Signal(syscall.SIGSTOP) }

// Go lets a held process go on.
func (r *Replica) Go() error { return r.proc.Signal(syscall.SIGCONT) }

// Term asks the process to end; Stop waits for that, too.
func (r *Replica) Term() error { return r.proc.Signal(syscall.SIGTERM) }

// Stop has the process end in order: it is an error if it does not, or not in
// time, and the process is killed then.
func (r *Replica) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.stop)
	defer cancel()
	if err := r.proc.Stop(ctx, syscall.SIGTERM, r.Log); err != nil {
		return errors.Join(fmt.Errorf("stop %s: %w", r.Name, err), r.proc.Kill())
	}
	return nil
}

// Done is closed when the process has ended.
func (r *Replica) Done() <-chan struct{} { return r.proc.Done() }

// ExitCode is that of a process that has ended, -1 if it was killed or lives.
func (r *Replica) ExitCode() int {
	if state := r.proc.State(); state != nil {
		return state.ExitCode()
	}
	return -1
}

// CPU is the processor time used so far, in units of 10 ms.
func (r *Replica) CPU() (time.Duration, error) { return r.proc.CPU() }

// Memory is what the process holds of the machine's, in bytes.
func (r *Replica) Memory() (int64, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.proc.PID))
	if err != nil {
		return 0, fmt.Errorf("read the memory of %s: %w", r.Name, err)
	}
	for line := range strings.Lines(string(content)) {
		if kilobytes, found := strings.CutPrefix(line, "VmRSS:"); found {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(kilobytes), " kB"), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read the memory of %s: %w", r.Name, err)
			}
			return n << 10, nil
		}
	}
	return 0, fmt.Errorf("the system does not tell the memory of %s", r.Name)
}

// Ready says why the replica is not ready for shards.
func (r *Replica) Ready(ctx context.Context) error {
	response, err := r.get(ctx, "/readyz")
	if err != nil {
		return err
	}
	return response.Body.Close()
}

func (r *Replica) get(ctx context.Context, path string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.HTTP+path, nil)
	if err != nil {
		return nil, fmt.Errorf("ask %s for %s: %w", r.Name, path, err)
	}
	request.Close = true // no connection is left for the service to wait for
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask %s for %s: %w", r.Name, path, err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("%s answers %s to %s", r.Name, response.Status, path), response.Body.Close())
	}
	return response, nil
}

// Families are all metrics of the replica.
func (r *Replica) Families(ctx context.Context) (map[string]*dto.MetricFamily, error) {
	response, err := r.get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(response.Body)
	if err != nil {
		return nil, fmt.Errorf("read the metrics of %s: %w", r.Name, err)
	}
	return families, nil
}

// Sums are the metrics of the replica, the series of each name added up.
func (r *Replica) Sums(ctx context.Context) (map[string]float64, error) {
	families, err := r.Families(ctx)
	if err != nil {
		return nil, err
	}
	sums := make(map[string]float64, len(families))
	for name, family := range families {
		for _, m := range family.GetMetric() {
			sums[name] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sums, nil
}
