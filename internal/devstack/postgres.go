package devstack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"github.com/trestle-bridge/trestle/internal/devstack/process"
)

// PostgresConfig sets a private PostgreSQL.
type PostgresConfig struct {
	// Settings are server settings, which go before the defaults, as in
	// {"log_statement": "all"}. Port, address and socket folder are not settable.
	Settings map[string]string
}

// postgresSettings are the defaults: durable as in production, for a small
// machine that runs tests and load tests.
func postgresSettings() map[string]string {
	return map[string]string{
		"fsync":              "on",
		"synchronous_commit": "on",
		"shared_buffers":     "256MB",
		"max_connections":    "200",
		"max_wal_size":       "4GB",
		"autovacuum":         "on",
		// Compiling costs more than our short statements take, and it makes the
		// time of a statement depend on what the planner guessed.
		"jit": "off",
		// Shared memory as files of the data folder goes with the folder;
		// /dev/shm would keep that of a killed server, and is tiny in containers.
		"dynamic_shared_memory_type": "mmap",
		"timezone":                   "UTC",
		"log_timezone":               "UTC",
		"log_line_prefix":            "%m [%p] %d ",
		"lc_messages":                "C",
		"cluster_name":               "trestle-devstack",
	}
}

// startTimeout bounds a start, stopTimeout a stop, whose context has no
// deadline. Recovery of a killed server and its checkpoint fit in.
const (
	startTimeout = time.Minute
	stopTimeout  = 30 * time.Second
)

// Postgres is a private PostgreSQL whose superuser "postgres" needs no password.
type Postgres struct {
	bin     postgresBinaries
	as      *process.Account
	home    string // holds the data folder and the socket; belongs to the account
	data    string
	logPath string
	config  PostgresConfig
	port    *portReservation // nil after Close
	address string           // host:port, known for life

	mu   sync.Mutex       // guards proc, which other goroutines read while one starts and stops
	proc *process.Process // nil while stopped
}

func startPostgres(ctx context.Context, cfg PostgresConfig, base base, dir *privateDir) (_ *Postgres, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	bin, err := findPostgres(ctx)
	if err != nil {
		return nil, err
	}
	p := &Postgres{
		bin:     bin,
		home:    filepath.Join(dir.path, "postgres"),
		logPath: filepath.Join(dir.path, "postgres.log"),
		config:  cfg,
	}
	if p.as, err = process.Unprivileged(); err != nil {
		return nil, err
	}
	// The longest socket address that all systems take, with its final zero,
	// has 104 bytes; the name of the socket is the port's.
	if socket := filepath.Join(p.home, ".s.PGSQL.65535"); len(socket) >= 104 {
		return nil, fmt.Errorf("the path of the socket, %s, is too long: choose a shorter folder (TMPDIR)", socket)
	}
	if err := p.as.CanEnter(dir.path); err != nil {
		return nil, err
	}
	if err := makeHome(p.home, p.as); err != nil {
		return nil, err
	}
	if p.data, err = makeData(ctx, bin, p.as, base, p.home); err != nil {
		return nil, err
	}
	for range bindAttempts {
		if p.port, err = base.reservePort(); err != nil {
			return nil, err
		}
		p.address = p.port.addr()
		if err = p.writeSettings(); err == nil {
			err = p.Start(ctx)
		}
		if err == nil {
			return p, nil
		}
		err = errors.Join(err, p.port.release())
		if !portTaken(p.logPath) {
			break
		}
	}
	return nil, err
}

// bindAttempts is how often a first start is tried if strangers take the port.
const bindAttempts = 5

// portTaken tells whether a server that failed to start says that its port was
// in use. The log can name an older attempt too, which costs one attempt more.
func portTaken(logPath string) bool {
	return strings.Contains(process.LogTail(logPath), "Address already in use")
}

// makeHome makes a folder that belongs to the account and is closed to others.
func makeHome(path string, as *process.Account) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return fmt.Errorf("make the server's folder: %w", err)
	}
	if err := as.Own(path); err != nil {
		return fmt.Errorf("give the server's folder to %s: %w", as.Name, err)
	}
	return nil
}

func (p *Postgres) writeSettings() error {
	settings := postgresSettings()
	maps.Copy(settings, p.config.Settings)
	settings["listen_addresses"] = "127.0.0.1"
	settings["port"] = strconv.Itoa(p.port.port)
	settings["unix_socket_directories"] = p.home
	var content strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&content, "%s = '%s'\n", name, strings.ReplaceAll(settings[name], "'", "''"))
	}
	path := filepath.Join(p.data, "postgresql.conf")
	if err := os.WriteFile(path, []byte(content.String()), 0o600); err != nil {
		return fmt.Errorf("write PostgreSQL's settings: %w", err)
	}
	return nil
}

// Start starts a stopped or killed server again, on the same port with the same
// data, and returns when it answers. It does nothing if the server runs.
func (p *Postgres) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if proc := p.running(); proc != nil && !proc.Ended() {
		return nil
	}
	if p.port == nil {
		return errors.New("start PostgreSQL: it is closed")
	}
	log, err := process.OpenLog(p.logPath)
	if err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(p.bin.dir, "postgres"), "-D", p.data)
	cmd.Dir, cmd.Env = p.home, process.Env(p.home)
	cmd.Stdout, cmd.Stderr = log, log
	// At SIGQUIT PostgreSQL ends its children and frees what it shares with
	// them; SIGKILL would leave that behind.
	proc, err := process.Start(cmd, syscall.SIGQUIT, p.as)
	if err := errors.Join(err, log.Close()); err != nil {
		return err
	}
	err = proc.AwaitReady(ctx, p.logPath, func(ctx context.Context) error {
		// Through the socket: on the port a stranger could answer.
		conn, err := pgx.Connect(ctx, p.SocketURL())
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	})
	if err != nil {
		return errors.Join(err, p.kill(proc))
	}
	p.setRunning(proc)
	return nil
}

// Stop shuts the server down: open transactions are rolled back, connections
// are closed, and what was committed is on disk. When ctx ends first, or
// after 30 s, it kills and returns an error. It does nothing if the server does
// not run, and returns an error if it had ended by itself.
func (p *Postgres) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	proc := p.running()
	if proc == nil {
		return nil
	}
	defer p.setRunning(nil)
	if err := proc.Stop(ctx, syscall.SIGINT, p.logPath); err != nil {
		return fmt.Errorf("stop PostgreSQL: %w", errors.Join(err, p.kill(proc)))
	}
	return nil
}

// Kill kills all processes of the server, in the middle of whatever they do,
// and returns when they are gone. Clients see their connections break. Start
// brings the server back after recovery.
func (p *Postgres) Kill() error {
	proc := p.running()
	if proc == nil {
		return nil
	}
	defer p.setRunning(nil)
	return p.kill(proc)
}

func (p *Postgres) kill(proc *process.Process) error {
	if proc.Ended() {
		return nil
	}
	segment := p.sharedMemory()
	if err := proc.Kill(); err != nil {
		return fmt.Errorf("kill PostgreSQL: %w", err)
	}
	if segment >= 0 {
		// The dead server cannot free the small segment that guards its folder.
		_, err := unix.SysvShmCtl(segment, unix.IPC_RMID, nil)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EIDRM) {
			return fmt.Errorf("free PostgreSQL's shared memory: %w", err)
		}
	}
	return nil
}

// sharedMemory returns the id of the server's System V segment, or -1. The
// server writes it into line 7 of its lock file, behind the key.
func (p *Postgres) sharedMemory() int {
	content, err := os.ReadFile(filepath.Join(p.data, "postmaster.pid"))
	if err != nil {
		return -1
	}
	lines := strings.Split(string(content), "\n")
	if len(lines) < 7 {
		return -1
	}
	fields := strings.Fields(lines[6])
	if len(fields) != 2 {
		return -1
	}
	id, err := strconv.Atoi(fields[1])
	if err != nil {
		return -1
	}
	return id
}

// Close stops the server and removes its data. A nil or closed one is fine.
func (p *Postgres) Close() error {
	if p == nil || p.port == nil {
		return nil
	}
	err := p.Stop(context.Background())
	if removeErr := os.RemoveAll(p.home); removeErr != nil {
		err = errors.Join(err, fmt.Errorf("remove PostgreSQL's data: %w", removeErr))
	}
	err = errors.Join(err, p.port.release())
	p.port = nil
	return err
}

func (p *Postgres) running() *process.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.proc
}

func (p *Postgres) setRunning(proc *process.Process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.proc = proc
}

// Kind says what runs, as in "PostgreSQL 15.18 at /usr/lib/postgresql/15/bin".
func (p *Postgres) Kind() string { return "PostgreSQL " + p.bin.version + " at " + p.bin.dir }

// Addr returns host:port, the same for life.
func (p *Postgres) Addr() string { return p.address }

// URL returns the address of the database "postgres" over TCP, the same for life.
func (p *Postgres) URL() string { return p.databaseURL("postgres") }

// SocketURL is URL over the Unix socket.
func (p *Postgres) SocketURL() string {
	_, port, _ := strings.Cut(p.address, ":")
	query := url.Values{"host": {p.home}, "port": {port}, "user": {"postgres"}}
	return (&url.URL{Scheme: "postgres", Path: "/postgres", RawQuery: query.Encode()}).String()
}

func (p *Postgres) databaseURL(name string) string {
	u := url.URL{
		Scheme: "postgres", User: url.User("postgres"), Host: p.address,
		Path: "/" + name, RawQuery: "sslmode=disable",
	}
	return u.String()
}

// LogFile returns the path of the server's log, which is kept until the Stack
// is closed.
func (p *Postgres) LogFile() string { return p.logPath }

// NewDatabase creates an empty database and returns its URL. It is an error if
// one of that name exists, or if the name is longer than 63 bytes, to which
// PostgreSQL would silently cut it.
func (p *Postgres) NewDatabase(ctx context.Context, name string) (string, error) {
	if len(name) == 0 || len(name) > 63 {
		return "", fmt.Errorf("create database %q: the name needs 1 to 63 bytes", name)
	}
	if err := p.exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
		return "", fmt.Errorf("create database %q: %w", name, err)
	}
	return p.databaseURL(name), nil
}

// DropDatabase removes a database and cuts the connections to it. None of that
// name is fine.
func (p *Postgres) DropDatabase(ctx context.Context, name string) error {
	if err := p.exec(ctx, "DROP DATABASE IF EXISTS "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)"); err != nil {
		return fmt.Errorf("drop database %q: %w", name, err)
	}
	return nil
}

func (p *Postgres) exec(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, p.URL())
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, statement)
	return errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
}

// PIDs returns all processes of the server, the first one first; none while it
// is stopped.
func (p *Postgres) PIDs() ([]int, error) { return p.running().PIDs() }

// CPU returns the processor time that all processes of the server, dead ones
// included, have used since its last start; 0 while it is stopped. Unit of
// counting: 10 ms.
func (p *Postgres) CPU() (time.Duration, error) { return p.running().CPU() }
