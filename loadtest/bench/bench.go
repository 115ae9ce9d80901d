// Package bench measures the bridge against the limits of the machine that it
// runs on: the figures of docs/performance.md, each beside its raw
// limit in the same run.
//
// The bridge runs as a process of its own, against PostgreSQL and Redis of its
// own, as durable as in production; the simulated clusters, the subscriber of
// Redis and the check of every row run here. Whatever is measured is also
// checked: a figure of a bridge that lost something is worth nothing.
//
// Run owns all that it starts and has ended it when it returns.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trestle-bridge/trestle/internal/devstack"
	"github.com/trestle-bridge/trestle/internal/secret"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/loadtest"
	"github.com/trestle-bridge/trestle/loadtest/bench/limits"
	"github.com/trestle-bridge/trestle/loadtest/bench/report"
	"github.com/trestle-bridge/trestle/loadtest/ledger"
)

// installation is the bridge's name of itself; no row belongs to it.
const installation = "bench"

// Config says what to measure.
type Config struct {
	// Trestle is the binary of the bridge; Loadtest that of this program, which
	// is started again to read raw streams.
	Trestle, Loadtest string
	// Results is the folder for what comes out; it is made if it is missing.
	Results string
	// Only are the figures wanted; empty: all. See IDs.
	Only []string
	// Quick measures for seconds instead of minutes: to see that it works.
	Quick bool
	// Serve are further flags of the service, to compare settings.
	Serve []string
	// Out gets the table, Progress a line that is written over again and again
	// (or, if it is no terminal, a line now and then).
	Out, Progress io.Writer
	Terminal      bool
	// Logger hears of the servers and of the load test.
	Logger *slog.Logger
}

// measurement is one of those that can be asked for.
type measurement struct {
	id  string
	run func(*bench, context.Context) error
}

// measurements are in the order in which they run.
func measurements() []measurement {
	return []measurement{
		{"P1", (*bench).storm},
		{"P2", (*bench).rows},
		{"P3", (*bench).latency},
		{"P4", (*bench).repeats},
		{"P5", (*bench).stale},
		{"P6", (*bench).memory},
		{"P7", (*bench).clusters},
		{"P8", (*bench).replicas},
		{"P9", (*bench).takingOver},
		{"P10", (*bench).moving},
		{"P11", (*bench).planning},
		{"P12", (*bench).sweeping},
	}
}

// IDs are the figures that there are.
func IDs() (ids []string) {
	for _, m := range measurements() {
		ids = append(ids, m.id)
	}
	return ids
}

// ErrUnsound is wrapped by the error of a Run in which the bridge lost
// something, took a row back, or told something twice.
var ErrUnsound = errors.New("the bridge did not do what it must")

// bench is one run.
type bench struct {
	cfg   Config
	stack *devstack.Stack
	dir   string // of its own, removed in the end
	line  *progressLine

	figures   []report.Figure
	latencies []report.Latencies
	unsound   []error
	databases int
	// rawStream is a limit that several figures need, measured once; 0: not yet.
	rawStream float64
}

// Run measures, prints the table and writes the results. A target that is
// missed is no error.
func Run(ctx context.Context, cfg Config) (err error) {
	for _, id := range cfg.Only {
		if !slices.Contains(IDs(), id) {
			return fmt.Errorf("there is no figure %q; there are %v", id, IDs())
		}
	}
	if _, err := os.Stat(cfg.Trestle); err != nil {
		return fmt.Errorf("find the service to measure (make build builds it): %w", err)
	}
	if err := os.MkdirAll(cfg.Results, 0o755); err != nil {
		return fmt.Errorf("make the folder for results: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	b := &bench{cfg: cfg, line: newProgressLine(cfg.Progress, cfg.Terminal)}
	if b.dir, err = os.MkdirTemp("", "trestle-bench-"); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()

	b.line.begin("starting PostgreSQL, Redis and etcd")
	b.stack, err = devstack.Start(ctx, devstack.Config{
		Postgres: &devstack.PostgresConfig{Settings: map[string]string{"min_wal_size": fmt.Sprintf("%dMB", logSegments*16)}},
		Redis:    &devstack.RedisConfig{RequireServer: true}, Etcd: &devstack.EtcdConfig{}, Log: cfg.Logger,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stack.Close()) }()
	b.line.begin("running PostgreSQL in")
	if err := on(ctx, b.stack.Postgres.URL(), runIn); err != nil {
		return err
	}
	machine, err := b.machine(ctx)
	if err != nil {
		return err
	}
	before := readSystem()
	for _, m := range measurements() {
		if len(cfg.Only) > 0 && !slices.Contains(cfg.Only, m.id) {
			continue
		}
		if err := m.run(b, ctx); err != nil {
			b.line.end()
			return fmt.Errorf("measure %s: %w", m.id, err)
		}
	}
	b.line.end()
	machine.since(before)
	if err := b.write(machine); err != nil {
		return err
	}
	if len(b.unsound) > 0 {
		return fmt.Errorf("%w: %w", ErrUnsound, errors.Join(b.unsound...))
	}
	return nil
}

// write shows the figures.
func (b *bench) write(m *machine) error {
	slices.SortStableFunc(b.figures, func(x, y report.Figure) int { return compareIDs(x.ID, y.ID) })
	report.Table(b.cfg.Out, m.String(), b.figures)
	at := func(name string) string { return filepath.Join(b.cfg.Results, name) }
	return errors.Join(
		report.WriteJSON(at("bench.json"), b.figures),
		report.WriteJSON(at("machine.json"), m),
		report.Markdown(at("bench.md"), fmt.Sprintf("%s, %s.", m.At.Format("2006-01-02"), m), b.figures),
		report.Picture(at("bench.png"), m.String(), b.figures, b.latencies),
	)
}

// compareIDs puts the limits behind the targets, each in the order of their
// numbers.
func compareIDs(x, y string) int {
	rank := func(id string) int {
		n, err := strconv.Atoi(id[1:])
		if err != nil {
			n = 1 << 10
		}
		if id[0] == 'L' {
			n += 1 << 11
		}
		return n
	}
	return rank(x) - rank(y)
}

func (b *bench) add(id, what string, figure float64, unit string, baseline float64, target *report.Target) {
	b.figures = append(b.figures, report.New(id, what, figure, unit, baseline, target))
}

// quick chooses between the real size and the one that only shows that it works.
func quick[T any](b *bench, full, small T) T {
	if b.cfg.Quick {
		return small
	}
	return full
}

// database makes an empty database with the tables in it. drop removes it.
func (b *bench) database(ctx context.Context) (url string, drop func() error, err error) {
	b.databases++
	name := fmt.Sprintf("bench_%d", b.databases)
	if url, err = b.stack.Postgres.NewDatabase(ctx, name); err != nil {
		return "", nil, err
	}
	drop = func() error { return b.stack.Postgres.DropDatabase(context.WithoutCancel(ctx), name) }
	if err := store.Migrate(ctx, secret.NewURL(url), b.cfg.Logger); err != nil {
		return "", nil, errors.Join(err, drop())
	}
	return url, drop, nil
}

// logSegments is how many files of its log PostgreSQL keeps to use again, 16 MiB
// each.
const logSegments = 64

// runIn gives a new PostgreSQL the log of one that has been at work for a while. It
// makes a file of the log when it needs one, and all commits wait for that, 20 to
// 40 ms; later it uses those again that a checkpoint has left.
func runIn(ctx context.Context, conn *pgx.Conn) error {
	for range logSegments {
		// Nothing would be switched in a file that is empty.
		if _, err := conn.Exec(ctx, "SELECT pg_logical_emit_message(false, 'bench', ''), pg_switch_wal()"); err != nil {
			return fmt.Errorf("make files of PostgreSQL's log: %w", err)
		}
	}
	return limits.Flush(ctx, conn)
}

// on does something on a connection of its own.
func on(ctx context.Context, postgres string, do func(context.Context, *pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, postgres)
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return do(ctx, conn)
}

// usages are the processor times of everybody.
type usages struct {
	at                                  time.Time
	generator, service, postgres, redis time.Duration
}

func (b *bench) usages(s *service) (usages, error) {
	u := usages{at: time.Now(), generator: limits.OwnCPU()}
	var err1, err2, err3 error
	u.service, err1 = s.proc.CPU()
	u.postgres, err2 = b.stack.Postgres.CPU()
	u.redis, err3 = b.stack.Redis.CPU()
	return u, errors.Join(err1, err2, err3)
}

// load is a load test against a service that is started for it.
type load struct {
	*loadtest.Report
	// What was used from the first message to the last publish, and how long
	// that was.
	took usages
	wall time.Duration
	// What the service did in that time; for a flood, until its last message
	// had been sent.
	did usage
}

// changesPerBatch and commit are means.
func (l *load) changesPerBatch() float64 { return l.did.changes / max(1, l.did.batches) }

func (l *load) commit() float64 { return l.did.commitSeconds * 1000 / max(1, l.did.batches) }

// run plays a work against a new service on a new database.
func (b *bench) run(ctx context.Context, name string, work loadtest.Work) (_ *load, err error) {
	postgres, drop, err := b.database(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, drop()) }()

	var (
		l             load
		s             *service
		begun         usages
		before, after usage
		hookErr       error
	)
	test, err := loadtest.New(loadtest.Config{
		Work: work, Postgres: postgres, Redis: b.stack.Redis.URL(), Installation: installation,
		NeverDrop: true, Logger: b.cfg.Logger,
		// After the second snapshot none comes for minutes.
		Snapshots: 2,
		Register: func(ctx context.Context, clusters []loadtest.Cluster) (err error) {
			if err := on(ctx, postgres, limits.Settle); err != nil {
				return err
			}
			s, err = b.startService(ctx, name, postgres, clusters)
			return err
		},
		Ready: time.Minute, Settle: 2 * time.Minute,
		Begin: func() {
			hookErr = on(ctx, postgres, limits.Flush)
			var err1, err2 error
			before, err1 = s.usage(ctx)
			begun, err2 = b.usages(s)
			hookErr = errors.Join(hookErr, err1, err2)
			b.line.begin(name + ": running")
		},
		Flooded: func() {
			var err error
			after, err = s.usage(ctx)
			hookErr = errors.Join(hookErr, err)
		},
		Published: func() {
			// The processor times end with the last publish: the check of the
			// tables, which follows, is not what is measured.
			ended, err := b.usages(s)
			hookErr = errors.Join(hookErr, err)
			l.took = usages{
				generator: ended.generator - begun.generator, service: ended.service - begun.service,
				postgres: ended.postgres - begun.postgres, redis: ended.redis - begun.redis,
			}
			l.wall = ended.at.Sub(begun.at)
			if after == (usage{}) {
				after, err = s.usage(ctx)
				hookErr = errors.Join(hookErr, err)
			}
			b.line.begin(name + ": checking every row")
		},
		Progress: func(p loadtest.Progress) {
			b.line.show(fmt.Sprintf("%d sent, %d published, %d instances wait", p.Sent, p.Publishes, p.Pending))
		},
	})
	if err != nil {
		return nil, err
	}
	b.line.begin(name + ": filling the tables, starting the service")
	l.Report, err = test.Run(ctx)
	if s != nil {
		b.line.begin(name + ": stopping the service")
		err = errors.Join(err, s.stop(ctx))
	}
	if err := errors.Join(err, hookErr); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	l.did = after.since(before)
	b.judge(name, l.Report)
	return &l, nil
}

// judge notes what the bridge did wrong.
func (b *bench) judge(name string, r *loadtest.Report) {
	if r.OK() && r.Drops == 0 {
		return
	}
	b.unsound = append(b.unsound, fmt.Errorf("%s: %s; %d drops; %s", name, r.Unsettled, r.Drops, verdict(r.Verdict)))
}

func verdict(v *ledger.Verdict) string {
	text := fmt.Sprintf("of %d instances %d lost, %d back, %d wrong, %d unpublished, %d told twice, %d too early, %d malformed",
		v.Instances, v.Lost, v.Regressed, v.Wrong, v.Unpublished, v.Doubled, v.Early, v.Malformed)
	for i, d := range v.Differences {
		if i == 5 {
			break
		}
		text += fmt.Sprintf("\n  %+v", d)
	}
	return text
}
