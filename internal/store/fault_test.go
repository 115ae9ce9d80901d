package store_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trestle-bridge/trestle/internal/devstack"
	"github.com/trestle-bridge/trestle/internal/devstack/devstacktest"
	"github.com/trestle-bridge/trestle/internal/status/statustest"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

const secretToken = "3Kd0pQ7xWmZr8vTnYbLc5sHfJg2aUe9i"

func TestRowFault(t *testing.T) {
	b := newBench(t)
	b.insert(plainRow(1), plainRow(2))
	b.exec(`ALTER TABLE workspace_instance ADD CONSTRAINT no_poison CHECK (status ->> 'message' IS DISTINCT FROM 'poison')`)
	b.exec(`CREATE FUNCTION picky() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		IF NEW.status ->> 'message' = 'numbers' THEN
			RAISE EXCEPTION 'the token % and "%" at https://example.com/%', NEW.status ->> 'ownerToken', NEW.status ->> 'message', NEW.id USING ERRCODE = '22003';
		END IF;
		RETURN NEW;
	END $$`)
	b.exec(`CREATE TRIGGER picky BEFORE UPDATE ON workspace_instance FOR EACH ROW EXECUTE FUNCTION picky()`)
	say := func(i int, message string) func(*wsman.WorkspaceStatus) {
		return func(s *wsman.WorkspaceStatus) {
			s.Message, s.Auth = message, &wsman.WorkspaceAuthentication{OwnerToken: secretToken}
		}
	}
	for message, want := range map[string]store.Fault{
		"poison":  {SQLState: "23514", Reason: `table workspace_instance: constraint no_poison: new row for relation "…" violates check constraint "…"`},
		"numbers": {SQLState: "22003", Reason: `the token [redacted] and "…" at [url]`},
	} {
		_, err := b.Apply(t.Context(), b.batch(
			change(t, statusOf(testID(1), 5, say(1, "fine")), statustest.Epoch),
			change(t, statusOf(testID(2), 5, say(2, message)), statustest.Epoch)))
		fault, isRow := store.RowFault(err)
		want.Reason = strings.ReplaceAll(want.Reason, `"…" violates check constraint "…"`, `"…"`)
		if !isRow || fault.SQLState != want.SQLState || strings.Contains(fault.Reason, secretToken) {
			t.Errorf("%q: %+v (%v)", message, fault, err)
		}
		if fault.Reason != want.Reason {
			t.Errorf("%q: reason %q, want %q", message, fault.Reason, want.Reason)
		}
		if store.Unreachable(err) {
			t.Errorf("%q: unreachable", message)
		}
	}
	b.same("the batch mate is not written either", b.row(testID(1)), plainRow(1))
}

func TestWhatIsNoRowFault(t *testing.T) {
	for _, test := range []struct {
		err                error
		isRow, unreachable bool
	}{
		{err: nil},
		{err: io.ErrUnexpectedEOF, unreachable: true},
		{err: errors.New("no outcome came back")},
		{err: &pgconn.PgError{Code: "23505", TableName: "trestle_outbox"}},
		{err: &pgconn.PgError{Code: "40P01"}},
		{err: &pgconn.PgError{Code: "57014"}},
		{err: &pgconn.PgError{Code: "57P01"}, unreachable: true},
		{err: &pgconn.PgError{Code: "53100"}},
		{err: &pgconn.PgError{Code: "42703"}},
		{err: &pgconn.PgError{Code: "54000"}, isRow: true},
		{err: &pgconn.PgError{Code: "22021"}, isRow: true},
		{err: &pgconn.PgError{Code: "23502", TableName: "workspace_instance"}, isRow: true},
	} {
		err := test.err
		if err != nil {
			err = fmt.Errorf("write: %w", err)
		}
		if _, isRow := store.RowFault(err); isRow != test.isRow || store.Unreachable(err) != test.unreachable {
			t.Errorf("%v: row fault %t, unreachable %t", err, isRow, store.Unreachable(err))
		}
	}
}

// An outage is no row's fault, and afterwards the same store writes on.
func TestOutage(t *testing.T) {
	server := devstacktest.OwnPostgres(t, devstack.PostgresConfig{})
	url, err := server.NewDatabase(t.Context(), "outage")
	if err != nil {
		t.Fatal(err)
	}
	b := benchOn(t, url)
	b.insert(plainRow(1))
	write := func(version uint64) (store.Commit, error) {
		return b.Apply(t.Context(), b.batch(change(t, statusOf(testID(1), version), statustest.Epoch)))
	}
	if _, err := write(1); err != nil {
		t.Fatal(err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_, err := write(2)
		if _, isRow := store.RowFault(err); err == nil || isRow || !store.Unreachable(err) {
			t.Fatalf("row fault %t, unreachable %t: %v", isRow, store.Unreachable(err), err)
		}
		if err := b.Ping(t.Context()); err == nil || !store.Unreachable(err) {
			t.Fatal(err)
		}
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	// A connection that broke may be handed out once more.
	for {
		commit, err := write(2)
		if err == nil {
			if got := commit.Results[0]; got.Outcome != store.Applied {
				t.Fatalf("%+v", got)
			}
			break
		}
		if !store.Unreachable(err) {
			t.Fatal(err)
		}
	}
}

// Statements that were prepared before a migration work after it.
func TestPreparedStatementsSurviveChangesOfTables(t *testing.T) {
	b := newBench(t, func(c *store.Config) { c.MaxConnections = 1 })
	b.insert(plainRow(1))
	for version, ddl := range []string{
		`ALTER TABLE workspace_instance ADD COLUMN later text DEFAULT 'x'`,
		`CREATE INDEX later ON workspace_instance (workspace_class)`,
		`ALTER TABLE workspace_instance ALTER COLUMN phase TYPE varchar(40)`,
		`ALTER TABLE workspace ALTER COLUMN owner_id TYPE varchar(200)`,
		`ALTER TABLE workspace_instance ALTER COLUMN region TYPE varchar(80), ALTER COLUMN workspace_id TYPE varchar(80)`,
	} {
		b.apply(change(t, statusOf(testID(1), uint64(2*version+1)), statustest.Epoch))
		b.exec(ddl)
		if got := b.apply(change(t, statusOf(testID(1), uint64(2*version+2)), statustest.Epoch)).Results[0]; got.Outcome != store.Applied {
			t.Fatalf("%s: %+v", ddl, got)
		}
	}
	// A session that lost its statements comes back by itself.
	if _, err := b.db.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'trestle' AND datname = current_database()`); err != nil {
		t.Fatal(err)
	}
	for {
		_, err := b.Apply(t.Context(), b.batch(change(t, statusOf(testID(1), 100), statustest.Epoch)))
		if err == nil {
			return
		}
		if !store.Unreachable(err) {
			t.Fatal(err)
		}
	}
}
