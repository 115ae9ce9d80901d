// Package devstacktest gives tests a private PostgreSQL, Redis and etcd.
//
// A test process shares one of each, started by the first test that asks and
// closed by Main or Run, which the package's TestMain has to call. Tests that
// break a server take one of their own (OwnPostgres, OwnRedis, OwnEtcd).
//
// A server that cannot be started fails the test, it does not skip it: a suite
// that quietly left out its databases would prove nothing.
//
// All functions may be called by parallel tests. Owner: as of devstack.
package devstacktest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/trestle-bridge/trestle/internal/devstack"
)

// sharedServers outlives single tests, and TestMain is the only other place
// that the testing package offers for it, hence the package variable.
type sharedServers struct {
	postgres, redis, etcd sharedStack
	databases             atomic.Int64 // counts, for names that do not repeat
}

var shared sharedServers

// sharedStack is a stack of one server, started at most once.
type sharedStack struct {
	once  sync.Once
	stack *devstack.Stack
	err   error
}

func (s *sharedStack) get(t testing.TB, cfg devstack.Config) *devstack.Stack {
	t.Helper()
	s.once.Do(func() { s.stack, s.err = devstack.Start(context.Background(), cfg) })
	if s.err != nil {
		t.Fatal(s.err)
	}
	if s.stack == nil {
		t.Fatal("the shared servers are closed already")
	}
	return s.stack
}

func (s *sharedStack) close() error {
	s.once.Do(func() {}) // nothing starts it any more
	if s.stack == nil {
		return nil
	}
	err := s.stack.Close()
	s.stack = nil
	return err
}

// Main is a whole TestMain: it runs the tests, closes the shared servers, checks
// that no goroutine is left and exits. Options are goleak's.
func Main(m *testing.M, options ...goleak.Option) {
	goleak.VerifyTestMain(runner{m}, options...)
}

type runner struct{ m *testing.M }

func (r runner) Run() int { return Run(r.m) }

// Run runs the tests, closes the shared servers and returns the exit code: for
// a TestMain with more to do.
func Run(m *testing.M) int {
	code := m.Run()
	err := errors.Join(shared.postgres.close(), shared.redis.close(), shared.etcd.close())
	if err != nil {
		fmt.Fprintln(os.Stderr, "close the servers that the tests shared:", err)
		return max(code, 1)
	}
	return code
}

// Postgres returns the shared PostgreSQL. Tests share its settings and its
// memory and must not stop it; NewDatabase gives a test tables of its own.
func Postgres(t testing.TB) *devstack.Postgres {
	t.Helper()
	return shared.postgres.get(t, devstack.Config{Postgres: &devstack.PostgresConfig{}}).Postgres
}

// NewDatabase creates an empty database on the shared PostgreSQL, drops it when
// the test ends and returns its URL.
func NewDatabase(t testing.TB) string {
	t.Helper()
	server := Postgres(t)
	// The number makes the name unique, the test's name makes logs readable.
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToLower(t.Name()))
	name = fmt.Sprintf("t%d_%.40s", shared.databases.Add(1), name)
	url, err := server.NewDatabase(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.DropDatabase(context.Background(), name); err != nil {
			t.Error(err)
		}
	})
	return url
}

// Redis returns the shared Redis, a real redis-server. Tests share its channels
// and keys and must not stop it.
func Redis(t testing.TB) *devstack.Redis {
	t.Helper()
	return shared.redis.get(t, devstack.Config{Redis: &devstack.RedisConfig{RequireServer: true}}).Redis
}

// Etcd returns the shared etcd. Tests share its keys and must not stop it.
func Etcd(t testing.TB) *devstack.Etcd {
	t.Helper()
	return shared.etcd.get(t, devstack.Config{Etcd: &devstack.EtcdConfig{UnsafeNoFsync: true}}).Etcd
}

// OwnPostgres starts a PostgreSQL for this test alone, for outages and settings
// of its own.
func OwnPostgres(t testing.TB, cfg devstack.PostgresConfig) *devstack.Postgres {
	t.Helper()
	return OwnStack(t, devstack.Config{Postgres: &cfg}).Postgres
}

// OwnRedis starts a redis-server for this test alone, or the embedded one if
// cfg asks for it.
func OwnRedis(t testing.TB, cfg devstack.RedisConfig) *devstack.Redis {
	t.Helper()
	cfg.RequireServer = !cfg.Embedded
	return OwnStack(t, devstack.Config{Redis: &cfg}).Redis
}

// OwnEtcd starts an etcd for this test alone.
func OwnEtcd(t testing.TB, cfg devstack.EtcdConfig) *devstack.Etcd {
	t.Helper()
	return OwnStack(t, devstack.Config{Etcd: &cfg}).Etcd
}

// OwnStack starts a stack for this test alone and closes it when the test ends.
func OwnStack(t testing.TB, cfg devstack.Config) *devstack.Stack {
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
