package api_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/trestle-bridge/trestle/internal/access"
	"github.com/trestle-bridge/trestle/internal/api"
	"github.com/trestle-bridge/trestle/internal/tlsfile"
	"github.com/trestle-bridge/trestle/loadtest/sim"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
	bridge "github.com/trestle-bridge/trestle/proto/workspacemanagerbridge"
)

const serverName = "trestle.example"

// guarded is a server with TLS that asks who calls.
type guarded struct {
	*shardReplica
	addr          string
	authority     *sim.Authority
	viewer, admin string // tokens
	files         *tlsfile.Store
	certificate   string // path
	key, ca       string
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func newGuarded(t *testing.T, change ...func(*api.Config)) *guarded {
	t.Helper()
	dir := t.TempDir()
	g := &guarded{certificate: filepath.Join(dir, "tls.crt"), key: filepath.Join(dir, "tls.key"), ca: filepath.Join(dir, "ca.crt")}
	var err error
	if g.authority, err = sim.NewAuthority(); err != nil {
		t.Fatal(err)
	}
	g.renew(t, g.authority)
	if g.files, err = tlsfile.New(tlsfile.Config{CA: g.ca, Certificate: g.certificate, Key: g.key, Logger: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, c := range []struct {
		name string
		role access.Role
		to   *string
	}{{"vera", access.Viewer, &g.viewer}, {"olga", access.Operator, &g.admin}} {
		text, token, err := access.NewToken(c.name, c.role)
		if err != nil {
			t.Fatal(err)
		}
		*c.to = text.Reveal()
		lines = append(lines, token.Line())
	}
	tokens := filepath.Join(dir, "tokens")
	write(t, tokens, []byte(strings.Join(lines, "\n")))
	who, err := access.New(access.Config{
		Names:        map[string]access.Role{"dashboard": access.Viewer, "deployer": access.Operator},
		VerifyClient: g.files.VerifyClient, TokenFile: tokens, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	g.shardReplica = newShardReplica(t, newFleet(), append([]func(*api.Config){func(c *api.Config) {
		c.TLS, c.Access = g.files.ServerTLS(), who
	}}, change...)...)
	g.addr = strings.TrimPrefix(g.conn.Target(), "dns:///")
	return g
}

// renew writes files of an authority.
func (g *guarded) renew(t *testing.T, by *sim.Authority) {
	t.Helper()
	pair, err := by.Issue(sim.Leaf{Name: serverName})
	if err != nil {
		t.Fatal(err)
	}
	write(t, g.ca, by.PEM)
	write(t, g.certificate, pair.Cert)
	write(t, g.key, pair.Key)
}

// dial connects as somebody: with a client certificate, if there is a leaf.
func (g *guarded) dial(by, trusted *sim.Authority, leaf *sim.Leaf) *grpc.ClientConn {
	g.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(trusted.PEM)
	secured := &tls.Config{RootCAs: pool, ServerName: serverName}
	if leaf != nil {
		pair, err := by.Issue(*leaf)
		if err != nil {
			g.Fatal(err)
		}
		certificate, err := tls.X509KeyPair(pair.Cert, pair.Key)
		if err != nil {
			g.Fatal(err)
		}
		// Shown whatever the server asks for.
		secured.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }
	}
	conn, err := grpc.NewClient(g.addr, grpc.WithTransportCredentials(credentials.NewTLS(secured)))
	if err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() { conn.Close() })
	return conn
}

func bearing(ctx context.Context, authorization ...string) context.Context {
	for _, a := range authorization {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", a)
	}
	return ctx
}

func reflects(ctx context.Context, conn *grpc.ClientConn) error {
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		return err
	}
	// That the stream has ended shows when something is read.
	_ = stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
	_, err = stream.Recv()
	return err
}

func TestWhoMayDoWhat(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	stranger, err := sim.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	const ok, unknown, denied, away = codes.OK, codes.Unauthenticated, codes.PermissionDenied, codes.Unavailable
	client := func(name string) *sim.Leaf { return &sim.Leaf{Name: name, Client: true} }
	for _, c := range []struct {
		who           string
		by            *sim.Authority
		leaf          *sim.Leaf
		authorization []string
		health        codes.Code
		look, change  codes.Code
		says, logged  string
	}{
		{"nobody", nil, nil, nil, ok, unknown, unknown, "--token-file", `role=none`},
		{"a viewer's token", nil, nil, []string{"Bearer " + g.viewer}, ok, ok, denied, "takes an operator", `who=vera role=viewer proof=token`},
		{"an operator's token", nil, nil, []string{"bearer " + g.admin}, ok, ok, ok, "", `who=olga role=operator proof=token`},
		{"a token that is none", nil, nil, []string{"Bearer trestle_guessed"}, ok, unknown, unknown, "not known", ``},
		{"another scheme", nil, nil, []string{"Basic " + g.admin}, ok, unknown, unknown, "Bearer", ``},
		{"two tokens", nil, nil, []string{"Bearer " + g.admin, "Bearer " + g.viewer}, ok, unknown, unknown, "one header", ``},
		{"a token of a megabyte", nil, nil, []string{"Bearer " + strings.Repeat("x", 4000)}, ok, unknown, unknown, "not known", ``},
		{"a viewer's certificate", g.authority, client("dashboard"), nil, ok, ok, denied, "dashboard is a viewer", `who=dashboard role=viewer proof=certificate`},
		{"an operator's certificate", g.authority, client("deployer"), nil, ok, ok, ok, "", `who=deployer role=operator proof=certificate`},
		{"a certificate without a role", g.authority, client("stranger"), nil, ok, unknown, unknown, `"stranger"`, ``},
		{"an operator's name of another authority", stranger, client("deployer"), nil, away, away, away, "", ``},
		{"an expired certificate", g.authority, &sim.Leaf{Name: "deployer", Client: true, Expired: true}, nil, away, away, away, "", ``},
		{"a server's certificate", g.authority, &sim.Leaf{Name: "deployer"}, nil, away, away, away, "", ``},
		// What fails is not passed over for what would be good.
		{"a wrong token beside a good certificate", g.authority, client("deployer"), []string{"Bearer x"}, ok, unknown, unknown, "not known", ``},
	} {
		conn := g.dial(c.by, g.authority, c.leaf)
		ctx := bearing(t.Context(), c.authorization...)
		if _, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}); status.Code(err) != c.health {
			t.Errorf("%s asks for health: %v, want %v", c.who, err, c.health)
		}
		shards := trestlev1.NewShardServiceClient(conn)
		if _, err := shards.ListShards(ctx, &trestlev1.ListShardsRequest{}); status.Code(err) != c.look {
			t.Errorf("%s looks: %v, want %v", c.who, err, c.look)
		}
		if err := reflects(ctx, conn); status.Code(err) != c.look {
			t.Errorf("%s asks for reflection: %v, want %v", c.who, err, c.look)
		}
		before := len(g.fleet.commands())
		_, err := shards.Freeze(ctx, &trestlev1.FreezeRequest{Reason: "because of " + c.who, Author: "ann"})
		if status.Code(err) != c.change || !strings.Contains(status.Convert(err).Message(), c.says) {
			t.Errorf("%s changes: %v, want %v that says %q", c.who, err, c.change, c.says)
		}
		if did := len(g.fleet.commands()) > before; did != (c.change == ok) {
			t.Errorf("%s is answered %v, and the change was made: %v", c.who, c.change, did)
		}
		if c.change == away {
			continue // nothing has reached a method
		}
		line := g.logged(`reason="because of ` + c.who + `"`)
		if !strings.Contains(line, c.logged) || !strings.Contains(line, "change=freeze") || !strings.Contains(line, "author=ann") || !strings.Contains(line, "outcome="+c.change.String()) {
			t.Errorf("%s: the audit log says\n%s", c.who, line)
		}
	}
	for _, token := range []string{g.viewer, g.admin, "trestle_guessed"} {
		if strings.Contains(g.log.String(), token) {
			t.Error("the log shows a token")
		}
	}
}

// logged is the line of the log that has a text.
func (r *shardReplica) logged(text string) string {
	r.Helper()
	for line := range strings.Lines(r.log.String()) {
		if strings.Contains(line, text) {
			return line
		}
	}
	r.Errorf("no line of the log says %q:\n%s", text, r.log)
	return ""
}

func TestPlainTextIsNotAnswered(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	if _, err := g.ListShards(t.Context(), &trestlev1.ListShardsRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("a call in plain text: %v", err)
	}
}

// New files count without a restart: for connections to come, and for those that
// stand.
func TestCertificatesAreReplaced(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	leaf := &sim.Leaf{Name: "dashboard", Client: true}
	before := g.dial(g.authority, g.authority, leaf)
	list := func(conn *grpc.ClientConn) error {
		_, err := trestlev1.NewShardServiceClient(conn).ListShards(t.Context(), &trestlev1.ListShardsRequest{})
		return err
	}
	if err := list(before); err != nil {
		t.Fatal(err)
	}
	next, err := sim.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	g.renew(t, next)
	if changed, err := g.files.Look(); err != nil || !changed {
		t.Fatalf("changed: %v, %v", changed, err)
	}
	if err := list(g.dial(next, next, leaf)); err != nil {
		t.Errorf("with the new authority: %v", err)
	}
	if err := list(g.dial(g.authority, next, leaf)); status.Code(err) != codes.Unavailable {
		t.Errorf("a new connection with a certificate of the old authority: %v", err)
	}
	if err := list(before); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "not any more") {
		t.Errorf("a connection that stands, with a certificate of the old authority: %v", err)
	}
}

func TestOthersNeedTLSAndAName(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	closed := func(c *api.Config) {
		base := *c
		base.Address, base.TLS, base.Access = "0.0.0.0:0", nil, nil
		for _, try := range []struct {
			what   string
			change func(*api.Config)
			says   string
		}{
			{"plain text", func(*api.Config) {}, "not encrypted"},
			{"TLS for everybody", func(c *api.Config) { c.TLS = g.files.ServerTLS() }, "who they are"},
		} {
			cfg := base
			cfg.Registerer = newRegistry()
			try.change(&cfg)
			if _, err := api.New(cfg); err == nil || !strings.Contains(err.Error(), try.says) || !strings.Contains(err.Error(), "clusterService.insecure") {
				t.Errorf("%s on an address that others reach: %v", try.what, err)
			}
		}
	}
	newShardReplica(t, newFleet(), closed)
	others := func(c *api.Config) { c.Address = "0.0.0.0:0" }
	if r := newShardReplica(t, newFleet(), others, func(c *api.Config) { c.Insecure = true }); !strings.Contains(r.log.String(), "level=WARN") || !strings.Contains(r.log.String(), "not encrypted") {
		t.Errorf("no warning of an address that is open to others:\n%s", r.log)
	}
	if r := newGuarded(t, others); strings.Contains(r.log.String(), "level=WARN") {
		t.Errorf("a warning of TLS and names:\n%s", r.log)
	}
	if r := newShardReplica(t, newFleet()); !strings.Contains(r.log.String(), "whoever reaches gRPC is an operator") {
		t.Errorf("it is not said that everybody is an operator:\n%s", r.log)
	}
}

func TestNobodyTakesAllCalls(t *testing.T) {
	t.Parallel()
	g := newGuarded(t, func(c *api.Config) { c.CallsAtOnce = 2 })
	viewer, admin := bearing(t.Context(), "Bearer "+g.viewer), bearing(t.Context(), "Bearer "+g.admin)
	// Each on a connection of its own, so that it is the caller that is limited.
	watch := func() trestlev1.ShardService_WatchShardsClient {
		stream, err := trestlev1.NewShardServiceClient(g.dial(nil, g.authority, nil)).WatchShards(viewer, &trestlev1.WatchShardsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		return stream
	}
	watch()
	watch()
	conn := g.dial(nil, g.authority, nil)
	shards := trestlev1.NewShardServiceClient(conn)
	_, err := shards.ListShards(viewer, &trestlev1.ListShardsRequest{})
	g.says("a third call at once", err, codes.ResourceExhausted, "2 calls of yours")
	if _, err := shards.ListShards(admin, &trestlev1.ListShardsRequest{}); err != nil {
		t.Errorf("one caller takes the place of another: %v", err)
	}
	// Health is open to all: who holds its streams takes nobody's place.
	health := healthpb.NewHealthClient(conn)
	for n := 0; ; n++ {
		stream, err := health.Watch(t.Context(), &healthpb.HealthCheckRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) == codes.ResourceExhausted {
			break
		}
		if err != nil || n == 50 {
			t.Fatalf("%d watchers of health: %v", n, err)
		}
	}
	if _, err := trestlev1.NewShardServiceClient(g.dial(nil, g.authority, nil)).ListShards(admin, &trestlev1.ListShardsRequest{}); err != nil {
		t.Errorf("watchers of health take the place of operators: %v", err)
	}
}

func TestFloodOfCalls(t *testing.T) {
	t.Parallel()
	g := newGuarded(t, func(c *api.Config) { c.CallsPerSecond = 0.5 })
	shards := trestlev1.NewShardServiceClient(g.dial(nil, g.authority, nil))
	viewer := bearing(t.Context(), "Bearer "+g.viewer)
	var refused error
	for range 20 {
		if _, err := shards.ListShards(viewer, &trestlev1.ListShardsRequest{}); err != nil {
			refused = err
		}
	}
	g.says("a flood", refused, codes.ResourceExhausted, "0.5 a second")
	if n := strings.Count(g.log.String(), "a caller does too much"); n == 0 || n > 2 {
		t.Errorf("the audit log tells of one flood %d times", n)
	}
	if _, err := shards.ListShards(bearing(t.Context(), "Bearer "+g.admin), &trestlev1.ListShardsRequest{}); err != nil {
		t.Errorf("a flood keeps others away: %v", err)
	}
	// Guessing tokens is no way around it.
	for range 200 {
		if _, err := shards.ListShards(bearing(t.Context(), "Bearer x"), &trestlev1.ListShardsRequest{}); status.Code(err) == codes.ResourceExhausted {
			return
		}
	}
	t.Error("tokens can be guessed at any speed")
}

// The existing command line has no place for a reason; others send it beside the
// request.
func TestReasonBesideTheRequest(t *testing.T) {
	t.Parallel()
	g := newShardReplica(t, newFleet())
	ctx := metadata.AppendToOutgoingContext(t.Context(), "trestle-reason-bin", "moved to Genève")
	_, err := bridge.NewClusterServiceClient(g.conn).Deregister(ctx, &bridge.DeregisterRequest{Name: "eu01"})
	if err != nil {
		t.Fatal(err)
	}
	if line := g.logged("change=deregister"); !strings.Contains(line, "cluster=eu01") || !strings.Contains(line, "Genève") || !strings.Contains(line, "role=operator proof=none") {
		t.Errorf("logged: %s", line)
	}
}
