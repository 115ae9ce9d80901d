package play

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trestle-bridge/trestle/internal/devstack/faultproxy"
	"github.com/trestle-bridge/trestle/loadtest"
	"github.com/trestle-bridge/trestle/loadtest/monitor"
	"github.com/trestle-bridge/trestle/loadtest/operator"
	"github.com/trestle-bridge/trestle/loadtest/record"
	"github.com/trestle-bridge/trestle/loadtest/scenario"
	"github.com/trestle-bridge/trestle/loadtest/sim"
	"github.com/trestle-bridge/trestle/loadtest/stage"
)

// overtime is how long sending may go on after its time while faults are not
// over: so many instances are there for it.
const overtime = time.Minute

// director plays one scenario.
type director struct {
	cfg    Config
	s      *scenario.Scenario
	prefix string

	postgres, redis string
	operator        *operator.Operator
	replicas        func() []monitor.Replica
	stage           theatre
	// tls is the clusters' side, client what the service must have.
	tls    *tls.Config
	client operator.Cluster

	test    *loadtest.Test
	proxies []*faultproxy.Proxy // before the clusters; empty: none
	// stop ends the sending.
	stop     chan struct{}
	stopOnce sync.Once

	// began is closed when the first message that counts is about to be sent;
	// the recorder and the monitor are there then.
	began    chan struct{}
	start    time.Time
	recorder atomic.Pointer[record.Recorder]
	monitor  *monitor.Monitor
	// published is when everything had been published.
	published time.Time

	// mu guards what follows.
	mu sync.Mutex
	// lives are the revisions of replicas that live, until the recorder knows.
	lives map[string]string
	// met are expectations that faults have met or not; troubles is how many
	// have not.
	met []record.Expectation
}

func newDirector(cfg Config, prefix string) *director {
	return &director{cfg: cfg, s: cfg.Scenario, prefix: prefix, stop: make(chan struct{}), began: make(chan struct{}), lives: make(map[string]string)}
}

// told hears what becomes of replicas.
func (d *director) told() stage.Told {
	return stage.Told{
		Started: func(replica, revision string) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.lives[replica] = revision
			if r := d.recorder.Load(); r != nil {
				r.Started(time.Now(), replica, revision)
			}
		},
		Ended: func(replica, how string, lost bool) {
			d.mu.Lock()
			defer d.mu.Unlock()
			delete(d.lives, replica)
			if r := d.recorder.Load(); r != nil {
				r.Ended(time.Now(), replica, how)
				if lost {
					d.monitor.Lost(replica, time.Now())
				}
			}
		},
		Held: func(replica string) {
			if d.recorder.Load() != nil {
				d.monitor.Lost(replica, time.Now())
			}
		},
	}
}

// secure makes certificates for the clusters.
func (d *director) secure() error {
	if d.cfg.Installation.Plaintext {
		return nil
	}
	authority, err := sim.NewAuthority()
	if err != nil {
		return err
	}
	server, err := authority.Issue(sim.Leaf{Name: sim.ServerName})
	if err != nil {
		return err
	}
	client, err := authority.Issue(sim.Leaf{})
	if err != nil {
		return err
	}
	d.client = operator.Cluster{CA: authority.PEM, Cert: client.Cert, Key: client.Key}
	d.tls, err = authority.ServerTLS(server)
	return err
}

// work is what the scenario says, for the load test.
func (d *director) work() loadtest.Work {
	w := d.s.Work
	work := loadtest.Work{
		Shape: w.Shape, Seed: d.cfg.Seed, Clusters: w.Clusters, Name: d.prefix, Instances: w.Instances, Wave: w.Live,
		Rate: w.Rate, Burst: w.Burst, Messages: w.Messages, Hot: w.Hot, Odd: w.Odd, Short: w.Short,
	}
	if work.Instances == 0 {
		during, updates := w.Duration, 7.0 // lives have eight updates, odd ones sometimes fewer
		if len(d.s.Faults) > 0 {
			during += overtime
		}
		if w.Short {
			updates = 3
		}
		work.Instances = w.Live + int(w.Rate*during.Seconds()/updates)
	}
	return work
}

// onPort gives an address with a number added to its port.
func onPort(address string, more int) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", fmt.Errorf("%q is no host:port: %w", address, err)
	}
	n, err := strconv.Atoi(port)
	if err != nil || n < 1 || n+more > 65535 {
		return "", fmt.Errorf("%q: there is no port %s with %d more after it; give a number from 1 to 65535", address, port, more)
	}
	return net.JoinHostPort(host, strconv.Itoa(n+more)), nil
}

// addresses are where the clusters listen and how the service reaches them;
// both are empty for a fleet of its own, where any port will do.
func (d *director) addresses() (listen, advertise []string, err error) {
	if d.cfg.Installation == nil {
		return nil, nil, nil
	}
	for n := range d.s.Work.Clusters {
		at, listenErr := onPort(d.cfg.Installation.Listen, n)
		to, advertiseErr := onPort(d.cfg.Installation.Advertise, n)
		if err := errors.Join(listenErr, advertiseErr); err != nil {
			return nil, nil, err
		}
		listen, advertise = append(listen, at), append(advertise, to)
	}
	return listen, advertise, nil
}

// breaks says whether connections to clusters are to be broken.
func (d *director) breaks() bool {
	for i := range d.s.Faults {
		f := &d.s.Faults[i]
		if f.Connection() && (f.Target.Kind == scenario.AllClusters || f.Target.Kind == scenario.OneCluster) {
			return true
		}
	}
	return false
}

// run plays the scenario and makes the recording.
func (d *director) run(ctx context.Context) (*record.Recording, error) {
	facts, err := d.stage.Facts(ctx)
	if err != nil {
		return nil, err
	}
	parts, ctx := errgroup.WithContext(ctx)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := d.prepare(ctx, parts); err != nil {
		cancel()
		return nil, errors.Join(err, parts.Wait())
	}
	var report *loadtest.Report
	parts.Go(func() error {
		defer cancel()
		var err error
		report, err = d.test.Run(ctx)
		return err
	})
	parts.Go(func() error { return d.conduct(ctx) })
	if err := parts.Wait(); err != nil {
		return nil, err
	}
	return d.conclude(context.WithoutCancel(ctx), facts, report)
}

// prepare makes the load test, and the proxies before its clusters.
func (d *director) prepare(ctx context.Context, parts *errgroup.Group) error {
	listen, advertise, err := d.addresses()
	if err != nil {
		return err
	}
	broken := d.breaks()
	cfg := loadtest.Config{
		Work: d.work(), Postgres: d.postgres, Redis: d.redis, TLS: d.tls,
		Buffer: d.s.Work.Buffer, NeverDrop: d.s.Work.SlowSubscribers == scenario.Wait,
		// The service looks twice at a cluster that is new to it. What is sent
		// after that is checked update by update.
		Snapshots: 2, Sample: true, Settle: d.cfg.Settle, Ready: d.cfg.Settle,
		// A replica that begins again publishes what it finds in the outbox long
		// before it has heard the clusters: silence says little then.
		Silence: 10 * time.Second,
		Stop:    d.stop, Begin: d.begin, Published: func() { d.published = time.Now() },
		Sending: d.sending, Heard: d.heard, Logger: d.cfg.Logger,
		Register: func(ctx context.Context, clusters []loadtest.Cluster) error {
			return d.register(ctx, clusters, advertise)
		},
	}
	if in := d.cfg.Installation; in != nil {
		cfg.AmongOthers, cfg.DecisiveStopped = true, in.DecisiveStopped
		if !broken {
			cfg.Listen = func(n int) string { return listen[n] }
		}
	} else {
		cfg.Installation = "local"
	}
	if d.test, err = loadtest.New(cfg); err != nil {
		return err
	}
	if !broken {
		return nil
	}
	for n, c := range d.test.Clusters() {
		at := "127.0.0.1:0"
		if listen != nil {
			at = listen[n]
		}
		proxy, err := faultproxy.Listen(at, c.Addr())
		if err != nil {
			return err
		}
		d.proxies = append(d.proxies, proxy)
		parts.Go(func() error { return proxy.Run(ctx) })
	}
	return nil
}

// register tells the service of the clusters.
func (d *director) register(ctx context.Context, clusters []loadtest.Cluster, advertise []string) error {
	d.cfg.Tell(fmt.Sprintf("registering %d clusters, and waiting until the service has looked at each", len(clusters)))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for n, c := range clusters {
		one := d.client
		one.Name, one.URL = c.Name, c.URL
		switch {
		case advertise != nil:
			one.URL = advertise[n]
		case len(d.proxies) > 0:
			one.URL = d.proxies[n].Addr()
		}
		group.Go(func() error { return d.operator.Register(ctx, one) })
	}
	return group.Wait()
}

// begin is called when the first message that counts is about to be sent.
func (d *director) begin() {
	d.start = time.Now()
	var names []string
	for _, c := range d.test.Clusters() {
		names = append(names, c.Name())
	}
	recorder, err := record.NewRecorder(record.RecorderConfig{
		Began: d.start, Clusters: names, KeepClusters: len(names) <= 50, Planned: d.s.Work.Duration,
	})
	if err != nil {
		panic(err) // it has all that it needs
	}
	d.monitor, err = monitor.New(monitor.Config{Operator: d.operator, Recorder: recorder, Replicas: d.replicas})
	if err != nil {
		panic(err) // as above
	}
	d.mu.Lock()
	for replica, revision := range d.lives {
		recorder.Started(d.start, replica, revision)
	}
	d.recorder.Store(recorder)
	d.mu.Unlock()
	close(d.began)
}

func (d *director) sending(cluster int, at time.Time, change bool) {
	r := d.recorder.Load()
	if r == nil {
		return
	}
	if d.s.Work.Shape == loadtest.Steady {
		r.Due(at, 1)
	}
	r.Sent(cluster, time.Now(), change)
}

func (d *director) heard(cluster int, at time.Time, followed []time.Duration) {
	if r := d.recorder.Load(); r != nil {
		r.Published(cluster, at, followed...)
	}
}

// halt ends the sending.
func (d *director) halt() { d.stopOnce.Do(func() { close(d.stop) }) }

// cluster is the name of a cluster.
func (d *director) cluster(n int) string { return d.test.Clusters()[n].Name() }
