package pipeline

import (
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/pipeline/trace"
	"github.com/trestle-bridge/trestle/shard"
)

// ignorance is for how long an instance that no row knows is not asked for
// again: its row may be about to be created.
const ignorance = 30 * time.Second

// key names an instance as one intake hears of it. A cluster that speaks of
// another's instances shares nothing with that other.
type key struct {
	instance status.InstanceID
	tag      uint32
}

// memory is what is remembered of an instance of which nothing waits. There are
// very many of them.
type memory struct {
	version    uint64    // the highest heard or stored
	hash       uint64    // of the last one heard; 0 if the row has another, whose version that is
	generation uint32    // the subscription on which the stream spoke of it
	noted      trace.Ref // where in the trace
	kind       kind
	// recalled says that the version is that of the row, and that nothing was
	// heard of the instance yet; unsure that it was, before the fence was raised,
	// and that nothing newer was heard yet: the owner before may have written more.
	recalled, unsure bool
}

// stranger is what is remembered of an instance that no row knows, or that is
// foreign.
type stranger struct {
	until int64 // that is not asked again, in Unix nanoseconds
	noted trace.Ref
}

// entry is an instance of which something waits or is in flight.
type entry struct {
	key
	in     *Intake
	memory // of what was heard last, written or not

	// waiting is what the next batch takes, inFlight what the current one
	// carries. An entry has at least one of them.
	waiting, inFlight *status.Change
	queued            bool
	// listed says that it began with an entry of a snapshot.
	listed bool
	// doubt says that an attempt to write it has failed in a way that leaves
	// open whether it was committed.
	doubt bool

	next *entry // in its queue
}

// queue is a first-in, first-out list of the entries of one intake.
type queue struct {
	head, tail *entry
	length     int
	inRing     bool
}

func (q *queue) push(e *entry) {
	q.length++
	if q.tail == nil {
		q.head = e
	} else {
		q.tail.next = e
	}
	q.tail = e
}

func (q *queue) pushFront(e *entry) {
	q.length++
	e.next = q.head
	q.head = e
	if q.tail == nil {
		q.tail = e
	}
}

func (q *queue) pop() *entry {
	e := q.head
	if e == nil {
		return nil
	}
	q.length--
	q.head, e.next = e.next, nil
	if q.head == nil {
		q.tail = nil
	}
	return e
}

// backlog holds what waits of all instances, and remembers those of which nothing
// waits.
type backlog struct {
	p *Pipeline

	// wake tells the lanes that a batch may begin; size 1, so that wake-ups
	// coalesce and nobody blocks.
	wake chan struct{}

	// mu guards what follows, and the queue of every intake. No I/O and no
	// decoding under it.
	mu      sync.Mutex
	entries map[key]*entry
	// known remembers instances that were written, ignored those that no row
	// knows: apart, so that a flood of the latter does not push out the
	// former.
	known   *simplelru.LRU[key, memory]
	ignored *simplelru.LRU[key, stranger]
	// ring holds the intakes that have something queued. A batch takes from them
	// in turn, so that none waits for another's flood. queued counts what they
	// have.
	ring   []*Intake
	queued int
	// underWay counts the batches that lanes carry, slow those of them that take
	// long, large those that are, and do not take very long. Share is how many
	// large ones there may be.
	underWay, slow, large, share int
	// decided is what is remembered for whoever wonders why.
	decided books
}

func newBacklog(p *Pipeline) (*backlog, error) {
	known, err := simplelru.NewLRU[key, memory](p.cfg.DedupEntries, nil)
	if err != nil {
		return nil, fmt.Errorf("make room to remember %d instances: %w", p.cfg.DedupEntries, err)
	}
	strangers := max(p.cfg.DedupEntries/8, 1)
	ignored, err := simplelru.NewLRU[key, stranger](strangers, nil)
	if err != nil {
		return nil, fmt.Errorf("make room to remember %d unknown instances: %w", strangers, err)
	}
	decided, err := newBooks(p.cfg.TraceBytes)
	if err != nil {
		return nil, err
	}
	return &backlog{
		p:       p,
		share:   p.cfg.Lanes,
		decided: decided,
		wake:    make(chan struct{}, 1),
		entries: make(map[key]*entry),
		known:   known,
		ignored: ignored,
	}, nil
}

// verdict is what becomes of a status before it is decoded.
type verdict uint8

const (
	verdictFresh verdict = iota
	verdictFull
	verdictRepeat
	verdictStale
	verdictUnknown
)

// judge compares a status with what was last heard of its instance.
func (b *backlog) judge(in *Intake, h status.Heard) (verdict, kind) {
	k := key{h.ID, in.tag}
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.entries[k]; e != nil {
		v := e.judge(h, in.generation.Load())
		b.decided.skip(k, &e.noted, v, h)
		return v, e.kind
	}
	if m, ok := b.known.Get(k); ok {
		before := m
		v := m.judge(h, in.generation.Load())
		if v == verdictFresh && b.full(in, h) {
			v = verdictFull
		}
		b.decided.skip(k, &m.noted, v, h)
		if m != before {
			b.known.Add(k, m)
		}
		return v, m.kind
	}
	if s, ok := b.ignored.Get(k); ok && h.At.UnixNano() < s.until {
		b.decided.skip(k, &s.noted, verdictUnknown, h)
		b.ignored.Add(k, s)
		return verdictUnknown, 0
	}
	if b.full(in, h) {
		return verdictFull, 0
	}
	return verdictFresh, 0
}

// full says whether an instance of which nothing waits has to stay outside.
func (b *backlog) full(in *Intake, h status.Heard) bool {
	if h.Snapshot && in.crowded(in.p.cfg.snapshotLimit()) {
		return true
	}
	return in.Waiting() >= b.p.cfg.MaxWaiting || b.p.Waiting() >= b.p.cfg.MaxWaitingTotal && in.Waiting() > 0
}

// judge compares a status with this memory, and notes a repeat's version.
func (m *memory) judge(h status.Heard, generation uint32) verdict {
	spoken := m.generation == generation && generation != 0
	if !h.Snapshot {
		m.generation = generation
	}
	switch {
	case h.Hash == m.hash && !(m.unsure && h.Version > m.version):
		// The row keeps the older version, but what is heard from now on
		// has to be above this one.
		m.version = max(m.version, h.Version)
		return verdictRepeat
	case h.Version == 0 && (m.version > 0 || h.Snapshot && spoken):
		return verdictStale
	case h.Version != 0 && h.Version <= m.version:
		if h.Version == m.version && m.hash == 0 {
			// This is what the row says, so what comes next may repeat it.
			m.hash, m.recalled = h.Hash, m.unsure
		}
		return verdictStale
	}
	return verdictFresh
}

// add joins a decoded change to what waits of its instance. It reports false
// if the change has become superfluous since it was judged.
func (b *backlog) add(in *Intake, h status.Heard, change *status.Change) bool {
	k := key{h.ID, in.tag}
	b.mu.Lock()
	defer b.mu.Unlock()
	if in.stopped.Load() {
		return false
	}
	e := b.entries[k]
	if e == nil {
		e = &entry{key: k, in: in, listed: h.Snapshot}
		if m, ok := b.known.Peek(k); ok {
			e.memory = m
		} else if s, ok := b.ignored.Peek(k); ok {
			e.noted = s.noted
		}
	}
	unheard := e.inFlight == nil && e.waiting == nil && (e.unsure || e.hash == 0 && (e.version == 0 || e.recalled))
	if v := e.judge(h, in.generation.Load()); v != verdictFresh && (!unheard || e.recalled) {
		b.decided.skip(k, &e.noted, v, h)
		return false
	}
	change.First = unheard
	switch {
	case e.waiting == nil:
		e.waiting = change
		if e.inFlight == nil {
			b.entries[k] = e
			in.begins(e)
		}
	case !e.waiting.Fold(change):
		b.decided.skip(k, &e.noted, verdictStale, h)
		return false
	}
	e.version = max(e.version, h.Version)
	e.hash, e.kind, e.recalled, e.unsure = h.Hash, kindOf(change.Kind), false, false
	if !h.Snapshot {
		e.generation = in.generation.Load()
	}
	if !e.queued && e.inFlight == nil {
		b.enqueue(e, false)
	}
	return true
}

// enqueue puts an entry into its intake's queue. The caller holds mu.
func (b *backlog) enqueue(e *entry, front bool) {
	q := &e.in.queue
	e.queued = true
	if front {
		q.pushFront(e)
	} else {
		q.push(e)
	}
	if q.inRing {
		b.queued++
	} else if e.in.fence.Load() != nil {
		b.join(e.in)
	}
	b.wakeLane()
}

// join puts an intake with something queued into the ring. The caller holds
// mu.
func (b *backlog) join(in *Intake) {
	q := &in.queue
	if !q.inRing && q.head != nil {
		q.inRing = true
		b.ring = append(b.ring, in)
		b.queued += q.length
	}
}

// admit lets an intake that has got its fence take part.
func (b *backlog) admit(in *Intake) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.join(in)
	b.wakeLane()
}

// mayBegin says whether a lane may begin a batch. What is heard while another is
// under way goes into the one after it, unless it has become much, or the other
// takes its time: the database is no faster with two small ones side by side. Nor
// with more large ones than it has processors, of all replicas: updates that wait
// fold meanwhile. The caller holds mu.
func (b *backlog) mayBegin() bool {
	if b.large >= b.share {
		return false
	}
	return b.queued >= smallBatch || b.queued > 0 && b.underWay == b.slow
}

// wakeLane wakes a lane that has nothing to do, if a batch may begin. The caller
// holds mu.
func (b *backlog) wakeLane() {
	if b.mayBegin() {
		wakeUp(b.wake)
	}
}

// take gives a lane the entries of its next batch, at most limit, from all
// intakes in turn; none if it may not begin one.
func (b *backlog) take(l *lane, limit int) []*entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.mayBegin() {
		return nil
	}
	batch := make([]*entry, 0, min(b.queued, limit))
	for len(b.ring) > 0 && len(batch) < limit {
		share := max((limit-len(batch))/len(b.ring), 1)
		in := b.ring[0]
		b.ring = b.ring[1:]
		q := &in.queue
		for range share {
			e := q.pop()
			if e == nil {
				break
			}
			e.queued = false
			e.inFlight, e.waiting = e.waiting, nil
			batch = append(batch, e)
			if len(batch) == limit {
				break
			}
		}
		if q.head != nil {
			b.ring = append(b.ring, in)
		} else {
			q.inRing = false
		}
	}
	b.queued -= len(batch)
	b.underWay++
	if l.large = len(batch) >= smallBatch; l.large {
		b.large++
	}
	b.wakeLane()
	return batch
}

// takesLong is called when a lane's attempt has been under way for smallTurn, and
// if it is a large one, for longTurn.
func (b *backlog) takesLong(l *lane) {
	b.mu.Lock()
	defer b.mu.Unlock()
	took := time.Since(l.began)
	if l.began.IsZero() || took < smallTurn {
		return // it has ended since
	}
	if !l.slow {
		l.slow = true
		b.slow++
	}
	switch {
	case !l.large:
	case took < longTurn:
		l.patience.Reset(longTurn - took)
	default:
		l.large = false
		b.large--
	}
	b.wakeLane()
}

// attempts notes that a lane begins an attempt to write its batch.
func (b *backlog) attempts(l *lane) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l.began = time.Now()
	l.patience.Reset(smallTurn)
}

// attemptedSince says since when a lane's attempt has been under way; zero if none
// is.
func (b *backlog) attemptedSince(l *lane) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return l.began
}

// ended says that a lane's batch is under way no more.
func (b *backlog) ended(l *lane) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l.patience.Stop()
	b.underWay--
	if l.slow {
		b.slow--
	}
	if l.large {
		b.large--
	}
	l.began, l.slow, l.large = time.Time{}, false, false
}

// allot says how many large batches there may be under way.
func (b *backlog) allot(share int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.share = share
	b.wakeLane()
}

// release ends the flight of entries. Each is remembered as its outcome says, as
// a stranger if until is not zero, or waits on if more was heard meanwhile.
func (b *backlog) release(entries []*entry, outcome func(i int, e *entry) (after memory, until int64)) {
	b.mu.Lock()
	settled := make(map[*Intake]settlement)
	for i, e := range entries {
		if b.entries[e.key] != e {
			continue // dropped with its intake
		}
		after, until := outcome(i, e)
		e.inFlight, e.doubt = nil, false
		if e.waiting != nil {
			// The last one heard is the one that waits.
			b.enqueue(e, false)
			continue
		}
		delete(b.entries, e.key)
		settled[e.in] = settled[e.in].with(e)
		if until != 0 {
			b.known.Remove(e.key)
			b.ignored.Add(e.key, stranger{until: until, noted: e.noted})
			continue
		}
		b.keep(e, after)
	}
	b.mu.Unlock()
	for in, n := range settled {
		in.settled(n)
	}
}

// keep remembers an instance of which nothing waits any more. The caller holds mu.
func (b *backlog) keep(e *entry, after memory) {
	after.generation, after.kind, after.noted = e.generation, e.kind, e.noted
	if after.hash != 0 {
		after.version = max(after.version, e.version) // of a repeat
	}
	b.ignored.Remove(e.key)
	b.known.Add(e.key, after)
}

// putBack ends the flight of entries that were not written, or of which that
// is not known: they wait again, before all others, folded with what was
// heard meanwhile.
func (b *backlog) putBack(entries []*entry, doubt bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := len(entries) - 1; i >= 0; i-- {
		e := entries[i]
		if b.entries[e.key] != e {
			continue
		}
		if e.waiting != nil {
			e.inFlight.Fold(e.waiting)
		}
		e.waiting, e.inFlight = e.inFlight, nil
		e.doubt = e.doubt || doubt
		b.enqueue(e, true)
	}
}

// remember notes a status that the database refuses.
func (b *backlog) remember(in *Intake, row store.Poison) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.known.Add(key{row.Instance, in.tag}, memory{version: row.Version, hash: row.Hash, kind: kindOf(row.Kind)})
}

// recall notes what the rows are known to have, of instances of which nothing else
// is remembered.
func (b *backlog) recall(in *Intake, rows []store.InstanceVersion, unsure bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, row := range rows {
		k := key{row.ID, in.tag}
		if _, heard := b.entries[k]; !heard && !b.known.Contains(k) {
			b.known.Add(k, memory{version: row.Version, recalled: true, unsure: unsure})
		}
	}
}

// buffered gives the instances of which something waits for the fence that began
// with an entry of a snapshot.
func (b *backlog) buffered(in *Intake) (ids []status.InstanceID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for e := in.queue.head; e != nil; e = e.next {
		if e.listed {
			ids = append(ids, e.instance)
		}
	}
	return ids
}

// shed drops what waits for the fence of instances whose rows have it already, or
// more. But for what a sweep has stopped since the rows were read: that is to come
// back.
func (b *backlog) shed(in *Intake, rows []store.InstanceVersion) {
	stored := make(map[status.InstanceID]uint64, len(rows))
	for _, row := range rows {
		stored[row.ID] = row.Version
	}
	now := time.Now()
	b.mu.Lock()
	for _, id := range in.recalled() {
		delete(stored, id)
	}
	if in.fence.Load() != nil {
		b.mu.Unlock()
		return // it is being written
	}
	var dropped settlement
	waiting := in.queue
	in.queue = queue{}
	for e := waiting.pop(); e != nil; e = waiting.pop() {
		version, known := stored[e.instance]
		change := e.waiting
		if !known || change.Version == 0 || version < change.Version {
			in.queue.push(e)
			continue
		}
		b.noteShed(e, version, now)
		in.metrics.known(true, change.Updates)
		in.metrics.completedChange(change, outcomeSkipped)
		b.p.metrics.stale.Add(float64(change.Updates))
		after := memory{version: version, recalled: true, unsure: true}
		if version == change.Version {
			after.hash = e.hash
		}
		e.waiting, e.queued = nil, false
		delete(b.entries, e.key)
		b.keep(e, after)
		dropped = dropped.with(e)
	}
	b.mu.Unlock()
	in.settled(dropped)
}

// forget drops what is remembered of an instance, not what waits. The trace
// remembers it.
func (b *backlog) forget(in *Intake, id status.InstanceID) {
	k := key{id, in.tag}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ignored.Remove(k)
	if m, ok := b.known.Peek(k); ok {
		b.decided.forget(k, &m)
		b.known.Add(k, m)
	}
	if e := b.entries[k]; e != nil && e.waiting == nil {
		b.decided.forget(k, &e.memory)
	}
}

// drop forgets all that waits in an intake.
func (b *backlog) drop(in *Intake) {
	b.mu.Lock()
	var dropped settlement
	for k, e := range b.entries {
		if k.tag == in.tag {
			delete(b.entries, k)
			e.waiting = nil
			dropped = dropped.with(e)
		}
	}
	if in.queue.inRing {
		b.queued -= in.queue.length
	}
	in.queue = queue{}
	for i, other := range b.ring {
		if other == in {
			b.ring = append(b.ring[:i:i], b.ring[i+1:]...)
			break
		}
	}
	b.mu.Unlock()
	in.settled(dropped)
}

// oldest gives when the update was heard that has waited longest for an intake;
// zero if none waits. It looks at the head of the queue, which
// was the first to be queued.
func (b *backlog) oldest(in *Intake) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	if head := in.queue.head; head != nil && head.waiting != nil {
		return head.waiting.FirstAt
	}
	return time.Time{}
}

// takesPart says whether a shard's entry may still be written.
func (e *entry) fence() (shard.Fence, bool) {
	fence := e.in.fence.Load()
	if fence == nil {
		return shard.Fence{}, false
	}
	return *fence, true
}

// wakeUp tells the owner of a wake channel; it never blocks.
func wakeUp(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

// idleTimer gives a timer that does not run yet, and calls f when it ends.
func idleTimer(f func()) *time.Timer {
	t := time.AfterFunc(time.Hour, f)
	t.Stop()
	return t
}
