package devstacktest_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/trestle-bridge/trestle/internal/devstack"
	"github.com/trestle-bridge/trestle/internal/devstack/devstacktest"
)

func TestMain(m *testing.M) { devstacktest.Main(m) }

func TestServersAreShared(t *testing.T) {
	t.Parallel()
	postgres, redis, etcd := devstacktest.Postgres(t), devstacktest.Redis(t), devstacktest.Etcd(t)
	if devstacktest.Postgres(t) != postgres || devstacktest.Redis(t) != redis || devstacktest.Etcd(t) != etcd {
		t.Error("two calls made two servers")
	}
}

// Tests of one name, and several in one test, get databases of their own, which
// are gone after the test.
func TestDatabasesAreOwn(t *testing.T) {
	t.Parallel()
	var first, second string
	t.Run("With: a Rather_Long name, longer than PostgreSQL takes it as a whole", func(t *testing.T) {
		first, second = devstacktest.NewDatabase(t), devstacktest.NewDatabase(t)
		if first == second {
			t.Error("two calls made one database")
		}
		for _, url := range []string{first, second} {
			conn, err := pgx.Connect(t.Context(), url)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Exec(t.Context(), "CREATE TABLE t (n int)"); err != nil {
				t.Error(err)
			}
			if err := conn.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	for _, url := range []string{first, second} {
		if conn, err := pgx.Connect(t.Context(), url); err == nil {
			t.Error("a database outlived its test", conn.Close(t.Context()))
		}
	}
}

func TestOwnServers(t *testing.T) {
	t.Parallel()
	var postgres *devstack.Postgres
	t.Run("broken", func(t *testing.T) {
		postgres = devstacktest.OwnPostgres(t, devstack.PostgresConfig{})
		redis := devstacktest.OwnRedis(t, devstack.RedisConfig{})
		etcd := devstacktest.OwnEtcd(t, devstack.EtcdConfig{})
		if postgres == devstacktest.Postgres(t) || redis == devstacktest.Redis(t) || etcd == devstacktest.Etcd(t) {
			t.Error("an own server is shared")
		}
		for _, err := range []error{postgres.Kill(), redis.Kill(), etcd.Stop()} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	if err := postgres.Start(t.Context()); err == nil {
		t.Error("the server outlived its test")
	}
}
