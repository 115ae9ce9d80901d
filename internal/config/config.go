// Package config says what an installation wants of the service: one file of
// YAML or JSON, environment variables and flags in, one typed Config out.
//
// Every key stands once, in the table of keys.go; how tables are read,
// checked and printed is the business of package settings. What concerns
// several keys at once is checked here. All problems come back at once, in
// one *settings.Error. Keys of the service that this one replaces are
// accepted, so that its file is taken as it is; those that mean nothing here
// give a warning.
//
// A Config belongs to whoever loaded it and is not changed afterwards.
package config

import (
	"encoding/json"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/trestle-bridge/trestle/internal/config/settings"
	"github.com/trestle-bridge/trestle/internal/secret"
)

// Config is what is in force.
type Config struct {
	// Installation is the name under which instances wait that no cluster
	// runs yet (column region).
	Installation string
	// StaticBridges are clusters that the file names; names are unique.
	StaticBridges []StaticBridge
	// AllowPlaintextClusters permits clusters to be registered without TLS.
	AllowPlaintextClusters bool

	ClusterService ClusterService
	HTTP           HTTP
	Console        Console
	Peer           Peer
	Postgres       Postgres
	Redis          Redis
	Etcd           Etcd
	Replica        Replica

	ControllerInterval       time.Duration // between two sweeps
	ControllerMaxDisconnect  time.Duration // without contact to a cluster, until a warning
	ClusterReconcileInterval time.Duration // between two looks at which clusters exist
	ClusterSyncInterval      time.Duration // between two syncs of workspace classes

	Timeouts   Timeouts
	Prebuild   Prebuild
	Lifecycle  Lifecycle
	Pipeline   Pipeline
	Upstream   Upstream
	Shutdown   Shutdown
	Migrations Migrations
	Log        Log
	Tracing    Tracing

	sources settings.Sources
}

// StaticBridge is a cluster that the file names.
type StaticBridge struct {
	Name     string
	URL      string   // a gRPC target
	TLS      TLSFiles // zero = plain text
	State    string   // available, cordoned or draining
	Score    int
	MaxScore int
	Govern   bool
	Region   string
	// AdmissionConstraints is JSON, kept as it was written; nil if absent.
	AdmissionConstraints json.RawMessage

	// Material is what the files of TLS hold, once ReadFiles has been called.
	Material TLSMaterial
}

// ClusterService is where gRPC is served, and to whom.
type ClusterService struct {
	Host string
	Port int
	// TLS: CA is that of the clients' certificates; zero = plain text.
	TLS TLSFiles
	// Insecure permits an address that others reach without TLS, or with TLS and
	// without a way to tell callers apart.
	Insecure bool
	// TokenFile is the path of the tokens that callers may send; empty = none.
	TokenFile string
	// Roles are those of names in clients' certificates; names are unique.
	Roles []CertificateRole
	// CallsPerSecond and CallsAtOnce are what one caller may do.
	CallsPerSecond  float64
	CallsAtOnce     int
	MaxRequestBytes settings.Bytes
}

// CertificateRole is what somebody who shows a certificate may do.
type CertificateRole struct {
	Name string // a DNS name, URI, email address or common name of the certificate
	Role string // viewer or operator
}

// Address is host:port.
func (c ClusterService) Address() string {
	return net.JoinHostPort(c.Host, strconv.Itoa(c.Port))
}

// HTTP is where metrics and health are served.
type HTTP struct{ Address string }

// Console is where the operators' page is served.
type Console struct {
	Address string // empty = nowhere
	// Exposed permits an address that other machines reach: there is no login.
	Exposed bool
	Hosts   []string // names that it answers to, beside localhost and IP addresses
}

// Peer is how replicas reach each other.
type Peer struct {
	Listen    string
	Advertise string // empty = what it listens on
}

// Postgres is the database.
type Postgres struct {
	URL              secret.URL
	MaxConnections   int // 0 = as many as the lanes need; see Config.PostgresConnections
	StatementTimeout time.Duration
}

// Redis is where is published. Server is what to connect to: the URL or the
// address, whichever comes from the higher source, with the user name and
// the password that apply.
type Redis struct {
	Address  string
	URL      secret.URL
	Username string
	Password secret.String
	TLS      TLSFiles // zero = what the URL's scheme says, with the machine's authorities

	Server secret.URL
	// Material is what the files of TLS hold, once ReadFiles has been called.
	Material TLSMaterial
}

// Etcd is what the replicas agree through.
type Etcd struct {
	Endpoints []string
	Prefix    string // of every key; begins with a slash, ends without
	Lease     time.Duration
	TLS       TLSFiles // zero = plain text

	// Material is what the files of TLS hold, once ReadFiles has been called.
	Material TLSMaterial
}

// Replica names this process.
type Replica struct {
	ID       string
	Revision string
}

// Timeouts are the times after which a sweep stops an instance that no
// cluster knows.
type Timeouts struct {
	Preparing, Building, Unknown, Pending, Stopping time.Duration
}

// Prebuild says when a prebuild is decided.
type Prebuild struct {
	DecisivePhase string // stopping or stopped
}

// Lifecycle says where the events for analytics go.
type Lifecycle struct {
	Sink secret.URL // none, log, or an HTTP URL
}

// Pipeline bounds the lanes.
type Pipeline struct {
	Lanes                int
	FleetLanes           int // for large batches, of all replicas together
	BatchLimit           int // changes in one commit
	DedupEntries         int // instances remembered by a replica
	MaxWaiting           int // instances that wait, in a replica
	MaxWaitingPerCluster int
	TraceBytes           settings.Bytes // for the last decisions on instances
}

// Upstream bounds what clusters send.
type Upstream struct {
	MaxUpdateBytes      settings.Bytes
	MaxSnapshotBytes    settings.Bytes
	SnapshotBudgetBytes settings.Bytes // for all snapshots that a replica holds at once
	SnapshotInterval    time.Duration
}

// Shutdown bounds the way out.
type Shutdown struct{ Timeout time.Duration }

// Migrations says who changes the schema.
type Migrations struct{ AtStart bool }

// Log is the shape of the log.
type Log struct {
	Level  slog.Level
	Format string // json or text
}

// Tracing says where spans go.
type Tracing struct {
	Endpoint    string  // OTLP over gRPC; empty = off
	SampleRatio float64 // of the traces that begin here; a trace that is continued is sampled as its beginning was
}

// Default is what holds where nobody says anything.
func Default() Config {
	return Config{
		Installation: "local",
		ClusterService: ClusterService{
			Host: "localhost", Port: 8080,
			// Far above what a person does, or a dashboard.
			CallsPerSecond: 50, CallsAtOnce: 64, MaxRequestBytes: settings.MiB,
		},
		HTTP:     HTTP{Address: ":9500"},
		Console:  Console{Address: "localhost:8090"},
		Peer:     Peer{Listen: "localhost:0"},
		Postgres: Postgres{StatementTimeout: 15 * time.Second},
		Etcd:     Etcd{Prefix: "/trestle", Lease: 10 * time.Second},

		ControllerInterval:       time.Minute,
		ControllerMaxDisconnect:  150 * time.Second,
		ClusterReconcileInterval: time.Minute,
		ClusterSyncInterval:      time.Minute,

		Timeouts: Timeouts{
			Preparing: time.Hour,
			Building:  time.Hour,
			Unknown:   10 * time.Minute,
			Pending:   time.Hour,
			Stopping:  time.Hour,
		},
		Prebuild:  Prebuild{DecisivePhase: "stopping"},
		Lifecycle: Lifecycle{Sink: secret.NewURL("none")},
		Pipeline: Pipeline{
			// Each more makes batches smaller and the database busier.
			Lanes: 2,
			// Beyond about two for each of its processors the database takes longer
			// for each, and less folds meanwhile.
			FleetLanes:   4,
			BatchLimit:   500,
			DedupEntries: 131072,
			// The snapshot of a cluster of 100,000 instances fits, and that of
			// another one that is not much smaller.
			MaxWaiting:           200_000,
			MaxWaitingPerCluster: 120_000,
			// 96 bytes for each of as many instances as are remembered, and an
			// eighth for those that no row knows.
			TraceBytes: 27 * settings.MiB / 2,
		},
		Upstream: Upstream{
			MaxUpdateBytes: 4 * settings.MiB,
			// 100,000 workspaces are about 90 MB.
			MaxSnapshotBytes:    512 * settings.MiB,
			SnapshotBudgetBytes: settings.GiB,
			SnapshotInterval:    5 * time.Minute,
		},
		// Below the 30 s that Kubernetes gives a pod unless told otherwise.
		Shutdown:   Shutdown{Timeout: 25 * time.Second},
		Migrations: Migrations{AtStart: true},
		Log:        Log{Level: slog.LevelInfo, Format: "json"},
		Tracing:    Tracing{SampleRatio: 0.01},
	}
}

// defaultBridge is a static cluster of which only name and URL are given; the
// score is that of a cluster registered without a preference.
func defaultBridge() StaticBridge {
	return StaticBridge{State: "available", Score: 50, MaxScore: 100, Govern: true}
}

// PostgresConnections is the size of the pool: what is configured, else one
// connection a lane and a few for everything beside the lanes.
func (c *Config) PostgresConnections() int {
	if c.Postgres.MaxConnections > 0 {
		return c.Postgres.MaxConnections
	}
	return c.Pipeline.Lanes + 4
}
