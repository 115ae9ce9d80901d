package store

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/trestle-bridge/trestle/proto/wsman"
)

// Classes are the workspace classes of a cluster as a row holds them.
type Classes struct {
	// Available is a JSON array.
	Available json.RawMessage
	// Preferred is the id of one of them, or empty.
	Preferred string
}

// ClassesOf is what a cluster says of itself, as a row holds it.
func ClassesOf(described *wsman.DescribeClusterResponse) (Classes, error) {
	type class struct {
		ID               string  `json:"id"`
		DisplayName      string  `json:"displayName"`
		Description      string  `json:"description"`
		CreditsPerMinute float32 `json:"creditsPerMinute"`
	}
	// The database has no NUL in a text.
	text := func(s string) string { return strings.ReplaceAll(s, "\x00", "\uFFFD") }
	all := make([]class, 0, len(described.GetWorkspaceClasses())) // not null
	for _, c := range described.GetWorkspaceClasses() {
		credits := c.GetCreditsPerMinute()
		if math.IsNaN(float64(credits)) || math.IsInf(float64(credits), 0) {
			return Classes{}, fmt.Errorf("workspace class %q costs %v credits a minute", c.GetId(), credits)
		}
		all = append(all, class{text(c.GetId()), text(c.GetDisplayName()), text(c.GetDescription()), credits})
	}
	encoded, err := json.Marshal(all)
	if err != nil {
		return Classes{}, fmt.Errorf("encode the workspace classes: %w", err)
	}
	return Classes{Available: encoded, Preferred: text(described.GetPreferredWorkspaceClass())}, nil
}

// The row must still be as it was read: whoever was held up between asking the
// cluster and writing its answer overwrites no later answer.
const setClassesSQL = `
UPDATE workspace_cluster
SET available_workspace_classes = $5::jsonb, preferred_workspace_class = $6
WHERE name = $1 AND url = $2 AND available_workspace_classes = $3::jsonb AND preferred_workspace_class = $4
    AND (available_workspace_classes <> $5::jsonb OR preferred_workspace_class <> $6)`

// SetClasses stores the classes of a cluster if they differ and the row is as
// it was read: the cluster at the same URL, with the classes of then.
func (s *Store) SetClasses(ctx context.Context, read Cluster, classes Classes) (changed bool, err error) {
	defer s.metrics.done("set classes", time.Now(), &err)
	done, err := s.pool.Exec(ctx, setClassesSQL, read.Name, read.URL, []byte(read.WorkspaceClasses), read.PreferredClass,
		[]byte(classes.Available), classes.Preferred)
	if err != nil {
		return false, fmt.Errorf("store the workspace classes of cluster %s: %w", read.Name, err)
	}
	return done.RowsAffected() == 1, nil
}
