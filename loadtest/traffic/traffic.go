// Package traffic keeps simulated clusters talking for as long as one likes,
// and goes on checking what comes of it: for a bridge that one wants to look at.
//
// Instances come in generations. A generation's rows are seeded before it is
// played; when all of its instances have been played, its rows and publishes are
// held against the oracle; some time later its rows are taken away. So tables and
// memory stay as small as what is live, however long it lasts.
//
// A Traffic owns its generations and listens to Redis itself. The clusters are
// its maker's, who runs them.
package traffic

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/trestle-bridge/trestle/loadtest/ledger"
	"github.com/trestle-bridge/trestle/loadtest/pace"
	"github.com/trestle-bridge/trestle/loadtest/script"
	"github.com/trestle-bridge/trestle/loadtest/seed"
	"github.com/trestle-bridge/trestle/loadtest/sim"
)

// Config says what to send, and to whom.
type Config struct {
	// Clusters are running, and registered with the bridge by their names.
	Clusters []*sim.Cluster
	// Postgres is a URL; the tables exist. Redis is a redis:// URL.
	Postgres, Redis string
	// Installation is the bridge's name of itself.
	Installation string
	// Seed decides all that is said. Another run over the same tables needs
	// another seed.
	Seed uint64
	// Live is how many instances are live at once.
	Live int
	// Rate is in updates a second.
	Rate float64
	// Odd is the share of instances, 0 to 1, with an odd life.
	Odd float64
	// Burst: instances send up to so many updates in a row, each its own
	// number from 1 to Burst. Default 1.
	Burst int
	// Ready is how long to wait for the bridge to subscribe, Settle how long
	// for what was sent to be written and published; both default to 30 s.
	Ready, Settle time.Duration
}

// Counts are sums since the start.
type Counts struct {
	Sent, Changes, Repeats, Stale, Invalid int64
	Publishes                              int64
	// Sending is the time from the first update to the last.
	Sending time.Duration
	// Waiting is the number of instances with changes that no publish has
	// followed yet.
	Waiting int
	// Drops is how often a cluster has dropped a subscriber for being slow.
	Drops int
	// Latency is from when a change was due to the publish that follows it.
	Latency ledger.Histogram
	// Checked instances, and what was found; the differences are the first ones.
	Checked ledger.Verdict
}

// Traffic is endless, until its Run is told to end.
type Traffic struct {
	cfg     Config
	library *script.Library
	// size is the number of instances in a generation.
	size  int
	heard *generations
}

// New makes traffic. Run sends it.
func New(cfg Config) (*Traffic, error) {
	switch {
	case len(cfg.Clusters) == 0 || cfg.Postgres == "" || cfg.Redis == "":
		return nil, errors.New("traffic needs clusters, Postgres and Redis")
	case cfg.Live <= 0 || cfg.Rate <= 0 || cfg.Burst < 0:
		return nil, errors.New("traffic needs live instances and a rate")
	case cfg.Odd < 0 || cfg.Odd > 1:
		return nil, fmt.Errorf("a share of %g odd instances", cfg.Odd)
	}
	cfg.Burst = max(cfg.Burst, 1)
	for _, d := range []*time.Duration{&cfg.Ready, &cfg.Settle} {
		if *d == 0 {
			*d = 30 * time.Second
		}
	}
	library, err := script.NewLibrary(cfg.Seed)
	if err != nil {
		return nil, fmt.Errorf("write scripts: %w", err)
	}
	return &Traffic{cfg: cfg, library: library, size: max(cfg.Live, 200), heard: newGenerations()}, nil
}

// Counts may be called at any time, by anyone.
func (t *Traffic) Counts() Counts {
	c := t.heard.sums()
	for _, cluster := range t.cfg.Clusters {
		c.Drops += cluster.Stats().Dropped
	}
	return c
}

// Run sends until ctx ends, waits until all that was sent has been published,
// checks it and returns nil; what was found is in Counts. An error is what kept
// it from going on.
func (t *Traffic) Run(ctx context.Context) error {
	// What hears and checks goes on when the sending is over.
	whole, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	background, whole := errgroup.WithContext(whole)
	listening := make(chan struct{})
	background.Go(func() error { return t.heard.listen(whole, t.cfg.Redis, listening) })
	for n, cluster := range t.cfg.Clusters {
		background.Go(func() error {
			cluster.Watch(whole, func() { t.heard.cut(n) }, func() { t.heard.overtaken(n) })
			return nil
		})
	}
	err := t.play(ctx, whole, listening)
	end()
	return errors.Join(err, background.Wait())
}

func (t *Traffic) play(ctx, whole context.Context, listening <-chan struct{}) error {
	if err := t.await(ctx, whole, listening); err != nil {
		return err
	}
	// whole ends early only if listening has failed, and sending with it.
	playing, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(whole, stop)()

	parts, playing := errgroup.WithContext(playing)
	next := make(chan *generation)
	played := newBacklog()
	parts.Go(func() error { return unlessEnded(ctx, t.prepare(playing, next)) })
	parts.Go(func() error {
		err := t.send(playing, next, played)
		played.close()
		return unlessEnded(ctx, err)
	})
	parts.Go(func() error { return t.check(whole, played) })
	return parts.Wait()
}

// unlessEnded is err, unless the sending has been told to end: what is broken
// off then has many faces.
func unlessEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// await returns when the bridge hears every cluster and we hear Redis.
func (t *Traffic) await(ctx, whole context.Context, listening <-chan struct{}) error {
	ready, cancel := context.WithTimeout(ctx, t.cfg.Ready)
	defer cancel()
	select {
	case <-listening:
	case <-whole.Done():
		return nil // listening has failed, and says why
	case <-ready.Done():
		return unlessEnded(ctx, fmt.Errorf("subscribe to Redis: %w", ready.Err()))
	}
	for _, c := range t.cfg.Clusters {
		if err := c.Await(ready, func(s sim.Stats) bool { return s.Subscribers > 0 && s.Snapshots > 0 }); err != nil {
			return unlessEnded(ctx, err)
		}
	}
	return nil
}

// elsewhere is the region of instances that belong to none of the clusters.
const elsewhere = "another-installation"

func (t *Traffic) subject(number int) ledger.Subject {
	s := t.library.Pick(t.cfg.Seed, number, t.cfg.Odd)
	cluster := number % len(t.cfg.Clusters)
	region := t.cfg.Clusters[cluster].Name()
	if s.Role == script.Foreign {
		region = elsewhere
	}
	return ledger.Subject{
		Instance: seed.Instance{
			ID: script.NewIdentity(t.cfg.Seed, number), Type: s.Type, Region: region,
			NeededImageBuild: number%8 == 0, Tokens: number%16 == 0,
		},
		Cluster: cluster,
		Script:  s,
	}
}

// prepare seeds generation after generation, each while the one before it is
// being played.
func (t *Traffic) prepare(ctx context.Context, next chan<- *generation) error {
	db, err := pgx.Connect(ctx, t.cfg.Postgres)
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	defer db.Close(context.WithoutCancel(ctx))
	for first := 0; ; first += t.size {
		g, err := t.newGeneration(first)
		if err != nil {
			return err
		}
		if err := seed.Seed(ctx, db, g.seeded); err != nil {
			return err
		}
		select {
		case next <- g:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// player plays the script of one instance.
type player struct {
	of      *generation
	number  int
	subject ledger.Subject
	next    int // step
}

// step records the next step as sent and makes its update.
func (p *player) step(at time.Time) sim.Update {
	id, step := &p.subject.ID, &p.subject.Script.Steps[p.next]
	p.next++
	u := sim.Update{ID: id.Instance, Message: sim.NewMessage(step.Response(id))}
	switch {
	case step.Kind == script.Stale || step.Kind == script.Invalid:
		u.Effect = sim.Untouched
	case step.Stopped:
		u.Effect = sim.Stopped
	}
	p.of.ledger.Sent(p.number-p.of.first, at)
	return u
}

func (p *player) done() bool { return p.next == len(p.subject.Script.Steps) }

// late is how far behind its time the sending may be before it gives up on what
// it has missed: a machine that was asleep must not be flooded when it wakes.
const late = time.Second

// send sends each update when it is due. It ends with an error always. What is
// left of the generations is handed over then, too.
func (t *Traffic) send(ctx context.Context, next <-chan *generation, played *backlog) error {
	var current *generation
	begun := 0 // of the current generation's instances
	begin := func() (*player, error) {
		if current == nil || begun == t.size {
			select {
			case current = <-next:
				begun = 0
				t.heard.add(current)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		number := current.first + begun
		begun++
		return &player{of: current, number: number, subject: t.subject(number)}, nil
	}
	live := make([]*player, 0, t.cfg.Live)
	defer func() {
		for _, g := range t.heard.all() {
			if g.left > 0 {
				played.add(g)
			}
		}
	}()
	for range t.cfg.Live {
		p, err := begin()
		if err != nil {
			return err
		}
		live = append(live, p)
	}
	t.heard.begin()
	defer t.heard.end()
	// burst is how many updates the instance whose turn it is has sent in a row.
	turn, burst := 0, 0
	gap := time.Duration(float64(time.Second) / t.cfg.Rate)
	for due := time.Now(); ; due = due.Add(gap) {
		if err := pace.Until(ctx, due); err != nil {
			return err
		}
		if now := time.Now(); now.Sub(due) > late {
			due = now
		}
		p := live[turn]
		if err := t.cfg.Clusters[p.subject.Cluster].Publish(ctx, p.step(due)); err != nil {
			return err
		}
		if burst++; !p.done() && burst <= p.number%t.cfg.Burst {
			continue
		}
		burst = 0
		if p.done() {
			if p.of.left--; p.of.left == 0 {
				played.add(p.of)
			}
			var err error
			if live[turn], err = begin(); err != nil {
				return err
			}
		}
		turn = (turn + 1) % len(live)
	}
}
