package store

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/trestle-bridge/trestle/internal/devstack/devstacktest"
	"github.com/trestle-bridge/trestle/internal/secret"
)

type planNode struct {
	Type     string     `json:"Node Type"`
	Relation string     `json:"Relation Name"`
	CTE      string     `json:"CTE Name"`
	Cond     string     `json:"Index Cond"`
	TIDCond  string     `json:"TID Cond"`
	Function string     `json:"Function Name"`
	Alias    string     `json:"Alias"`
	Plans    []planNode `json:"Plans"`
}

// TestPlans looks at the kept plans of all variants, those made while the tables
// are empty and those made when they are not. A table must be read by key only,
// and a join never run over two sets whose sizes the planner cannot know.
func TestPlans(t *testing.T) {
	ctx := t.Context()
	url := secret.NewURL(devstacktest.NewDatabase(t))
	if err := Migrate(ctx, url, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	s, err := Open(ctx, Config{URL: url, MaxConnections: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	recorded, err := newApplyStatements(true)
	if err != nil {
		t.Fatal(err)
	}
	statements := slices.Clone(s.statements[:])
	for _, st := range recorded {
		st.name += "_lifecycle"
		statements = append(statements, st)
	}
	fill := []string{
		`INSERT INTO workspace (id) SELECT 'w' || i FROM generate_series(1, 3000) i`,
		`INSERT INTO workspace_instance (id, workspace_id) SELECT gen_random_uuid(), 'w' || i FROM generate_series(1, 3000) i`,
		`INSERT INTO prebuilt_workspace (id, build_workspace_id) SELECT gen_random_uuid(), 'w' || i FROM generate_series(1, 3000) i`,
		`INSERT INTO gitpod_token (token_hash, user_id, name) SELECT i, 'u' || i, i FROM generate_series(1, 3000) i`,
		`INSERT INTO trestle_outbox (shard, epoch, owner, lane, seq, instances) SELECT 's', 1, 'o', 0, i, '{}' FROM generate_series(1, 3000) i`,
		`INSERT INTO trestle_fence (shard, epoch, owner) SELECT i, 1, 'o' FROM generate_series(1, 300) i`,
		`INSERT INTO workspace_instance_metrics (instance_id) SELECT gen_random_uuid() FROM generate_series(1, 3000) i`,
	}
	for state, sql := range map[string][]string{
		"empty":              {`SELECT 1`},
		"empty and analyzed": {`VACUUM ANALYZE`},
		"one row each":       {strings.ReplaceAll(strings.Join(fill, ";"), "3000", "1"), `VACUUM ANALYZE`},
		"filled":             {strings.Join(fill, ";")},
		"filled, analyzed":   {strings.Join(fill, ";"), `VACUUM ANALYZE`},
	} {
		t.Run(state, func(t *testing.T) {
			conn, err := s.pool.Acquire(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Release()
			exec := func(sql string) {
				if _, err := conn.Conn().PgConn().Exec(ctx, sql).ReadAll(); err != nil {
					t.Fatal(err)
				}
			}
			exec(`TRUNCATE workspace, workspace_instance, prebuilt_workspace, gitpod_token, trestle_outbox, trestle_fence, workspace_instance_metrics`)
			for _, part := range sql {
				exec(part)
			}
			exec(`DISCARD PLANS`)
			for _, st := range statements {
				prepared, err := conn.Conn().Prepare(ctx, st.name, st.sql)
				if err != nil {
					t.Fatal(err)
				}
				nulls := strings.TrimSuffix(strings.Repeat("NULL,", len(prepared.ParamOIDs)), ",")
				result, err := conn.Conn().PgConn().Exec(context.Background(), fmt.Sprintf("EXPLAIN (FORMAT JSON) EXECUTE %s(%s)", st.name, nulls)).ReadAll()
				if err != nil {
					t.Fatal(err)
				}
				var plans []struct{ Plan planNode }
				if err := json.Unmarshal(result[0].Rows[0][0], &plans); err != nil {
					t.Fatal(err)
				}
				checkPlan(t, st.name, plans[0].Plan)
			}
		})
	}
}

func checkPlan(t *testing.T, statement string, node planNode) {
	t.Helper()
	switch node.Type {
	case "Hash Join", "Merge Join", "Seq Scan", "Bitmap Heap Scan":
		t.Errorf("%s has a %s (%s %s)", statement, node.Type, node.Relation, node.Alias)
	case "Index Scan", "Index Only Scan":
		if node.Cond == "" {
			t.Errorf("%s reads all of %s", statement, node.Relation)
		}
	case "Tid Scan":
		if node.TIDCond == "" {
			t.Errorf("%s reads all of %s", statement, node.Relation)
		}
	case "Nested Loop":
		if inner := node.Plans[1]; isSet(inner) {
			t.Errorf("%s runs a loop over a set: %s %s%s", statement, inner.Type, inner.CTE, inner.Function)
		}
	}
	for _, plan := range node.Plans {
		checkPlan(t, statement, plan)
	}
}

// isSet says whether a plan gives the rows of a batch, whatever the outer side
// of a join has. What is read from a document of the outer row is none.
func isSet(node planNode) bool {
	switch node.Type {
	case "CTE Scan":
		return true
	case "Function Scan":
		return node.Function == "unnest"
	case "Materialize", "Sort", "Limit", "Subquery Scan", "Result", "Aggregate", "Memoize":
		return len(node.Plans) > 0 && isSet(node.Plans[0])
	}
	return false
}
