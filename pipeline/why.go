package pipeline

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/pipeline/trace"
	"github.com/trestle-bridge/trestle/shard"
)

// books hold what is remembered of decisions, guarded by the backlog's mutex. Instances that no row knows, or that are another cluster's, have a
// book of their own: there may be many more of them than of ours.
type books struct{ ours, others *trace.Book }

// Marks of a reference.
const (
	fromOthers trace.Ref = 1 << 31 // it is into the book of the others
	isForeign  trace.Ref = 1 << 30 // and the instance has a row, of another cluster
)

func newBooks(bytes int) (b books, err error) {
	if b.ours, err = trace.New(bytes * 8 / 9); err != nil {
		return b, err
	}
	b.others, err = trace.New(bytes / 9)
	return b, err
}

// at is the book for a decision, and where in it the instance was noted last.
func (b *books) at(noted trace.Ref, d trace.Decision) (book *trace.Book, ref, mark trace.Ref) {
	book = b.ours
	switch d {
	case trace.Unknown:
		book, mark = b.others, fromOthers
	case trace.Foreign:
		book, mark = b.others, fromOthers|isForeign
	}
	if (noted^mark)&fromOthers == 0 {
		ref = noted &^ (fromOthers | isForeign)
	}
	return book, ref, mark
}

// skip notes what became of a status that never reaches the store. Of one that
// goes on it says nothing yet.
func (b *books) skip(k key, noted *trace.Ref, v verdict, h status.Heard) {
	var d trace.Decision
	switch v {
	case verdictRepeat:
		d = trace.Repeat
	case verdictStale:
		d = trace.Stale
	case verdictUnknown:
		d = trace.Unknown
		if *noted&isForeign != 0 {
			d = trace.Foreign
		}
	default:
		return
	}
	book, ref, mark := b.at(*noted, d)
	*noted = book.Skip(ref, trace.Key{Instance: k.instance, Term: k.tag}, d, h.Version, h.At) | mark
}

func (b *books) put(k key, noted *trace.Ref, n trace.Note) {
	book, ref, mark := b.at(*noted, n.Decision)
	*noted = book.Put(ref, trace.Key{Instance: k.instance, Term: k.tag}, n) | mark
}

// forget leaves of what is remembered only where it was noted.
func (b *books) forget(k key, m *memory) {
	b.put(k, &m.noted, trace.Note{Decision: trace.Forgotten, Version: m.version, At: time.Now()})
	*m = memory{noted: m.noted}
}

// noteCommit notes what a commit has made of entries.
func (b *backlog) noteCommit(entries []*entry, results []store.Result) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, e := range entries {
		change, result := e.inFlight, results[i]
		n := trace.Note{Version: change.Version, Updates: change.Updates, Phase: change.Phase(), At: now}
		switch result.Outcome {
		case store.Applied:
			n.Decision = trace.Applied
		case store.Unchanged:
			n.Decision, n.Stored, n.KnowsStored = trace.Unchanged, result.Stored, true
		case store.Stale:
			n.Decision, n.Stored, n.KnowsStored = trace.Stale, result.Stored, true
			if e.doubt && result.Stored == change.Version {
				n.Decision = trace.Applied // by an attempt that seemed to fail
			}
		case store.Unknown:
			n.Decision = trace.Unknown
		case store.Foreign:
			n.Decision = trace.Foreign
		case store.Refused:
			n.Decision = trace.Fenced
		}
		b.decided.put(e.key, &e.noted, n)
	}
}

// noteShed notes that the row has what waits of an entry. The caller holds mu.
func (b *backlog) noteShed(e *entry, stored uint64, now time.Time) {
	change := e.waiting
	b.decided.put(e.key, &e.noted, trace.Note{
		Decision: trace.Stale, Version: change.Version, Updates: change.Updates, Phase: change.Phase(), At: now,
		Stored: stored, KnowsStored: true,
	})
}

// noteQuarantined notes that so many of the updates of a change are not written.
func (b *backlog) noteQuarantined(e *entry, refused *status.Change, updates int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.decided.put(e.key, &e.noted, trace.Note{
		Decision: trace.Quarantined, Version: refused.Version, Updates: updates, Phase: refused.Phase(), At: time.Now(),
	})
}

// noteInvalid notes a status that could not be decoded.
func (b *backlog) noteInvalid(in *Intake, h status.Heard) {
	k := key{h.ID, in.tag}
	b.mu.Lock()
	defer b.mu.Unlock()
	n := trace.Note{Decision: trace.Invalid, Version: h.Version, At: h.At}
	if e := b.entries[k]; e != nil {
		b.decided.put(k, &e.noted, n)
	} else if m, ok := b.known.Peek(k); ok {
		b.decided.put(k, &m.noted, n)
		b.known.Add(k, m)
	}
	// One that nothing is known of may be anybody's; the log has it.
}

// noteFenced notes of what waits in an intake that it is left to another owner.
func (b *backlog) noteFenced(in *Intake) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	for k, e := range b.entries {
		if k.tag == in.tag && e.waiting != nil {
			b.decided.put(k, &e.noted, trace.Note{
				Decision: trace.Fenced, Version: e.waiting.Version, Updates: e.waiting.Updates, Phase: e.waiting.Phase(), At: now,
			})
		}
	}
}

// terms are those of ownership, by the tag of their intake. Of those that are
// over, some of the last are remembered, as the trace may speak of them.
type terms struct {
	byTag map[uint32]*Intake
	past  []pastTerm
}

type pastTerm struct {
	tag   uint32
	shard shard.ID
	epoch shard.Epoch
}

const pastTerms = 1024

func (t *terms) begin(in *Intake) {
	if t.byTag == nil {
		t.byTag = make(map[uint32]*Intake)
	}
	t.byTag[in.tag] = in
}

func (t *terms) end(in *Intake) {
	delete(t.byTag, in.tag)
	t.past = append(t.past, pastTerm{in.tag, in.id, in.epoch()})
	if len(t.past) >= 2*pastTerms {
		t.past = slices.Clone(t.past[len(t.past)-pastTerms:])
	}
}

// of gives the shard and epoch of a term, the latter 0 if nothing was written
// in it.
func (t *terms) of(tag uint32) (id shard.ID, epoch shard.Epoch, known bool) {
	if in := t.byTag[tag]; in != nil {
		return in.id, in.epoch(), true
	}
	at, found := slices.BinarySearchFunc(t.past, tag, func(p pastTerm, tag uint32) int { return int(p.tag) - int(tag) })
	if !found {
		// They end in another order than that in which they began.
		if at = slices.IndexFunc(t.past, func(p pastTerm) bool { return p.tag == tag }); at < 0 {
			return shard.ID{}, 0, false
		}
	}
	return t.past[at].shard, t.past[at].epoch, true
}

// epoch is the one of the intake's fence, 0 before it has one.
func (in *Intake) epoch() shard.Epoch {
	if fence := in.fence.Load(); fence != nil {
		return fence.Epoch
	}
	return 0
}

// Decided is what became of an update of an instance, or of several in a row.
type Decided struct {
	trace.Entry
	Shard shard.ID
	// Epoch is that of the term, 0 if it had none: nothing was written then.
	Epoch shard.Epoch
}

// Undecided is what waits of an instance.
type Undecided struct {
	Shard shard.ID
	Epoch shard.Epoch
	// Version is that of the last of so many Updates, Since when the first of
	// them was heard.
	Version uint64
	Updates int
	Since   time.Time
	Phase   status.Phase
	// InFlight says that a batch under way carries them.
	InFlight bool
}

// readPages is how many pages of a book are read before others have their turn.
const readPages = 4096

// Why tells what was decided of an instance's last updates, oldest first, and
// what waits of it.
func (p *Pipeline) Why(id status.InstanceID) ([]Decided, []Undecided) {
	b := p.backlog
	var entries []trace.Entry
	for _, book := range []*trace.Book{b.decided.ours, b.decided.others} {
		for from, more := 0, true; more; more = from > 0 {
			var some []trace.Entry
			b.mu.Lock()
			some, from = book.Read(id, from, readPages)
			b.mu.Unlock()
			entries = append(entries, some...)
		}
	}
	trace.Sort(entries)
	var decided []Decided
	p.mu.Lock()
	for _, e := range entries {
		if s, epoch, known := p.terms.of(e.Term); known {
			decided = append(decided, Decided{e, s, epoch})
		}
	}
	p.mu.Unlock()
	var undecided []Undecided
	for _, in := range p.snapshotIntakes() {
		undecided = append(undecided, b.undecided(in, id)...)
	}
	slices.SortFunc(undecided, func(a, b Undecided) int { return a.Since.Compare(b.Since) })
	return decided, undecided
}

func (b *backlog) undecided(in *Intake, id status.InstanceID) (waiting []Undecided) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[key{id, in.tag}]
	if e == nil {
		return nil
	}
	for _, c := range []*status.Change{e.inFlight, e.waiting} {
		if c != nil {
			waiting = append(waiting, Undecided{
				Shard: in.id, Epoch: in.epoch(), Version: c.Version, Updates: c.Updates, Since: c.FirstAt, Phase: c.Phase(),
				InFlight: c == e.inFlight,
			})
		}
	}
	return waiting
}

// ErrCannotRetry is wrapped by the error of a retry that has changed nothing: the
// shard is not owned by who was asked, or its cluster is not heard.
var ErrCannotRetry = errors.New("it cannot be tried again here")

// Retry makes the intake forget what it has heard of an instance, so that the
// same status is written when it is heard again, even if the database has
// refused it. The trace says that it did.
func (in *Intake) Retry(id status.InstanceID) {
	b := in.p.backlog
	k := key{id, in.tag}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ignored.Remove(k)
	if e := b.entries[k]; e != nil {
		// What waits, or is under way, is tried anyway.
		b.decided.put(k, &e.noted, trace.Note{Decision: trace.Forgotten, Version: e.version, At: time.Now()})
		return
	}
	m, _ := b.known.Peek(k)
	b.decided.forget(k, &m)
	b.known.Add(k, m)
}

// Retried waits until nothing of an instance waits, and gives what was decided
// of it after the last Retry; false if nothing was.
func (in *Intake) Retried(ctx context.Context, id status.InstanceID) (Decided, bool, error) {
	b := in.p.backlog
	for {
		in.mu.Lock()
		in.awaited = true
		changed := in.changed
		in.mu.Unlock()
		if len(b.undecided(in, id)) == 0 {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Decided{}, false, ctx.Err()
		}
	}
	decided, _ := in.p.Why(id)
	for _, d := range slices.Backward(decided) {
		switch {
		case d.Term != in.tag || d.Decision == trace.Repeat || d.Decision == trace.Invalid:
			continue
		case d.Decision == trace.Forgotten:
			return Decided{}, false, nil
		}
		return d, true, nil
	}
	return Decided{}, false, nil
}
