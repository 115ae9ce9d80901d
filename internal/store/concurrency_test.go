package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/status/statustest"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/proto/wsman"
	"github.com/trestle-bridge/trestle/shard"
)

// begin opens a transaction beside the store.
func (b *bench) begin() pgx.Tx {
	b.Helper()
	tx, err := b.db.Begin(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = tx.Rollback(context.Background()) }) // a no-op after its commit
	return tx
}

// waitBlocked returns when a session of the store waits for a lock.
func (b *bench) waitBlocked() {
	b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		var blocked bool
		err := b.db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'trestle' AND wait_event_type = 'Lock')`).Scan(&blocked)
		if err != nil {
			b.Fatal(err)
		}
		if blocked {
			return
		}
	}
}

type applied struct {
	commit store.Commit
	err    error
}

func (b *bench) applyBeside(batch store.Batch) <-chan applied {
	done := make(chan applied, 1) // the test may have failed before it reads
	go func() {
		commit, err := b.Apply(context.Background(), batch)
		done <- applied{commit, err}
	}()
	return done
}

func TestRaiseRefusesAWriterThatWaited(t *testing.T) {
	b := newBench(t)
	b.insert(plainRow(1))
	// An epoch that begins while the writer waits for its fence.
	tx := b.begin()
	if _, err := tx.Exec(t.Context(), `UPDATE trestle_fence SET epoch = epoch + 1, owner = 'other' WHERE shard = $1`, cluster); err != nil {
		t.Fatal(err)
	}
	done := b.applyBeside(b.batch(change(t, statusOf(testID(1), 5), statustest.Epoch)))
	b.waitBlocked()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := <-done
	if got.err != nil || got.commit.Results[0].Outcome != store.Refused || len(got.commit.Outbox) != 0 {
		t.Fatalf("%+v", got)
	}
	b.same("refused", b.row(testID(1)), plainRow(1))
}

// endsWriters holds that something waits for a writer who holds the fence, and
// that those who come later are refused.
func (b *bench) endsWriters(what string, do func(context.Context) error) {
	b.Helper()
	b.insert(plainRow(1))
	// The writer holds its fence and waits for a row.
	tx := b.begin()
	if _, err := tx.Exec(b.Context(), `SELECT FROM workspace_instance FOR UPDATE`); err != nil {
		b.Fatal(err)
	}
	writer := b.applyBeside(b.batch(change(b, statusOf(testID(1), 5), statustest.Epoch)))
	b.waitBlocked()
	done := make(chan error, 1) // the test may have failed before it reads
	go func() { done <- do(context.Background()) }()
	waitFor(b, 2)
	select {
	case <-done:
		b.Fatalf("%s did not wait for the writer's commit", what)
	default:
	}
	if err := tx.Commit(b.Context()); err != nil {
		b.Fatal(err)
	}
	if got := <-writer; got.err != nil || got.commit.Results[0].Outcome != store.Applied {
		b.Fatalf("%+v", got)
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	if got := b.apply(change(b, statusOf(testID(1), 6), statustest.Epoch)); got.Results[0].Outcome != store.Refused {
		b.Fatalf("%+v", got)
	}
}

func TestRaiseWaitsForAWriter(t *testing.T) {
	b := newBench(t)
	above := b.above("other")
	b.endsWriters("a raise", func(ctx context.Context) error {
		holds, err := b.Raise(ctx, above)
		if err == nil && holds != above {
			err = fmt.Errorf("%+v holds, want %+v", holds, above)
		}
		return err
	})
}

// waitFor returns when so many sessions of the store wait for locks.
func waitFor(b *bench, sessions int) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 20*time.Second)
	defer cancel()
	for waiting := 0; waiting < sessions; {
		err := b.db.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'trestle' AND wait_event_type = 'Lock'`).Scan(&waiting)
		if err != nil {
			b.Fatal(err)
		}
	}
}

// A storm of writers that never all pause must not keep a new epoch out.
func TestRaiseIsNotStarved(t *testing.T) {
	b := newBench(t)
	const writers = 4
	for i := range writers {
		b.insert(plainRow(i))
	}
	// Batches that take long, so that there always is one under way.
	b.exec(`CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.02); RETURN NEW; END $$`)
	b.exec(`CREATE TRIGGER slow BEFORE UPDATE ON workspace_instance FOR EACH ROW EXECUTE FUNCTION slow()`)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var wait sync.WaitGroup
	for i := range writers {
		wait.Go(func() {
			for version := uint64(1); ctx.Err() == nil; version++ {
				batch := b.batch(change(t, statusOf(testID(i), version), statustest.Epoch))
				batch.Lane = i
				commit, err := b.Apply(ctx, batch)
				if err != nil || commit.Results[0].Outcome == store.Refused {
					if err != nil && ctx.Err() == nil {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	if _, err := b.Raise(ctx, b.above("other")); err != nil {
		t.Error(err)
	}
	wait.Wait() // all of them refused
}

// above is the fence of the next epoch.
func (b *bench) above(owner string) shard.Fence {
	fence := b.fence
	fence.Epoch++
	fence.Owner = owner
	return fence
}

// Others write rows too. What they commit while a batch waits for the row is
// neither lost nor taken for older than it is.
func TestConcurrentWriteOfOthers(t *testing.T) {
	at := statustest.Epoch
	for _, test := range []struct {
		name    string
		write   string
		outcome store.Outcome
		want    func(*statustest.Row)
	}{
		{
			name:    "a document",
			write:   `UPDATE workspace_instance SET status = status || '{"theirs": "new"}', started_time = '2024-03-01 11:30:00Z'`,
			outcome: store.Applied,
			want: func(r *statustest.Row) {
				r.Status["theirs"] = "new"
				r.Started = at.Add(-30 * time.Minute)
			},
		},
		{
			name:    "a newer version",
			write:   `UPDATE workspace_instance SET status_version = 9`,
			outcome: store.Stale,
		},
		{
			name:    "another cluster",
			write:   `UPDATE workspace_instance SET region = 'us02'`,
			outcome: store.Foreign,
		},
		{
			name:    "a delete",
			write:   `DELETE FROM workspace_instance`,
			outcome: store.Unknown,
		},
		{
			name:    "a stop",
			write:   `UPDATE workspace_instance SET phase = 'stopped', stopped_time = '2024-03-01 11:30:00Z', stopping_time = '2024-03-01 11:30:00Z'`,
			outcome: store.Applied,
			want: func(r *statustest.Row) {
				r.Phase, r.Stopping, r.Stopped = "stopped", at.Add(-30*time.Minute), at.Add(-30*time.Minute)
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			row := plainRow(1)
			row.Status["theirs"] = "old"
			b.insert(row)
			said := statusOf(testID(1), 5, inPhase(wsman.WorkspacePhase_RUNNING))

			tx := b.begin()
			if _, err := tx.Exec(t.Context(), test.write); err != nil {
				t.Fatal(err)
			}
			done := b.applyBeside(b.batch(change(t, said, at)))
			b.waitBlocked()
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			got := <-done
			if got.err != nil || got.commit.Results[0].Outcome != test.outcome {
				t.Fatalf("%+v", got)
			}
			if test.want == nil {
				return
			}
			want := row.Clone()
			test.want(want)
			statustest.InTurn(want, said, at, status.Rules{})
			b.same(test.name, b.row(testID(1)), want)
		})
	}
}

// TestNoDeadlock writes overlapping batches at once, each in an order of its
// own, with prebuilds that several instances share.
func TestNoDeadlock(t *testing.T) {
	b := newBench(t)
	const instances, writers, rounds = 60, 4, 40
	var rows []*statustest.Row
	for i := range instances {
		row := plainRow(i)
		row.Prebuild = &statustest.Prebuild{State: "queued"}
		row.Tokens = []string{row.ID.String() + "-default"}
		rows = append(rows, row)
	}
	b.insert(rows...)
	b.exec(`UPDATE workspace_instance SET workspace_id = (SELECT min(workspace_id) FROM workspace_instance) WHERE id::text < 'aa000000-0000-0000-0000-000000000010'`)
	var version = make(chan uint64, 1) // a counter that is taken and put back
	version <- 0
	var wait sync.WaitGroup
	for w := range writers {
		wait.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 0))
			for range rounds {
				v := <-version + 1
				version <- v
				var changes []*status.Change
				for _, i := range random.Perm(instances)[:instances/2] {
					said := statusOf(testID(i), v, inPhase(lifecycle[random.IntN(len(lifecycle))]))
					said.Spec.Type = wsman.WorkspaceType_PREBUILD
					changes = append(changes, change(t, said, statustest.Epoch))
				}
				batch := b.batch(changes...)
				batch.Lane = w
				if _, err := b.Apply(t.Context(), batch); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
}

// The row goes to the version that is newest, whoever writes it and whenever.
func TestRowsNeverGoBack(t *testing.T) {
	b := newBench(t)
	const instances, writers, versions = 5, 4, 60
	for i := range instances {
		b.insert(plainRow(i))
	}
	var wait sync.WaitGroup
	for w := range writers {
		wait.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 1))
			for _, v := range random.Perm(versions) {
				var changes []*status.Change
				for _, i := range random.Perm(instances) {
					said := statusOf(testID(i), uint64(v+1))
					said.Message = fmt.Sprint(v + 1)
					changes = append(changes, change(t, said, statustest.Epoch))
				}
				batch := b.batch(changes...)
				batch.Lane = w
				commit, err := b.Apply(t.Context(), batch)
				if err != nil {
					t.Error(err)
					return
				}
				for i, result := range commit.Results {
					if result.Stored < uint64(v+1) || result.Outcome == store.Applied && result.Stored != uint64(v+1) {
						t.Errorf("version %d left %+v", v+1, commit.Results[i])
					}
				}
			}
		})
	}
	wait.Wait()
	for i := range instances {
		if row := b.row(testID(i)); row.Version != versions || row.Status["message"] != fmt.Sprint(versions) {
			t.Errorf("version %d says %v", row.Version, row.Status["message"])
		}
	}
}

func TestStatementTimeout(t *testing.T) {
	b := newBench(t, func(c *store.Config) { c.StatementTimeout = 50 * time.Millisecond })
	b.insert(plainRow(1))
	tx := b.begin()
	if _, err := tx.Exec(t.Context(), `SELECT FROM workspace_instance FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	_, err := b.Apply(t.Context(), b.batch(change(t, statusOf(testID(1), 5), statustest.Epoch)))
	if err == nil || !strings.Contains(err.Error(), "57014") {
		t.Fatal(err)
	}
	if _, isRow := store.RowFault(err); isRow {
		t.Error("a timeout is a row's fault")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Apply(ctx, b.batch(change(t, statusOf(testID(1), 5), statustest.Epoch))); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
