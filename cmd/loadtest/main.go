// Command loadtest plays simulated workspace clusters against the bridge.
//
// Exit codes: 0 when everything was played or measured, and the bridge did what it
// must (whether or not a benchmark reached its targets), 1 when something failed,
// was lost or was broken off, 2 on wrong usage.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"
)

const (
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	s, stop := notify()
	code := run(s, os.Args[1:])
	stop()
	os.Exit(code)
}

// signals are ^C and SIGTERM, as they come.
type signals struct {
	// first is closed by the first one. Commands that know how to end in order
	// take it from here.
	first chan struct{}
	// orderly is set, before anything is started, by such a command; without, the
	// first signal ends ctx.
	orderly atomic.Bool
	// ctx ends with the second one, or with the first.
	ctx context.Context
}

// notify hears signals until stop is called. A third one does what signals do by
// default.
func notify() (s *signals, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	s = &signals{first: make(chan struct{}), ctx: ctx}
	// Of size 2: one that comes at once after another is not lost.
	heard := make(chan os.Signal, 2)
	signal.Notify(heard, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-heard
		close(s.first)
		if s.orderly.Load() {
			<-heard
		}
		signal.Stop(heard)
		cancel()
	}()
	return s, cancel
}

func (s *signals) interrupted() bool {
	select {
	case <-s.first:
		return true
	default:
		return false
	}
}

func run(s *signals, args []string) int {
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
	root.AddCommand(runCommand(&started, s), scenariosCommand(&started), showCommand(&started), reportCommand(&started), cleanCommand(&started), soakCommand(&started, s),
		benchCommand(&started), readCommand(&started))
	root.SetArgs(args)
	command, err := root.ExecuteContextC(s.ctx)
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
