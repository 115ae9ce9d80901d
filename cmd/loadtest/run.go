package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc"

	"github.com/trestle-bridge/trestle/cmd/internal/credentials"
	"github.com/trestle-bridge/trestle/loadtest/play"
	"github.com/trestle-bridge/trestle/loadtest/record"
	"github.com/trestle-bridge/trestle/loadtest/report"
	"github.com/trestle-bridge/trestle/loadtest/scenario"
	"github.com/trestle-bridge/trestle/loadtest/stage"
)

// errBroken says that all was played, and something has not held.
var errBroken = errors.New("it has not held")

// running are the flags of those who play scenarios.
type running struct {
	signals *signals

	all bool
	// brief: of what has held, a line is enough.
	brief             bool
	seed              uint64
	results           string
	verbose           bool
	replicas          int
	lease             time.Duration
	rate              float64
	clusters, live    int
	instances         int
	duration          time.Duration
	trestle, logs     string
	decisive          string
	changed           func(flag string) bool
	postgres, redis   string
	grpc, metrics     []string
	dial              []grpc.DialOption // of connections to grpc
	prefix            string
	listen, advertise string
	plaintext         bool
	proof             credentials.Credentials
}

func runCommand(started *bool, s *signals) *cobra.Command {
	r := &running{signals: s}
	c := &cobra.Command{
		Use:   "run NAME|FILE...",
		Short: "Play scenarios, and check every row and every publish",
		Long: `Plays scenarios, one after the other: built-in ones by their names (see: loadtest
scenarios), or files (see: loadtest show). What is sent, published and done to the
service is recorded; every row and every publish is checked; recordings go to
the folder of results.

Without --postgres, --redis and --grpc each scenario has a fleet of its own, with
a PostgreSQL, a Redis and an etcd, which is gone when it ends. With them it is
played against that installation: simulated clusters are served here and
registered there, instances are seeded in regions that begin with --prefix, and
all of it is removed at the end. Rows that the load test has not made are not
touched. Faults that need the processes of the service are refused then.

^C ends in order: what has been sent is checked, and everything is cleaned up. A
second one ends at once.`,
		Example: `  loadtest run rolling-upgrade
  loadtest run --all --rate 500
  loadtest run my-scenario.yaml --replicas 5
  loadtest run steady --rate 1000 --duration 10m --prefix lt \
    --postgres postgres://... --redis redis://... --grpc 10.0.0.7:8080,10.0.0.8:8080 \
    --listen 0.0.0.0:20000 --advertise loadtest.example.com:20000`,
		RunE: func(c *cobra.Command, args []string) error {
			r.changed = func(name string) bool { return c.Flags().Changed(name) }
			scenarios, err := r.scenarios(args)
			if err != nil {
				return err
			}
			if err := r.complete(scenarios); err != nil {
				return err
			}
			*started = true
			r.signals.orderly.Store(true)
			return r.play(c.Context(), scenarios)
		},
	}
	f := c.Flags()
	f.BoolVar(&r.all, "all", false, "play all built-in scenarios")
	r.common(c)
	f.IntVar(&r.replicas, "replicas", 0, "replicas at the beginning, instead of the scenario's")
	f.DurationVar(&r.lease, "lease", 0, "how long a replica may be silent, instead of the scenario's")
	f.Float64Var(&r.rate, "rate", 0, "updates a second of a steady load, instead of the scenario's")
	f.IntVar(&r.clusters, "clusters", 0, "simulated clusters, instead of the scenario's")
	f.IntVar(&r.live, "live", 0, "instances that are live at once, instead of the scenario's")
	f.IntVar(&r.instances, "instances", 0, "instances, instead of the scenario's")
	f.DurationVar(&r.duration, "duration", 0, "how long is sent, instead of the scenario's")
	f.StringVar(&r.postgres, "postgres", os.Getenv("LOADTEST_POSTGRES_URL"), "URL of the installation's PostgreSQL (environment: LOADTEST_POSTGRES_URL)")
	f.StringVar(&r.redis, "redis", os.Getenv("LOADTEST_REDIS_URL"), "URL of its Redis (environment: LOADTEST_REDIS_URL)")
	f.StringSliceVar(&r.grpc, "grpc", nil, "host:port of the gRPC of its replicas, separated by commas; any may be away")
	f.StringSliceVar(&r.metrics, "metrics", nil, "where its replicas tell their metrics, as in replica-1=10.0.0.7:9500; may be left out")
	f.StringVar(&r.listen, "listen", "127.0.0.1:20000", "where the first simulated cluster listens; each further one on the next port")
	f.StringVar(&r.advertise, "advertise", "", "how the installation reaches the first one (default: --listen)")
	f.StringVar(&r.prefix, "prefix", "loadtest", "begins the names of clusters and regions in the installation")
	f.BoolVar(&r.plaintext, "plaintext-clusters", false, "register clusters without TLS, which the installation must allow")
	r.proof.AddFlags(f)
	f.StringVar(&r.decisive, "decisive-phase", "stopping", "the installation's prebuild.decisivePhase: stopping or stopped")
	return c
}

// common are the flags that those have who start fleets.
func (r *running) common(c *cobra.Command) {
	f := c.Flags()
	f.Uint64Var(&r.seed, "seed", 0, "decides all that is said and drawn (default: drawn, and shown)")
	f.StringVar(&r.results, "results", "loadtest-results", "folder for the recordings and reports")
	f.StringVar(&r.trestle, "trestle", "", "binary of the service (default: trestle, beside this program)")
	f.StringVar(&r.logs, "logs", "", "folder for the logs of replicas (default: a new one for temporary files)")
	f.BoolVar(&r.verbose, "verbose", false, "log what the simulated clusters do")
}

// scenarios reads what is to be played, and changes it as the flags say.
func (r *running) scenarios(args []string) ([]*scenario.Scenario, error) {
	if r.all {
		if len(args) > 0 {
			return nil, errors.New("--all plays all built-in scenarios: name none")
		}
		args = scenario.Names()
	}
	if len(args) == 0 {
		return nil, fmt.Errorf("name a scenario or a file; there are %s", strings.Join(scenario.Names(), ", "))
	}
	var all []*scenario.Scenario
	for _, arg := range args {
		s, err := find(arg)
		if err != nil {
			return nil, err
		}
		r.adjust(s)
		if err := s.Complete(); err != nil {
			return nil, fmt.Errorf("%s, changed by flags: %w", arg, err)
		}
		all = append(all, s)
	}
	return all, nil
}

// find is the scenario of a name, or in a file.
func find(arg string) (*scenario.Scenario, error) {
	if !strings.ContainsAny(arg, "./") {
		return scenario.Builtin(arg)
	}
	text, err := os.ReadFile(arg)
	if err != nil {
		return nil, fmt.Errorf("read the scenario: %w", err)
	}
	return scenario.Parse(arg, text)
}

func (r *running) adjust(s *scenario.Scenario) {
	if r.changed("replicas") {
		s.Fleet.Replicas = r.replicas
	}
	if r.changed("lease") {
		s.Fleet.Lease = r.lease
	}
	if r.changed("clusters") {
		s.Work.Clusters = r.clusters
	}
	if r.changed("live") {
		s.Work.Live = r.live
	}
	if r.changed("instances") {
		s.Work.Instances = r.instances
	}
	if r.changed("duration") {
		s.Work.Duration = r.duration
	}
	// Of several scenarios, those without a rate go on without one.
	if r.changed("rate") && (s.Work.Rate > 0 || !r.all) {
		s.Work.Rate = r.rate
	}
}

// complete checks the flags.
func (r *running) complete(scenarios []*scenario.Scenario) error {
	if r.trestle == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		r.trestle = filepath.Join(filepath.Dir(self), "trestle")
	}
	if !r.changed("seed") {
		r.seed = rand.Uint64N(1 << 32)
	}
	if !r.existing() {
		for _, name := range []string{"metrics", "listen", "advertise", "prefix", "plaintext-clusters", "decisive-phase",
			"tls", "tls-ca", "tls-crt", "tls-key", "tls-server-name", "token-file"} {
			if r.changed(name) {
				return fmt.Errorf("--%s is for an installation that exists: give --postgres, --redis and --grpc, too", name)
			}
		}
		if _, err := os.Stat(r.trestle); err != nil {
			return fmt.Errorf("the binary of the service is needed to start replicas: %w; build it (make build), or name it by --trestle", err)
		}
		return nil
	}
	if r.postgres == "" || r.redis == "" || len(r.grpc) == 0 {
		return errors.New("an installation needs all of --postgres, --redis and --grpc")
	}
	if r.changed("replicas") || r.changed("lease") || r.changed("trestle") || r.changed("logs") {
		return errors.New("--replicas, --lease, --trestle and --logs are for a fleet of the load test's own: an installation has what it has")
	}
	if err := stage.CheckPrefix(r.prefix); err != nil {
		return fmt.Errorf("--prefix: %w", err)
	}
	var err error
	if r.dial, err = dialing(&r.proof, r.grpc); err != nil {
		return err
	}
	if r.decisive != "stopping" && r.decisive != "stopped" {
		return fmt.Errorf("--decisive-phase %q: give stopping or stopped", r.decisive)
	}
	for _, s := range scenarios {
		for i := range s.Faults {
			if err := stage.OnInstallation(&s.Faults[i]); err != nil {
				return fmt.Errorf("scenario %s: %w", s.Name, err)
			}
		}
	}
	if r.advertise == "" {
		r.advertise = r.listen
	}
	for flag, address := range map[string]string{"listen": r.listen, "advertise": r.advertise} {
		if _, port, err := net.SplitHostPort(address); err != nil || port == "" || port == "0" {
			return fmt.Errorf("--%s %q: give host:port", flag, address)
		}
	}
	return nil
}

// dialing reads the credentials and gives the options of connections to all of the
// addresses.
func dialing(proof *credentials.Credentials, addresses []string) (options []grpc.DialOption, err error) {
	if err := proof.Read(os.LookupEnv); err != nil {
		return nil, err
	}
	for _, address := range addresses {
		if options, err = proof.Options(address); err != nil {
			return nil, fmt.Errorf("--grpc %s: %w", address, err)
		}
	}
	return options, nil
}

func (r *running) existing() bool { return r.postgres != "" || r.redis != "" || len(r.grpc) > 0 }

// config is how one scenario is played.
func (r *running) config(s *scenario.Scenario, logs string) play.Config {
	cfg := play.Config{Scenario: s, Seed: r.seed, Interrupt: r.signals.first}
	if r.verbose {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	if !r.existing() {
		cfg.Own = &play.Own{Trestle: r.trestle, Logs: filepath.Join(logs, s.Name)}
		return cfg
	}
	cfg.Installation = &play.Installation{
		InstallationConfig: stage.InstallationConfig{Postgres: r.postgres, Redis: r.redis, GRPC: r.grpc, Dial: r.dial, Metrics: r.metrics},
		Prefix:             r.prefix, Listen: r.listen, Advertise: r.advertise, Plaintext: r.plaintext, DecisiveStopped: r.decisive == "stopped",
	}
	return cfg
}

// play plays scenarios, one after the other; an interrupt ends them all.
func (r *running) play(ctx context.Context, scenarios []*scenario.Scenario) error {
	if err := os.MkdirAll(r.results, 0o755); err != nil {
		return fmt.Errorf("make the folder of results: %w", err)
	}
	logs, err := r.logFolder()
	if err != nil {
		return err
	}
	var broken []string
	for _, s := range scenarios {
		held, err := r.one(ctx, s, logs)
		if err != nil {
			return fmt.Errorf("scenario %s: %w", s.Name, err)
		}
		if !held {
			broken = append(broken, s.Name)
		}
		if r.signals.interrupted() {
			break
		}
	}
	if len(broken) > 0 {
		return fmt.Errorf("%w: %s", errBroken, strings.Join(broken, ", "))
	}
	return nil
}

func (r *running) logFolder() (string, error) {
	if r.existing() || r.logs != "" {
		return r.logs, nil
	}
	// A folder of its own: others may read what is in the one for temporary
	// files, and put things into it.
	dir, err := os.MkdirTemp("", "loadtest-")
	if err != nil {
		return "", fmt.Errorf("make a folder for the logs: %w", err)
	}
	return dir, nil
}

// one plays a scenario, and shows and keeps what came of it.
func (r *running) one(ctx context.Context, s *scenario.Scenario, logs string) (held bool, err error) {
	progress := report.NewProgress(report.ProgressConfig{Out: os.Stderr, Width: widthOf(os.Stderr)})
	defer progress.End()
	progress.Say("%s: %s (seed %d)", s.Name, s.Summary, r.seed)
	cfg := r.config(s, logs)
	cfg.Tell = func(line string) { progress.Say("%s", line) }
	cfg.Progress = progress.Show
	rec, err := play.Play(ctx, cfg)
	progress.End()
	if rec == nil {
		return false, err
	}
	files, writeErr := report.Write(r.results, s.Name, rec)
	err = errors.Join(err, writeErr)
	if r.brief && rec.Verdict.Held {
		fmt.Printf("%-10s held  %6d sent  p99 %7.0f ms  %s\n", s.Name, rec.Totals.Sent, rec.Latency.All.P99MS, s.Summary)
		return true, err
	}
	err = errors.Join(err, report.Terminal(os.Stdout, terminal(), rec))
	progress.Say("recorded in %s and %s", files.Recording, files.HTML)
	return rec.Verdict.Held, err
}

// widthOf gives the columns of a terminal whenever it is asked; nil: f is none.
func widthOf(f *os.File) func() int {
	fd := int(f.Fd())
	if !term.IsTerminal(fd) {
		return nil
	}
	return func() int {
		if width, _, err := term.GetSize(fd); err == nil && width > 0 {
			return width
		}
		return 80
	}
}

// terminal is what standard output can show.
func terminal() report.TerminalConfig {
	width := widthOf(os.Stdout)
	if width == nil {
		return report.TerminalConfig{}
	}
	return report.TerminalConfig{Width: width(), Color: os.Getenv("NO_COLOR") == ""}
}

// reportCommand shows a recording again.
func reportCommand(started *bool) *cobra.Command {
	var page string
	c := &cobra.Command{
		Use:   "report FILE",
		Short: "Show the recording of a scenario again",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			*started = true
			rec, err := record.Read(args[0])
			if err != nil {
				return err
			}
			if page != "" {
				f, err := os.Create(page)
				if err != nil {
					return fmt.Errorf("write the page: %w", err)
				}
				if err := errors.Join(report.HTML(f, rec), f.Close()); err != nil {
					return fmt.Errorf("write %s: %w", page, err)
				}
			}
			return report.Terminal(c.OutOrStdout(), terminal(), rec)
		},
	}
	c.Flags().StringVar(&page, "html", "", "also write the page to this file")
	return c
}

// scenariosCommand lists the built-in scenarios.
func scenariosCommand(started *bool) *cobra.Command {
	return &cobra.Command{
		Use:   "scenarios",
		Short: "List the built-in scenarios",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			*started = true
			widest := len(slices.MaxFunc(scenario.Names(), func(a, b string) int { return len(a) - len(b) }))
			for _, name := range scenario.Names() {
				s, err := scenario.Builtin(name)
				if err != nil {
					return err
				}
				fmt.Fprintf(c.OutOrStdout(), "%-*s  %s\n", widest, name, s.Summary)
			}
			return nil
		},
	}
}

// showCommand prints a built-in scenario.
func showCommand(started *bool) *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Print a built-in scenario as YAML, to start from",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			text, err := scenario.Source(args[0])
			if err != nil {
				return err
			}
			*started = true
			_, err = c.OutOrStdout().Write(text)
			return err
		},
	}
}
