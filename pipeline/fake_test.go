package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/internal/publish"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/proto/wsman"
	"github.com/trestle-bridge/trestle/shard"
)

// fakeStore is a store in memory that can be told to fail. Rows keep the
// message of the last applied update, which the tests use as its content.
type fakeStore struct {
	mu         sync.Mutex
	rows       map[status.InstanceID]*fakeRow
	fences     map[shard.ID]shard.Fence
	outbox     []store.OutboxRow
	quarantine []store.Poison
	batches    []store.Batch
	applied    []status.InstanceID // one for each applied change, in order
	poison     map[string]bool     // messages that are refused for the row's sake
	fail       func(attempt int) failure
	attempts   int
	// gate, if set, is received from before each Apply; entered is told.
	gate    chan struct{}
	entered chan struct{}
	// read and committed, if set, are called when an outbox was read and when a
	// batch was committed, before the answer.
	read, committed func()
	// perRow is how long an outbox takes to be read, for each row; of a bubble.
	perRow time.Duration
}

type fakeRow struct {
	version uint64
	message string
}

// failure is how an Apply fails.
type failure uint8

const (
	succeed failure = iota
	failBefore
	failAfter // the commit has happened, but the answer is lost
)

var errAway = errors.New("connection refused")

func newFakeStore() *fakeStore {
	return &fakeStore{
		rows:   make(map[status.InstanceID]*fakeRow),
		fences: make(map[shard.ID]shard.Fence),
		poison: make(map[string]bool),
		fail:   func(int) failure { return succeed },
	}
}

func (s *fakeStore) Apply(ctx context.Context, batch store.Batch) (store.Commit, error) {
	if s.gate != nil {
		select {
		case s.entered <- struct{}{}:
		case <-ctx.Done():
			return store.Commit{}, ctx.Err()
		}
		select {
		case <-s.gate:
		case <-ctx.Done():
			return store.Commit{}, ctx.Err()
		}
	}
	s.mu.Lock()
	defer func() {
		committed := s.committed
		s.mu.Unlock()
		if committed != nil {
			committed()
		}
	}()
	s.attempts++
	how := s.fail(s.attempts)
	if how == failBefore {
		return store.Commit{}, errAway
	}
	for _, e := range batch.Entries {
		if s.poison[message(e.Change)] {
			return store.Commit{}, &pgconn.PgError{Code: "23514", Message: "violates check constraint"}
		}
	}
	s.batches = append(s.batches, batch)
	commit := store.Commit{Results: make([]store.Result, len(batch.Entries))}
	told := make([]event.Set, len(batch.Fences))
	for i, e := range batch.Entries {
		fence := batch.Fences[e.Fence]
		row := s.rows[e.Change.ID]
		result := &commit.Results[i]
		switch {
		case s.fences[fence.Shard] != fence:
			result.Outcome = store.Refused
			continue
		case row == nil:
			result.Outcome = store.Unknown
			continue
		case !slices.ContainsFunc(e.Change.Rungs(), func(step status.Step) bool { return step.AppliesTo(row.version) }):
			result.Outcome, result.Stored = store.Stale, row.version
			continue
		}
		row.version, row.message = e.Change.Version, message(e.Change)
		result.Outcome, result.Stored = store.Applied, row.version
		s.applied = append(s.applied, e.Change.ID)
		told[e.Fence].Instances = append(told[e.Fence].Instances, event.Instance{InstanceID: e.Change.ID.String(), WorkspaceID: row.message})
	}
	for i, set := range told {
		if set.Len() > 0 {
			fence := batch.Fences[i]
			row := store.OutboxRow{
				Ref:    store.OutboxRef{Shard: fence.Shard, Epoch: fence.Epoch, Owner: fence.Owner, Lane: batch.Lane, Seq: batch.Seq},
				Events: set,
			}
			commit.Outbox = append(commit.Outbox, row)
			s.outbox = append(s.outbox, row)
		}
	}
	s.delete(batch.Published)
	if how == failAfter {
		return store.Commit{}, errAway
	}
	return commit, nil
}

func (s *fakeStore) Quarantine(_ context.Context, poison []store.Poison) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.quarantine = append(s.quarantine, poison...)
	return nil
}

func (s *fakeStore) Outbox(ctx context.Context, fence shard.Fence, limit int) (_ []store.OutboxRow, err error) {
	s.mu.Lock()
	var takes time.Duration
	defer func() {
		read := s.read
		s.mu.Unlock()
		select {
		case <-time.After(takes):
		case <-ctx.Done():
			err = ctx.Err()
		}
		if read != nil {
			read()
		}
	}()
	if s.fences[fence.Shard] != fence {
		return nil, store.ErrFenced
	}
	var out []store.OutboxRow
	for _, row := range s.outbox {
		if row.Ref.Shard == fence.Shard && len(out) < limit {
			out = append(out, row)
		}
	}
	takes = s.perRow * time.Duration(len(out))
	return out, nil
}

func (s *fakeStore) DeleteOutbox(_ context.Context, refs []store.OutboxRef) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delete(refs)
	return nil
}

func (s *fakeStore) CheckFences(_ context.Context, fences []shard.Fence) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, fence := range fences {
		if s.fences[fence.Shard] != fence {
			return store.ErrFenced
		}
	}
	return nil
}

func (s *fakeStore) delete(refs []store.OutboxRef) {
	s.outbox = slices.DeleteFunc(s.outbox, func(row store.OutboxRow) bool { return slices.Contains(refs, row.Ref) })
}

func (s *fakeStore) raise(id shard.ID, owner string) shard.Fence {
	s.mu.Lock()
	defer s.mu.Unlock()
	fence := shard.Fence{Shard: id, Epoch: s.fences[id].Epoch + 1, Owner: owner}
	s.fences[id] = fence
	return fence
}

func (s *fakeStore) insert(ids ...status.InstanceID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		s.rows[id] = &fakeRow{}
	}
}

func (s *fakeStore) row(id status.InstanceID) fakeRow {
	s.mu.Lock()
	defer s.mu.Unlock()
	return *s.rows[id]
}

// firsts says of each instance that was written whether it was as the first that
// was heard.
func (s *fakeStore) firsts() map[status.InstanceID]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	firsts := make(map[status.InstanceID]bool)
	for _, batch := range s.batches {
		for _, e := range batch.Entries {
			firsts[e.Change.ID] = e.Change.First
		}
	}
	return firsts
}

// fakePublisher records what was published, and can be told to fail, or to take
// its time.
type fakePublisher struct {
	takes time.Duration // for each publish; of a bubble

	mu        sync.Mutex
	published []event.Instance
	fail      func(attempt int) bool
	attempts  int
}

func (p *fakePublisher) Publish(ctx context.Context, sets []event.Set, may publish.Permit) error {
	if err := may(ctx); err != nil {
		return err
	}
	time.Sleep(p.takes)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.attempts++
	failing := p.fail != nil && p.fail(p.attempts)
	for i, set := range sets {
		if failing && i >= len(sets)/2 {
			return errAway
		}
		p.published = append(p.published, set.Instances...)
	}
	if failing {
		return errAway
	}
	return nil
}

// contents gives what was published of an instance, in order.
func (p *fakePublisher) contents(id status.InstanceID) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, m := range p.published {
		if m.InstanceID == id.String() {
			out = append(out, m.WorkspaceID)
		}
	}
	return out
}

// message gives the content of a change: its message.
func message(c *status.Change) string {
	var document struct {
		Message string `json:"message"`
	}
	mustUnmarshal(c.Document, &document)
	return document.Message
}

// heard makes a status as a stream would bring it.
func heard(t testing.TB, id status.InstanceID, version uint64, text string) status.Heard {
	t.Helper()
	raw, err := proto.Marshal(&wsman.WorkspaceStatus{
		Id:            id.String(),
		Metadata:      &wsman.WorkspaceMetadata{Owner: "owner", MetaId: "workspace"},
		Spec:          &wsman.WorkspaceSpec{},
		Conditions:    &wsman.WorkspaceConditions{},
		Phase:         wsman.WorkspacePhase_RUNNING,
		Message:       text,
		StatusVersion: version,
	})
	if err != nil {
		t.Fatal(err)
	}
	h, err := status.Scan(raw)
	if err != nil {
		t.Fatal(err)
	}
	h.At = time.Now()
	return h
}

func instance(n int) status.InstanceID {
	id, err := status.ParseInstanceID(fmt.Sprintf("00000000-0000-4000-8000-%012d", n))
	if err != nil {
		panic(err)
	}
	return id
}

// bench is a pipeline over fakes.
type bench struct {
	*Pipeline
	store     *fakeStore
	publisher *fakePublisher
	stop      func()
}

// newBench makes a pipeline that runs until stop is called or the test ends.
func newBench(t testing.TB, db *fakeStore, publisher *fakePublisher, cfg Config) *bench {
	t.Helper()
	cfg.Owner = "replica/1"
	cfg.Store, cfg.Publisher = db, publisher
	cfg.Logger = slog.New(slog.DiscardHandler)
	cfg.Registerer = prometheus.NewRegistry()
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := p.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	return &bench{Pipeline: p, store: db, publisher: publisher, stop: stop}
}

// own opens a shard and raises its fence.
func (b *bench) own(t testing.TB, cluster string) *Intake {
	t.Helper()
	in, err := b.Open(shard.Whole(cluster))
	if err != nil {
		t.Fatal(err)
	}
	in.Subscribed()
	if err := in.Own(b.store.raise(in.Shard(), b.Pipeline.Owner())); err != nil {
		t.Fatal(err)
	}
	return in
}

func offer(t testing.TB, in *Intake, h status.Heard) {
	t.Helper()
	if err := in.Offer(h); err != nil {
		t.Fatalf("offer version %d of %s: %v", h.Version, h.ID, err)
	}
}

func drain(t testing.TB, in *Intake) {
	t.Helper()
	if err := in.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
}
