package stage

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"google.golang.org/grpc"

	"github.com/trestle-bridge/trestle/loadtest/monitor"
	"github.com/trestle-bridge/trestle/loadtest/operator"
	"github.com/trestle-bridge/trestle/loadtest/record"
	"github.com/trestle-bridge/trestle/loadtest/scenario"
)

// InstallationConfig says where an installation is.
type InstallationConfig struct {
	// Postgres and Redis are URLs.
	Postgres, Redis string
	// GRPC are targets of replicas; any may be away.
	GRPC []string
	// Dial are further options of connections to them.
	Dial []grpc.DialOption
	// Metrics are where replicas tell their metrics: host:port or a URL, with a
	// name before it if wished, as in replica-1=10.0.0.7:9500. May be empty.
	Metrics []string
}

// Installation is one that exists, which a load test disturbs with its load and
// with what operators do, and no more.
type Installation struct {
	cfg      InstallationConfig
	operator *operator.Operator
	replicas []monitor.Replica
}

// NewInstallation asks nothing yet.
func NewInstallation(cfg InstallationConfig) (*Installation, error) {
	if cfg.Postgres == "" || cfg.Redis == "" || len(cfg.GRPC) == 0 {
		return nil, errors.New("an installation needs the addresses of its PostgreSQL, its Redis and the gRPC of its replicas")
	}
	in := &Installation{cfg: cfg}
	for _, text := range cfg.Metrics {
		r, err := metricsOf(text)
		if err != nil {
			return nil, err
		}
		in.replicas = append(in.replicas, r)
	}
	var err error
	in.operator, err = operator.New(operator.Config{Addresses: func() []string { return cfg.GRPC }, Dial: cfg.Dial})
	return in, err
}

func metricsOf(text string) (monitor.Replica, error) {
	name, address, named := strings.Cut(text, "=")
	if !named {
		name, address = text, text
	}
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || name == "" {
		return monitor.Replica{}, fmt.Errorf("%q is no place of metrics; give host:port, or NAME=host:port", text)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/metrics"
	}
	return monitor.Replica{Name: name, Metrics: u.String()}, nil
}

// Close closes the connections to the service.
func (in *Installation) Close() error { return in.operator.Close() }

// Postgres is the URL of the database.
func (in *Installation) Postgres() string { return in.cfg.Postgres }

// Redis is the URL of Redis.
func (in *Installation) Redis() string { return in.cfg.Redis }

// Operator asks the service.
func (in *Installation) Operator() *operator.Operator { return in.operator }

// Replicas are those whose metrics are known.
func (in *Installation) Replicas() []monitor.Replica { return in.replicas }

// Choose makes a strike of a fault; clusters have names by their numbers.
func (in *Installation) Choose(ctx context.Context, f *scenario.Fault, cluster func(int) string, draw float64) (*Strike, error) {
	if err := OnInstallation(f); err != nil {
		return nil, err
	}
	replica := ""
	if f.Do == "drain" {
		var err error
		if replica, err = replicaOf(ctx, in.operator, f.Target, cluster, draw); err != nil {
			return nil, err
		}
	}
	return operated(f, in.operator, replica, cluster)
}

// OnInstallation says why a fault cannot be done to an installation that exists.
func OnInstallation(f *scenario.Fault) error {
	if f.NeedsOwnFleet() {
		return fmt.Errorf("%s of %q needs processes that the load test has started itself: play the scenario against a fleet of its own (without --postgres, --redis and --grpc), or do it yourself meanwhile",
			f.Do, f.Target)
	}
	return nil
}

// Facts of the installation.
func (in *Installation) Facts(ctx context.Context) (Facts, error) {
	facts := Facts{Installation: record.Existing}
	answer, err := in.operator.Replicas(ctx)
	if err != nil {
		return facts, err
	}
	for _, r := range answer.GetReplicas() {
		facts.Product = r.GetRevision()
	}
	return facts, nil
}

// Finish has nothing to ask: the installation goes on.
func (in *Installation) Finish(context.Context) ([]record.Expectation, error) { return nil, nil }
