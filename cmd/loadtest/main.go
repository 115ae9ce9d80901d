// Command loadtest plays simulated workspace clusters against the bridge.
//
// Exit codes: 0 when everything was measured, whether or not the targets were
// reached, 1 when something failed or the bridge did not do what it must, 2 on
// wrong usage.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

const (
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	// A second signal does what signals do by default.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:]))
}

func run(ctx context.Context, args []string) int {
	root := &cobra.Command{
		Use:   "loadtest",
		Short: "Play simulated workspace clusters against the bridge",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return errors.New("a command is missing")
		},
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	started := false
	root.AddCommand(benchCommand(&started), readCommand(&started))
	root.SetArgs(args)
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(os.Stderr, "loadtest: %v\n", err)
	if !started {
		fmt.Fprintf(os.Stderr, "See: %s --help\n", command.CommandPath())
		return exitUsage
	}
	return exitFailure
}
