package store

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/shard"
)

// Apply writes a batch in one round trip and one commit.
//
// An entry whose fence is not held is Refused; the others are written. On an
// error nothing was written, unless the connection broke before the answer:
// the same entries may come again, under a new Seq. RowFault says whether it
// is the fault of an entry.
//
// It waits for the locks of others who write the same rows, within the
// statement timeout.
func (s *Store) Apply(ctx context.Context, b Batch) (commit Commit, err error) {
	defer s.metrics.done("apply", time.Now(), &err)
	if len(b.Entries) == 0 && len(b.Published) == 0 {
		return Commit{}, nil
	}
	in, err := s.encodeBatch(b)
	if err != nil {
		return Commit{}, err
	}
	results, err := s.execute(ctx, in, len(b.Entries))
	if isOutdated(err) {
		results, err = s.execute(ctx, in, len(b.Entries))
	}
	if err != nil {
		return Commit{}, fmt.Errorf("write %d changes: %w", len(b.Entries), err)
	}
	commit = Commit{Results: results, Outbox: b.told(results)}
	for _, result := range results {
		if s.lifecycle && result.Started {
			commit.Lifecycle++
		}
		if s.lifecycle && result.Stopped {
			commit.Lifecycle++
		}
	}
	return commit, nil
}

func (s *Store) execute(ctx context.Context, in input, entries int) ([]Result, error) {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	defer conn.Release()
	st := in.statement
	prepared, err := conn.Conn().Prepare(ctx, st.name, st.sql)
	if err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	formats := []int16{1} // binary, for all
	reader := conn.Conn().PgConn().ExecStatement(ctx, prepared, in.params, formats, formats)
	results := make([]Result, entries)
	var malformed error
	for reader.NextRow() {
		if malformed == nil {
			malformed = readResult(results, fields(reader.Values()), in.parts.Prebuilds)
		}
	}
	// Only the end of the answer says that the commit is made.
	if _, err := reader.Close(); err != nil {
		if isOutdated(err) {
			_ = conn.Conn().Close(ctx) // the answer is the first error
		}
		return nil, err
	}
	if malformed != nil {
		return nil, malformed
	}
	for i, result := range results {
		if result.Outcome == 0 {
			return nil, fmt.Errorf("no outcome came back for change %d of %d", i+1, entries)
		}
	}
	return results, nil
}

// isOutdated says whether the database no longer has, or takes, a statement
// that the connection has prepared. It says so before anything is done; another
// connection prepares it anew.
func isOutdated(err error) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && (refused.Code == "26000" || refused.Code == "0A000")
}

// input is a batch as its statement takes it.
type input struct {
	statement statement
	parts     applyParts
	params    [][]byte
}

func (s *Store) encodeBatch(b Batch) (input, error) {
	order := make([]int, len(b.Entries))
	for i := range order {
		order[i] = i
	}
	// Locks are taken in this order, so it is the same for everybody.
	slices.SortFunc(order, func(i, j int) int {
		return bytes.Compare(b.Entries[i].Change.ID[:], b.Entries[j].Change.ID[:])
	})
	for k, i := range order {
		entry := b.Entries[i]
		if entry.Fence < 0 || entry.Fence >= len(b.Fences) {
			return input{}, fmt.Errorf("the change of %s claims fence %d of %d", entry.Change.ID, entry.Fence, len(b.Fences))
		}
		if k > 0 && entry.Change.ID == b.Entries[order[k-1]].Change.ID {
			return input{}, fmt.Errorf("the batch changes %s twice", entry.Change.ID)
		}
	}

	fences, position := encodeFences(b.Fences)
	e := newEntryArrays(len(b.Entries))
	for _, i := range order {
		if err := e.add(i, position[b.Entries[i].Fence], b.Entries[i].Change); err != nil {
			return input{}, err
		}
	}
	e.parts.Lifecycle = s.lifecycle
	params := append(fences, e.params()...)
	params = append(params, spokenConditions(), []byte(s.installation),
		binary.BigEndian.AppendUint32(nil, uint32(b.Lane)), binary.BigEndian.AppendUint64(nil, uint64(b.Seq)))
	params = append(params, encodeRefs(b.Published)...)
	params = append(params, e.hash.param(), e.first.param())
	if len(b.Entries) <= s.rowByRow && !e.parts.Folded && !e.parts.Prebuilds {
		lifecycle := byte(0)
		if s.lifecycle {
			lifecycle = 1
		}
		return input{statement: applyRows, params: append(params, e.metrics.param(), e.measured.param(), []byte{lifecycle})}, nil
	}
	return input{statement: s.statements[e.parts.index()], parts: e.parts, params: append(params, e.partParams()...)}, nil
}

// encodeFences gives the parameters, and where among them, from 1, each of the
// fences is. They are in the order of their shards, that of locking.
func encodeFences(fences []shard.Fence) (params [][]byte, position []int32) {
	names := make([]string, len(fences))
	order := make([]int, len(fences))
	for i, fence := range fences {
		names[i], order[i] = fence.Shard.String(), i
	}
	slices.SortFunc(order, func(i, j int) int { return cmp.Compare(names[i], names[j]) })
	shards, epochs := newArray(oidText, len(fences), 16), newArray(oidInt8, len(fences), 8)
	owners, clusters := newArray(oidText, len(fences), 32), newArray(oidText, len(fences), 16)
	position = make([]int32, len(fences))
	for k, i := range order {
		position[i] = int32(k + 1)
		shards.text(names[i])
		epochs.int8(int64(fences[i].Epoch))
		owners.text(fences[i].Owner)
		clusters.text(fences[i].Shard.Cluster)
	}
	return [][]byte{shards.param(), epochs.param(), owners.param(), clusters.param()}, position
}

func encodeRefs(refs []OutboxRef) [][]byte {
	shards, owners := newArray(oidText, len(refs), 16), newArray(oidText, len(refs), 32)
	epochs, seqs := newArray(oidInt8, len(refs), 8), newArray(oidInt8, len(refs), 8)
	lanes := newArray(oidInt4, len(refs), 4)
	for _, ref := range sortedRefs(refs) {
		shards.text(ref.Shard.String())
		epochs.int8(int64(ref.Epoch))
		seqs.int8(ref.Seq)
		lanes.int4(int32(ref.Lane))
		owners.text(ref.Owner)
	}
	return [][]byte{shards.param(), epochs.param(), seqs.param(), lanes.param(), owners.param()}
}

func spokenConditions() []byte {
	keys := status.SpokenConditions()
	a := newArray(oidText, len(keys), 16)
	for _, key := range keys {
		a.text(key)
	}
	return a.param()
}

// entryArrays are the columns of the changes.
type entryArrays struct {
	parts applyParts

	position, fence, id, version, ideURL, document array
	phase, cleared, failed, kept                   array
	deployedAt, runningAt, stoppingAt, stoppedAt   array
	hash, first                                    array
	// Of the parts.
	rung, revived, openStopAt, laterStopAt, further array
	metrics, measured                               array
	steps                                           array
}

func newEntryArrays(n int) *entryArrays {
	times := func() array { return newArray(oidTimestamptz, n, 8) }
	return &entryArrays{
		position: newArray(oidInt4, n, 4), fence: newArray(oidInt4, n, 4), id: newArray(oidUUID, n, 16),
		version: newArray(oidInt8, n, 8), ideURL: newArray(oidText, n, 64), document: newArray(oidJSONB, n, 640),
		phase: newArray(oidText, n, 12), cleared: newArray(oidBool, n, 1), failed: newArray(oidText, n, 0), kept: newArray(oidJSONB, n, 160),
		deployedAt: times(), runningAt: times(), stoppingAt: times(), stoppedAt: times(),
		hash: newArray(oidInt8, n, 8), first: newArray(oidBool, n, 1),
		rung: newArray(oidInt8, n, 8), revived: newArray(oidBool, n, 1), openStopAt: times(), laterStopAt: times(), further: newArray(oidJSONB, n, 0),
		metrics: newArray(oidText, n, 64), measured: newArray(oidInt8, n, 8),
		steps: newArray(oidJSONB, n, 0),
	}
}

func (e *entryArrays) add(position int, fence int32, c *status.Change) error {
	rungs := c.Rungs()
	first := rungs[0]

	e.position.int4(int32(position))
	e.fence.int4(fence)
	e.id.uuid(c.ID)
	e.version.int8(toStored(c.Version))
	e.ideURL.text(c.IDEURL)
	e.document.jsonb(wholeDocument(c, first.Phase))
	e.phase.textOrNull(string(first.Phase))
	e.cleared.bool(first.Cleared)
	e.failed.textOrNull(first.Failed)
	e.kept.jsonb(first.Kept())
	e.deployedAt.time(first.DeployedAt)
	e.runningAt.time(first.RunningAt)
	e.stoppingAt.time(first.StoppingAt)
	e.stoppedAt.time(first.StoppedAt)
	e.hash.int8(int64(c.Hash))
	e.first.bool(c.First && len(rungs) == 1)

	var further []byte
	if len(rungs) > 1 {
		var err error
		if further, err = encodeRungs(rungs[1:]); err != nil {
			return fmt.Errorf("encode the change of %s: %w", c.ID, err)
		}
	}
	// What one update alone does can do without these.
	if further != nil || first.Revived || !first.LaterStopAt.IsZero() || !first.OpenStopAt.Equal(first.StoppedAt) {
		e.parts.Folded = true
	}
	e.rung.int8(toStored(first.Version))
	e.revived.bool(first.Revived)
	e.openStopAt.time(first.OpenStopAt)
	e.laterStopAt.time(first.LaterStopAt)
	e.further.jsonb(further)

	metrics, measured := encodeMetrics(first.Metrics)
	e.metrics.textOrNull(string(metrics))
	if metrics == nil {
		e.measured.null() // the row keeps what it was told
	} else {
		e.measured.int8(measured)
	}

	var steps []byte
	if said := c.PrebuildSteps(); len(said) > 0 {
		var err error
		if steps, err = json.Marshal(said); err != nil {
			return fmt.Errorf("encode the prebuild of %s: %w", c.ID, err)
		}
		e.parts.Prebuilds = true
	}
	e.steps.jsonb(steps)

	for _, rung := range rungs {
		e.parts.Stops = e.parts.Stops || !rung.OpenStopAt.IsZero() || !rung.LaterStopAt.IsZero()
		e.parts.Metrics = e.parts.Metrics || rung.Metrics != status.Metrics{}
	}
	return nil
}

// wholeDocument is the document of a change with its phase and conditions: all
// of what most rows take over as it is.
func wholeDocument(c *status.Change, phase status.Phase) []byte {
	whole := make([]byte, 0, len(c.Document)+len(c.Conditions)+len(phase)+32)
	whole = append(whole, c.Document[:len(c.Document)-1]...) // without the last brace
	if phase != "" {
		whole = append(whole, `,"phase":"`...)
		whole = append(whole, phase...)
		whole = append(whole, '"')
	}
	whole = append(whole, `,"conditions":`...)
	whole = append(whole, c.Conditions...)
	return append(whole, '}')
}

// encodeMetrics gives metrics as JSON, nil if there are none, and a hash of
// them that is not 0.
func encodeMetrics(m status.Metrics) (encoded []byte, hash int64) {
	encoded = m.JSON()
	if encoded == nil {
		return nil, 0
	}
	return encoded, int64(xxhash.Sum64(encoded) | 1)
}

func (e *entryArrays) params() [][]byte {
	return [][]byte{
		e.position.param(), e.fence.param(), e.id.param(), e.version.param(), e.ideURL.param(), e.document.param(),
		e.phase.param(), e.cleared.param(), e.failed.param(), e.kept.param(),
		e.deployedAt.param(), e.runningAt.param(), e.stoppingAt.param(), e.stoppedAt.param(),
	}
}

func (e *entryArrays) partParams() (params [][]byte) {
	if e.parts.Folded {
		params = append(params, e.rung.param(), e.revived.param(), e.openStopAt.param(), e.laterStopAt.param(), e.further.param())
	}
	if e.parts.Metrics {
		params = append(params, e.metrics.param(), e.measured.param())
	}
	if e.parts.Prebuilds {
		params = append(params, e.steps.param())
	}
	return params
}

// rungJSON is a rung beyond the first, as apply.sql reads it.
type rungJSON struct {
	Version     uint64          `json:"version"`
	Phase       status.Phase    `json:"phase,omitempty"`
	Cleared     bool            `json:"cleared"`
	Revived     bool            `json:"revived"`
	Failed      string          `json:"failed,omitempty"`
	Kept        json.RawMessage `json:"kept,omitempty"`
	Metrics     json.RawMessage `json:"metrics,omitempty"`
	Measured    int64           `json:"measured,omitempty"`
	DeployedAt  time.Time       `json:"deployed_at,omitzero"`
	RunningAt   time.Time       `json:"running_at,omitzero"`
	StoppingAt  time.Time       `json:"stopping_at,omitzero"`
	StoppedAt   time.Time       `json:"stopped_at,omitzero"`
	OpenStopAt  time.Time       `json:"open_stop_at,omitzero"`
	LaterStopAt time.Time       `json:"later_stop_at,omitzero"`
}

func encodeRungs(rungs []status.Step) ([]byte, error) {
	out := make([]rungJSON, len(rungs))
	for i, rung := range rungs {
		metrics, measured := encodeMetrics(rung.Metrics)
		out[i] = rungJSON{
			Version: rung.Version, Phase: rung.Phase, Cleared: rung.Cleared, Revived: rung.Revived, Failed: rung.Failed,
			Kept: rung.Kept(), Metrics: metrics, Measured: measured,
			DeployedAt: micros(rung.DeployedAt), RunningAt: micros(rung.RunningAt), StoppingAt: micros(rung.StoppingAt),
			StoppedAt: micros(rung.StoppedAt), OpenStopAt: micros(rung.OpenStopAt), LaterStopAt: micros(rung.LaterStopAt),
		}
	}
	return json.Marshal(out)
}

// micros cuts a time to what the database keeps. The database would round it.
func micros(t time.Time) time.Time { return t.Truncate(time.Microsecond) }

// readResult reads one row of the answer. With prebuilds, a change has a second
// row if it spoke of one.
func readResult(results []Result, row fields, prebuilds bool) error {
	position := int(row.int4())
	if position < 0 || position >= len(results) {
		return fmt.Errorf("an outcome came back for change %d of %d", position+1, len(results))
	}
	outcome := Outcome(row.int4())
	if outcome == 0 {
		results[position].Prebuild = readPrebuild(row)
		return nil
	}
	r := Result{Outcome: outcome, Stored: fromStored(row.int8())}
	r.OwnerID, r.WorkspaceID, r.Region = row.text(), row.text(), row.text()
	r.Started, r.Stopped, r.Revived = row.bool(), row.bool(), row.bool()
	r.FailedKept, r.StoppingIgnored = row.bool(), row.bool()
	r.CreatedAt, r.StartedAt = row.time(), row.time()
	if activity := row.text(); activity != "" {
		at, err := time.Parse(time.RFC3339, activity)
		r.FirstActivity, r.FirstActivityAt = err == nil, at
	}
	r.NeededImageBuild = row.bool()
	r.Prebuild = results[position].Prebuild
	results[position] = r
	return nil
}

func readPrebuild(row fields) *PrebuildResult {
	row.int8()
	row.text()
	workspace := row.text()
	row = row[10:]
	out := &PrebuildResult{Outcome: PrebuildOutcome(row.int4())}
	out.Prebuild = event.Prebuild{WorkspaceID: workspace, Status: row.text()}
	if id := row.uuid(); id != (status.InstanceID{}) {
		out.PrebuildID = id.String()
	}
	out.ProjectID, out.OrganizationID = row.text(), row.text()
	out.Headless = row.text()
	out.Completed = row.bool()
	return out
}
