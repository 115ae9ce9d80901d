package store

import (
	"cmp"
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/trestle-bridge/trestle/internal/secret"
)

//go:embed migrations/*.sql
var migrations embed.FS

const schemaTable = "trestle_schema_version"

// ErrSchemaBehind is the error of a database whose tables are older than this
// program.
var ErrSchemaBehind = errors.New("the schema of the database is behind: run trestle migrate")

// Migrate brings the tables up to this program's version. Several may do so at
// once: one works and the others wait, five minutes at most. Tables that are
// newer are left alone.
func Migrate(ctx context.Context, url secret.URL, logger *slog.Logger) (err error) {
	cfg, err := pgx.ParseConfig(url.Reveal())
	if err != nil {
		return fmt.Errorf("parse the URL of the database %s: %w", url, withoutURL(err))
	}
	log := cmp.Or(logger, slog.Default())
	harden(cfg, log)
	db := stdlib.OpenDB(*cfg)
	defer func() { err = errors.Join(err, db.Close()) }()
	provider, err := newProvider(db, log)
	if err != nil {
		return err
	}
	done, err := provider.Up(ctx)
	if err != nil {
		return fmt.Errorf("migrate the database: %w", err)
	}
	for _, migration := range done {
		cmp.Or(logger, slog.Default()).InfoContext(ctx, "migration applied",
			"migration", migration.Source.Path, "took", migration.Duration.Round(time.Millisecond))
	}
	return nil
}

func newProvider(db *sql.DB, logger *slog.Logger) (*goose.Provider, error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, fmt.Errorf("open the migrations: %w", err)
	}
	// The lock is that of one database: others may be migrated meanwhile.
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 300))
	if err != nil {
		return nil, fmt.Errorf("make the lock of the migrations: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithTableName(schemaTable), goose.WithSessionLocker(locker),
		goose.WithDisableGlobalRegistry(true), goose.WithSlog(logger))
	if err != nil {
		return nil, fmt.Errorf("read the migrations: %w", err)
	}
	return provider, nil
}

// CheckSchema says whether the tables are those of this program or newer. An
// older schema is ErrSchemaBehind.
func (s *Store) CheckSchema(ctx context.Context) (err error) {
	defer s.metrics.done("check schema", time.Now(), &err)
	want, err := latestMigration()
	if err != nil {
		return err
	}
	var have int64
	err = s.pool.QueryRow(ctx, `SELECT coalesce(max(version_id), 0) FROM `+schemaTable+` WHERE is_applied`).Scan(&have)
	var missing *pgconn.PgError
	if errors.As(err, &missing) && missing.Code == "42P01" { // no such table
		return fmt.Errorf("%w (it has no tables of ours)", ErrSchemaBehind)
	}
	if err != nil {
		return fmt.Errorf("read the version of the schema: %w", err)
	}
	if have < want {
		return fmt.Errorf("%w (it is at version %d of %d)", ErrSchemaBehind, have, want)
	}
	return nil
}

func latestMigration() (int64, error) {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return 0, fmt.Errorf("list the migrations: %w", err)
	}
	var latest int64
	for _, name := range names {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return 0, fmt.Errorf("read the number of migration %s: %w", name, err)
		}
		latest = max(latest, version)
	}
	return latest, nil
}
