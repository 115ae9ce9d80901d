package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/trestle-bridge/trestle/internal/devstack"
	"github.com/trestle-bridge/trestle/internal/publish"
	"github.com/trestle-bridge/trestle/loadtest"
)

// dev is one run of everything on one machine.
type dev struct {
	demo     bool
	clusters int
	live     int
	rate     float64
	duration time.Duration
	replicas int
	logs     string // the folder for logs

	screen *screen
	stack  *devstack.Stack
	// database is the URL of the service's database.
	database string
}

// installation is what the service calls itself here.
const installation = "dev"

func (p *program) dev() *cobra.Command {
	d := &dev{}
	c := &cobra.Command{
		Use:   "dev",
		Short: "Run everything on this machine, with simulated clusters that keep talking, until ^C",
		Long: `Runs replicas of the service with a private PostgreSQL, Redis and etcd, and
simulated workspace clusters that keep sending the lives of instances, until ^C.
What comes of it is checked as it goes. Nothing is left when it ends, but the logs.

With --demo it sends for a while; on the way one replica is killed, another is
upgraded, and a cluster drops its subscriber. Then it checks every row and every
publish, and exits with 0 only if all are right.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if !c.Flags().Changed("rate") && d.demo {
				d.rate = 3000
			}
			switch {
			case p.path != "":
				return errors.New("dev has its own configuration: --config means nothing to it")
			case d.clusters < 1 || d.clusters > 100:
				return errors.New("--clusters must be from 1 to 100")
			case d.live < 1 || d.live > 100_000:
				return errors.New("--instances must be from 1 to 100,000")
			case d.rate < 1 || d.rate > 100_000:
				return errors.New("--rate must be from 1 to 100,000")
			case d.duration < time.Second || d.duration > time.Hour:
				return errors.New("--duration must be from 1s to 1h")
			case d.replicas < 1 || d.replicas > 9:
				return errors.New("--replicas must be from 1 to 9")
			case c.Flags().Changed("duration") && !d.demo:
				return errors.New("--duration is for --demo: without, ^C ends it")
			}
			p.started = true
			return d.run(c.Context(), p.streams)
		},
	}
	c.Flags().BoolVar(&d.demo, "demo", false, "show for a while what it does, check all of it, and end")
	c.Flags().IntVar(&d.clusters, "clusters", 5, "simulated workspace clusters")
	c.Flags().IntVar(&d.live, "instances", 2000, "instances that are live at once")
	c.Flags().Float64Var(&d.rate, "rate", 500, "updates a second, of all clusters together (with --demo 3000)")
	c.Flags().DurationVar(&d.duration, "duration", 20*time.Second, "how long --demo sends")
	c.Flags().IntVar(&d.replicas, "replicas", 3, "replicas of the service that share the clusters")
	c.Flags().StringVar(&d.logs, "logs", "", "folder for the replicas' logs (default: a new one for temporary files)")
	return c
}

func (d *dev) run(ctx context.Context, s streams) error {
	d.screen = newScreen(s.out)
	publish.LogDriver(slog.New(slog.DiscardHandler))
	if d.logs == "" {
		// A folder of its own: others may read what is in the one for temporary
		// files, and put things into it.
		dir, err := os.MkdirTemp("", "trestle-dev-")
		if err != nil {
			return fmt.Errorf("make a folder for the logs: %w", err)
		}
		d.logs = dir
	} else if err := os.MkdirAll(d.logs, 0o755); err != nil {
		return fmt.Errorf("make the folder for the logs: %w", err)
	}
	err := d.servers(ctx, func() error { return d.service(ctx) })
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		if !d.demo {
			return nil // ^C while starting
		}
		return errors.New("stopped before everything was checked")
	}
	return err
}

// servers runs then while the private servers run.
func (d *dev) servers(ctx context.Context, then func() error) (err error) {
	d.screen.say("Starting PostgreSQL, Redis and etcd ...")
	d.stack, err = devstack.Start(ctx, devstack.Config{
		// With the times of commits, each publish can be held against the
		// commit that it tells of.
		Postgres: &devstack.PostgresConfig{Settings: map[string]string{"track_commit_timestamp": "on"}},
		Redis:    &devstack.RedisConfig{},
		Etcd:     &devstack.EtcdConfig{},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stack.Close()) }()
	if d.database, err = d.stack.Postgres.NewDatabase(ctx, "trestle"); err != nil {
		return err
	}
	return then()
}

// service runs the replicas, plays with them until ctx ends or all has been
// played, and stops them: everything heard must have been written and published
// then.
func (d *dev) service(ctx context.Context) error {
	r, err := d.start(ctx)
	if err != nil {
		return err
	}
	defer r.close()
	d.banner(r)
	// If a replica ends by itself, there is nobody to play with.
	playing, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.alive, cancel)()

	var result *result
	if d.demo {
		result, err = d.playDemo(playing, r)
	} else {
		result, err = d.playOn(playing, r)
	}
	d.screen.endProgress()
	if err := r.stop(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	if err != nil {
		return err
	}
	if err := d.countRows(context.WithoutCancel(ctx), result); err != nil {
		return err
	}
	return d.summary(result)
}

// register tells the service of its clusters, and the screen.
func (d *dev) register(ctx context.Context, clusters []loadtest.Cluster) error {
	if err := loadtest.Register(ctx, d.database, clusters); err != nil {
		return err
	}
	for _, c := range clusters {
		d.screen.fact(c.Name, c.URL)
	}
	d.screen.say("\nWaiting until the service has looked at each cluster ...")
	return nil
}

// countRows asks the database itself what has been written. Its counts are
// complete once the service has closed its connections.
func (d *dev) countRows(ctx context.Context, r *result) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	db, err := pgx.Connect(ctx, d.database)
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	defer db.Close(ctx)
	err = db.QueryRow(ctx, `SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'workspace_instance'`).Scan(&r.rows, &r.hot)
	if err != nil {
		return fmt.Errorf("read the database's statistics: %w", err)
	}
	return nil
}
