package loadtest

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Register tells the service of clusters as an operator would by hand: it finds
// them in the table of its database, whose URL is given. They are plain text.
func Register(ctx context.Context, postgres string, clusters []Cluster) error {
	db, err := pgx.Connect(ctx, postgres)
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	defer db.Close(context.WithoutCancel(ctx))
	for _, c := range clusters {
		if _, err := db.Exec(ctx, `INSERT INTO workspace_cluster (name, url) VALUES ($1, $2)`, c.Name, c.URL); err != nil {
			return fmt.Errorf("register cluster %s: %w", c.Name, err)
		}
	}
	return nil
}
