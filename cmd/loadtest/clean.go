package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/trestle-bridge/trestle/cmd/internal/credentials"
	"github.com/trestle-bridge/trestle/loadtest/operator"
	"github.com/trestle-bridge/trestle/loadtest/stage"
)

// cleanCommand removes what a load test has left that was broken off.
func cleanCommand(started *bool) *cobra.Command {
	var postgres, prefix string
	var addresses []string
	var proof credentials.Credentials
	c := &cobra.Command{
		Use:   "clean",
		Short: "Remove from an installation what a load test that was broken off has left",
		Long: `Removes the clusters and instances under a prefix that a load test has made in an
installation, and could not remove itself. It refuses if there is an instance in
their regions that no load test has made.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if postgres == "" || len(addresses) == 0 || prefix == "" {
				return errors.New("give --postgres, --grpc and --prefix")
			}
			if err := stage.CheckPrefix(prefix); err != nil {
				return fmt.Errorf("--prefix: %w", err)
			}
			dial, err := dialing(&proof, addresses)
			if err != nil {
				return err
			}
			*started = true
			db, err := pgxpool.New(c.Context(), postgres)
			if err != nil {
				return fmt.Errorf("connect to PostgreSQL: %w", err)
			}
			defer db.Close()
			o, err := operator.New(operator.Config{Addresses: func() []string { return addresses }, Dial: dial})
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, o.Close()) }()
			rows := stage.Rows{DB: db, Operator: o, Prefix: prefix}
			instances, clusters, err := rows.Clean(c.Context())
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "removed %d instances and %d clusters\n", instances, clusters)
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&postgres, "postgres", os.Getenv("LOADTEST_POSTGRES_URL"), "URL of the installation's PostgreSQL (environment: LOADTEST_POSTGRES_URL)")
	f.StringSliceVar(&addresses, "grpc", nil, "host:port of the gRPC of its replicas, separated by commas; any may be away")
	proof.AddFlags(f)
	f.StringVar(&prefix, "prefix", "", "what the names of clusters and regions begin with")
	return c
}
