package duty

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/trestle-bridge/trestle/coordinator/table"
	"github.com/trestle-bridge/trestle/internal/bubbletest"
	"github.com/trestle-bridge/trestle/shard"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stage is a Worker and Fences that do as they are told and note what they were
// asked.
type stage struct {
	did     chan string
	signals chan Signal
	stored  shard.Fence
	fails   map[string]error
	hangs   map[string]bool
}

func (s *stage) do(ctx context.Context, what string) error {
	s.did <- what
	if s.hangs[what] {
		<-ctx.Done()
		return ctx.Err()
	}
	return s.fails[what]
}

func (s *stage) Prepare(ctx context.Context, _ shard.ID) error { return s.do(ctx, "prepare") }
func (s *stage) Own(ctx context.Context, _ shard.Fence) error  { return s.do(ctx, "own") }
func (s *stage) Release(ctx context.Context, _ shard.ID) error { return s.do(ctx, "release") }
func (s *stage) Drop(shard.ID)                                 { s.did <- "drop" }
func (s *stage) Signals() <-chan Signal                        { return s.signals }
func (s *stage) Raise(ctx context.Context, f shard.Fence) (shard.Fence, error) {
	if err := s.do(ctx, "raise"); err != nil {
		return shard.Fence{}, err
	}
	if f.Epoch >= s.stored.Epoch {
		s.stored = f
	}
	return s.stored, nil
}
func (s *stage) Known(context.Context, []string) (map[string]Known, error) { return nil, nil }
func (s *stage) Cut(context.Context, string, int64, int) error             { return nil }

// play runs Duties on a stage; expect reads what was done, and answered what is
// said then.
func play(t *testing.T, script func(s *stage, d *Duties, assign func(shard.Record), expect func(what ...string), said func(table.Answer))) {
	bubbletest.Test(t, func(t *testing.T) {
		s := &stage{did: make(chan string), signals: make(chan Signal), fails: map[string]error{}, hangs: map[string]bool{}}
		d, err := New(Config{Incarnation: "me", Worker: s, Fences: s, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := d.Run(ctx); err != nil {
				t.Error(err)
			}
		}()
		id := shard.Whole("c")
		assign := func(r shard.Record) {
			d.Assign(ctx, map[shard.ID]Assigned{id: {Record: r, Found: true, Exists: true}})
			synctest.Wait()
		}
		expect := func(what ...string) {
			t.Helper()
			for _, want := range what {
				select {
				case got := <-s.did:
					if got != want {
						t.Fatalf("did %s, want %s", got, want)
					}
				case <-time.After(time.Hour):
					t.Fatalf("did nothing, want %s", want)
				}
				synctest.Wait()
			}
		}
		said := table.Answer{}
		check := func(want table.Answer) {
			t.Helper()
			synctest.Wait()
			if a, changed := d.Fresh()[id]; changed {
				said = a
			}
			if said != want {
				t.Fatalf("says %+v, want %+v", said, want)
			}
		}
		script(s, d, assign, expect, check)
		select {
		case what := <-s.did:
			t.Errorf("and did %s", what)
		default:
		}
		cancel()
		<-done
	})
}

func TestHandover(t *testing.T) {
	play(t, func(s *stage, d *Duties, assign func(shard.Record), expect func(...string), said func(table.Answer)) {
		assign(shard.Record{Epoch: 1, Owner: "x", Next: "me", Phase: shard.PhasePrepare, Attempt: 1})
		expect("prepare")
		said(table.Answer{Kind: table.Ready, Attempt: 1})
		assign(shard.Record{Epoch: 1, Owner: "x", Next: "me", Phase: shard.PhaseRelease, Attempt: 1})
		assign(shard.Record{Epoch: 2, Owner: "me", Former: "x", Phase: shard.PhaseRaise, Attempt: 1})
		expect("raise", "own")
		said(table.Answer{Kind: table.Holds, Epoch: 2})
		assign(shard.Record{Epoch: 2, Owner: "me", Phase: shard.PhaseOwned, Attempt: 1})
		assign(shard.Record{Epoch: 2, Owner: "me", Next: "x", Phase: shard.PhaseRelease, Attempt: 2})
		expect("release")
		said(table.Answer{Kind: table.Released, Attempt: 2, Epoch: 2})
		assign(shard.Record{Epoch: 3, Owner: "x", Phase: shard.PhaseRaise, Attempt: 2})
		expect("drop")
		said(table.Answer{})
		if len(d.Concerned()) != 0 {
			t.Error("the shard is still of concern")
		}
	})
}

// A release that takes too long is taken back: what has stopped begins anew.
func TestReleaseTakenBack(t *testing.T) {
	play(t, func(s *stage, d *Duties, assign func(shard.Record), expect func(...string), said func(table.Answer)) {
		assign(shard.Record{Epoch: 2, Owner: "me", Phase: shard.PhaseOwned})
		expect("raise", "own")
		s.hangs["release"] = true
		assign(shard.Record{Epoch: 2, Owner: "me", Next: "x", Phase: shard.PhaseRelease, Attempt: 2})
		expect("release")
		said(table.Answer{Kind: table.Holds, Epoch: 2})
		assign(shard.Record{Epoch: 2, Owner: "me", Phase: shard.PhaseOwned, Attempt: 2})
		expect("raise", "own")
		said(table.Answer{Kind: table.Holds, Epoch: 2})
	})
}

func TestUnready(t *testing.T) {
	play(t, func(s *stage, d *Duties, assign func(shard.Record), expect func(...string), said func(table.Answer)) {
		s.fails["prepare"] = errors.New("no way")
		r := shard.Record{Epoch: 1, Owner: "x", Next: "me", Phase: shard.PhasePrepare, Attempt: 1}
		assign(r)
		expect("prepare")
		said(table.Answer{Kind: table.Unready, Attempt: 1})
		assign(shard.Record{Epoch: 1, Owner: "x", Phase: shard.PhaseOwned, Attempt: 1})
		expect("drop")
		delete(s.fails, "prepare")
		r.Attempt = 2
		assign(r)
		expect("prepare")
		said(table.Answer{Kind: table.Ready, Attempt: 2})
		s.signals <- Signal{Shard: shard.Whole("c")}
		said(table.Answer{Kind: table.Unready, Attempt: 2})
		assign(shard.Record{Epoch: 1, Owner: "x", Phase: shard.PhaseOwned, Attempt: 2})
		expect("drop")
	})
}

// The owner is lost while the next one prepares: it need not be ready to own.
func TestOwnUnprepared(t *testing.T) {
	play(t, func(s *stage, d *Duties, assign func(shard.Record), expect func(...string), said func(table.Answer)) {
		s.hangs["prepare"] = true
		assign(shard.Record{Epoch: 1, Owner: "x", Next: "me", Phase: shard.PhasePrepare, Attempt: 1})
		expect("prepare")
		said(table.Answer{})
		assign(shard.Record{Epoch: 2, Owner: "me", Phase: shard.PhaseRaise, Attempt: 1})
		expect("raise", "own")
		said(table.Answer{Kind: table.Holds, Epoch: 2})
	})
}

func TestBehindAndFenced(t *testing.T) {
	play(t, func(s *stage, d *Duties, assign func(shard.Record), expect func(...string), said func(table.Answer)) {
		s.stored = shard.Fence{Shard: shard.Whole("c"), Epoch: 7, Owner: "x"}
		assign(shard.Record{Epoch: 2, Owner: "me", Phase: shard.PhaseRaise})
		expect("raise")
		said(table.Answer{Kind: table.Behind, Epoch: 7, Holder: "x"})
		assign(shard.Record{Epoch: 8, Owner: "me", Phase: shard.PhaseRaise})
		expect("raise", "own")
		said(table.Answer{Kind: table.Holds, Epoch: 8})
		s.stored = shard.Fence{Shard: shard.Whole("c"), Epoch: 9, Owner: "x"}
		s.signals <- Signal{Shard: shard.Whole("c"), Fenced: true, Epoch: 8}
		expect("raise")
		said(table.Answer{Kind: table.Behind, Epoch: 9, Holder: "x"})
		assign(shard.Record{Epoch: 9, Owner: "x", Phase: shard.PhaseOwned})
		expect("drop")
		said(table.Answer{})
	})
}

// It is refused before Own has returned.
func TestFencedWhileOwning(t *testing.T) {
	play(t, func(s *stage, d *Duties, assign func(shard.Record), expect func(...string), said func(table.Answer)) {
		assign(shard.Record{Epoch: 2, Owner: "me", Phase: shard.PhaseRaise})
		expect("raise")
		s.stored = shard.Fence{Shard: shard.Whole("c"), Epoch: 3, Owner: "x"}
		s.signals <- Signal{Shard: shard.Whole("c"), Fenced: true, Epoch: 2}
		synctest.Wait()
		expect("own", "raise")
		said(table.Answer{Kind: table.Behind, Epoch: 3, Holder: "x"})
	})
}

func TestActionsAreRepeated(t *testing.T) {
	play(t, func(s *stage, d *Duties, assign func(shard.Record), expect func(...string), said func(table.Answer)) {
		s.fails["own"] = errors.New("not yet")
		assign(shard.Record{Epoch: 2, Owner: "me", Phase: shard.PhaseRaise})
		expect("raise", "own", "raise")
		delete(s.fails, "own")
		expect("own")
		said(table.Answer{Kind: table.Holds, Epoch: 2})
	})
}

func TestEnd(t *testing.T) {
	play(t, func(s *stage, d *Duties, assign func(shard.Record), expect func(...string), said func(table.Answer)) {
		r := shard.Record{Epoch: 2, Owner: "me", Phase: shard.PhaseOwned}
		assign(r)
		expect("raise", "own")
		left := make(chan []shard.ID)
		go func() { left <- d.End(context.Background()) }()
		expect("release")
		if ids := <-left; len(ids) > 0 {
			t.Errorf("%v left", ids)
		}
		// What the table says counts no more.
		assign(r)
		expect("drop")
	})
}
