package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trestle-bridge/trestle/loadtest/bench"
	"github.com/trestle-bridge/trestle/loadtest/bench/limits"
)

func benchCommand(started *bool) *cobra.Command {
	var cfg bench.Config
	var verbose bool
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure against the raw limits of this machine",
		Long: `Measures the bridge against the raw limits of this machine: PostgreSQL, gRPC
and Redis without it, in the same run. Starts all that it needs by itself.
Writes a table, and bench.json, machine.json, bench.png and profiles of the
service to the folder of results.

A target that is missed is a result, not a failure; a row that is wrong is one.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			for _, id := range cfg.Only {
				if !slices.Contains(bench.IDs(), id) {
					return fmt.Errorf("there is no figure %q; there are %s", id, strings.Join(bench.IDs(), ", "))
				}
			}
			*started = true
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			if cfg.Loadtest = self; cfg.Trestle == "" {
				cfg.Trestle = filepath.Join(filepath.Dir(self), "trestle")
			}
			cfg.Out, cfg.Progress, cfg.Terminal = os.Stdout, os.Stderr, isTerminal(os.Stderr)
			if verbose {
				cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
			}
			return bench.Run(c.Context(), cfg)
		},
	}
	c.Flags().StringVar(&cfg.Trestle, "trestle", "", "binary of the service (default: trestle, beside this program)")
	c.Flags().StringVar(&cfg.Results, "results", filepath.Join("loadtest", "results"), "folder for what comes out")
	c.Flags().StringSliceVar(&cfg.Only, "only", nil, "figures to measure, as in P1,P3 (default: all)")
	c.Flags().BoolVar(&cfg.Quick, "quick", false, "measure for seconds instead of minutes: rough")
	c.Flags().StringArrayVar(&cfg.Serve, "serve", nil, "a further flag of the service, as in --serve=--pipeline-lanes=2; may come again")
	c.Flags().BoolVar(&verbose, "verbose", false, "log what servers and clusters do")
	return c
}

// readCommand is what bench starts to read a raw stream.
func readCommand(started *bool) *cobra.Command {
	var address string
	var messages int
	var decode bool
	c := &cobra.Command{
		Use:    "read",
		Short:  "Read the stream of a cluster and do nothing with it",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			*started = true
			reading, err := limits.Read(c.Context(), address, messages, decode)
			if err != nil {
				return err
			}
			return json.NewEncoder(os.Stdout).Encode(reading)
		},
	}
	c.Flags().StringVar(&address, "address", "", "host:port of the cluster")
	c.Flags().IntVar(&messages, "messages", 0, "how many to read")
	c.Flags().BoolVar(&decode, "decode", false, "decode them by generated code")
	return c
}

// isTerminal says whether somebody looks at it.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
