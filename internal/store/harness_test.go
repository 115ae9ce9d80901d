package store_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trestle-bridge/trestle/internal/devstack/devstacktest"
	"github.com/trestle-bridge/trestle/internal/secret"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/status/statustest"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/proto/wsman"
	"github.com/trestle-bridge/trestle/shard"
)

func TestMain(m *testing.M) { devstacktest.Main(m) }

const (
	cluster      = "eu01"
	installation = "local"
	owner        = "replica/1"
)

// bench is a migrated database with a store on it, and a connection of its
// own for what the store does not do.
type bench struct {
	testing.TB
	*store.Store
	url   string
	db    *pgxpool.Pool
	fence shard.Fence
	seq   atomic.Int64
}

// noWarning fails a test when the database warns of what the store does.
type noWarning struct {
	slog.Handler
	t testing.TB
}

func (h noWarning) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "the database warns" {
		r.Attrs(func(a slog.Attr) bool { h.t.Errorf("the database warns: %v", a); return true })
	}
	return h.Handler.Handle(ctx, r)
}

func newBench(t testing.TB, change ...func(*store.Config)) *bench {
	t.Helper()
	return benchOn(t, devstacktest.NewDatabase(t), change...)
}

func benchOn(t testing.TB, url string, change ...func(*store.Config)) *bench {
	t.Helper()
	ctx := context.Background()
	log := slog.New(noWarning{slog.NewTextHandler(io.Discard, nil), t})
	if err := store.Migrate(ctx, secret.NewURL(url), log); err != nil {
		t.Fatal(err)
	}
	cfg := store.Config{URL: secret.NewURL(url), Installation: installation, Lifecycle: true, Logger: log}
	for _, c := range change {
		c(&cfg)
	}
	s, err := store.Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	db, err := pgxpool.New(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	b := &bench{TB: t, Store: s, url: url, db: db}
	b.fence = b.raise(shard.Whole(cluster), owner)
	return b
}

// raise begins the next epoch of a shard.
func (b *bench) raise(id shard.ID, owner string) shard.Fence {
	b.Helper()
	known, err := b.Known(context.Background(), []string{id.Cluster})
	if err != nil {
		b.Fatal(err)
	}
	fence := shard.Fence{Shard: id, Owner: owner, Epoch: 1, Generation: known[id.Cluster].Generation}
	for _, stored := range known[id.Cluster].Fences {
		if stored.Shard == id {
			fence.Epoch = stored.Epoch + 1
		}
	}
	holds, err := b.Raise(context.Background(), fence)
	if err != nil || holds != fence {
		b.Fatalf("%+v, %v", holds, err)
	}
	return fence
}

func (b *bench) exec(sql string, args ...any) {
	b.Helper()
	if _, err := b.db.Exec(context.Background(), sql, args...); err != nil {
		b.Fatal(err)
	}
}

// batch is a batch of these changes under the bench's fence.
func (b *bench) batch(changes ...*status.Change) store.Batch {
	batch := store.Batch{Fences: []shard.Fence{b.fence}, Seq: b.seq.Add(1)}
	for _, c := range changes {
		batch.Entries = append(batch.Entries, store.Entry{Change: c})
	}
	return batch
}

// apply writes changes and gives what became of them.
func (b *bench) apply(changes ...*status.Change) store.Commit {
	b.Helper()
	commit, err := b.Apply(context.Background(), b.batch(changes...))
	if err != nil {
		b.Fatal(err)
	}
	return commit
}

func testID(i int) (id status.InstanceID) {
	id[0] = 0xaa
	binary.BigEndian.PutUint64(id[8:], uint64(i))
	return id
}

// status gives a status of an instance: creating, at this version.
func statusOf(id status.InstanceID, version uint64, change ...func(*wsman.WorkspaceStatus)) *wsman.WorkspaceStatus {
	s := &wsman.WorkspaceStatus{
		Id:            id.String(),
		Metadata:      &wsman.WorkspaceMetadata{Owner: "liar", MetaId: "lie"},
		Spec:          &wsman.WorkspaceSpec{},
		Phase:         wsman.WorkspacePhase_CREATING,
		Conditions:    &wsman.WorkspaceConditions{PullingImages: empty, Deployed: empty, StoppedByRequest: empty},
		StatusVersion: version,
	}
	for _, c := range change {
		c(s)
	}
	return s
}

const empty = wsman.WorkspaceConditionBool_EMPTY

func inPhase(phase wsman.WorkspacePhase) func(*wsman.WorkspaceStatus) {
	return func(s *wsman.WorkspaceStatus) { s.Phase = phase }
}

func change(t testing.TB, s *wsman.WorkspaceStatus, at time.Time, rules ...status.Rules) *status.Change {
	t.Helper()
	heard, err := statustest.Heard(s, at)
	if err != nil {
		t.Fatal(err)
	}
	var r status.Rules
	if len(rules) > 0 {
		r = rules[0]
	}
	c, err := r.Change(heard)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// fold folds changes of one instance in order.
func fold(changes ...*status.Change) *status.Change {
	for _, c := range changes[1:] {
		changes[0].Fold(c)
	}
	return changes[0]
}

func workspaceOf(id status.InstanceID) string { return "ws-" + id.String() }
func ownerOf(id status.InstanceID) string     { return "owner-" + id.String() }

func nullable(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t
}

func uuidOrNull(id status.InstanceID) any {
	if id == (status.InstanceID{}) {
		return nil
	}
	return [16]byte(id)
}

func encode(t testing.TB, value any) []byte {
	t.Helper()
	encoded, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}

// insert writes rows of the model, each with a workspace of its own.
func (b *bench) insert(rows ...*statustest.Row) {
	b.Helper()
	var batch pgx.Batch
	for _, r := range rows {
		batch.Queue(`INSERT INTO workspace (id, owner_id) VALUES ($1, $2)`, workspaceOf(r.ID), ownerOf(r.ID))
		batch.Queue(`INSERT INTO workspace_instance (id, workspace_id, region, creation_time, status_version, swept, phase,
				deployed_time, started_time, stopping_time, stopped_time, ide_url, status, workspace_image, workspace_class)
			VALUES ($1::uuid, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, 'registry.example.com/workspace-images/' || $1::uuid, 'standard')`,
			[16]byte(r.ID), workspaceOf(r.ID), cluster, r.Created, int64(r.Version), r.Swept, r.Phase,
			nullable(r.Deployed), nullable(r.Started), nullable(r.Stopping), nullable(r.Stopped), pgText(r.IDEURL), encode(b, pgValues(r.Status)))
		if r.Metrics != nil {
			batch.Queue(`INSERT INTO workspace_instance_metrics (instance_id, metrics) VALUES ($1, $2)`, [16]byte(r.ID), encode(b, r.Metrics))
		}
		if p := r.Prebuild; p != nil {
			batch.Queue(`INSERT INTO prebuilt_workspace (id, build_workspace_id, project_id, state, error, snapshot, status_version, instance_id, instance_created)
				VALUES ($1, $2, 'project', $3, $4, $5, $6, $7, $8)`,
				prebuildOf(r.ID), workspaceOf(r.ID), p.State, pgText(p.Error), pgText(p.Snapshot), int64(p.Version),
				uuidOrNull(p.Instance), nullable(p.InstanceCreated))
		}
		for _, name := range r.Tokens {
			batch.Queue(`INSERT INTO gitpod_token (token_hash, user_id, name) VALUES ($1, $2, $3)`, r.ID.String()+name, ownerOf(r.ID), name)
		}
	}
	if err := b.db.SendBatch(context.Background(), &batch).Close(); err != nil {
		b.Fatal(err)
	}
}

// prebuildOf is the id of the prebuild of an instance's workspace.
func prebuildOf(id status.InstanceID) [16]byte {
	id[0] ^= 0xff
	return id
}

// row reads what the database holds of an instance, as a row of the model.
func (b *bench) row(id status.InstanceID) *statustest.Row {
	b.Helper()
	rows := b.rows(id)
	if rows[id] == nil {
		b.Fatalf("there is no row of %s", id)
	}
	return rows[id]
}

// rows reads several at once.
func (b *bench) rows(ids ...status.InstanceID) map[status.InstanceID]*statustest.Row {
	b.Helper()
	ctx := context.Background()
	uuids := make([][16]byte, len(ids))
	for i := range ids {
		uuids[i] = ids[i]
	}
	found, err := b.db.Query(ctx, `
		SELECT i.id, i.creation_time, i.status_version, i.swept, i.phase, i.deployed_time, i.started_time, i.stopping_time, i.stopped_time,
			i.ide_url, i.status, m.metrics,
			p.state, coalesce(p.error, ''), coalesce(p.snapshot, ''), p.status_version, p.instance_id, p.instance_created,
			(SELECT coalesce(array_agg(t.name ORDER BY t.name), '{}') FROM gitpod_token t JOIN workspace w ON w.owner_id = t.user_id WHERE w.id = i.workspace_id),
			coalesce(l.events, '{}')
		FROM workspace_instance i
		LEFT JOIN workspace_instance_metrics m ON m.instance_id = i.id
		LEFT JOIN prebuilt_workspace p ON p.build_workspace_id = i.workspace_id
		LEFT JOIN (
			SELECT event -> 'properties' ->> 'instanceId' AS id, array_agg(event ORDER BY id) AS events
			FROM trestle_lifecycle
			GROUP BY 1
		) l ON l.id = i.id::text
		WHERE i.id = ANY ($1)`, uuids)
	if err != nil {
		b.Fatal(err)
	}
	out := map[status.InstanceID]*statustest.Row{}
	for found.Next() {
		r := &statustest.Row{}
		var version int64
		var deployed, started, stopping, stopped, instanceCreated *time.Time
		var document, metrics []byte
		var state, errText, snapshot *string
		var prebuildVersion *int64
		var instance *[16]byte
		var events [][]byte
		if err := found.Scan((*[16]byte)(&r.ID), &r.Created, &version, &r.Swept, &r.Phase, &deployed, &started, &stopping, &stopped,
			&r.IDEURL, &document, &metrics, &state, &errText, &snapshot, &prebuildVersion, &instance, &instanceCreated,
			&r.Tokens, &events); err != nil {
			b.Fatal(err)
		}
		r.Version = uint64(version)
		r.Deployed, r.Started, r.Stopping, r.Stopped = timeOf(deployed), timeOf(started), timeOf(stopping), timeOf(stopped)
		if r.Status, err = statustest.Decode(document); err != nil {
			b.Fatal(err)
		}
		if metrics != nil {
			if r.Metrics, err = statustest.Decode(metrics); err != nil {
				b.Fatal(err)
			}
		}
		if state != nil {
			r.Prebuild = &statustest.Prebuild{State: *state, Error: *errText, Snapshot: *snapshot, Version: uint64(*prebuildVersion), InstanceCreated: timeOf(instanceCreated)}
			if instance != nil {
				r.Prebuild.Instance = *instance
			}
		}
		for _, encoded := range events {
			var told struct {
				MessageID string    `json:"messageId"`
				Timestamp time.Time `json:"timestamp"`
			}
			if err := json.Unmarshal(encoded, &told); err != nil {
				b.Fatal(err)
			}
			r.Lifecycle = append(r.Lifecycle, statustest.Event{MessageID: told.MessageID, At: told.Timestamp})
		}
		out[r.ID] = r
	}
	if err := found.Err(); err != nil {
		b.Fatal(err)
	}
	return out
}

func timeOf(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

// same fails unless the two rows are the same, in every column.
func (b *bench) same(what string, got, want *statustest.Row) {
	b.Helper()
	if diff := diffOf(b, got, want); diff != "" {
		b.Errorf("%s:\n%s", what, diff)
	}
}

// diffOf compares rows as the database keeps them: its numbers and texts.
func diffOf(t testing.TB, got, want *statustest.Row) string {
	return statustest.Diff(canonical(t, got), canonical(t, want))
}

func canonical(t testing.TB, r *statustest.Row) *statustest.Row {
	t.Helper()
	out := r.Clone()
	numbers := func(document map[string]any) map[string]any {
		if document == nil {
			return nil
		}
		var decoded map[string]any
		if err := json.Unmarshal(encode(t, pgValues(document)), &decoded); err != nil {
			t.Fatal(err)
		}
		return decoded
	}
	out.Status, out.Metrics = numbers(r.Status), numbers(r.Metrics)
	out.IDEURL = pgText(out.IDEURL)
	if p := out.Prebuild; p != nil {
		p.Error, p.Snapshot = pgText(p.Error), pgText(p.Snapshot)
	}
	return out
}

// pgText is a text as a row can hold it.
func pgText(s string) string { return strings.ReplaceAll(s, "\x00", "\uFFFD") }

func pgValues(value any) any {
	switch value := value.(type) {
	case string:
		return pgText(value)
	case map[string]any:
		out := map[string]any{}
		for key := range value {
			out[key] = pgValues(value[key])
		}
		return out
	}
	return value
}
