// Package seed fills the tables with what other components would have created:
// workspaces, their instances before a cluster has heard of them, prebuilds and
// tokens.
//
// Rows go in by COPY, every column of the contract named, so that nothing
// depends on defaults. It is for empty tables or new identities: an id that is
// there already is an error.
package seed

import (
	"context"
	"encoding/hex"
	"fmt"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trestle-bridge/trestle/loadtest/script"
)

// Instance is an instance to create, and its workspace.
type Instance struct {
	ID   script.Identity
	Type script.Type
	// Region is the name of the cluster that runs it.
	Region string
	// NeededImageBuild is a condition that only the API server writes: it must
	// survive all updates.
	NeededImageBuild bool
	// Tokens: with tokens, of which Doomed go when the instance stops.
	Tokens bool
	// Created is its creation time; the zero time is that of seeding.
	Created time.Time
}

// ProjectID is the project of the instance's workspace and prebuild.
func (i *Instance) ProjectID() string {
	u := i.ID.Prebuild
	u[0] ^= 0xff
	return script.FormatUUID(u)
}

// OrganizationID is the organization of both; empty, as unknown, for some.
func (i *Instance) OrganizationID() string {
	u := i.ID.Prebuild
	if u[15]%4 == 0 {
		return ""
	}
	u[1] ^= 0xff
	return script.FormatUUID(u)
}

// Token is a row of gitpod_token.
type Token struct {
	User, Name string
	// Doomed tokens are deleted when the instance stops.
	Doomed bool
}

// TokenRows are the instance's tokens: its own, and lookalikes.
func (i *Instance) TokenRows() []Token {
	if !i.Tokens {
		return nil
	}
	id, owner := script.FormatUUID(i.ID.Instance), i.ID.Owner
	other := []byte(owner)
	other[0] ^= 1 // another digit: 0 and 1, 2 and 3, ... stay hexadecimal
	return []Token{
		{owner, id + "-ide", true},
		{owner, id + "-supervisor", true},
		{string(other), id + "-ide", false},
		{owner, id, false},
		{owner, "of-" + id + "-ide", false},
	}
}

func (i *Instance) tokenHash(n int) string { return tokenHash(i.ID.Instance, n) }

func tokenHash(instance [16]byte, n int) string {
	return hex.EncodeToString(append(instance[:], byte(n)))
}

// TokenHashes are the keys of the tokens that an instance may have been seeded
// with.
func TokenHashes(instance [16]byte) []string {
	some := Instance{Tokens: true, ID: script.Identity{Instance: instance, Owner: "0"}}
	var hashes []string
	for n := range some.TokenRows() {
		hashes = append(hashes, tokenHash(instance, n))
	}
	return hashes
}

// Image is the image of an instance's workspace, by which what was seeded is
// known again: its registry cannot exist.
func Image(workspace string) string {
	return "registry.eu.example.dev/workspace-images:" + workspace
}

// Phase is the phase of a row that no cluster has spoken of yet.
const Phase = "preparing"

// Status is the status document of such a row.
func (i *Instance) Status() string {
	if i.NeededImageBuild {
		return `{"version":0,"phase":"preparing","conditions":{"neededImageBuild":true}}`
	}
	return `{"version":0,"phase":"preparing","conditions":{}}`
}

// Conn is a connection or a pool of pgx.
type Conn interface {
	CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error)
}

// Seed inserts instances with all that belongs to them. The sequence is walked
// once for each of the four tables, and must give the same each time. The tables
// are filled one after the other, not in one transaction: that of the instances
// first, by which the rest is found if the filling is broken off.
func Seed(ctx context.Context, conn Conn, instances iter.Seq[Instance]) error {
	now := time.Now()
	tables := []struct {
		name    string
		columns []string
		rows    func(Instance, func([]any) bool) bool
	}{
		{"workspace_instance", []string{"id", "workspace_id", "region", "creation_time", "ide_url", "workspace_image",
			"workspace_class", "phase", "status_version", "status", "deleted"},
			func(i Instance, yield func([]any) bool) bool {
				created := i.Created
				if created.IsZero() {
					created = now
				}
				return yield([]any{i.ID.Instance, i.ID.Workspace, i.Region, created, "",
					Image(i.ID.Workspace), "g1-standard", Phase, int64(0), i.Status(), false})
			}},
		{"workspace", []string{"id", "owner_id", "type", "organization_id", "project_id", "deleted"},
			func(i Instance, yield func([]any) bool) bool {
				return yield([]any{i.ID.Workspace, i.ID.Owner, string(i.Type), i.OrganizationID(), i.ProjectID(), false})
			}},
		{"prebuilt_workspace", []string{"id", "build_workspace_id", "project_id", "organization_id", "state",
			"status_version", "snapshot", "error", "creation_time"},
			func(i Instance, yield func([]any) bool) bool {
				return i.Type != script.Prebuild ||
					yield([]any{i.ID.Prebuild, i.ID.Workspace, i.ProjectID(), i.OrganizationID(), PrebuildState, int64(0), "", "", now})
			}},
		{"gitpod_token", []string{"token_hash", "user_id", "name"},
			func(i Instance, yield func([]any) bool) bool {
				for n, t := range i.TokenRows() {
					if !yield([]any{i.tokenHash(n), t.User, t.Name}) {
						return false
					}
				}
				return true
			}},
	}
	for _, t := range tables {
		rows := func(yield func([]any) bool) {
			for i := range instances {
				if !t.rows(i, yield) {
					return
				}
			}
		}
		next, stop := iter.Pull(rows)
		_, err := conn.CopyFrom(ctx, pgx.Identifier{t.name}, t.columns, pgx.CopyFromFunc(func() ([]any, error) {
			row, _ := next()
			return row, nil // nil ends the copy
		}))
		stop()
		if err != nil {
			return fmt.Errorf("seed %s: %w", t.name, err)
		}
	}
	return nil
}

// Execer is a connection or a pool of pgx.
type Execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// Remove deletes instances with all that belongs to them, as far as it is there.
func Remove(ctx context.Context, conn Execer, instances iter.Seq[Instance]) error {
	var ids, prebuilds [][16]byte
	var workspaces, tokens []string
	for i := range instances {
		ids = append(ids, i.ID.Instance)
		workspaces = append(workspaces, i.ID.Workspace)
		if i.Type == script.Prebuild {
			prebuilds = append(prebuilds, i.ID.Prebuild)
		}
		for n := range i.TokenRows() {
			tokens = append(tokens, i.tokenHash(n))
		}
	}
	for _, of := range []struct {
		table, column string
		keys          any
	}{
		{"workspace_instance", "id", ids},
		{"workspace_instance_metrics", "instance_id", ids},
		{"prebuilt_workspace", "id", prebuilds},
		{"workspace", "id", workspaces},
		{"gitpod_token", "token_hash", tokens},
	} {
		if _, err := conn.Exec(ctx, "DELETE FROM "+of.table+" WHERE "+of.column+" = ANY($1)", of.keys); err != nil {
			return fmt.Errorf("remove from %s: %w", of.table, err)
		}
	}
	return nil
}

// PrebuildState is the state in which prebuilds are seeded.
const PrebuildState = "queued"
