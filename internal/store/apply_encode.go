package store

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/shard"
)

// input is a batch as its statement takes it.
type input struct {
	statement statement
	params    [][]byte
	arrays    *entryArrays // the params lie in these
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
	e := s.scratch.take()
	for _, i := range order {
		if err := e.add(i, position[b.Entries[i].Fence], b.Entries[i].Change); err != nil {
			return input{}, err
		}
	}
	if len(b.Entries) <= s.rowByRow && !e.needs.Folded && !e.needs.Prebuilds {
		return s.rowsInput(b, fences, e), nil
	}
	return s.statementInput(b, fences, e), nil
}

// statementInput is for the statement, in the variant that the entries need.
func (s *Store) statementInput(b Batch, fences [][]byte, e *entryArrays) input {
	variant := s.statements[e.needs.variant()]
	return input{statement: variant, arrays: e, params: append(s.params(b, fences, e), e.partParams(variant.parts)...)}
}

// rowsInput is for the function that writes row by row.
func (s *Store) rowsInput(b Batch, fences [][]byte, e *entryArrays) input {
	lifecycle := byte(0)
	if s.lifecycle {
		lifecycle = 1
	}
	return input{
		statement: applyRows, arrays: e,
		params: append(s.params(b, fences, e), []byte{lifecycle}),
	}
}

// params are those that both have.
func (s *Store) params(b Batch, fences [][]byte, e *entryArrays) [][]byte {
	params := append(fences, e.params()...)
	params = append(params, e.spoken, []byte(s.installation),
		binary.BigEndian.AppendUint32(nil, uint32(b.Lane)), binary.BigEndian.AppendUint64(nil, uint64(b.Seq)))
	params = append(params, encodeRefs(b.Published)...)
	return append(params, e.hash.param(), e.first.param(), e.metrics.param(), e.measured.param())
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

// entryArrays are the columns of the changes. They are used again by later
// batches: made anew for each, they would be most of what a batch allocates.
type entryArrays struct {
	needs  applyParts
	spoken []byte
	rungs  []status.Step // of the change that is being added

	position, fence, id, version, ideURL, document array
	phase, cleared, failed, kept                   array
	deployedAt, runningAt, stoppingAt, stoppedAt   array
	hash, first, metrics, measured                 array
	// Of the parts.
	rung, revived, openStopAt, laterStopAt, further array
	steps                                           array
}

func newEntryArrays() *entryArrays {
	times := func() array { return newArray(oidTimestamptz, 1, 8) }
	return &entryArrays{
		spoken:   spokenConditions(),
		position: newArray(oidInt4, 1, 4), fence: newArray(oidInt4, 1, 4), id: newArray(oidUUID, 1, 16),
		version: newArray(oidInt8, 1, 8), ideURL: newArray(oidText, 1, 64), document: newArray(oidJSONB, 1, 1024),
		phase: newArray(oidText, 1, 12), cleared: newArray(oidBool, 1, 1), failed: newArray(oidText, 1, 0), kept: newArray(oidJSONB, 1, 160),
		deployedAt: times(), runningAt: times(), stoppingAt: times(), stoppedAt: times(),
		hash: newArray(oidInt8, 1, 8), first: newArray(oidBool, 1, 1),
		rung: newArray(oidInt8, 1, 8), revived: newArray(oidBool, 1, 1), openStopAt: times(), laterStopAt: times(), further: newArray(oidText, 1, 0),
		metrics: newArray(oidText, 1, 64), measured: newArray(oidInt8, 1, 8),
		steps: newArray(oidJSONB, 1, 0),
	}
}

func (e *entryArrays) all() [24]*array {
	return [...]*array{
		&e.position, &e.fence, &e.id, &e.version, &e.ideURL, &e.document, &e.phase, &e.cleared, &e.failed, &e.kept,
		&e.deployedAt, &e.runningAt, &e.stoppingAt, &e.stoppedAt, &e.hash, &e.first,
		&e.rung, &e.revived, &e.openStopAt, &e.laterStopAt, &e.further, &e.metrics, &e.measured, &e.steps,
	}
}

func (e *entryArrays) reset() {
	e.needs = applyParts{}
	for _, a := range e.all() {
		a.reset()
	}
}

// scratch keeps the arrays of batches that are done, for later ones. Those of a
// sync.Pool are not found by a goroutine that has changed its processor, and are
// lost with every second collection.
type scratch chan *entryArrays

// mostScratch is how many are kept: more lanes than that are hardly ever of use.
const mostScratch = 4

// take gives arrays that are empty.
func (s scratch) take() *entryArrays {
	select {
	case e := <-s:
		e.reset()
		return e
	default:
		return newEntryArrays()
	}
}

// give takes arrays back that nobody uses any more. It does not keep what was
// unusually large.
func (s scratch) give(e *entryArrays) {
	size := 0
	for _, a := range e.all() {
		size += cap(a.buf)
	}
	if size > mostRoom {
		return
	}
	select {
	case s <- e:
	default:
	}
}

func (e *entryArrays) add(position int, fence int32, c *status.Change) error {
	rungs := c.AppendRungs(e.rungs[:0])
	e.rungs = rungs
	first := rungs[0]
	kept := first.Kept()
	metrics, measured := encodeMetrics(first.Metrics)

	e.position.int4(int32(position))
	e.fence.int4(fence)
	e.id.uuid(c.ID)
	e.version.int8(toStored(c.Version))
	e.ideURL.text(c.IDEURL)
	begun := e.document.beginJSONB()
	e.document.buf = appendWhole(e.document.buf, c, first.Phase)
	e.document.end(begun)
	e.phase.textOrNull(string(first.Phase))
	e.cleared.bool(first.Cleared)
	e.failed.textOrNull(first.Failed)
	e.kept.jsonb(kept)
	e.deployedAt.time(first.DeployedAt)
	e.runningAt.time(first.RunningAt)
	e.stoppingAt.time(first.StoppingAt)
	e.stoppedAt.time(first.StoppedAt)
	e.hash.int8(int64(c.Hash))
	e.first.bool(c.First && c.Updates == 1)

	// What one update alone does can do without these.
	if len(rungs) > 1 || first.Revived || !first.LaterStopAt.IsZero() || !first.OpenStopAt.Equal(first.StoppedAt) {
		e.needs.Folded = true
	}
	e.rung.int8(toStored(first.Version))
	e.revived.bool(first.Revived)
	e.openStopAt.time(first.OpenStopAt)
	e.laterStopAt.time(first.LaterStopAt)
	if len(rungs) > 1 {
		begun := e.further.begin()
		e.further.buf = appendRungs(e.further.buf, rungs, kept, metrics, measured)
		e.further.end(begun)
	} else {
		e.further.null()
	}

	if metrics == nil {
		e.metrics.null()
		e.measured.null() // the row keeps what it was told
	} else {
		e.metrics.bytes(metrics)
		e.measured.int8(measured)
	}

	var steps []byte
	if said := c.PrebuildSteps(); len(said) > 0 {
		var err error
		if steps, err = json.Marshal(said); err != nil {
			return fmt.Errorf("encode the prebuild of %s: %w", c.ID, err)
		}
		e.needs.Prebuilds = true
	}
	e.steps.jsonb(steps)

	for i := range rungs {
		e.needs.Stops = e.needs.Stops || !rungs[i].OpenStopAt.IsZero() || !rungs[i].LaterStopAt.IsZero()
	}
	return nil
}

// appendWhole appends the document of a change with its phase and conditions:
// all of what most rows take over as it is.
func appendWhole(b []byte, c *status.Change, phase status.Phase) []byte {
	b = append(b, c.Document[:len(c.Document)-1]...) // without the last brace
	if phase != "" {
		b = append(b, `,"phase":"`...)
		b = append(b, phase...)
		b = append(b, '"')
	}
	b = append(b, `,"conditions":`...)
	b = append(b, c.Conditions...)
	return append(b, '}')
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

func (e *entryArrays) partParams(parts applyParts) (params [][]byte) {
	if parts.Folded {
		params = append(params, e.rung.param(), e.revived.param(), e.openStopAt.param(), e.laterStopAt.param(), e.further.param())
	}
	if parts.Prebuilds {
		params = append(params, e.steps.param())
	}
	return params
}

// appendRungs appends the rungs beyond the first, as apply.sql reads them. kept
// and metrics are those of the first one: mostly all rungs have the same.
func appendRungs(b []byte, rungs []status.Step, kept, metrics []byte, measured int64) []byte {
	for i := 1; i < len(rungs); i++ {
		rung, before := &rungs[i], &rungs[i-1]
		if rung.NodeName != before.NodeName || rung.PodName != before.PodName || rung.NodeIP != before.NodeIP || rung.Image != before.Image {
			kept = rung.Kept()
		}
		if rung.Metrics != before.Metrics {
			metrics, measured = encodeMetrics(rung.Metrics)
		}
		if i == 1 {
			b = append(b, '[')
		} else {
			b = append(b, ',')
		}
		b = strconv.AppendInt(append(b, `{"version":`...), toStored(rung.Version), 10)
		b = strconv.AppendBool(append(b, `,"cleared":`...), rung.Cleared)
		b = strconv.AppendBool(append(b, `,"revived":`...), rung.Revived)
		if rung.Phase != "" {
			b = append(append(b, `,"phase":"`...), rung.Phase...)
			b = append(b, '"')
		}
		if rung.Failed != "" {
			b = append(append(b, `,"failed":`...), asJSON(rung.Failed)...)
		}
		if kept != nil {
			b = append(append(b, `,"kept":`...), kept...)
		}
		if metrics != nil {
			b = append(append(b, `,"metrics":`...), metrics...)
			b = strconv.AppendInt(append(b, `,"measured":`...), measured, 10)
		}
		b = appendTime(b, "deployed_at", rung.DeployedAt)
		b = appendTime(b, "running_at", rung.RunningAt)
		b = appendTime(b, "stopping_at", rung.StoppingAt)
		b = appendTime(b, "stopped_at", rung.StoppedAt)
		b = appendTime(b, "open_stop_at", rung.OpenStopAt)
		b = appendTime(b, "later_stop_at", rung.LaterStopAt)
		b = append(b, '}')
	}
	return append(b, ']')
}

// asJSON gives a text as JSON.
func asJSON(text string) []byte {
	encoded, err := json.Marshal(text)
	if err != nil {
		panic("store: a text has no JSON form: " + err.Error())
	}
	return encoded
}

// appendTime appends a member of an object, unless the time is zero.
func appendTime(b []byte, name string, t time.Time) []byte {
	if t.IsZero() {
		return b
	}
	b = append(append(append(b, `,"`...), name...), `":"`...)
	return append(micros(t).UTC().AppendFormat(b, time.RFC3339Nano), '"')
}

// micros cuts a time to what the database keeps. The database would round it.
func micros(t time.Time) time.Time { return t.Truncate(time.Microsecond) }
