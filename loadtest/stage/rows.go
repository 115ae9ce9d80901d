package stage

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trestle-bridge/trestle/loadtest/operator"
	"github.com/trestle-bridge/trestle/loadtest/script"
	"github.com/trestle-bridge/trestle/loadtest/seed"
)

// Rows takes care that a load test touches none in the tables of an installation
// but those that it has made: those whose regions begin with its prefix.
type Rows struct {
	// DB holds the tables; Operator knows the clusters.
	DB       *pgxpool.Pool
	Operator *operator.Operator
	// Prefix of the names of clusters and regions.
	Prefix string
}

var prefixForm = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)

// CheckPrefix says what is wrong with a prefix.
func CheckPrefix(prefix string) error {
	if !prefixForm.MatchString(prefix) || len(prefix) > 40 {
		return fmt.Errorf("%q is no prefix; give up to 40 lower case letters, digits and single dashes between them, beginning with a letter", prefix)
	}
	return nil
}

// ours says whether a name is one that a load test with this prefix gives.
func (r *Rows) ours(name string) bool {
	rest, found := strings.CutPrefix(name, r.Prefix+"-")
	if !found {
		return false
	}
	digits := strings.Trim(rest, "0123456789") == "" && len(rest) >= 3
	return digits || rest == "elsewhere"
}

// Unused says what stands in the way of a load test under the prefix: clusters
// or rows of that name.
func (r *Rows) Unused(ctx context.Context) error {
	names, err := r.Operator.Clusters(ctx)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(names, r.ours); i >= 0 {
		return fmt.Errorf("a cluster %s is registered already: another load test runs under the prefix %q, or one was broken off; choose another --prefix, or remove what is left (loadtest clean --prefix=%s)", names[i], r.Prefix, r.Prefix)
	}
	found, _, err := r.find(ctx)
	if err != nil {
		return err
	}
	if len(found) > 0 {
		return fmt.Errorf("there are %d instances in regions %s-...: another load test runs under that prefix, or one was broken off; choose another --prefix, or remove what is left (loadtest clean --prefix=%s)", len(found), r.Prefix, r.Prefix)
	}
	return nil
}

// row is an instance in a region of the prefix.
type row struct {
	id        [16]byte
	workspace string
}

// find gives the instances in regions of the prefix that a load test has made,
// and the ids of those that it has not. What it makes has an image that names
// its workspace at a registry that cannot exist.
func (r *Rows) find(ctx context.Context) (made []row, strange []string, err error) {
	rows, err := r.DB.Query(ctx, `SELECT id, coalesce(workspace_id, ''), coalesce(region, ''), coalesce(workspace_image, '')
		FROM workspace_instance WHERE starts_with(region, $1)`, r.Prefix+"-")
	if err != nil {
		return nil, nil, fmt.Errorf("look for instances in regions %s-...: %w", r.Prefix, err)
	}
	var one row
	var region, image string
	_, err = pgx.ForEachRow(rows, []any{&one.id, &one.workspace, &region, &image}, func() error {
		switch {
		case !r.ours(region):
		case image == seed.Image(one.workspace):
			made = append(made, one)
		default:
			strange = append(strange, script.FormatUUID(one.id))
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("look for instances in regions %s-...: %w", r.Prefix, err)
	}
	return made, strange, nil
}

// Clean removes what a load test has made under the prefix, however it ended, and
// says how much that was. It refuses if there is an instance among it that
// no load test has made.
func (r *Rows) Clean(ctx context.Context) (instances, clusters int, err error) {
	made, strange, err := r.find(ctx)
	if err != nil {
		return 0, 0, err
	}
	if len(strange) > 0 {
		return 0, 0, fmt.Errorf("%d instances in regions %s-... were not made by a load test, such as %s: nothing is removed", len(strange), r.Prefix, strange[0])
	}
	names, err := r.Operator.Clusters(ctx)
	if err != nil {
		return 0, 0, err
	}
	ids, workspaces := make([][16]byte, len(made)), make([]string, len(made))
	var tokens []string
	for i, one := range made {
		ids[i], workspaces[i] = one.id, one.workspace
		tokens = append(tokens, seed.TokenHashes(one.id)...)
	}
	err = pgx.BeginFunc(ctx, r.DB, func(tx pgx.Tx) error {
		for _, of := range []struct {
			table, column string
			keys          any
		}{
			{"workspace_instance", "id", ids},
			{"workspace_instance_metrics", "instance_id", ids},
			{"prebuilt_workspace", "build_workspace_id", workspaces},
			{"workspace", "id", workspaces},
			{"gitpod_token", "token_hash", tokens},
		} {
			if _, err := tx.Exec(ctx, "DELETE FROM "+of.table+" WHERE "+of.column+" = ANY($1)", of.keys); err != nil {
				return fmt.Errorf("remove from %s: %w", of.table, err)
			}
		}
		return nil
	})
	if err != nil {
		return 0, 0, err
	}
	for _, name := range names {
		if !r.ours(name) {
			continue
		}
		if err := r.Operator.Deregister(ctx, name); err != nil {
			return len(made), clusters, err
		}
		clusters++
	}
	return len(made), clusters, nil
}
