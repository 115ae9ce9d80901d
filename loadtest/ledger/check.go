package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trestle-bridge/trestle/loadtest/oracle"
	"github.com/trestle-bridge/trestle/loadtest/script"
	"github.com/trestle-bridge/trestle/loadtest/seed"
)

// maxDifferences is how many differences are kept; all are counted.
const maxDifferences = 200

// Verdict is the result of a check.
type Verdict struct {
	// Instances that were checked, and those of them that had to be exact.
	Instances, Exact int
	// The number of differences, by kind; of Doubled the number of publishes.
	Lost, Regressed, Wrong, Unpublished, Doubled, Early, Malformed int
	// Differences are the first ones.
	Differences []oracle.Difference
}

// OK says whether there is no difference at all.
func (v *Verdict) OK() bool {
	return v.Lost+v.Regressed+v.Wrong+v.Unpublished+v.Doubled+v.Early+v.Malformed == 0
}

// Mendable says whether there are differences that time may mend, while updates
// are still under way. What was told twice, too early or in the wrong order stays.
func (v *Verdict) Mendable() bool { return v.Lost+v.Wrong+v.Unpublished > 0 }

func (v *Verdict) add(diffs ...oracle.Difference) {
	for _, d := range diffs {
		switch d.Kind {
		case oracle.Wrong:
			v.Wrong++
		case oracle.Lost:
			v.Lost++
		case oracle.Regressed:
			v.Regressed++
		case oracle.Unpublished:
			v.Unpublished++
		case oracle.Doubled:
			v.Doubled++
		case oracle.Early:
			v.Early++
		case oracle.Malformed:
			v.Malformed++
		}
		if len(v.Differences) < maxDifferences {
			v.Differences = append(v.Differences, d)
		}
	}
}

// Querier is a connection or a pool of pgx.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Check compares the tables and the publishes so far with what was sent. It
// reads every table once and holds no more than one instance's row at a time,
// but for the small tables. While updates are still under way it finds
// differences that will be none later.
//
// If the server runs with track_commit_timestamp, every row must have been
// published after its last commit. Without, a publish after the last change was
// sent is all that can be asked for, which a publish of an earlier change may be.
func (l *Ledger) Check(ctx context.Context, db Querier) (*Verdict, error) {
	tokens, err := l.readTokens(ctx, db)
	if err != nil {
		return nil, err
	}
	metrics, err := l.readMetrics(ctx, db)
	if err != nil {
		return nil, err
	}
	prebuilds, err := l.readPrebuilds(ctx, db)
	if err != nil {
		return nil, err
	}
	v := &Verdict{}
	seen := make([]bool, len(l.entries))
	err = l.readRows(ctx, db, func(number int32, row *oracle.Row, committed time.Time) {
		seen[number] = true
		got := oracle.Actual{Row: row, Metrics: metrics[number], Prebuild: prebuilds[number]}
		if t := tokens[number]; t != nil {
			got.Tokens, got.Survivors = t.doomed, t.survivors
		}
		l.checkOne(v, int(number), got, committed)
	})
	if err != nil {
		return nil, err
	}
	for n, s := range seen {
		if !s {
			l.checkOne(v, n, oracle.Actual{}, time.Time{})
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	v.add(l.faults...)
	v.Malformed = max(v.Malformed, int(l.counts.Malformed))
	return v, nil
}

// checkOne judges one instance, whose row was last committed at a time; the zero
// time is unknown.
func (l *Ledger) checkOne(v *Verdict, number int, got oracle.Actual, committed time.Time) {
	r := l.record(number)
	gaps := l.Counts().Gaps > 0
	v.Instances++
	mode := oracle.Exact
	if r.cut || r.overtaken {
		mode = oracle.Latest
	} else {
		v.Exact++
	}
	times := make([]time.Time, len(r.sent))
	for i, d := range r.sent {
		times[i] = l.epoch.Add(d)
	}
	sent := sentOf(r.Subject, times)
	start, rules := StartOf(r.Subject), l.rules(r.Subject.Cluster)
	// Every change was observed before its publish was heard.
	until := time.Now()
	if r.waiting == 0 && r.publishes > 0 && !gaps {
		until = l.epoch.Add(r.last)
	}
	full := oracle.Expect(rules, start, sent)
	compared := got
	if got.Row != nil && full.Row != nil && got.Row.Version > full.HighestVersion && got.Row.Version <= r.highest {
		// A repeat from outside the script, written: as good as the original.
		row := *got.Row
		row.Version, row.Status.Version = full.HighestVersion, full.HighestVersion
		compared.Row = &row
	}
	diffs := oracle.Compare(rules, start, sent, mode, compared, until)
	if full.Row != nil {
		diffs = append(diffs, r.compareTokens(full.StoppedOnce, got)...)
		heard := l.epoch.Add(r.last)
		// The row may be at the latest state under an older version: what came
		// between was not heard, so that this was no news.
		least := full.LowestVersion
		if mode == oracle.Latest && len(diffs) == 0 {
			least = min(least, got.Row.Version)
		}
		switch {
		case gaps:
		case r.waiting > 0 && r.publishes > 0 && least < full.LowestVersion:
			l.excuse(number, len(r.sent))
		case r.waiting > 0:
			diffs = append(diffs, difference(oracle.Unpublished, channelInstances, "a publish after the last change", fmt.Sprintf("%d changes without", r.waiting)))
		case r.changes > 0 && committed.After(heard):
			diffs = append(diffs, difference(oracle.Unpublished, channelInstances, "a publish after the last commit", fmt.Sprintf("the last one %v before it", committed.Sub(heard))))
		}
		if r.sample.publish > 0 && r.sample.publish == r.publishes && r.sample.version < least {
			diffs = append(diffs, difference(oracle.Early, "version read on the last publish", least, r.sample.version))
		}
		diffs = append(diffs, compareSaid(&r, full, got.Prebuild, gaps)...)
	}
	most := r.changes + r.news()
	surplus := int(r.publishes - most)
	if surplus > 0 && r.changes > 0 && !r.cut && !r.retold {
		diffs = append(diffs, difference(oracle.Doubled, channelInstances, fmt.Sprintf("at most %d publishes", most), r.publishes))
		v.Doubled += surplus - 1
	}
	for i := range diffs {
		diffs[i].Instance, diffs[i].Scenario = script.FormatUUID(r.ID.Instance), r.entry.script.Name
	}
	v.add(diffs...)
}

// news is how many repeats may have been news: to one who takes a cluster over
// after a crash, and hears of the instance from a snapshot first.
func (r *record) news() (n int32) {
	if !r.overtaken {
		return 0
	}
	for i := range r.sent {
		if r.entry.script.Steps[i].Kind == script.Repeat {
			n++
		}
	}
	return n
}

// compareTokens checks that the tokens of a stopped instance are gone, and no
// others.
func (r *record) compareTokens(stopped bool, got oracle.Actual) []oracle.Difference {
	var diffs []oracle.Difference
	survivors := 0
	for _, t := range r.TokenRows() {
		if !t.Doomed {
			survivors++
		}
	}
	if got.Survivors != survivors {
		diffs = append(diffs, difference(oracle.Wrong, "tokens that are not the instance's", survivors, got.Survivors))
	}
	if doomed := len(r.TokenRows()) - survivors; !stopped && len(got.Tokens) != doomed {
		diffs = append(diffs, difference(oracle.Wrong, "tokens", doomed, len(got.Tokens)))
	}
	return diffs
}

func (l *Ledger) readRows(ctx context.Context, db Querier, each func(int32, *oracle.Row, time.Time)) error {
	// The function is an error where the setting is off, even if never called.
	committed := "NULL::timestamptz"
	setting, err := db.Query(ctx, `SELECT current_setting('track_commit_timestamp')`)
	if err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	if tracked, err := pgx.CollectExactlyOneRow(setting, pgx.RowTo[string]); err != nil {
		return fmt.Errorf("read settings: %w", err)
	} else if tracked == "on" {
		committed = "pg_xact_commit_timestamp(xmin)"
	}
	rows, err := db.Query(ctx, `
		SELECT id, coalesce(region, ''), coalesce(phase, ''), coalesce(status_version, 0),
		       deployed_time, started_time, stopping_time, stopped_time,
		       coalesce(ide_url, ''), coalesce(status, '{}')::text,
		       `+committed+`
		FROM workspace_instance WHERE $1::uuid[] IS NULL OR id = ANY($1)`, l.keys(l.byID))
	if err != nil {
		return fmt.Errorf("read instances: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var (
			id                                   [16]byte
			row                                  oracle.Row
			version                              int64
			deployed, started, stopping, stopped *time.Time
			commit                               *time.Time
			document                             []byte
		)
		if err := rows.Scan(&id, &row.Region, &row.Phase, &version, &deployed, &started, &stopping, &stopped, &row.IDEURL, &document, &commit); err != nil {
			return fmt.Errorf("read instances: %w", err)
		}
		number, known := l.byID[id]
		if !known {
			continue
		}
		row.Version = uint64(version)
		row.Deployed, row.Started, row.Stopping, row.Stopped = orZero(deployed), orZero(started), orZero(stopping), orZero(stopped)
		if err := json.Unmarshal(document, &row.Status); err != nil {
			return fmt.Errorf("status of instance %s: %w", script.FormatUUID(id), err)
		}
		each(number, &row, orZero(commit))
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read instances: %w", err)
	}
	return nil
}

// keys are what Check asks for: nil asks for all.
func (l *Ledger) keys(of map[[16]byte]int32) [][16]byte {
	if !l.cfg.AmongOthers {
		return nil
	}
	return slices.AppendSeq(make([][16]byte, 0, len(of)), maps.Keys(of))
}

// users are those whose tokens Check asks for: nil asks for all.
func (l *Ledger) users() []string {
	if !l.cfg.AmongOthers {
		return nil
	}
	users := []string{}
	for n := range l.entries {
		s := l.cfg.Subject(n)
		for _, token := range s.TokenRows() {
			users = append(users, token.User)
		}
	}
	return users
}

func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

func (l *Ledger) readMetrics(ctx context.Context, db Querier) (map[int32]*oracle.Metrics, error) {
	all := make(map[int32]*oracle.Metrics)
	rows, err := db.Query(ctx, `SELECT instance_id, coalesce(metrics, '{}')::text FROM workspace_instance_metrics
		WHERE $1::uuid[] IS NULL OR instance_id = ANY($1)`, l.keys(l.byID))
	if err != nil {
		return nil, fmt.Errorf("read instance metrics: %w", err)
	}
	var id [16]byte
	var document []byte
	_, err = pgx.ForEachRow(rows, []any{&id, &document}, func() error {
		number, known := l.byID[id]
		if !known {
			return nil
		}
		m := new(oracle.Metrics)
		all[number] = m
		return json.Unmarshal(document, m)
	})
	if err != nil {
		return nil, fmt.Errorf("read instance metrics: %w", err)
	}
	return all, nil
}

func (l *Ledger) readPrebuilds(ctx context.Context, db Querier) (map[int32]*oracle.PrebuildRow, error) {
	all := make(map[int32]*oracle.PrebuildRow)
	rows, err := db.Query(ctx, `
		SELECT id, coalesce(state, ''), coalesce(error, ''), coalesce(snapshot, '') FROM prebuilt_workspace
		WHERE $1::uuid[] IS NULL OR id = ANY($1)`, l.keys(l.byPrebuild))
	if err != nil {
		return nil, fmt.Errorf("read prebuilds: %w", err)
	}
	var id [16]byte
	var p oracle.PrebuildRow
	_, err = pgx.ForEachRow(rows, []any{&id, &p.State, &p.Error, &p.Snapshot}, func() error {
		if number, known := l.byPrebuild[id]; known {
			all[number] = new(p)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read prebuilds: %w", err)
	}
	return all, nil
}

// leftTokens are the tokens found of an instance.
type leftTokens struct {
	doomed    []string
	survivors int
}

func (l *Ledger) readTokens(ctx context.Context, db Querier) (map[int32]*leftTokens, error) {
	all := make(map[int32]*leftTokens)
	rows, err := db.Query(ctx, `SELECT user_id, coalesce(name, '') FROM gitpod_token WHERE $1::text[] IS NULL OR user_id = ANY($1)`, l.users())
	if err != nil {
		return nil, fmt.Errorf("read tokens: %w", err)
	}
	var user, name string
	_, err = pgx.ForEachRow(rows, []any{&user, &name}, func() error {
		// The id stands at the start of a name, or behind "of-".
		text := strings.TrimPrefix(name, "of-")
		id, ok := script.ParseUUID(text[:min(len(text), 36)])
		number, known := l.byID[id]
		if !ok || !known {
			return nil
		}
		t := all[number]
		if t == nil {
			t = &leftTokens{}
			all[number] = t
		}
		s := l.cfg.Subject(int(number))
		switch seeded := s.TokenRows(); {
		case slices.ContainsFunc(seeded, func(r seed.Token) bool { return r.Doomed && r.User == user && r.Name == name }):
			t.doomed = append(t.doomed, name)
		default:
			t.survivors++
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read tokens: %w", err)
	}
	return all, nil
}
