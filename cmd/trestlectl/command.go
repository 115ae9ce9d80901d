package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trestle-bridge/trestle/cmd/internal/credentials"
)

const (
	addressVariable = "TRESTLE_ADDRESS"
	defaultAddress  = "localhost:8080"
	defaultTimeout  = 15 * time.Second
)

type streams struct{ out, err io.Writer }

// program is what the commands share.
type program struct {
	streams   streams
	lookupEnv func(string) (string, bool)

	addresses []string
	proof     credentials.Credentials
	timeout   time.Duration
	format    string

	started bool   // a command was found, with the right flags and arguments
	trace   string // the command that shows what came of a change, if any does
}

// run is the whole program but for the process around it.
func run(ctx context.Context, args []string, s streams, lookupEnv func(string) (string, bool)) int {
	p := &program{streams: s, lookupEnv: lookupEnv}
	root := p.root()
	root.SetArgs(args)
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	if !p.started {
		err = &usageError{err.Error()}
	}
	return p.fail(command, err)
}

func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "trestlectl",
		Short: "Show which replica of Trestle carries which workspace cluster, and move them",
		Long: `Show which replica of Trestle carries which workspace cluster, and move them.

It does not matter which replica is asked. Several addresses are tried in turn.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 what was named does not exist,
4 refused, 5 no replica could be reached, or it could not do its work.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return p.check()
		},
	}
	group(root)
	root.SetOut(p.streams.out)
	root.SetErr(p.streams.err)
	flags := root.PersistentFlags()
	flags.StringSliceVar(&p.addresses, "address", nil,
		"where replicas serve gRPC, host:port; repeat it or separate by commas ($"+addressVariable+", default "+defaultAddress+")")
	p.proof.AddFlags(flags)
	flags.DurationVar(&p.timeout, "timeout", defaultTimeout, "how long it may take in all; a watch until its first answer")
	flags.StringVarP(&p.format, "output", "o", formatTable, strings.Join(formats(), ", "))
	complete(root, "output", formats()...)
	root.AddCommand(
		p.shards(), p.replicas(), p.explain(), p.plan(), p.commands(),
		p.pin(), p.unpin(), p.drain(), p.undrain(), p.freeze(), p.unfreeze(), p.slices(), p.brake(), p.sweep(),
		p.clusters(), p.quarantine(), p.instance(), p.top(), p.tokenCommand(), p.version(),
	)
	return root
}

// check completes what the flags have left out, and looks at what they say.
func (p *program) check() error {
	if len(p.addresses) == 0 {
		if value, set := p.lookupEnv(addressVariable); set && value != "" {
			p.addresses = strings.Split(value, ",")
		} else {
			p.addresses = []string{defaultAddress}
		}
	}
	for i, address := range p.addresses {
		p.addresses[i] = strings.TrimSpace(address)
		if err := checkAddress(p.addresses[i]); err != nil {
			return err
		}
	}
	if err := p.proof.Read(p.lookupEnv); err != nil {
		return err
	}
	if p.timeout <= 0 {
		return fmt.Errorf("--timeout %s: give a time above 0, such as 10s", p.timeout)
	}
	if !slices.Contains(formats(), p.format) {
		return fmt.Errorf("--output %q: give one of %s", p.format, strings.Join(formats(), ", "))
	}
	return nil
}

// group makes a command that only has others below it.
func group(c *cobra.Command) *cobra.Command {
	c.SuggestionsMinimumDistance = 2
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return fmt.Errorf("a command is missing")
		}
		what := fmt.Sprintf("there is no command %q", c.CommandPath()+" "+args[0])
		if like := c.SuggestionsFor(args[0]); len(like) > 0 {
			what += fmt.Sprintf("; did you mean %s?", strings.Join(like, " or "))
		}
		return fmt.Errorf("%s", what)
	}
	c.RunE = func(*cobra.Command, []string) error { return nil } // its arguments are always wrong
	return c
}

// reading completes a command that changes nothing.
func (p *program) reading(c *cobra.Command, args []argument, do func(c *cobra.Command, args []string) error) *cobra.Command {
	p.takes(c, args)
	c.RunE = func(c *cobra.Command, args []string) error {
		p.started = true
		return do(c, args)
	}
	return c
}

// argument is one that a command needs.
type argument struct {
	name string
	// known gives what there is to choose from; nil if that is not known.
	known func(ctx context.Context) ([]string, error)
}

func (p *program) takes(c *cobra.Command, args []argument) {
	for _, a := range args {
		c.Use += " " + a.name
	}
	c.Args = func(_ *cobra.Command, given []string) error {
		for i, a := range args {
			if i >= len(given) || given[i] == "" {
				return fmt.Errorf("%s is missing", a.name)
			}
		}
		if len(given) > len(args) {
			return fmt.Errorf("%q is an argument too many", given[len(args)])
		}
		return nil
	}
	c.ValidArgsFunction = func(c *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(given) >= len(args) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return p.complete(c.Context(), args[len(given)].known)
	}
}

// completionTimeout is how long whoever presses the key waits.
const completionTimeout = 2 * time.Second

// complete says what values a flag has. The flag is one of this command, so
// there is no error.
func complete(c *cobra.Command, flag string, values ...string) {
	_ = c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}
