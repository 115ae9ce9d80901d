package api_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/trestle-bridge/trestle/internal/api"
	"github.com/trestle-bridge/trestle/internal/config"
	"github.com/trestle-bridge/trestle/internal/devstack/devstacktest"
	"github.com/trestle-bridge/trestle/internal/secret"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/loadtest/sim"
	bridge "github.com/trestle-bridge/trestle/proto/workspacemanagerbridge"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

func TestMain(m *testing.M) { devstacktest.Main(m) }

// replica is a server on a store of its own, and a client of it.
type replica struct {
	bridge.ClusterServiceClient
	conn     *grpc.ClientConn
	addr     string
	registry *prometheus.Registry
	log      *logBuffer
	stop     func()
}

type logBuffer struct {
	mu      sync.Mutex // guards content
	content bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.content.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.content.String()
}

// bench is a database, replicas that serve it, and what clusters need.
type bench struct {
	*testing.T
	url       string
	db        *pgxpool.Pool
	authority *sim.Authority
	client    sim.Pair
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{T: t, url: devstacktest.NewDatabase(t)}
	if err := store.Migrate(t.Context(), secret.NewURL(b.url), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	var err error
	if b.db, err = pgxpool.New(context.Background(), b.url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.db.Close)
	if b.authority, err = sim.NewAuthority(); err != nil {
		t.Fatal(err)
	}
	b.client = b.issue(b.authority, sim.Leaf{})
	return b
}

func (b *bench) issue(by *sim.Authority, leaf sim.Leaf) sim.Pair {
	b.Helper()
	pair, err := by.Issue(leaf)
	if err != nil {
		b.Fatal(err)
	}
	return pair
}

// replica starts a server.
func (b *bench) replica(change ...func(*api.Config)) *replica {
	b.Helper()
	s, err := store.Open(context.Background(), store.Config{URL: secret.NewURL(b.url), Installation: "local", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	r := &replica{registry: newRegistry(), log: &logBuffer{}}
	cfg := api.Config{
		Address: "127.0.0.1:0", Registry: s, Registerer: r.registry,
		Logger: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, c := range change {
		c(&cfg)
	}
	server, err := api.New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	r.addr = server.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1) // read once, by stop
	go func() { ended <- server.Run(ctx) }()
	if r.conn, err = grpc.NewClient(r.addr, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		b.Fatal(err)
	}
	r.ClusterServiceClient = bridge.NewClusterServiceClient(r.conn)
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
		s.Close()
	})
	b.Cleanup(func() { r.conn.Close(); r.stop() })
	return r
}

// cluster starts a simulated cluster; the leaf says what certificate it shows.
func (b *bench) cluster(leaf sim.Leaf, change ...func(*sim.Config)) *sim.Cluster {
	b.Helper()
	secured, err := b.authority.ServerTLS(b.issue(b.authority, leaf))
	if err != nil {
		b.Fatal(err)
	}
	cfg := sim.Config{Name: "cluster", TLS: secured, Classes: &wsman.DescribeClusterResponse{
		WorkspaceClasses:        []*wsman.WorkspaceClass{{Id: "small", DisplayName: "Small"}, {Id: "large", CreditsPerMinute: 0.5}},
		PreferredWorkspaceClass: "small",
	}}
	for _, c := range change {
		c(&cfg)
	}
	c, err := sim.New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1) // read once, below
	go func() { ended <- c.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
	return c
}

func good() sim.Leaf { return sim.Leaf{Name: sim.ServerName} }

func plain(c *sim.Config) { c.TLS = nil }

// tls is what a client of the bench's clusters shows.
func (b *bench) tls(pair sim.Pair) *bridge.TlsConfig {
	return &bridge.TlsConfig{Ca: encode(b.authority.PEM), Crt: encode(pair.Cert), Key: encode(pair.Key)}
}

func encode(pem []byte) string { return base64.StdEncoding.EncodeToString(pem) }

// registration is one that is taken.
func (b *bench) registration(name, url string, change ...func(*bridge.RegisterRequest)) *bridge.RegisterRequest {
	r := &bridge.RegisterRequest{Name: name, Url: url, Tls: b.tls(b.client)}
	for _, c := range change {
		c(r)
	}
	return r
}

func (b *bench) register(r *replica, request *bridge.RegisterRequest) {
	b.Helper()
	if _, err := r.Register(b.Context(), request); err != nil {
		b.Fatal(err)
	}
}

// says fails unless the error has the code and all texts, and none of the
// material of the bench.
func (b *bench) says(what string, err error, code codes.Code, texts ...string) {
	b.Helper()
	if status.Code(err) != code {
		b.Errorf("%s: %v, want %v", what, err, code)
		return
	}
	message := status.Convert(err).Message()
	for _, text := range texts {
		if !strings.Contains(message, text) {
			b.Errorf("%s: %q does not say %q", what, message, text)
		}
	}
	b.secretFree(what, message)
}

func (b *bench) secretFree(what, text string) {
	b.Helper()
	for _, pem := range [][]byte{b.authority.PEM, b.client.Cert, b.client.Key} {
		line := strings.Split(string(pem), "\n")[1]
		if strings.Contains(text, line) || strings.Contains(text, encode(pem)[:40]) {
			b.Errorf("%s shows TLS material: %s", what, text)
		}
	}
}

func (b *bench) ask(sql string, args ...any) (text string) {
	b.Helper()
	if err := b.db.QueryRow(b.Context(), sql, args...).Scan(&text); err != nil {
		b.Fatal(err)
	}
	return text
}

func (b *bench) list(r *replica) []*bridge.ClusterStatus {
	b.Helper()
	response, err := r.List(b.Context(), &bridge.ListRequest{})
	if err != nil {
		b.Fatal(err)
	}
	b.secretFree("a list", response.String())
	return response.GetStatus()
}

func (b *bench) names(r *replica) (names []string) {
	b.Helper()
	for _, c := range b.list(r) {
		names = append(names, c.GetName())
	}
	return names
}

func preview() *bridge.AdmissionConstraint {
	return &bridge.AdmissionConstraint{Constraint: &bridge.AdmissionConstraint_HasFeaturePreview{}}
}

func permission(name string) *bridge.AdmissionConstraint {
	return &bridge.AdmissionConstraint{Constraint: &bridge.AdmissionConstraint_HasPermission_{
		HasPermission: &bridge.AdmissionConstraint_HasPermission{Permission: name},
	}}
}

func TestRegisterStoresAllOfIt(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := b.replica()
	for _, c := range []struct {
		name    string
		request func(*bridge.RegisterRequest)
		row     string
		listed  func(*bridge.ClusterStatus) bool
	}{
		{"plainly", func(*bridge.RegisterRequest) {}, "available 50 100 true  []",
			func(c *bridge.ClusterStatus) bool {
				return c.State == bridge.ClusterState_AVAILABLE && c.Score == 50 && c.MaxScore == 100 && c.Governed && !c.Static
			}},
		{"preferred", func(r *bridge.RegisterRequest) {
			r.Region = "south-america"
			r.Hints = &bridge.RegistrationHints{Perfereability: bridge.Preferability_Prefer}
		}, "available 100 100 true south-america []", func(c *bridge.ClusterStatus) bool { return c.Region == "south-america" && c.Score == 100 }},
		{"not-scheduled", func(r *bridge.RegisterRequest) {
			r.Hints = &bridge.RegistrationHints{Perfereability: bridge.Preferability_DontSchedule, Cordoned: true}
		}, "cordoned 0 100 true  []", func(c *bridge.ClusterStatus) bool { return c.State == bridge.ClusterState_CORDONED && c.Score == 0 }},
		{"constrained", func(r *bridge.RegisterRequest) {
			r.AdmissionConstraints = []*bridge.AdmissionConstraint{preview(), permission("p"), preview()}
		}, `available 50 100 true  [{"type": "has-feature-preview"}, {"type": "has-permission", "permission": "p"}]`,
			func(c *bridge.ClusterStatus) bool {
				return len(c.AdmissionConstraint) == 2 && c.AdmissionConstraint[0].GetHasFeaturePreview() != nil &&
					c.AdmissionConstraint[1].GetHasPermission().GetPermission() == "p"
			}},
	} {
		url := b.cluster(good()).Addr()
		b.register(r, b.registration(c.name, url, c.request))
		row := b.ask(`SELECT concat_ws(' ', state, score, max_score, govern::text, region, admission_constraints) FROM workspace_cluster WHERE name = $1`, c.name)
		if row != c.row {
			t.Errorf("%s: the row is %q, want %q", c.name, row, c.row)
		}
		classes := b.ask(`SELECT jsonb_path_query_array(available_workspace_classes, '$[*].id')::text || preferred_workspace_class FROM workspace_cluster WHERE name = $1`, c.name)
		if classes != `["small", "large"]small` {
			t.Errorf("%s: the classes are %s", c.name, classes)
		}
		i := slices.IndexFunc(b.list(r), func(s *bridge.ClusterStatus) bool { return s.GetName() == c.name })
		if i < 0 {
			t.Fatalf("%s is not listed", c.name)
		}
		if s := b.list(r)[i]; s.GetUrl() != url || !c.listed(s) {
			t.Errorf("%s: listed as %v", c.name, s)
		}
	}
	if kept := b.ask(`SELECT tls ->> 'ca' || ' ' || (tls ->> 'crt') || ' ' || (tls ->> 'key') FROM workspace_cluster WHERE name = 'plainly'`); kept != encode(b.authority.PEM)+" "+encode(b.client.Cert)+" "+encode(b.client.Key) {
		t.Error("the TLS material is not kept as it was given")
	}
	if log := r.log.String(); !strings.Contains(log, `msg="a change was made"`) || !strings.Contains(log, "change=register cluster=plainly") || !strings.Contains(log, "peer=127.0.0.1:") {
		t.Errorf("the log does not say what was changed by whom:\n%s", log)
	}
	b.secretFree("the log", r.log.String())
}

func TestRegisterRefuses(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := b.replica(func(c *api.Config) {
		c.TryTimeout = time.Second
		c.Static = []config.StaticBridge{{Name: "static", URL: "static:443", State: "available"}}
	})
	other, err := sim.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	cluster, taken := b.cluster(good()), b.cluster(good())
	expired, misnamed := b.cluster(sim.Leaf{Name: sim.ServerName, Expired: true}), b.cluster(sim.Leaf{Name: "another"})
	hanging, refusing, unencrypted := b.cluster(good()), b.cluster(good()), b.cluster(good(), plain)
	hanging.SetFaults(sim.Faults{Describe: sim.Hang})
	refusing.SetFaults(sim.Faults{Describe: sim.Refuse})
	deaf, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { deaf.Close() })
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	b.register(r, b.registration("taken", taken.Addr()))
	const inv, exists, failed = codes.InvalidArgument, codes.AlreadyExists, codes.FailedPrecondition
	for _, c := range []struct {
		what    string
		request func(*bridge.RegisterRequest)
		code    codes.Code
		says    []string
	}{
		{"no name", func(r *bridge.RegisterRequest) { r.Name = "" }, inv, []string{"name", "required"}},
		{"a long name", func(r *bridge.RegisterRequest) { r.Name = strings.Repeat("x", 256) }, inv, []string{"name", "255"}},
		{"NUL in the name", func(r *bridge.RegisterRequest) { r.Name = "a\x00b" }, inv, []string{"name", "control"}},
		{"no URL", func(r *bridge.RegisterRequest) { r.Url = "" }, inv, []string{"url", "required"}},
		{"a URL that is none", func(r *bridge.RegisterRequest) { r.Url = "https://cluster:443" }, inv, []string{"url", "dns:///host:port"}},
		{"a region that is none", func(r *bridge.RegisterRequest) { r.Region = "antarctica" }, inv, []string{"region", "antarctica", "north-america"}},
		{"a region in capitals", func(r *bridge.RegisterRequest) { r.Region = "Europe" }, inv, []string{"region"}},
		{"a preferability that is none", func(r *bridge.RegisterRequest) { r.Hints = &bridge.RegistrationHints{Perfereability: 3} }, inv, []string{"perfereability", "DontSchedule"}},
		{"an empty constraint", func(r *bridge.RegisterRequest) { r.AdmissionConstraints = []*bridge.AdmissionConstraint{{}} }, inv, []string{"admission_constraint"}},
		{"a constraint without its permission", func(r *bridge.RegisterRequest) {
			r.AdmissionConstraints = []*bridge.AdmissionConstraint{permission("")}
		}, inv, []string{"permission"}},
		{"no TLS", func(r *bridge.RegisterRequest) { r.Tls = nil }, inv, []string{"tls", "allowPlaintextClusters"}},
		{"empty TLS", func(r *bridge.RegisterRequest) { r.Tls = &bridge.TlsConfig{} }, inv, []string{"tls", "allowPlaintextClusters"}},
		{"no CA", func(r *bridge.RegisterRequest) { r.Tls.Ca = "" }, inv, []string{"tls.ca", "required"}},
		{"no certificate", func(r *bridge.RegisterRequest) { r.Tls.Crt = "" }, inv, []string{"tls.crt", "required"}},
		{"no key", func(r *bridge.RegisterRequest) { r.Tls.Key = "" }, inv, []string{"tls.key", "required"}},
		{"a CA in plain PEM", func(r *bridge.RegisterRequest) { r.Tls.Ca = string(b.authority.PEM) }, inv, []string{"tls.ca", "base64"}},
		{"a key in plain PEM", func(r *bridge.RegisterRequest) { r.Tls.Key = string(b.client.Key) }, inv, []string{"tls.key", "base64"}},
		{"a CA that is none", func(r *bridge.RegisterRequest) { r.Tls.Ca = encode([]byte("no PEM")) }, inv, []string{"tls.ca", "no certificate"}},
		{"another key", func(r *bridge.RegisterRequest) { r.Tls.Key = encode(b.issue(b.authority, sim.Leaf{}).Key) }, inv, []string{"tls.crt"}},
		{"the name is taken", func(r *bridge.RegisterRequest) { r.Name = "taken" }, exists, []string{"name taken", taken.Addr()}},
		{"the URL is taken", func(r *bridge.RegisterRequest) { r.Url = taken.Addr() }, exists, []string{taken.Addr(), "cluster taken"}},
		{"the URL is that of a static one", func(r *bridge.RegisterRequest) { r.Url = "static:443" }, exists, []string{"static of the configuration"}},
		{"nobody listens", func(r *bridge.RegisterRequest) { r.Url = closed.Addr().String() }, failed, []string{closed.Addr().String(), "refused"}},
		{"nobody answers", func(r *bridge.RegisterRequest) { r.Url = deaf.Addr().String() }, failed, []string{deaf.Addr().String(), "deadline"}},
		{"no such host", func(r *bridge.RegisterRequest) { r.Url = "cluster.invalid:443" }, failed, []string{"cluster.invalid:443"}},
		{"the cluster hangs", func(r *bridge.RegisterRequest) { r.Url = hanging.Addr() }, failed, []string{hanging.Addr(), "deadline"}},
		{"the cluster refuses", func(r *bridge.RegisterRequest) { r.Url = refusing.Addr() }, failed, []string{refusing.Addr()}},
		{"the cluster speaks no TLS", func(r *bridge.RegisterRequest) { r.Url = unencrypted.Addr() }, failed, []string{unencrypted.Addr(), "handshake"}},
		{"the cluster's certificate has expired", func(r *bridge.RegisterRequest) { r.Url = expired.Addr() }, failed, []string{expired.Addr(), "expired"}},
		{"the cluster has another name", func(r *bridge.RegisterRequest) { r.Url = misnamed.Addr() }, failed, []string{misnamed.Addr(), "ws-manager"}},
		{"the cluster is signed by another", func(r *bridge.RegisterRequest) { r.Tls.Ca = encode(other.PEM) }, failed, []string{cluster.Addr(), "unknown authority"}},
		{"our certificate has expired", func(r *bridge.RegisterRequest) {
			r.Tls = b.tls(b.issue(b.authority, sim.Leaf{Expired: true}))
		}, failed, []string{cluster.Addr()}},
		{"our certificate is signed by another", func(r *bridge.RegisterRequest) { r.Tls = b.tls(b.issue(other, sim.Leaf{})) }, failed, []string{cluster.Addr()}},
	} {
		_, err := r.Register(t.Context(), b.registration("new", cluster.Addr(), c.request))
		b.says(c.what, err, c.code, c.says...)
	}
	if names := b.names(r); !slices.Equal(names, []string{"taken", "static"}) {
		t.Errorf("after refusals there are %v", names)
	}
	b.secretFree("the log", r.log.String())
}

func TestPlaintextMustBeAllowed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := b.replica(func(c *api.Config) { c.AllowPlaintext = true })
	b.register(r, &bridge.RegisterRequest{Name: "plain", Url: b.cluster(good(), plain).Addr()})
	if kept := b.ask(`SELECT coalesce(tls::text, 'none') FROM workspace_cluster`); kept != "none" {
		t.Errorf("TLS of a cluster without: %s", kept)
	}
	_, err := r.Register(t.Context(), &bridge.RegisterRequest{Name: "half", Url: "half:443", Tls: &bridge.TlsConfig{Ca: encode(b.authority.PEM)}})
	b.says("half of TLS", err, codes.InvalidArgument, "tls.crt")
	b.register(r, b.registration("secured", b.cluster(good()).Addr()))
}

func TestUpdate(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := b.replica(func(c *api.Config) {
		c.TryTimeout = time.Second
		c.Static = []config.StaticBridge{{Name: "static", URL: "static:443", State: "available"}}
	})
	cluster := b.cluster(good())
	b.register(r, b.registration("eu70", cluster.Addr()))
	update := func(what string, request *bridge.UpdateRequest, code codes.Code, texts ...string) {
		t.Helper()
		_, err := r.Update(t.Context(), request)
		b.says(what, err, code, texts...)
	}
	modify := func(add bool, c *bridge.AdmissionConstraint) *bridge.UpdateRequest {
		return &bridge.UpdateRequest{Name: "eu70", Property: &bridge.UpdateRequest_AdmissionConstraint{
			AdmissionConstraint: &bridge.ModifyAdmissionConstraint{Add: add, Constraint: c},
		}}
	}
	secured := func(t *bridge.TlsConfig) *bridge.UpdateRequest {
		return &bridge.UpdateRequest{Name: "eu70", Property: &bridge.UpdateRequest_Tls{Tls: t}}
	}
	score := func(name string, n int32) *bridge.UpdateRequest {
		return &bridge.UpdateRequest{Name: name, Property: &bridge.UpdateRequest_Score{Score: n}}
	}
	update("unknown", score("eu71", 1), codes.NotFound, "list the clusters")
	update("static", score("static", 1), codes.NotFound, "configuration")
	update("nothing", &bridge.UpdateRequest{Name: "eu70"}, codes.InvalidArgument, "max_score")
	update("a negative score", score("eu70", -1), codes.InvalidArgument, "score")
	update("a constraint that is none", modify(true, nil), codes.InvalidArgument, "admission_constraint")
	update("TLS without a key", secured(&bridge.TlsConfig{Ca: "x", Crt: "y"}), codes.InvalidArgument, "tls.key")
	update("TLS that the cluster does not take", secured(b.tls(b.issue(b.authority, sim.Leaf{Expired: true}))), codes.FailedPrecondition, cluster.Addr())
	row := func() string {
		return b.ask(`SELECT concat_ws(' ', state, score, max_score, admission_constraints, md5(tls::text) = $1) FROM workspace_cluster`,
			b.ask(`SELECT md5(jsonb_build_object('ca', $1::text, 'crt', $2::text, 'key', $3::text)::text)`, b.tls(b.client).Ca, b.tls(b.client).Crt, b.tls(b.client).Key))
	}
	if got, want := row(), "available 50 100 [] t"; got != want {
		t.Fatalf("refused updates have left %q, want %q", got, want)
	}
	update("score", score("eu70", 0), codes.OK)
	update("max score", &bridge.UpdateRequest{Name: "eu70", Property: &bridge.UpdateRequest_MaxScore{MaxScore: 90}}, codes.OK)
	update("cordon", &bridge.UpdateRequest{Name: "eu70", Property: &bridge.UpdateRequest_Cordoned{Cordoned: true}}, codes.OK)
	update("a constraint", modify(true, permission("p")), codes.OK)
	update("the same", modify(true, permission("p")), codes.OK)
	update("another", modify(true, preview()), codes.OK)
	if got, want := row(), `cordoned 0 90 [{"type": "has-permission", "permission": "p"}, {"type": "has-feature-preview"}] t`; got != want {
		t.Errorf("the row is %q, want %q", got, want)
	}
	update("remove what is not there", modify(false, permission("q")), codes.OK)
	update("remove", modify(false, permission("p")), codes.OK)
	update("uncordon", &bridge.UpdateRequest{Name: "eu70", Property: &bridge.UpdateRequest_Cordoned{}}, codes.OK)
	update("TLS", secured(b.tls(b.issue(b.authority, sim.Leaf{}))), codes.OK)
	if got, want := row(), `available 0 90 [{"type": "has-feature-preview"}] f`; got != want {
		t.Errorf("the row is %q, want %q", got, want)
	}
	b.secretFree("the log", r.log.String())
}

func TestDeregister(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := b.replica(func(c *api.Config) {
		c.Static = []config.StaticBridge{{Name: "static", URL: "static:443", State: "available"}}
	})
	deregister := func(what string, request *bridge.DeregisterRequest, code codes.Code, texts ...string) {
		t.Helper()
		_, err := r.Deregister(t.Context(), request)
		b.says(what, err, code, texts...)
	}
	deregister("unknown", &bridge.DeregisterRequest{Name: "eu70"}, codes.NotFound)
	deregister("static", &bridge.DeregisterRequest{Name: "static", Force: true}, codes.NotFound, "configuration")
	b.register(r, b.registration("eu70", b.cluster(good()).Addr()))
	const id = "aa000000-0000-0000-0000-000000000001"
	for _, sql := range []string{
		`INSERT INTO workspace (id) VALUES ('w')`,
		`INSERT INTO workspace_instance (id, workspace_id, region, phase) VALUES ('` + id + `', 'w', 'eu70', 'stopping')`,
	} {
		if _, err := b.db.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	deregister("in use", &bridge.DeregisterRequest{Name: "eu70"}, codes.FailedPrecondition, "1 regular", id, "force")
	if names := b.names(r); !slices.Equal(names, []string{"eu70", "static"}) {
		t.Errorf("after a refusal there are %v", names)
	}
	deregister("in use, with force", &bridge.DeregisterRequest{Name: "eu70", Force: true}, codes.OK)
	if names := b.names(r); !slices.Equal(names, []string{"static"}) {
		t.Errorf("afterwards there are %v", names)
	}
	if remembered := b.ask(`SELECT name FROM trestle_deregistered_cluster WHERE deregistered_at > now() - interval '1 hour'`); remembered != "eu70" {
		t.Errorf("remembered: %q", remembered)
	}
	deregister("again", &bridge.DeregisterRequest{Name: "eu70", Force: true}, codes.NotFound)
}

// A registered cluster stands for the static one of its name, whose URL it may
// have too.
func TestStaticAndRegistered(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	cluster := b.cluster(good())
	r := b.replica(func(c *api.Config) {
		c.Static = []config.StaticBridge{
			{Name: "moving", URL: cluster.Addr(), State: "cordoned", Score: 7, MaxScore: 9, Region: "asia", AdmissionConstraints: []byte(`[{"type":"has-feature-preview"},{"type":"strange"}]`)},
			{Name: "another", URL: "another:443", State: "draining", Govern: true},
		}
	})
	listed := b.list(r)
	if len(listed) != 2 || !listed[0].GetStatic() || listed[0].GetName() != "another" || listed[0].GetState() != bridge.ClusterState_DRAINING || !listed[0].GetGoverned() {
		t.Errorf("listed: %v", listed)
	}
	if s := listed[1]; s.GetState() != bridge.ClusterState_CORDONED || s.GetScore() != 7 || s.GetMaxScore() != 9 || s.GetRegion() != "asia" || s.GetGoverned() || len(s.GetAdmissionConstraint()) != 1 {
		t.Errorf("listed: %v", s)
	}
	b.register(r, b.registration("moving", cluster.Addr()))
	b.register(r, b.registration("Beside", b.cluster(good()).Addr()))
	listed = b.list(r)
	if names := b.names(r); !slices.Equal(names, []string{"Beside", "moving", "another"}) || listed[1].GetStatic() || listed[1].GetScore() != 50 || !listed[2].GetStatic() {
		t.Errorf("listed: %v", listed)
	}
	if _, err := r.Deregister(t.Context(), &bridge.DeregisterRequest{Name: "moving"}); err != nil {
		t.Fatal(err)
	}
	if names := b.names(r); !slices.Equal(names, []string{"Beside", "another", "moving"}) {
		t.Errorf("listed: %v", names)
	}
}

func newRegistry() *prometheus.Registry { return prometheus.NewPedanticRegistry() }
