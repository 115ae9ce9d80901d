package devstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sync/errgroup"
)

// Config says which servers a Stack has and how they are set. A nil server is
// not started; a pointer to its zero Config starts it with the defaults.
type Config struct {
	Postgres *PostgresConfig
	Redis    *RedisConfig
	Etcd     *EtcdConfig

	// Dir holds the private folders, and is made if it is missing. Default: a
	// folder of the calling user below os.TempDir. It must be one that
	// unprivileged accounts can enter when root calls, and short: the path of
	// a Unix socket has about 100 bytes.
	Dir string

	// Log hears what is started and where. Default: nothing.
	Log *slog.Logger
}

// Stack is a set of running servers. Those that Config did not ask for are nil.
type Stack struct {
	Postgres *Postgres
	Redis    *Redis
	Etcd     *Etcd

	dir *privateDir
}

// Start starts the servers of cfg at once and returns when all of them answer.
// ctx bounds the starting alone, not the life of the servers. If one fails, the
// others are closed again. The errors for missing binaries say what to install.
func Start(ctx context.Context, cfg Config) (*Stack, error) {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	base, err := openBase(cfg.Dir)
	if err != nil {
		return nil, err
	}
	if err := base.sweep(); err != nil {
		// Leftovers of others cost disk and nothing else.
		log.Warn("remove folders of dead processes", "error", err)
	}
	dir, err := base.privateDir()
	if err != nil {
		return nil, err
	}

	s := &Stack{dir: dir}
	group, ctx := errgroup.WithContext(ctx)
	if cfg.Postgres != nil {
		group.Go(func() (err error) {
			if s.Postgres, err = startPostgres(ctx, *cfg.Postgres, base, dir); err != nil {
				return fmt.Errorf("start PostgreSQL: %w", err)
			}
			log.Info("started PostgreSQL", "kind", s.Postgres.Kind(), "url", s.Postgres.URL())
			return nil
		})
	}
	if cfg.Redis != nil {
		group.Go(func() (err error) {
			if s.Redis, err = startRedis(ctx, *cfg.Redis, base, dir); err != nil {
				return fmt.Errorf("start Redis: %w", err)
			}
			log.Info("started Redis", "kind", s.Redis.Kind(), "url", s.Redis.URL())
			return nil
		})
	}
	if cfg.Etcd != nil {
		group.Go(func() (err error) {
			if s.Etcd, err = startEtcd(ctx, *cfg.Etcd, base, dir); err != nil {
				return fmt.Errorf("start etcd: %w", err)
			}
			log.Info("started etcd", "kind", s.Etcd.Kind(), "endpoints", s.Etcd.Endpoints())
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close stops the servers, removes their data and returns when nothing of them
// is left. It also reports a server that had ended by itself. A second Close
// does nothing.
func (s *Stack) Close() error {
	var group errgroup.Group
	var errs [3]error
	group.Go(func() error { errs[0] = s.Postgres.Close(); return nil })
	group.Go(func() error { errs[1] = s.Redis.Close(); return nil })
	group.Go(func() error { errs[2] = s.Etcd.Close(); return nil })
	_ = group.Wait() // each error is in errs: all of them are wanted, not the first
	return errors.Join(errs[0], errs[1], errs[2], s.dir.remove())
}
