package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trestle-bridge/trestle/internal/status"
)

// InstanceRow is the row of an instance as it is stored, and what there is
// beside it. Zero times are null. It has no part of the status document but
// those named: that holds the owner's token.
type InstanceRow struct {
	ID                                                     status.InstanceID
	WorkspaceID, Type                                      string
	Region, Phase                                          string
	Version                                                uint64
	Created, Deployed, Started, Stopping, Stopped          time.Time
	Message, Failed, Timeout, HeadlessTaskFailed, NodeName string
	Deleted                                                bool
	// Swept: a sweep has stopped it, and nothing was heard of it since.
	Swept bool
	// Prebuild is the one of its workspace; nil if there is none.
	Prebuild *PrebuildRow
}

// PrebuildRow is the row of a prebuild.
type PrebuildRow struct {
	ID, State, Error, Snapshot string
	Version                    uint64
	// Instance is whose version that is; empty if nobody's.
	Instance string
}

// InstanceVersion is the version that an instance's row is at.
type InstanceVersion struct {
	ID      status.InstanceID
	Version uint64
}

// What a sweep has stopped is left out, as the same version may revive it; so is
// what has no version to compare.
const (
	versionsSQL = `
SELECT id, status_version
FROM workspace_instance
WHERE region = $1 AND stopped_time IS NULL AND NOT swept AND status_version > 0
LIMIT $2`
	versionsOfSQL = `
SELECT id, status_version
FROM workspace_instance
WHERE id = ANY ($1) AND region = $2 AND NOT swept AND status_version > 0`
)

// Versions gives the versions of a cluster's rows that have not stopped, at most
// limit, in no order.
func (s *Store) Versions(ctx context.Context, cluster string, limit int) (versions []InstanceVersion, err error) {
	defer s.metrics.done("versions", time.Now(), &err)
	if versions, err = s.versions(ctx, versionsSQL, cluster, limit); err != nil {
		return nil, fmt.Errorf("read the versions of the rows of cluster %s: %w", cluster, err)
	}
	return versions, nil
}

// VersionsOf gives the versions of these rows of a cluster, stopped ones too, in no
// order.
func (s *Store) VersionsOf(ctx context.Context, cluster string, ids []status.InstanceID) (versions []InstanceVersion, err error) {
	defer s.metrics.done("versions_of", time.Now(), &err)
	uuids := make([][16]byte, len(ids))
	for i, id := range ids {
		uuids[i] = id
	}
	if versions, err = s.versions(ctx, versionsOfSQL, uuids, cluster); err != nil {
		return nil, fmt.Errorf("read the versions of %d rows of cluster %s: %w", len(ids), cluster, err)
	}
	return versions, nil
}

func (s *Store) versions(ctx context.Context, sql string, args ...any) ([]InstanceVersion, error) {
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (v InstanceVersion, err error) {
		var version int64
		err = row.Scan((*[16]byte)(&v.ID), &version)
		v.Version = fromStored(version)
		return v, err
	})
}

// The prebuild is the one that an update of the instance would change.
const instanceSQL = `
SELECT i.workspace_id, coalesce(w.type::text, ''), coalesce(i.region, ''), i.phase, i.status_version,
       i.creation_time, i.deployed_time, i.started_time, i.stopping_time, i.stopped_time,
       coalesce(i.status ->> 'message', ''), coalesce(i.status #>> '{conditions,failed}', ''), coalesce(i.status #>> '{conditions,timeout}', ''),
       coalesce(i.status #>> '{conditions,headlessTaskFailed}', ''), coalesce(i.status ->> 'nodeName', ''),
       i.deleted, i.swept,
       p.id::text, p.state::text, coalesce(p.error, ''), coalesce(p.snapshot, ''), p.status_version, coalesce(p.instance_id::text, '')
FROM workspace_instance i
LEFT JOIN workspace w ON w.id = i.workspace_id
LEFT JOIN LATERAL (
    SELECT id, state, error, snapshot, status_version, instance_id
    FROM prebuilt_workspace
    WHERE build_workspace_id = i.workspace_id AND w.type = 'prebuild'
    ORDER BY creation_time DESC, id DESC
    LIMIT 1
) p ON true
WHERE i.id = $1`

// Instance gives the row of an instance; nil if there is none.
func (s *Store) Instance(ctx context.Context, id status.InstanceID) (row *InstanceRow, err error) {
	defer s.metrics.done("instance", time.Now(), &err)
	r := InstanceRow{ID: id}
	var version int64
	var created, deployed, started, stopping, stopped *time.Time
	var prebuild, state, failure, snapshot, of *string
	var prebuildVersion *int64
	err = s.pool.QueryRow(ctx, instanceSQL, [16]byte(id)).Scan(
		&r.WorkspaceID, &r.Type, &r.Region, &r.Phase, &version, &created, &deployed, &started, &stopping, &stopped,
		&r.Message, &r.Failed, &r.Timeout, &r.HeadlessTaskFailed, &r.NodeName, &r.Deleted, &r.Swept,
		&prebuild, &state, &failure, &snapshot, &prebuildVersion, &of,
	)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the row of instance %s: %w", id, err)
	}
	r.Version = fromStored(version)
	for _, t := range []struct {
		to   *time.Time
		from *time.Time
	}{{&r.Created, created}, {&r.Deployed, deployed}, {&r.Started, started}, {&r.Stopping, stopping}, {&r.Stopped, stopped}} {
		if t.from != nil {
			*t.to = t.from.UTC()
		}
	}
	if prebuild != nil {
		r.Prebuild = &PrebuildRow{ID: *prebuild, State: *state, Error: *failure, Snapshot: *snapshot, Version: fromStored(*prebuildVersion), Instance: *of}
	}
	return &r, nil
}
