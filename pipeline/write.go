package pipeline

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/shard"
)

const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 2 * time.Second
	// While a batch is under way, another begins beside it only if it has
	// smallBatch entries, or if the first has been under way for smallTurn.
	smallBatch = 64
	smallTurn  = 5 * time.Millisecond
	// longTurn is after how long an attempt counts no more among the large ones
	// that may be under way: it may wait for a row that another holds.
	longTurn = 500 * time.Millisecond
)

// lane writes batches, one at a time.
type lane struct {
	p     *Pipeline
	index int
	// patience runs out when an attempt takes long.
	patience *time.Timer

	// The following is guarded by the backlog's mutex: when the attempt under way
	// began, zero if there is none, whether the batch takes long, and whether it
	// counts among the large ones.
	began       time.Time
	slow, large bool
}

func newLane(p *Pipeline, index int) *lane {
	l := &lane{p: p, index: index}
	l.patience = idleTimer(func() { p.backlog.takesLong(l) })
	return l
}

// run writes batches until ctx ends.
func (l *lane) run(ctx context.Context) {
	backoff := minBackoff
	for {
		batch := l.p.backlog.take(l, l.p.cfg.BatchLimit)
		if len(batch) == 0 {
			select {
			case <-l.p.backlog.wake:
			case <-ctx.Done():
				return
			}
			continue
		}
		written := l.write(ctx, batch, l.p.cfg.BatchLimit)
		l.p.backlog.ended(l)
		if written {
			backoff = minBackoff
			continue
		}
		select {
		case <-time.After(backoff/2 + rand.N(backoff)):
			backoff = min(2*backoff, maxBackoff)
		case <-ctx.Done():
			return
		}
	}
}

// write writes a batch, at most limit entries at a time. It reports false if
// the store could not be reached or refused for no row's sake; what was not
// written is put back then.
func (l *lane) write(ctx context.Context, entries []*entry, limit int) bool {
	for len(entries) > 0 {
		part := entries[:min(limit, len(entries))]
		err := l.attempt(ctx, part)
		if err == nil {
			entries = entries[len(part):]
			continue
		}
		fault, isRow := store.RowFault(err)
		switch {
		case !isRow:
			l.p.backlog.putBack(entries, true)
			if ctx.Err() == nil {
				l.p.metrics.failedAttempts.Inc()
				l.p.cfg.Logger.Warn("a batch could not be written; its updates wait and are tried again",
					"lane", l.index, "instances", len(part), "error", err)
			}
			return false
		case len(part) > 1:
			// One row of them is to blame: halve until it is alone.
			if !l.write(ctx, part, (len(part)+1)/2) {
				l.p.backlog.putBack(entries[len(part):], false)
				return false
			}
		default:
			if !l.isolate(ctx, part[0], fault) {
				l.p.backlog.putBack(entries[1:], false)
				return false
			}
		}
		entries = entries[len(part):]
	}
	return true
}

// isolate deals with an entry that the database refuses for its own sake. If
// it was folded from several updates, the last alone may be good; else it is
// put into quarantine and not tried again. It reports false, with the entry
// put back, if the store could not be reached.
func (l *lane) isolate(ctx context.Context, e *entry, fault store.Fault) bool {
	refused := e.inFlight
	if last, several := refused.LastAlone(); several {
		e.inFlight = last
		err := l.attempt(ctx, []*entry{e})
		if err == nil {
			l.p.metrics.quarantined.Inc()
			rest := *refused
			rest.Updates -= last.Updates
			e.in.metrics.failed(&rest)
			l.p.backlog.noteQuarantined(e, refused, rest.Updates)
			e.in.log.Error("an update was refused by the database and left out; a later one was written",
				"instance", refused.ID, "sqlstate", fault.SQLState, "reason", fault.Reason)
			return true
		}
		var isRow bool
		if fault, isRow = store.RowFault(err); !isRow {
			e.inFlight = refused
			l.p.backlog.putBack([]*entry{e}, true)
			return false
		}
	}
	ctx, cancel := context.WithTimeout(ctx, l.p.cfg.AttemptTimeout)
	defer cancel()
	err := l.p.cfg.Store.Quarantine(ctx, []store.Poison{{
		Instance: refused.ID,
		Cluster:  e.in.id.Cluster,
		Kind:     refused.Kind,
		Version:  refused.Version,
		Hash:     refused.Hash,
		Fault:    fault,
		At:       time.Now(),
	}})
	if err != nil {
		l.p.cfg.Logger.Warn("an update could not be put into quarantine; it is tried again",
			"lane", l.index, "instance", refused.ID, "error", err)
		e.inFlight = refused
		l.p.backlog.putBack([]*entry{e}, false)
		return false
	}
	l.p.metrics.quarantined.Inc()
	e.in.log.Error("an update was put into quarantine: the database refuses it for its own sake",
		"instance", refused.ID, "version", refused.Version, "sqlstate", fault.SQLState, "reason", fault.Reason)
	e.in.metrics.failed(refused)
	l.p.backlog.noteQuarantined(e, refused, refused.Updates)
	l.p.backlog.release([]*entry{e}, func(int, *entry) (memory, int64) {
		return memory{version: refused.Version, hash: refused.Hash}, 0
	})
	return true
}

// share is the part that a shard has in a batch.
type share struct {
	in         *Intake
	fence      int    // its place in the batch
	recoveries uint64 // that had ended before
}

// attempt writes entries in one commit and, if that succeeds, ends their
// flight and hands over what is to be published.
func (l *lane) attempt(ctx context.Context, entries []*entry) error {
	batch := store.Batch{Lane: l.index, Seq: l.p.seq.Add(1), Entries: make([]store.Entry, 0, len(entries))}
	shares := make(map[shard.ID]share)
	live := entries[:0:0]
	for _, e := range entries {
		fence, ok := e.fence()
		if !ok || e.in.hasEnded() {
			continue // dropped with its intake
		}
		of, seen := shares[fence.Shard]
		if !seen {
			of = share{e.in, len(batch.Fences), e.in.recoveries.Load()}
			shares[fence.Shard] = of
			batch.Fences = append(batch.Fences, fence)
		}
		if !e.in.seamless.Load() {
			// What lies between may be missing: a status may come back to what
			// the row was told, and has to be applied.
			e.inFlight.First = false
		}
		batch.Entries = append(batch.Entries, store.Entry{Fence: of.fence, Change: e.inFlight})
		live = append(live, e)
	}
	if len(live) == 0 {
		return nil
	}
	acknowledged := l.p.outlet.takeAcknowledged()
	batch.Published = acknowledged.refs()

	l.p.backlog.attempts(l)
	begin := time.Now()
	attempt, cancel := context.WithTimeout(ctx, l.p.cfg.AttemptTimeout)
	defer cancel()
	commit, err := l.p.cfg.Store.Apply(attempt, batch)
	if err != nil {
		l.p.outlet.giveAcknowledged(acknowledged)
		return err
	}
	l.p.metrics.batch(len(live), time.Since(begin))
	acknowledged.confirm()
	l.p.backlog.noteCommit(live, commit.Results)
	l.conclude(live, commit, shares, begin)
	return nil
}

// conclude deals with the results of a commit whose write began at a time.
func (l *lane) conclude(entries []*entry, commit store.Commit, shares map[shard.ID]share, began time.Time) {
	refused := make(map[*Intake]struct{})
	doubted := make(map[*Intake]struct{})
	for i, e := range entries {
		if e.doubt {
			doubted[e.in] = struct{}{}
		}
		if commit.Results[i].Outcome == store.Refused {
			refused[e.in] = struct{}{}
		} else {
			l.account(e, commit.Results[i])
		}
	}
	// An attempt that seemed to fail may have left a row in the outbox; it
	// goes first.
	for in := range doubted {
		in.fallBehind()
	}
	l.p.outlet.publish(commit.Outbox, shares, began)
	if commit.Lifecycle > 0 && l.p.cfg.Lifecycle != nil {
		l.p.cfg.Lifecycle()
	}
	for in := range refused {
		in.refuse()
	}
	now := time.Now()
	l.p.backlog.release(entries, func(i int, e *entry) (memory, int64) {
		return remembered(commit.Results[i], e, now)
	})
}

// remembered gives what is to be remembered of an instance after a commit; of a
// stranger, until when it is not asked for again.
func remembered(result store.Result, e *entry, now time.Time) (after memory, until int64) {
	change := e.inFlight
	switch {
	case result.Outcome == store.Unknown, result.Outcome == store.Foreign:
		// A foreign instance may change hands; a look now and then will do.
		return memory{}, now.Add(ignorance).UnixNano()
	case result.Outcome == store.Stale && result.Stored != change.Version:
		return memory{version: result.Stored}, 0
	}
	return memory{version: change.Version, hash: change.Hash}, 0
}

// account counts and logs the outcome of one entry.
func (l *lane) account(e *entry, result store.Result) {
	change, in := e.inFlight, e.in
	outcome := outcomeSkipped
	switch result.Outcome {
	case store.Applied:
		outcome = outcomeSuccess
	case store.Stale:
		if e.doubt && result.Stored == change.Version {
			outcome = outcomeSuccess // an attempt that seemed to fail has written it
		} else {
			l.p.metrics.stale.Add(float64(change.Updates))
		}
	case store.Foreign:
		in.metrics.foreign.Inc()
		in.logOdd(slog.LevelWarn, "the cluster speaks of an instance that belongs to another; ignored",
			"instance", change.ID, "region", result.Region)
	}
	in.metrics.known(result.Outcome != store.Unknown, change.Updates)
	in.metrics.completedChange(change, outcome)
	if result.Prebuild != nil {
		l.accountPrebuild(e, result)
	}
	if result.Outcome != store.Applied {
		return
	}
	l.p.metrics.applied(result)
	l.span(change, in)
	switch {
	case result.Revived:
		l.p.metrics.revived.Inc()
		in.logOdd(slog.LevelError, "an instance that was stopping or stopped is back", "instance", change.ID, "version", change.Version)
	case result.StoppingIgnored:
		in.logOdd(slog.LevelWarn, "an instance that is stopped was said to be stopping; it stays stopped", "instance", change.ID)
	case result.FailedKept:
		in.logOdd(slog.LevelInfo, "an update without a failure does not clear the failure that is stored", "instance", change.ID)
	}
}

// accountPrebuild counts and logs what became of an instance's prebuild.
func (l *lane) accountPrebuild(e *entry, result store.Result) {
	switch result.Prebuild.Outcome {
	case store.PrebuildMissing:
		e.in.logOdd(slog.LevelWarn, "no prebuild for a prebuild's instance", "instance", e.inFlight.ID, "workspace", result.WorkspaceID)
	case store.PrebuildStale, store.PrebuildOlder:
		l.p.metrics.stalePrebuilds.Inc()
	}
	if result.Prebuild.Completed {
		l.p.metrics.prebuildsCompleted.WithLabelValues(result.Prebuild.Status).Inc()
	}
}
