package limits

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/loadtest/ledger"
	"github.com/trestle-bridge/trestle/loadtest/pace"
	"github.com/trestle-bridge/trestle/loadtest/script"
	"github.com/trestle-bridge/trestle/loadtest/seed"
)

// Rows is a table full of instances to be updated, each through the eight
// steps of its life, and what is written in each step.
type Rows struct {
	postgres string
	ids      [][16]byte
	steps    []rowStep
}

// rowStep is what one update writes: the same row as the bridge's.
type rowStep struct {
	phase    string
	ideURL   string
	document []byte
	// Which of the times the row has by then.
	deployed, started, stopping, stopped bool
}

// NewRows seeds instances into the tables of a database.
func NewRows(ctx context.Context, postgres string, seedOf uint64, instances int) (*Rows, error) {
	library, err := script.NewLibrary(seedOf)
	if err != nil {
		return nil, fmt.Errorf("write scripts: %w", err)
	}
	r := &Rows{postgres: postgres}
	first := library.Plain[0]
	id := script.NewIdentity(seedOf, 0)
	var before rowStep
	for i := range first.Steps {
		step, err := before.then(first.Steps[i].Frame.Status(&id))
		if err != nil {
			return nil, err
		}
		r.steps = append(r.steps, step)
		before = step
	}
	conn, err := pgx.Connect(ctx, postgres)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = seed.Seed(ctx, conn, func(yield func(seed.Instance) bool) {
		for n := range instances {
			i := seed.Instance{ID: script.NewIdentity(seedOf, n), Type: script.Regular, Region: "sim-000", NeededImageBuild: n%8 == 0}
			if !yield(i) {
				return
			}
		}
	})
	if err != nil {
		return nil, err
	}
	for n := range instances {
		r.ids = append(r.ids, script.NewIdentity(seedOf, n).Instance)
	}
	// Neighbours in the table are not neighbours in a batch, as in life.
	rand.New(rand.NewPCG(seedOf, 1)).Shuffle(len(r.ids), func(i, j int) { r.ids[i], r.ids[j] = r.ids[j], r.ids[i] })
	return r, Settle(ctx, conn)
}

// then gives the row after a status without a version.
func (s rowStep) then(raw []byte) (rowStep, error) {
	heard, err := status.Scan(raw)
	if err != nil {
		return rowStep{}, fmt.Errorf("scan a scripted status: %w", err)
	}
	change, err := status.Rules{}.Change(heard)
	if err != nil {
		return rowStep{}, fmt.Errorf("decode a scripted status: %w", err)
	}
	effect := change.Rungs()[0]
	document := make(map[string]any)
	for _, part := range [][]byte{change.Document, effect.Kept()} {
		if part == nil {
			continue
		}
		if err := json.Unmarshal(part, &document); err != nil {
			return rowStep{}, fmt.Errorf("compose a document: %w", err)
		}
	}
	document["conditions"] = json.RawMessage(change.Conditions)
	document["phase"] = effect.Phase
	encoded, err := json.Marshal(document)
	if err != nil {
		return rowStep{}, fmt.Errorf("compose a document: %w", err)
	}
	return rowStep{
		phase: string(effect.Phase), ideURL: change.IDEURL, document: encoded,
		deployed: s.deployed || string(change.Conditions) != "{}",
		started:  s.started || effect.Phase == status.PhaseRunning,
		stopping: s.stopping || effect.Phase == status.PhaseStopping || effect.Phase == status.PhaseStopped,
		stopped:  s.stopped || effect.Phase == status.PhaseStopped,
	}, nil
}

// Settle has PostgreSQL do now what it would do in the midst of a measurement:
// tidy the tables, look at them, and write out what seeding has left. Call it before
// the service starts: what PostgreSQL learns of a table has it plan all statements anew.
func Settle(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, "VACUUM (ANALYZE)"); err != nil {
		return fmt.Errorf("settle the database: %w", err)
	}
	return Flush(ctx, conn)
}

// Flush has PostgreSQL write out all that it has in memory.
func Flush(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, "CHECKPOINT"); err != nil {
		return fmt.Errorf("write out what the database has in memory: %w", err)
	}
	return nil
}

// BatchRows is the size of a raw batch.
const BatchRows = 500

// The columns are those that an update of the bridge writes.
const batchSQL = `
UPDATE workspace_instance i
SET status_version = u.version, phase = u.phase, ide_url = u.ide_url, status = u.document,
    deployed_time = u.deployed, started_time = u.started, stopping_time = u.stopping, stopped_time = u.stopped
FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::jsonb[],
    $6::timestamptz[], $7::timestamptz[], $8::timestamptz[], $9::timestamptz[])
    AS u (id, version, phase, ide_url, document, deployed, started, stopping, stopped)
WHERE i.id = u.id AND i.status_version < u.version`

// Batches updates 500 rows a statement over some connections for a time, and
// gives the rows per second.
func (r *Rows) Batches(ctx context.Context, connections int, duration time.Duration) (float64, error) {
	type result struct {
		rows int
		took time.Duration
	}
	results := make([]result, connections)
	start := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for c := range connections {
		// A wave for each connection, like the bridge's in all: a part of the
		// instances goes through all steps, then the next part.
		mine := r.ids[c*len(r.ids)/connections : (c+1)*len(r.ids)/connections]
		const wave = 1000
		g.Go(func() error {
			conn, err := connect(ctx, r.postgres)
			if err != nil {
				return err
			}
			defer conn.Close(context.WithoutCancel(ctx))
			prepared, err := conn.Prepare(ctx, "batch", batchSQL)
			if err != nil {
				return fmt.Errorf("prepare a raw batch: %w", err)
			}
			for round, version := 0, int64(0); ; round++ {
				for first := 0; first < len(mine); first += wave {
					for s := range r.steps {
						version = int64(round*len(r.steps) + s + 1)
						for from := first; from < min(first+wave, len(mine)); from += BatchRows {
							batch := mine[from:min(from+BatchRows, len(mine))]
							if err := r.batch(ctx, conn, prepared.Name, batch, s, version); err != nil {
								return err
							}
							results[c].rows += len(batch)
							if results[c].took = time.Since(start); results[c].took >= duration {
								return nil
							}
						}
					}
				}
			}
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	rate := 0.0
	for _, res := range results {
		rate += float64(res.rows) / res.took.Seconds()
	}
	return rate, nil
}

func (r *Rows) batch(ctx context.Context, conn *pgx.Conn, name string, ids [][16]byte, step int, version int64) error {
	s := &r.steps[step]
	idArray, versions := newArray(oidUUID, len(ids), 16), newArray(oidInt8, len(ids), 8)
	phases, urls := newArray(oidText, len(ids), len(s.phase)), newArray(oidText, len(ids), len(s.ideURL))
	documents := newArray(oidJSONB, len(ids), len(s.document)+1)
	params := [][]byte{nil, nil, nil, nil, nil}
	for _, id := range ids {
		idArray = appendElement(idArray, id[:])
		versions = appendInt8(versions, version)
		phases = appendElement(phases, []byte(s.phase))
		urls = appendElement(urls, []byte(s.ideURL))
		documents = appendJSONB(documents, s.document)
	}
	copy(params, [][]byte{idArray, versions, phases, urls, documents})
	for _, is := range []bool{s.deployed, s.started, s.stopping, s.stopped} {
		times := newArray(oidTimestamptz, len(ids), 8)
		for range ids {
			if times = appendNull(times); is {
				times = appendInt8(times[:len(times)-4], version)
			}
		}
		if is {
			times[7] = 0
		}
		params = append(params, times)
	}
	binary := []int16{1}
	result := conn.PgConn().ExecPrepared(ctx, name, params, binary, binary).Read()
	if result.Err != nil {
		return fmt.Errorf("write a raw batch: %w", result.Err)
	}
	if n := result.CommandTag.RowsAffected(); n != int64(len(ids)) {
		return fmt.Errorf("a raw batch of %d rows has written %d", len(ids), n)
	}
	return nil
}

const singleSQL = `
UPDATE workspace_instance
SET status_version = $2, phase = $3, ide_url = $4, status = $5,
    deployed_time = $6, started_time = $7, stopping_time = $8, stopped_time = $9
WHERE id = $1 AND status_version < $2`

// Singles updates one row a statement over some connections for a time, and
// gives the rows per second. With a rate above 0 it is an open loop: row number
// k is due k/rate after the start, and latency counts from then until the commit
// is known; else each connection goes as fast as it can.
func (r *Rows) Singles(ctx context.Context, connections int, rate float64, duration time.Duration) (float64, *ledger.Histogram, error) {
	// Unbounded in effect: an open loop does not wait for those who serve it.
	due := make(chan time.Time, int(rate*duration.Seconds())+1)
	start := time.Now()
	var (
		// mu guards next, done and latency.
		mu      sync.Mutex
		next    int
		done    int
		latency ledger.Histogram
	)
	g, ctx := errgroup.WithContext(ctx)
	if rate > 0 {
		g.Go(func() error {
			defer close(due)
			for k := range int(rate * duration.Seconds()) {
				at := start.Add(time.Duration(float64(k) / rate * float64(time.Second)))
				if err := pace.Until(ctx, at); err != nil {
					return fmt.Errorf("pace raw writes: %w", err)
				}
				due <- at
			}
			return nil
		})
	}
	const wave = 2000
	for range connections {
		g.Go(func() error {
			conn, err := connect(ctx, r.postgres)
			if err != nil {
				return err
			}
			defer conn.Close(context.WithoutCancel(ctx))
			prepared, err := conn.Prepare(ctx, "single", singleSQL)
			if err != nil {
				return fmt.Errorf("prepare a raw write: %w", err)
			}
			for {
				at := time.Now()
				if rate > 0 {
					var open bool
					if at, open = <-due; !open {
						return nil
					}
				} else if at.Sub(start) >= duration {
					return nil
				}
				mu.Lock()
				n := next
				next++
				mu.Unlock()
				// Step by step over a wave of instances, as the bridge's are.
				block, within := n/(wave*len(r.steps)), n%(wave*len(r.steps))
				s, i := within/wave, (block*wave+within%wave)%len(r.ids)
				version := int64(n/(len(r.ids)*len(r.steps))*len(r.steps) + s + 1)
				if err := r.single(ctx, conn, prepared.Name, r.ids[i], s, version); err != nil {
					return err
				}
				took := time.Since(at)
				mu.Lock()
				done++
				latency.Add(took)
				mu.Unlock()
			}
		})
	}
	if err := g.Wait(); err != nil {
		return 0, nil, err
	}
	return float64(done) / time.Since(start).Seconds(), &latency, nil
}

func (r *Rows) single(ctx context.Context, conn *pgx.Conn, name string, id [16]byte, step int, version int64) error {
	s := &r.steps[step]
	params := [][]byte{id[:], int8Bytes(version), []byte(s.phase), []byte(s.ideURL), append([]byte{jsonbVersion}, s.document...)}
	for _, is := range []bool{s.deployed, s.started, s.stopping, s.stopped} {
		var at []byte // null
		if is {
			at = int8Bytes(version)
		}
		params = append(params, at)
	}
	binary := []int16{1}
	result := conn.PgConn().ExecPrepared(ctx, name, params, binary, binary).Read()
	if result.Err != nil {
		return fmt.Errorf("write a raw row: %w", result.Err)
	}
	return nil
}

// connect gives a connection with the settings that are good for statements by
// key, like the bridge's own.
func connect(ctx context.Context, postgres string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(postgres)
	if err != nil {
		return nil, fmt.Errorf("parse the URL of Postgres: %w", err)
	}
	for name, value := range map[string]string{"synchronous_commit": "on", "plan_cache_mode": "force_generic_plan", "enable_seqscan": "off", "jit": "off", "work_mem": "32MB"} {
		cfg.RuntimeParams[name] = value
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	return conn, nil
}
