package devstack_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/trestle-bridge/trestle/internal/devstack"
)

// doomedVariable makes the test binary a process that starts servers and waits
// to be killed.
const doomedVariable = "DEVSTACK_TEST_DOOMED"

func TestMain(m *testing.M) {
	if os.Getenv(doomedVariable) != "" {
		beDoomed()
	}
	goleak.VerifyTestMain(m)
}

func start(t *testing.T, cfg devstack.Config) *devstack.Stack {
	t.Helper()
	stack, err := devstack.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stack.Close(); err != nil {
			t.Error(err)
		}
	})
	return stack
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// alive tells whether a process exists and is no zombie.
func alive(pid int) bool {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(content), ") Z ")
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	check(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func exec1(t *testing.T, url, statement string) {
	t.Helper()
	_, err := connect(t, url).Exec(t.Context(), statement)
	check(t, err)
}

func count(t *testing.T, url, query string) (n int) {
	t.Helper()
	check(t, connect(t, url).QueryRow(t.Context(), query).Scan(&n))
	return n
}

func TestPostgres(t *testing.T) {
	t.Parallel()
	p := start(t, devstack.Config{Postgres: &devstack.PostgresConfig{
		Settings: map[string]string{"shared_buffers": "32MB", "cluster_name": "it's mine"},
	}}).Postgres

	for _, url := range []string{p.URL(), p.SocketURL()} {
		conn := connect(t, url)
		for setting, want := range map[string]string{
			"fsync": "on", "synchronous_commit": "on", "jit": "off", "autovacuum": "on",
			"max_connections": "200", "max_wal_size": "4GB", "timezone": "UTC", "server_encoding": "UTF8",
			"shared_buffers": "32MB", "cluster_name": "it's mine",
		} {
			var got string
			check(t, conn.QueryRow(t.Context(), "SELECT current_setting($1)", setting).Scan(&got))
			if got != want {
				t.Errorf("%s is %q, not %q", setting, got, want)
			}
		}
	}
	if !strings.HasPrefix(p.Kind(), "PostgreSQL ") || !strings.Contains(p.URL(), p.Addr()) {
		t.Errorf("kind %q, url %q, address %q", p.Kind(), p.URL(), p.Addr())
	}

	pids, err := p.PIDs()
	check(t, err)
	if len(pids) < 5 {
		t.Errorf("only %d processes", len(pids))
	}
	exec1(t, p.URL(), "SELECT count(*) FROM generate_series(1, 1000000)")
	cpu, err := p.CPU()
	check(t, err)
	if cpu <= 0 {
		t.Errorf("no processor time used: %v", cpu)
	}
	check(t, p.Start(t.Context())) // it runs: nothing happens
	if again, err := p.PIDs(); err != nil || again[0] != pids[0] {
		t.Errorf("a second start made another server: %v, %v", again, err)
	}

	check(t, p.Close())
	check(t, p.Close())
	if err := p.Start(t.Context()); err == nil {
		t.Error("a closed server starts")
	}
	if pids, err := p.PIDs(); err != nil || len(pids) > 0 {
		t.Errorf("a closed server has processes %v, %v", pids, err)
	}
	for _, pid := range pids {
		if alive(pid) {
			t.Errorf("process %d outlived Close", pid)
		}
	}
}

func TestPostgresDatabases(t *testing.T) {
	t.Parallel()
	p := start(t, devstack.Config{Postgres: &devstack.PostgresConfig{}}).Postgres

	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			name := fmt.Sprintf(`odd "name"/%d?x`, i)
			url, err := p.NewDatabase(t.Context(), name)
			if err != nil {
				t.Error(err)
				return
			}
			conn, err := pgx.Connect(t.Context(), url)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = conn.Close(context.Background()) }()
			var got string
			if err := conn.QueryRow(t.Context(), "SELECT current_database()").Scan(&got); err != nil || got != name {
				t.Errorf("in database %q, not %q: %v", got, name, err)
			}
			if err := p.DropDatabase(t.Context(), name); err != nil { // though conn is open
				t.Error(err)
			}
			if err := p.DropDatabase(t.Context(), name); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()

	_, err := p.NewDatabase(t.Context(), "twice")
	check(t, err)
	for _, name := range []string{"twice", "", strings.Repeat("x", 64)} {
		if _, err := p.NewDatabase(t.Context(), name); err == nil {
			t.Errorf("database %q was created", name)
		}
	}
}

func TestPostgresStopKeepsData(t *testing.T) {
	t.Parallel()
	p := start(t, devstack.Config{Postgres: &devstack.PostgresConfig{}}).Postgres
	url, err := p.NewDatabase(t.Context(), "kept")
	check(t, err)
	exec1(t, url, "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
	before := p.URL()

	idle := connect(t, url)
	check(t, p.Stop(t.Context()))
	check(t, p.Stop(t.Context()))
	if err := idle.Ping(t.Context()); err == nil {
		t.Error("a connection outlived the server")
	}
	if conn, err := pgx.Connect(t.Context(), url); err == nil {
		t.Error("a stopped server answers", conn.Close(t.Context()))
	}
	check(t, p.Start(t.Context()))
	if p.URL() != before {
		t.Errorf("the address changed from %s to %s", before, p.URL())
	}
	if n := count(t, url, "SELECT count(*) FROM t"); n != 1000 {
		t.Errorf("%d rows of 1000", n)
	}
}

// While rows are committed one by one the server is killed, three times; each
// row whose commit was answered must be there.
func TestPostgresKillLosesNoCommit(t *testing.T) {
	t.Parallel()
	p := start(t, devstack.Config{Postgres: &devstack.PostgresConfig{}}).Postgres
	url, err := p.NewDatabase(t.Context(), "durable")
	check(t, err)
	exec1(t, url, "CREATE TABLE t (n int PRIMARY KEY)")

	next := 0
	for range 3 {
		enough := make(chan struct{})
		var committed []int
		var writer sync.WaitGroup
		writer.Go(func() {
			conn, err := pgx.Connect(t.Context(), url)
			if err != nil {
				t.Error(err)
				close(enough)
				return
			}
			defer func() { _ = conn.Close(context.Background()) }()
			for {
				if _, err := conn.Exec(t.Context(), "INSERT INTO t (n) VALUES ($1)", next); err != nil {
					next++ // whether this one is there is open
					return
				}
				committed = append(committed, next)
				next++
				if len(committed) == 200 {
					close(enough)
				}
			}
		})
		<-enough
		pids, err := p.PIDs()
		check(t, err)
		check(t, p.Kill())
		writer.Wait()
		for _, pid := range pids {
			if alive(pid) {
				t.Errorf("process %d outlived Kill", pid)
			}
		}
		check(t, p.Kill()) // nothing runs
		check(t, p.Start(t.Context()))

		var missing int
		check(t, connect(t, url).QueryRow(t.Context(),
			"SELECT count(*) FROM unnest($1::int[]) AS c (n) WHERE NOT EXISTS (SELECT FROM t WHERE t.n = c.n)",
			committed).Scan(&missing))
		if missing > 0 || len(committed) < 200 {
			t.Errorf("%d of %d committed rows are lost", missing, len(committed))
		}
	}
	check(t, p.Kill())
	check(t, p.Close()) // without a start in between
}

func TestStopTellsOfACrash(t *testing.T) {
	t.Parallel()
	s := start(t, devstack.Config{Postgres: &devstack.PostgresConfig{}, Redis: &devstack.RedisConfig{RequireServer: true}})
	for name, server := range map[string]interface {
		PIDs() ([]int, error)
		Stop(context.Context) error
		Start(context.Context) error
	}{"PostgreSQL": s.Postgres, "Redis": s.Redis} {
		pids, err := server.PIDs()
		check(t, err)
		check(t, syscall.Kill(pids[0], syscall.SIGQUIT))
		awaitGone(t, pids)
		if err := server.Stop(t.Context()); err == nil || !strings.Contains(err.Error(), "ended by itself") {
			t.Errorf("%s: %v", name, err)
		}
		check(t, server.Start(t.Context()))
	}
}

func TestPostgresIsNotFound(t *testing.T) {
	t.Setenv("PG_BIN", t.TempDir())
	_, err := devstack.Start(t.Context(), devstack.Config{Postgres: &devstack.PostgresConfig{}})
	if err == nil || !strings.Contains(err.Error(), "PG_BIN") {
		t.Error(err)
	}
}

// A bad setting shows up in the error, with the server's own words.
func TestPostgresDoesNotStart(t *testing.T) {
	t.Parallel()
	_, err := devstack.Start(t.Context(), devstack.Config{Postgres: &devstack.PostgresConfig{
		Settings: map[string]string{"shared_buffers": "plenty"},
	}})
	if err == nil || !strings.Contains(err.Error(), `invalid value for parameter "shared_buffers"`) {
		t.Error(err)
	}
}

func TestRedis(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]devstack.RedisConfig{
		"server":   {RequireServer: true, Settings: map[string]string{"maxclients": "50"}},
		"embedded": {Embedded: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, devstack.Config{Redis: &cfg}).Redis
			if embedded := strings.HasPrefix(r.Kind(), "embedded"); embedded != cfg.Embedded {
				t.Errorf("kind %q", r.Kind())
			}
			options, err := redis.ParseURL(r.URL())
			check(t, err)
			if options.Addr != r.Addr() {
				t.Errorf("address %s, in the URL %s", r.Addr(), options.Addr)
			}
			client := redis.NewClient(options)
			defer func() { check(t, client.Close()) }()

			for round, end := range []func() error{
				func() error { return r.Stop(t.Context()) },
				r.Kill,
			} {
				subscriber := client.Subscribe(t.Context(), "c")
				_, err = subscriber.Receive(t.Context()) // the confirmation
				check(t, err)
				check(t, client.Publish(t.Context(), "c", round).Err())
				message, err := subscriber.ReceiveMessage(t.Context())
				check(t, err)
				if message.Payload != fmt.Sprint(round) {
					t.Errorf("received %q in round %d", message.Payload, round)
				}
				check(t, subscriber.Close())
				check(t, client.Set(t.Context(), "k", "v", 0).Err())

				pids, err := r.PIDs()
				check(t, err)
				if cfg.Embedded != (len(pids) == 0) {
					t.Errorf("processes %v", pids)
				}
				if _, err := r.CPU(); err != nil {
					t.Error(err)
				}
				check(t, end())
				check(t, end())
				if conn, err := net.Dial("tcp", r.Addr()); err == nil {
					t.Error("a stopped server listens", conn.Close())
				}
				if slices.ContainsFunc(pids, alive) {
					t.Errorf("one of the processes %v lives", pids)
				}
				check(t, r.Start(t.Context()))
				check(t, r.Start(t.Context()))
				if err := client.Get(t.Context(), "k").Err(); err != redis.Nil {
					t.Errorf("a key survived, or %v", err)
				}
			}
			check(t, r.Close())
			check(t, r.Close())
			if err := r.Start(t.Context()); err == nil {
				t.Error("a closed server starts")
			}
		})
	}
}

func TestRedisIsNotFound(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := devstack.Start(t.Context(), devstack.Config{Redis: &devstack.RedisConfig{RequireServer: true}})
	if err == nil || !strings.Contains(err.Error(), "apt-get install redis-server") {
		t.Error(err)
	}
	r := start(t, devstack.Config{Redis: &devstack.RedisConfig{}}).Redis
	if r.Kind() != "embedded (redis-server is not installed)" {
		t.Errorf("kind %q", r.Kind())
	}
	_, err = devstack.Start(t.Context(), devstack.Config{Redis: &devstack.RedisConfig{RequireServer: true, Embedded: true}})
	if err == nil {
		t.Error("a server is both embedded and real")
	}
}

func TestEtcd(t *testing.T) {
	t.Parallel()
	e := start(t, devstack.Config{Etcd: &devstack.EtcdConfig{}}).Etcd
	if !strings.HasPrefix(e.Kind(), "etcd 3.") || !strings.Contains(e.Endpoints()[0], e.Addr()) {
		t.Errorf("kind %q, endpoints %v, address %s", e.Kind(), e.Endpoints(), e.Addr())
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: e.Endpoints(), Context: t.Context()})
	check(t, err)
	defer func() { check(t, client.Close()) }()
	get := func() int {
		t.Helper()
		answer, err := client.Get(t.Context(), "k")
		check(t, err)
		return len(answer.Kvs)
	}

	_, err = client.Put(t.Context(), "k", "v")
	check(t, err)
	// An open watch and a kept lease must not hold up the stop.
	watch := client.Watch(t.Context(), "k", clientv3.WithCreatedNotify())
	<-watch
	lease, err := client.Grant(t.Context(), 60)
	check(t, err)
	keepalives, err := client.KeepAlive(t.Context(), lease.ID)
	check(t, err)
	<-keepalives

	began := time.Now()
	check(t, e.Stop())
	t.Logf("stopped in %v", time.Since(began))
	check(t, e.Stop())
	check(t, e.Start(t.Context()))
	check(t, e.Start(t.Context()))
	if get() != 1 {
		t.Error("the key is gone after a stop")
	}
	check(t, e.Wipe(t.Context()))
	if get() != 0 {
		t.Error("the key survived a wipe")
	}
	check(t, e.Close())
	check(t, e.Close())
	if err := e.Start(t.Context()); err == nil {
		t.Error("a closed server starts")
	}
}

// Several stacks at once in a fresh folder: one makes the template, all get
// ports of their own, and nothing but the template is left.
func TestParallelStarts(t *testing.T) {
	t.Parallel()
	base, err := os.MkdirTemp("", "devstack-test-")
	check(t, err)
	check(t, os.Chmod(base, 0o755))
	t.Cleanup(func() { check(t, os.RemoveAll(base)) })

	var (
		group sync.WaitGroup
		mu    sync.Mutex // guards addrs
		addrs []string
	)
	for range 4 {
		group.Go(func() {
			s, err := devstack.Start(t.Context(), devstack.Config{
				Dir:      base,
				Postgres: &devstack.PostgresConfig{Settings: map[string]string{"shared_buffers": "16MB"}},
				Redis:    &devstack.RedisConfig{},
				Etcd:     &devstack.EtcdConfig{UnsafeNoFsync: true},
			})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			addrs = append(addrs, s.Postgres.Addr(), s.Redis.Addr(), s.Etcd.Addr())
			mu.Unlock()
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	entries, err := os.ReadDir(base)
	check(t, err)
	if len(entries) != 1 || !strings.HasPrefix(entries[0].Name(), "template-") {
		t.Errorf("left behind: %v", entries)
	}
	if len(addrs) != 12 {
		t.Errorf("addresses %v", addrs)
	}
}

func TestStartIsCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := fmt.Errorf("changed my mind")
	cancel(cause)
	_, err := devstack.Start(ctx, devstack.Config{
		Postgres: &devstack.PostgresConfig{}, Redis: &devstack.RedisConfig{}, Etcd: &devstack.EtcdConfig{},
	})
	if err == nil {
		t.Error("started with a context that had ended")
	}
}

func TestFolderOfOthersIsRefused(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	check(t, os.Chmod(base, 0o777))
	if _, err := devstack.Start(t.Context(), devstack.Config{Dir: base}); err == nil {
		t.Error("a folder that all can write was taken")
	}
}

// beDoomed starts a stack, prints the processes' ids and waits for its end.
func beDoomed() {
	s, err := devstack.Start(context.Background(), devstack.Config{
		Dir: os.Getenv(doomedVariable), Postgres: &devstack.PostgresConfig{}, Redis: &devstack.RedisConfig{RequireServer: true},
	})
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	postgres, err1 := s.Postgres.PIDs()
	redis, err2 := s.Redis.PIDs()
	fmt.Println(append(postgres, redis...), err1, err2)
	select {}
}

// A process that is killed takes its servers along, and the next start removes
// what it left on disk.
func TestDeathOfTheCaller(t *testing.T) {
	t.Parallel()
	base, err := os.MkdirTemp("", "devstack-test-")
	check(t, err)
	check(t, os.Chmod(base, 0o755))
	t.Cleanup(func() { check(t, os.RemoveAll(base)) })

	self, err := os.Executable()
	check(t, err)
	doomed := exec.Command(self)
	doomed.Env = append(os.Environ(), doomedVariable+"="+base)
	output, err := doomed.StdoutPipe()
	check(t, err)
	check(t, doomed.Start())
	var line [4096]byte
	n, err := output.Read(line[:])
	check(t, err)
	list, rest, found := strings.Cut(strings.TrimPrefix(string(line[:n]), "["), "]")
	if !found || strings.TrimSpace(rest) != "<nil> <nil>" {
		t.Fatalf("the doomed process says %s", line[:n])
	}
	var pids []int
	for field := range strings.FieldsSeq(list) {
		var pid int
		_, err := fmt.Sscan(field, &pid)
		check(t, err)
		pids = append(pids, pid)
	}
	check(t, doomed.Process.Kill())
	_ = doomed.Wait() // killed, as intended
	awaitGone(t, pids)

	start(t, devstack.Config{Dir: base})
	left, err := filepath.Glob(filepath.Join(base, "*"))
	check(t, err)
	left = slices.DeleteFunc(left, func(path string) bool { return strings.HasPrefix(filepath.Base(path), "template-") })
	if len(left) != 2 { // folder and lock of the stack that runs
		t.Errorf("left behind: %v", left)
	}
}

// awaitGone polls: the kernel tells only parents of an end.
func awaitGone(t *testing.T, pids []int) {
	t.Helper()
	for slices.ContainsFunc(pids, alive) {
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}
