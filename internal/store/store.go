package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/trestle-bridge/trestle/internal/secret"
)

// Config says which database, and how it is used.
type Config struct {
	// URL of the database. Required.
	URL secret.URL
	// MaxConnections of this process; default 8. A batch needs one.
	MaxConnections int32
	// Writers is how many of them are kept for batches, so that these never wait for
	// anything else, nor go on a connection that has their statements yet to plan. 0,
	// or no fewer than all, means that everything shares all of them.
	Writers int32
	// StatementTimeout ends a statement that runs longer, in the database;
	// default 15 s.
	StatementTimeout time.Duration
	// Installation is the name of the installation. A row whose region is
	// this name may be changed by every cluster.
	Installation string
	// Lifecycle records the events for analytics. Without it none are made.
	Lifecycle bool
	// RowByRow is up to how many changes a batch is written row by row, by a
	// function that begins and ends sooner than the statement for large ones;
	// default 2, negative for never.
	RowByRow int
	// Logger; default slog.Default.
	Logger *slog.Logger
	// Registerer of the store's metrics; nil for none.
	Registerer prometheus.Registerer
}

const (
	defaultMaxConnections   = 8
	defaultStatementTimeout = 15 * time.Second
	defaultRowByRow         = 2
	connectTimeout          = 5 * time.Second
	// A peer that vanished is noticed after about 30 s of silence. A
	// statement has its own, shorter, deadline.
	keepAliveIdle     = 15 * time.Second
	keepAliveInterval = 5 * time.Second
	keepAliveCount    = 3
)

// Store is the database. Make one with Open.
type Store struct {
	pool *pgxpool.Pool
	// writers is for batches; it may be the same.
	writers      *pgxpool.Pool
	log          *slog.Logger
	metrics      *metrics
	installation string
	lifecycle    bool
	statements   *applyStatements
	rowByRow     int
	scratch      scratch
	// name tells this process from others that lease the same rows.
	name string
}

// Open makes the pool. It does not connect, so it succeeds while the database
// is away; its errors are those of the configuration.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	poolConfig, err := cfg.pool()
	if err != nil {
		return nil, err
	}
	statements, err := newApplyStatements(cfg.Lifecycle)
	if err != nil {
		return nil, err
	}
	all := poolConfig.MaxConns
	if 0 < cfg.Writers && cfg.Writers < all {
		poolConfig.MaxConns = all - cfg.Writers
	} else {
		poolConfig.AfterConnect = keepMemory
	}
	pool, err := pgxpool.NewWithConfig(ctx, poolConfig)
	if err != nil {
		return nil, fmt.Errorf("open the pool of connections to %s: %w", cfg.URL, err)
	}
	writers := pool
	if poolConfig.MaxConns < all {
		if writers, err = pgxpool.NewWithConfig(ctx, cfg.writers(poolConfig)); err != nil {
			pool.Close()
			return nil, fmt.Errorf("open the pool of connections for batches to %s: %w", cfg.URL, err)
		}
	}
	m, err := newMetrics(cfg.Registerer, pool, writers)
	if err != nil {
		pool.Close()
		writers.Close()
		return nil, err
	}
	return &Store{
		pool:         pool,
		writers:      writers,
		log:          cmp.Or(cfg.Logger, slog.Default()),
		metrics:      m,
		installation: cfg.Installation,
		lifecycle:    cfg.Lifecycle,
		statements:   statements,
		rowByRow:     cmp.Or(cfg.RowByRow, defaultRowByRow),
		scratch:      make(scratch, mostScratch),
		name:         rand.Text(),
	}, nil
}

// Close waits for the statements under way and closes all connections.
func (s *Store) Close() {
	s.pool.Close()
	s.writers.Close()
}

// Ping says whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.pool.Ping(ctx); err != nil {
		return fmt.Errorf("ping the database: %w", err)
	}
	return nil
}

func (c Config) pool() (*pgxpool.Config, error) {
	if c.URL.IsZero() {
		return nil, errors.New("the store needs the URL of a database")
	}
	if c.MaxConnections < 0 || c.Writers < 0 || c.StatementTimeout < 0 {
		return nil, fmt.Errorf("the store cannot work with %d connections, of them %d for batches, and a statement timeout of %s",
			c.MaxConnections, c.Writers, c.StatementTimeout)
	}
	cfg, err := pgxpool.ParseConfig(c.URL.Reveal())
	if err != nil {
		return nil, fmt.Errorf("parse the URL of the database %s: %w", c.URL, withoutURL(err))
	}
	cfg.MaxConns = cmp.Or(c.MaxConnections, defaultMaxConnections)
	// A connection that goes takes its prepared statements with it; there is
	// no reason to end one early but to follow a changed address.
	cfg.MaxConnLifetime = 2 * time.Hour
	cfg.MaxConnLifetimeJitter = time.Hour
	cfg.MaxConnIdleTime = 30 * time.Minute
	harden(cfg.ConnConfig, cmp.Or(c.Logger, slog.Default()))

	timeout := cmp.Or(c.StatementTimeout, defaultStatementTimeout)
	settings := cfg.ConnConfig.RuntimeParams
	settings["statement_timeout"] = strconv.FormatInt(max(1, timeout.Milliseconds()), 10)
	// A transaction left open by a lost client would hold fences.
	settings["idle_in_transaction_session_timeout"] = settings["statement_timeout"]
	settings["synchronous_commit"] = "on"
	// Every statement here reads by key, whatever the numbers of the planner
	// say while a table is still small: a plan made then is kept.
	settings["plan_cache_mode"] = "force_generic_plan"
	settings["enable_seqscan"] = "off"
	settings["enable_bitmapscan"] = "off"
	settings["jit"] = "off"
	// A full batch is sorted and kept in memory.
	settings["work_mem"] = "32MB"
	return cfg, nil
}

// writers is like that of the others, but for their number, and that those which
// nothing is written on are kept with their plans and their memory.
func (c Config) writers(others *pgxpool.Config) *pgxpool.Config {
	cfg := others.Copy()
	cfg.MaxConns = c.Writers
	cfg.MaxConnIdleTime = cfg.MaxConnLifetime + cfg.MaxConnLifetimeJitter
	cfg.AfterConnect = keepMemory
	return cfg
}

// harden sets what every connection needs, that of the migrations too.
func harden(cfg *pgx.ConnConfig, log *slog.Logger) {
	cfg.ConnectTimeout = connectTimeout
	cfg.DialFunc = (&net.Dialer{
		Timeout: connectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount,
		},
	}).DialContext
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = "trestle"
	}
	cfg.RuntimeParams["timezone"] = "UTC"
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if n.SeverityUnlocalized == "WARNING" {
			log.Warn("the database warns", "code", n.Code, "message", n.Message, "detail", n.Detail, "hint", n.Hint)
		}
	}
}

// withoutURL takes the address, which may hold a password, out of an error of
// the parser.
func withoutURL(err error) error {
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		if cause := errors.Unwrap(parse); cause != nil {
			return cause
		}
		return errors.New("not a connection string")
	}
	return err
}

// toStored and fromStored carry versions: those above 2^63-1 are refused
// where they are heard, and the database has no unsigned numbers.
func toStored(version uint64) int64 { return int64(min(version, math.MaxInt64)) }

func fromStored(version int64) uint64 { return uint64(max(version, 0)) }
