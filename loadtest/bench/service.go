package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/trestle-bridge/trestle/internal/devstack/process"
	"github.com/trestle-bridge/trestle/loadtest"
	"github.com/trestle-bridge/trestle/loadtest/fleet"
)

const (
	startTimeout = 30 * time.Second
	// stopTimeout is above the service's own limit for writing what it has.
	stopTimeout = 45 * time.Second
)

// service is the bridge under test, as a process of its own, so that what it
// uses is told apart from what the generator uses.
type service struct {
	proc *process.Process
	http string // host:port
	log  string // path
}

// startService starts the binary for clusters that are named in its
// configuration, and returns when it answers. Profiles of the whole run go to
// name.cpu.pprof and name.heap.pprof.
func (b *bench) startService(ctx context.Context, name, postgres string, clusters []loadtest.Cluster) (*service, error) {
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	type bridge struct {
		Name string `json:"name"`
		URL  string `json:"url"`
	}
	bridges := make([]bridge, 0, len(clusters))
	for _, c := range clusters {
		bridges = append(bridges, bridge{c.Name, c.URL})
	}
	configuration, err := json.Marshal(map[string]any{
		"installation":  installation,
		"staticBridges": bridges,
		"http":          map[string]any{"address": address},
		// Any port that is free: another service may run beside this one.
		"clusterService": map[string]any{"host": "127.0.0.1", "port": 0},
		"postgres":       map[string]any{"url": postgres},
		"redis":          map[string]any{"url": b.stack.Redis.URL()},
		// Each service has the assignments to itself, as it has its database.
		"etcd": map[string]any{"endpoints": b.stack.Etcd.Endpoints(), "prefix": fmt.Sprintf("/bench_%d", b.databases)},
		"log":  map[string]any{"level": "warn", "format": "text"},
	})
	if err != nil {
		return nil, fmt.Errorf("write the service's configuration: %w", err)
	}
	path := filepath.Join(b.dir, name+".json")
	if err := os.WriteFile(path, configuration, 0o600); err != nil {
		return nil, fmt.Errorf("write the service's configuration: %w", err)
	}
	s := &service{http: address, log: filepath.Join(b.dir, name+".log")}
	log, err := process.OpenLog(s.log)
	if err != nil {
		return nil, err
	}
	args := append([]string{"serve", "--config", path,
		"--cpuprofile", filepath.Join(b.cfg.Results, name+".cpu.pprof"),
		"--memprofile", filepath.Join(b.cfg.Results, name+".heap.pprof")}, b.cfg.Serve...)
	cmd := exec.Command(b.cfg.Trestle, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = fleet.WithoutSettings(os.Environ())
	s.proc, err = process.Start(cmd, syscall.SIGKILL, nil)
	if err := errors.Join(err, log.Close()); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := s.proc.AwaitReady(ctx, s.log, s.answers); err != nil {
		return nil, errors.Join(err, s.proc.Kill())
	}
	return s, nil
}

func freeAddress(ctx context.Context) (string, error) {
	lis, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return lis.Addr().String(), lis.Close()
}

func (s *service) answers(ctx context.Context) error {
	body, err := s.get(ctx, "/readyz")
	if err != nil {
		return err
	}
	return body.Close()
}

func (s *service) get(ctx context.Context, path string) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.http+path, nil)
	if err != nil {
		return nil, fmt.Errorf("ask the service for %s: %w", path, err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask the service for %s: %w", path, err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("the service answers %s to %s", response.Status, path), response.Body.Close())
	}
	return response.Body, nil
}

// stop asks the service to end and waits until it has written everything.
func (s *service) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := s.proc.Stop(ctx, syscall.SIGTERM, s.log); err != nil {
		return errors.Join(fmt.Errorf("stop the service: %w", err), s.proc.Kill())
	}
	return nil
}

// usage is what the service has used so far.
type usage struct {
	cpu         time.Duration
	statements  float64
	allocations float64
	// The batches written, the instances in them and the time they took.
	batches, changes, commitSeconds float64
}

func (u usage) since(before usage) usage {
	return usage{
		cpu: u.cpu - before.cpu, statements: u.statements - before.statements, allocations: u.allocations - before.allocations,
		batches: u.batches - before.batches, changes: u.changes - before.changes, commitSeconds: u.commitSeconds - before.commitSeconds,
	}
}

// usage asks the service itself, and the system for its processor time.
func (s *service) usage(ctx context.Context) (usage, error) {
	body, err := s.get(ctx, "/metrics")
	if err != nil {
		return usage{}, err
	}
	defer body.Close()
	var u usage
	for scanner := bufio.NewScanner(body); scanner.Scan(); {
		line := scanner.Text()
		name, value := line[:max(0, strings.LastIndexByte(line, ' '))], line[strings.LastIndexByte(line, ' ')+1:]
		base, _, _ := strings.Cut(name, "{")
		to := map[string]*float64{
			"trestle_store_statement_seconds_count": &u.statements,
			"go_memstats_mallocs_total":             &u.allocations,
			"trestle_pipeline_commit_seconds_sum":   &u.commitSeconds,
			"trestle_pipeline_commit_seconds_count": &u.batches,
			"trestle_pipeline_changes_total":        &u.changes,
		}[base]
		if to == nil {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return usage{}, fmt.Errorf("read the metric %s: %w", name, err)
		}
		*to += v
	}
	u.cpu, err = s.proc.CPU()
	return u, err
}

// memory reads a line of /proc/PID/status, such as VmRSS or VmHWM, in bytes.
func (s *service) memory(line string) (int64, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.proc.PID))
	if err != nil {
		return 0, fmt.Errorf("read the memory of the service: %w", err)
	}
	for text := range strings.Lines(string(content)) {
		fields := strings.Fields(text)
		if len(fields) == 3 && fields[0] == line+":" {
			kilobytes, err := strconv.ParseInt(fields[1], 10, 64)
			return kilobytes << 10, err
		}
	}
	return 0, fmt.Errorf("the system does not tell the %s of the service", line)
}
