package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Why the registry of clusters refuses a change. The database judges: of two
// changes at once that exclude each other one is refused, wherever they come
// from.
var (
	// ErrClusterNameTaken: a cluster of this name is registered.
	ErrClusterNameTaken = errors.New("the name is taken by a registered cluster")
	// ErrClusterURLTaken: a cluster at this URL is registered.
	ErrClusterURLTaken = errors.New("the URL is taken by a registered cluster")
	// ErrUnknownCluster: no cluster of this name is registered.
	ErrUnknownCluster = errors.New("no such cluster is registered")
	// ErrClusterMoved: the cluster was registered anew, at another URL, since
	// the caller looked at it.
	ErrClusterMoved = errors.New("the cluster was registered anew at another URL meanwhile")
)

// ClusterInUseError refuses to deregister a cluster.
type ClusterInUseError struct {
	// Count of the regular instances there that are not stopped.
	Count int64
	// Instances are some of them, the oldest first.
	Instances []string
}

func (e *ClusterInUseError) Error() string {
	return fmt.Sprintf("%d regular instances there are not stopped", e.Count)
}

// refused says whether an error is the registry's answer rather than a
// failure.
func refused(err error) bool {
	var inUse *ClusterInUseError
	return errors.Is(err, ErrClusterNameTaken) || errors.Is(err, ErrClusterURLTaken) ||
		errors.Is(err, ErrUnknownCluster) || errors.Is(err, ErrClusterMoved) || errors.As(err, &inUse)
}

// changeRegistry runs one transaction. Each of its statements sees what was
// committed before the statement, not before the transaction: after waiting
// for another change, it judges what that one has left.
func (s *Store) changeRegistry(ctx context.Context, what, name string, change func(pgx.Tx) error) error {
	var failure error
	defer s.metrics.done(what, time.Now(), &failure)
	err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, change)
	if err != nil && !refused(err) {
		failure = err
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, name, err)
	}
	return nil
}

const registerSQL = `
INSERT INTO workspace_cluster (name, url, tls, state, score, max_score, govern, region, admission_constraints,
    available_workspace_classes, preferred_workspace_class)
VALUES ($1, $2, $3::jsonb, $4, $5, $6, $7, $8, coalesce($9::jsonb, '[]'), coalesce($10::jsonb, '[]'), $11)`

const rememberedSQL = `DELETE FROM trestle_deregistered_cluster WHERE name = $1`

// RegisterCluster adds a cluster, which then counts as deregistered no more.
// Its errors are ErrClusterNameTaken, ErrClusterURLTaken and failures; after a
// failure the cluster may have been added all the same.
func (s *Store) RegisterCluster(ctx context.Context, c Cluster) error {
	return s.changeRegistry(ctx, "register cluster", c.Name, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, registerSQL, c.Name, c.URL, c.TLS.stored(), c.State, c.Score, c.MaxScore, c.Govern, c.Region,
			[]byte(c.AdmissionConstraints), []byte(c.WorkspaceClasses), c.PreferredClass)
		var conflict *pgconn.PgError
		if errors.As(err, &conflict) && conflict.Code == "23505" { // unique
			if conflict.ConstraintName == "workspace_cluster_pkey" {
				return ErrClusterNameTaken
			}
			return ErrClusterURLTaken
		}
		if err != nil {
			return err
		}
		// In a statement of its own: one that deregistered the name while we
		// waited to insert it has remembered it since we began.
		_, err = tx.Exec(ctx, rememberedSQL, c.Name)
		return err
	})
}

// stored is what the row holds, nil for plain text.
func (t *ClusterTLS) stored() []byte {
	if t == nil {
		return nil
	}
	// Texts always encode.
	encoded, _ := json.Marshal(struct {
		CA  string `json:"ca"`
		Crt string `json:"crt"`
		Key string `json:"key"`
	}{t.CA.Reveal(), t.Certificate.Reveal(), t.Key.Reveal()})
	return encoded
}

// ClusterChange changes one property of a cluster: the one that is set.
type ClusterChange struct {
	Score, MaxScore *int32
	// Cordoned turns the state into cordoned or available.
	Cordoned *bool
	// AddConstraint and RemoveConstraint are one admission constraint. It is
	// there once after it was added, however often that was, and not at all
	// after it was removed.
	AddConstraint, RemoveConstraint json.RawMessage
	// TLS takes the place of what was there, if the cluster is still at
	// TriedAt, the URL with which it was tried.
	TLS     *ClusterTLS
	TriedAt string
}

// Each change is computed from the row as it is locked, so that two at once
// both count.
const (
	updateScoreSQL    = `UPDATE workspace_cluster SET score = $2 WHERE name = $1`
	updateMaxScoreSQL = `UPDATE workspace_cluster SET max_score = $2 WHERE name = $1`
	updateStateSQL    = `UPDATE workspace_cluster SET state = CASE WHEN $2 THEN 'cordoned' ELSE 'available' END WHERE name = $1`
	updateTLSSQL      = `UPDATE workspace_cluster SET tls = $2::jsonb WHERE name = $1 AND url = $3`
	addConstraintSQL  = `
UPDATE workspace_cluster
SET admission_constraints = CASE
    WHEN jsonb_typeof(admission_constraints) <> 'array' THEN jsonb_build_array($2::jsonb)
    WHEN $2::jsonb IN (SELECT jsonb_array_elements(admission_constraints)) THEN admission_constraints
    ELSE admission_constraints || jsonb_build_array($2::jsonb)
END
WHERE name = $1`
	removeConstraintSQL = `
UPDATE workspace_cluster
SET admission_constraints = CASE
    WHEN jsonb_typeof(admission_constraints) <> 'array' THEN '[]'
    ELSE (
        SELECT coalesce(jsonb_agg(c.value ORDER BY c.position), '[]')
        FROM jsonb_array_elements(admission_constraints) WITH ORDINALITY AS c (value, position)
        WHERE c.value <> $2::jsonb
    )
END
WHERE name = $1`
)

// statement gives the SQL of a change and its parameters after the name.
func (c ClusterChange) statement() (sql string, args []any, err error) {
	set := 0
	use := func(text string, values ...any) {
		sql, args = text, values
		set++
	}
	if c.Score != nil {
		use(updateScoreSQL, *c.Score)
	}
	if c.MaxScore != nil {
		use(updateMaxScoreSQL, *c.MaxScore)
	}
	if c.Cordoned != nil {
		use(updateStateSQL, *c.Cordoned)
	}
	if c.AddConstraint != nil {
		use(addConstraintSQL, []byte(c.AddConstraint))
	}
	if c.RemoveConstraint != nil {
		use(removeConstraintSQL, []byte(c.RemoveConstraint))
	}
	if c.TLS != nil {
		use(updateTLSSQL, c.TLS.stored(), c.TriedAt)
	}
	if set != 1 {
		return "", nil, fmt.Errorf("a change of a cluster sets one property, not %d", set)
	}
	return sql, args, nil
}

// UpdateCluster changes one property. Its errors are ErrUnknownCluster,
// ErrClusterMoved (of TLS alone) and failures.
func (s *Store) UpdateCluster(ctx context.Context, name string, change ClusterChange) error {
	sql, args, err := change.statement()
	if err != nil {
		return err
	}
	return s.changeRegistry(ctx, "update cluster", name, func(tx pgx.Tx) error {
		done, err := tx.Exec(ctx, sql, append([]any{name}, args...)...)
		if err != nil || done.RowsAffected() == 1 {
			return err
		}
		exists := false
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM workspace_cluster WHERE name = $1)`, name).Scan(&exists); err != nil {
			return err
		}
		if exists {
			return ErrClusterMoved
		}
		return ErrUnknownCluster
	})
}

// someInstances is how many a refusal names.
const someInstances = 5

// An instance without a workspace counts as regular: nobody knows better.
const runningSQL = `
SELECT i.id::text, count(*) OVER ()
FROM workspace_instance i
LEFT JOIN workspace w ON w.id = i.workspace_id
WHERE i.region = $1 AND i.stopped_time IS NULL AND i.phase <> 'stopped' AND coalesce(w.type, 'regular') = 'regular'
ORDER BY i.creation_time, i.id
LIMIT $2`

// DeregisterCluster removes a cluster and remembers its name and the time,
// until it is registered again. Its errors are ErrUnknownCluster, a
// *ClusterInUseError unless forced, and failures.
//
// Instances are made by others, who do not ask the registry: one that is made
// there in this moment may be missed, and is one of a deregistered cluster
// then.
func (s *Store) DeregisterCluster(ctx context.Context, name string, force bool) error {
	return s.changeRegistry(ctx, "deregister cluster", name, func(tx pgx.Tx) error {
		done, err := tx.Exec(ctx, `DELETE FROM workspace_cluster WHERE name = $1`, name)
		if err != nil {
			return err
		}
		if done.RowsAffected() == 0 {
			return ErrUnknownCluster
		}
		if !force {
			if err := checkUnused(ctx, tx, name); err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, `
			INSERT INTO trestle_deregistered_cluster (name, deregistered_at) VALUES ($1, now())
			ON CONFLICT (name) DO UPDATE SET deregistered_at = excluded.deregistered_at`, name)
		return err
	})
}

func checkUnused(ctx context.Context, tx pgx.Tx, name string) error {
	rows, err := tx.Query(ctx, runningSQL, name, someInstances)
	if err != nil {
		return err
	}
	var found ClusterInUseError
	var id string
	if _, err := pgx.ForEachRow(rows, []any{&id, &found.Count}, func() error {
		found.Instances = append(found.Instances, id)
		return nil
	}); err != nil {
		return err
	}
	if found.Count > 0 {
		return &found
	}
	return nil
}
