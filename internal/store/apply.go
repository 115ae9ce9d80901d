package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/internal/status"
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
	s.scratch.give(in.arrays)
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
	conn, err := s.writers.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	defer conn.Release()
	return in.execute(ctx, conn.Conn(), entries)
}

func (in input) execute(ctx context.Context, conn *pgx.Conn, entries int) ([]Result, error) {
	prepared, err := conn.Prepare(ctx, in.statement.name, in.statement.sql)
	if err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	makeRoom(conn.PgConn(), in.params)
	formats := []int16{1} // binary, for all
	reader := conn.PgConn().ExecStatement(ctx, prepared, in.params, formats, formats)
	results := make([]Result, entries)
	var malformed error
	for reader.NextRow() {
		if malformed == nil {
			malformed = readResult(results, fields(reader.Values()), in.statement.parts.Prebuilds)
		}
	}
	// Only the end of the answer says that the commit is made.
	if _, err := reader.Close(); err != nil {
		if isOutdated(err) {
			_ = conn.Close(ctx) // the answer is the first error
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
