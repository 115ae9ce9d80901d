package devstack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/trestle-bridge/trestle/internal/devstack/process"
)

// RedisConfig sets a private Redis.
type RedisConfig struct {
	// RequireServer makes a missing redis-server an error. Without it an
	// embedded server, which is slower and knows fewer commands, stands in.
	RequireServer bool
	// Embedded takes the embedded server even if redis-server is installed.
	Embedded bool
	// Settings are server settings, which go before the defaults, as in
	// {"maxclients": "20"}. Port and address are not settable. The embedded
	// server knows none.
	Settings map[string]string
}

// Redis is a private Redis without a password that keeps nothing on disk.
type Redis struct {
	binary  string // "" if embedded
	kind    string
	as      *process.Account
	home    string // belongs to the account
	logPath string
	config  RedisConfig
	port    *portReservation // nil after Close
	address string           // host:port, known for life

	mu       sync.Mutex       // guards the rest, which other goroutines read while one starts and stops
	proc     *process.Process // nil while stopped or if embedded
	embedded *miniredis.Miniredis
}

func startRedis(ctx context.Context, cfg RedisConfig, base base, dir *privateDir) (_ *Redis, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	r := &Redis{
		home:    filepath.Join(dir.path, "redis"),
		logPath: filepath.Join(dir.path, "redis.log"),
		config:  cfg,
	}
	if err := r.choose(ctx); err != nil {
		return nil, err
	}
	if r.binary != "" {
		if r.as, err = process.Unprivileged(); err != nil {
			return nil, err
		}
		if err := r.as.CanEnter(dir.path); err != nil {
			return nil, err
		}
	}
	if err := makeHome(r.home, r.as); err != nil {
		return nil, err
	}
	for range bindAttempts {
		if r.port, err = base.reservePort(); err != nil {
			return nil, err
		}
		r.address = r.port.addr()
		if err = r.Start(ctx); err == nil {
			return r, nil
		}
		taken := errors.Is(err, syscall.EADDRINUSE) || r.binary != "" && portTaken(r.logPath)
		err = errors.Join(err, r.port.release())
		if !taken {
			break
		}
	}
	return nil, err
}

// choose takes redis-server from PATH or the embedded server.
func (r *Redis) choose(ctx context.Context) error {
	if r.config.Embedded && r.config.RequireServer {
		return errors.New("the embedded server and a real one are wanted at once")
	}
	if r.config.Embedded {
		r.kind = "embedded"
		return nil
	}
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		if r.config.RequireServer {
			return errors.New("redis-server was not found in PATH: install it (Debian: apt-get install redis-server)")
		}
		r.kind = "embedded (redis-server is not installed)"
		return nil
	}
	// "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 …"
	output, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return fmt.Errorf("ask %s for its version: %w", binary, err)
	}
	version := "of unknown version"
	if match := regexp.MustCompile(`\bv=(\S+)`).FindSubmatch(output); match != nil {
		version = string(match[1])
	}
	r.binary, r.kind = binary, "redis-server "+version+" at "+binary
	return nil
}

// Start starts a stopped or killed server again, empty and on the same port,
// and returns when it answers. It does nothing if the server runs.
func (r *Redis) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if r.port == nil {
		return errors.New("start Redis: it is closed")
	}
	proc, embedded := r.running()
	if embedded != nil || proc != nil && !proc.Ended() {
		return nil
	}
	if r.binary == "" {
		embedded = miniredis.NewMiniRedis()
		if err := embedded.StartAddr(r.address); err != nil {
			return fmt.Errorf("start the embedded Redis: %w", err)
		}
		r.setRunning(nil, embedded)
		return nil
	}
	proc, err := r.startServer(ctx)
	if err != nil {
		return err
	}
	r.setRunning(proc, nil)
	return nil
}

func (r *Redis) startServer(ctx context.Context) (*process.Process, error) {
	settings := map[string]string{
		// Nothing on disk: a publish is for those who listen now.
		"save":       "",
		"appendonly": "no",
		"daemonize":  "no",
		"dir":        r.home,
	}
	maps.Copy(settings, r.config.Settings)
	settings["bind"] = "127.0.0.1"
	settings["port"] = strconv.Itoa(r.port.port)
	var args []string
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "--"+name, settings[name])
	}
	log, err := process.OpenLog(r.logPath)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(r.binary, args...)
	cmd.Dir, cmd.Env = r.home, process.Env(r.home)
	cmd.Stdout, cmd.Stderr = log, log
	proc, err := process.Start(cmd, syscall.SIGKILL, r.as)
	if err := errors.Join(err, log.Close()); err != nil {
		return nil, err
	}

	client := redis.NewClient(&redis.Options{Addr: r.address})
	err = proc.AwaitReady(ctx, r.logPath, func(ctx context.Context) error {
		// A bare connection first: the client would try again by itself and
		// print what it meets.
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", r.address)
		if err != nil {
			return err
		}
		if err := conn.Close(); err != nil {
			return err
		}
		info, err := client.Info(ctx, "server").Result()
		if err == nil && !strings.Contains(info, "process_id:"+strconv.Itoa(proc.PID)+"\r\n") {
			// Ours is about to fail to bind, which AwaitReady will see.
			return errors.New("another server answers on the port")
		}
		return err
	})
	if err := errors.Join(err, client.Close()); err != nil {
		return nil, errors.Join(err, proc.Kill())
	}
	return proc, nil
}

// Stop shuts the server down. It does nothing if the server does not run, and
// returns an error if it had ended by itself.
func (r *Redis) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	proc, embedded := r.running()
	defer r.setRunning(nil, nil)
	if embedded != nil {
		closeEmbedded(embedded)
	}
	if proc == nil {
		return nil
	}
	if err := proc.Stop(ctx, syscall.SIGTERM, r.logPath); err != nil {
		return fmt.Errorf("stop Redis: %w", errors.Join(err, proc.Kill()))
	}
	return nil
}

// closeEmbedded returns when nobody listens any more. A process that is being
// started meanwhile would hold the listener until it runs its own program.
func closeEmbedded(embedded *miniredis.Miniredis) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	embedded.Close()
}

// Kill kills the server and returns when it is gone. The embedded one is
// stopped, which closes its connections at once too.
func (r *Redis) Kill() error {
	proc, embedded := r.running()
	defer r.setRunning(nil, nil)
	if embedded != nil {
		closeEmbedded(embedded)
	}
	if proc == nil {
		return nil
	}
	if err := proc.Kill(); err != nil {
		return fmt.Errorf("kill Redis: %w", err)
	}
	return nil
}

// Close stops the server and removes its folder. A nil or closed one is fine.
func (r *Redis) Close() error {
	if r == nil || r.port == nil {
		return nil
	}
	err := r.Stop(context.Background())
	if removeErr := os.RemoveAll(r.home); removeErr != nil {
		err = errors.Join(err, fmt.Errorf("remove Redis' folder: %w", removeErr))
	}
	err = errors.Join(err, r.port.release())
	r.port = nil
	return err
}

func (r *Redis) running() (*process.Process, *miniredis.Miniredis) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.proc, r.embedded
}

func (r *Redis) setRunning(proc *process.Process, embedded *miniredis.Miniredis) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.proc, r.embedded = proc, embedded
}

// Kind says what runs: "redis-server 7.0.15 at /usr/bin/redis-server",
// "embedded (redis-server is not installed)" or, if it was asked for, "embedded".
func (r *Redis) Kind() string { return r.kind }

// Addr returns host:port, the same for life.
func (r *Redis) Addr() string { return r.address }

// URL returns the address of database 0, the same for life.
func (r *Redis) URL() string { return "redis://" + r.address + "/0" }

// PIDs returns the processes of the server: none if it is embedded or stopped.
func (r *Redis) PIDs() ([]int, error) {
	proc, _ := r.running()
	return proc.PIDs()
}

// CPU returns the processor time that the server has used since its last start;
// 0 if it is embedded or stopped. Unit of counting: 10 ms.
func (r *Redis) CPU() (time.Duration, error) {
	proc, _ := r.running()
	return proc.CPU()
}
