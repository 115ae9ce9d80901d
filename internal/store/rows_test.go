package store_test

import (
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/internal/status/statustest"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/proto/wsman"
	"github.com/trestle-bridge/trestle/shard"
)

// TestRowByRowIsTheStatement writes the same batches to two databases, in the one
// by the statement for large batches, in the other row by row. The answers and
// all tables must be the same.
func TestRowByRowIsTheStatement(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	const perBatch = 40
	r := statustest.Random{Rand: random, ID: testID(0)}
	histories := make([]history, 240)
	var rows []*statustest.Row
	for i := range histories {
		for {
			histories[i] = randomHistory(r)
			if histories[i].heard[0].GetSpec().GetType() != wsman.WorkspaceType_PREBUILD {
				break
			}
		}
		if i%10 != 0 { // of some there is no row
			rows = append(rows, histories[i].rowOf(i))
		}
	}

	type side struct {
		*bench
		fences []shard.Fence
	}
	var sides []side
	for _, rowByRow := range []int{-1, perBatch} {
		b := newBench(t, func(c *store.Config) { c.RowByRow, c.Lifecycle = rowByRow, true })
		b.insert(rows...)
		other := b.raise(shard.Whole("us02"), owner)
		lost := b.raise(shard.Whole("ap03"), owner)
		b.raise(lost.Shard, "another")
		sides = append(sides, side{b, []shard.Fence{b.fence, other, lost}})
	}
	var published []store.OutboxRef
	for step, more := 0, true; more; step++ {
		more = false
		for from := 0; from < len(histories); from += perBatch {
			var entries []store.Entry
			for i := from; i < from+perBatch; i++ {
				h := histories[i]
				if step >= len(h.heard) {
					continue
				}
				c := change(t, of(h.heard[step], testID(i)), heardAt(step))
				c.First = random.IntN(2) == 0
				if random.IntN(4) == 0 {
					// What was said already, as another version.
					again := of(h.heard[max(step-1, 0)], testID(i))
					again.StatusVersion = c.Version
					c = change(t, again, heardAt(step))
					c.First = true
				}
				fence := 0
				if random.IntN(10) == 0 {
					fence = 1 + random.IntN(2)
				}
				entries = append(entries, store.Entry{Fence: fence, Change: c})
			}
			if len(entries) == 0 {
				continue
			}
			more = true
			var commits []store.Commit
			for _, s := range sides {
				batch := store.Batch{Fences: s.fences, Lane: 3, Seq: int64(step*1000 + from), Entries: entries, Published: published}
				commit, err := s.Apply(t.Context(), batch)
				if err != nil {
					t.Fatal(err)
				}
				commits = append(commits, commit)
			}
			published = published[:0]
			for _, row := range commits[0].Outbox {
				published = append(published, row.Ref)
			}
			for i := range entries {
				want, got := said(commits[0].Results[i]), said(commits[1].Results[i])
				if !reflect.DeepEqual(got, want) {
					t.Errorf("step %d of %s: %+v, want %+v", step, entries[i].Change.ID, got, want)
				}
			}
			if len(commits[0].Outbox) != len(commits[1].Outbox) || commits[0].Lifecycle != commits[1].Lifecycle {
				t.Errorf("%+v, want %+v", commits[1], commits[0])
			}
		}
		for _, table := range []string{
			`SELECT i::text FROM workspace_instance i ORDER BY i.id`,
			`SELECT m::text FROM workspace_instance_metrics m ORDER BY m.instance_id`,
			`SELECT k::text FROM gitpod_token k ORDER BY k.token_hash`,
			`SELECT (o.shard, o.epoch, o.owner, o.lane, o.seq, ARRAY(SELECT unnest(o.instances) ORDER BY 1))::text FROM trestle_outbox o ORDER BY 1`,
			`SELECT l.event::text FROM trestle_lifecycle l ORDER BY 1`,
		} {
			want, got := sides[0].texts(table), sides[1].texts(table)
			if len(got) != len(want) {
				t.Fatalf("after step %d, %s: %d rows, want %d", step, table, len(got), len(want))
			}
			for i := range want {
				if got[i] != want[i] {
					t.Fatalf("after step %d, %s:\n%s\nwant\n%s", step, table, got[i], want[i])
				}
			}
		}
	}
}

// said leaves of a result what it means: the rest is told of applied changes
// alone.
func said(r store.Result) store.Result {
	if r.Outcome == store.Applied {
		if !r.Started && !r.FirstActivity {
			r.NeededImageBuild = false
		}
		return r
	}
	return store.Result{Outcome: r.Outcome, Stored: r.Stored, OwnerID: r.OwnerID, WorkspaceID: r.WorkspaceID, Region: r.Region}
}

func (b *bench) texts(query string) (texts []string) {
	b.Helper()
	rows, err := b.db.Query(b.Context(), query)
	if err != nil {
		b.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			b.Fatal(err)
		}
		texts = append(texts, text)
	}
	if err := rows.Err(); err != nil {
		b.Fatal(err)
	}
	return texts
}
