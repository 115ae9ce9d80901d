package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/trestle-bridge/trestle/internal/app"
	"github.com/trestle-bridge/trestle/internal/config"
	"github.com/trestle-bridge/trestle/internal/config/settings"
	"github.com/trestle-bridge/trestle/internal/observe"
	"github.com/trestle-bridge/trestle/internal/publish"
)

// The exit codes; operators and tests rely on them.
const (
	exitClean      = 0
	exitFailure    = 1
	exitUsage      = 2
	exitIncomplete = 3
)

type streams struct{ out, err io.Writer }

// program is what the commands share.
type program struct {
	streams   streams
	lookupEnv func(string) (string, bool)
	path      string // --config

	level   slog.LevelVar // of log; may be changed while it is in use
	log     *slog.Logger  // nil until the configuration is known
	started bool          // a command was found, with the right arguments
}

// run is the whole program but for the process around it.
func run(ctx context.Context, args []string, s streams, lookupEnv func(string) (string, bool)) int {
	p := &program{streams: s, lookupEnv: lookupEnv}
	root := p.root()
	root.SetArgs(args)
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitClean
	}
	switch {
	case p.log != nil:
		p.log.Error("trestle ends with an error", "error", err)
	case !p.started:
		fmt.Fprintf(s.err, "trestle: %v\nSee: %s --help\n", err, command.CommandPath())
		return exitUsage
	default:
		fmt.Fprintf(s.err, "trestle: %v\n", err)
	}
	return exitCode(err)
}

// exitCode is that of a command that ended with an error.
func exitCode(err error) int {
	var wrong *settings.Error
	switch {
	case errors.As(err, &wrong):
		return exitUsage
	case errors.Is(err, app.ErrIncomplete):
		return exitIncomplete
	}
	return exitFailure
}

func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "trestle",
		Short: "A bridge between workspace clusters, PostgreSQL and Redis",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return errors.New("a command is missing")
		},
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetOut(p.streams.out)
	root.SetErr(p.streams.err)
	root.PersistentFlags().StringVar(&p.path, "config", "", "configuration, a YAML or JSON file ($"+config.PathVariable+")")
	root.AddCommand(p.serve(), p.migrate(), p.config(), p.dev(), p.ready(), p.version())
	return root
}

func (p *program) serve() *cobra.Command {
	var profiles profiles
	c := p.configured(&cobra.Command{
		Use:   "serve",
		Short: "Run the service until SIGTERM or SIGINT; a second signal ends it at once",
	}, []config.Need{config.NeedPostgres, config.NeedRedis, config.NeedEtcd}, func(ctx context.Context, cfg *config.Config) error {
		if err := cfg.ReadFiles(); err != nil {
			return err
		}
		// The driver has one logger for the whole process, so this is not for
		// app.Run, which may run more than once in one.
		publish.LogDriver(p.log.With("component", "redis"))
		var waits atomic.Pointer[func() int] // set when there is a pipeline
		defer relaxCollector(func() int {
			if waiting := waits.Load(); waiting != nil {
				return (*waiting)()
			}
			return 0
		})()
		defer spareProcessors()()
		version, revision := build()
		return profiles.around(func() error {
			return app.Run(ctx, app.Options{
				Config: *cfg, Version: version, Revision: revision, Logger: p.log, LogLevel: &p.level,
				Waiting: func(waiting func() int) { waits.Store(&waiting) },
			})
		})
	})
	profiles.addFlags(c)
	return c
}

func (p *program) migrate() *cobra.Command {
	return p.configured(&cobra.Command{
		Use:   "migrate",
		Short: "Bring the database's schema up to what this version needs",
	}, []config.Need{config.NeedPostgres}, func(ctx context.Context, cfg *config.Config) error {
		return app.Migrate(ctx, *cfg, p.log)
	})
}

// configured completes a command that works on a configuration and writes a
// log: run gets what was loaded, p.log is set.
func (p *program) configured(c *cobra.Command, needs []config.Need, run func(context.Context, *config.Config) error) *cobra.Command {
	c.Args = cobra.NoArgs
	config.AddFlags(c.Flags())
	c.RunE = func(c *cobra.Command, _ []string) error {
		p.started = true
		cfg, warnings, err := p.load(c, needs)
		if err != nil {
			return err
		}
		p.level.Set(cfg.Log.Level)
		p.log, err = observe.NewLogger(p.streams.err, cfg.Log.Format, &p.level)
		if err != nil {
			return err
		}
		for _, w := range warnings {
			p.log.Warn("configuration: " + w.String())
		}
		return run(c.Context(), cfg)
	}
	return c
}

func (p *program) load(c *cobra.Command, needs []config.Need) (*config.Config, []settings.Problem, error) {
	version, _ := build()
	return config.Load(config.Input{Path: p.path, LookupEnv: p.lookupEnv, Flags: c.Flags(), Needs: needs, Version: version})
}

func (p *program) config() *cobra.Command {
	var check bool
	c := &cobra.Command{
		Use:   "config",
		Short: "Print the configuration that is in force, passwords masked",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			p.started = true
			var needs []config.Need
			if check {
				needs = []config.Need{config.NeedPostgres, config.NeedRedis, config.NeedEtcd}
			}
			cfg, warnings, err := p.load(c, needs)
			for _, w := range warnings {
				fmt.Fprintf(p.streams.err, "trestle: warning: %s\n", w)
			}
			if err != nil {
				return err
			}
			if check {
				if err := cfg.ReadFiles(); err != nil {
					return err
				}
				if err := app.CheckFiles(*cfg); err != nil {
					return err
				}
			}
			return cfg.Print(p.streams.out)
		},
	}
	config.AddFlags(c.Flags())
	c.Flags().BoolVar(&check, "check", false, "also ask for all that serve needs, and read the certificates and tokens")
	return c
}

func (p *program) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this binary",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			p.started = true
			return printVersion(p.streams.out)
		},
	}
}
