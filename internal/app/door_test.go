package app

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/trestle-bridge/trestle/internal/access"
	"github.com/trestle-bridge/trestle/internal/config"
	"github.com/trestle-bridge/trestle/loadtest/sim"
	bridge "github.com/trestle-bridge/trestle/proto/workspacemanagerbridge"
)

// kept writes files into a directory and gives their paths.
func kept(t *testing.T, dir string, files map[string][]byte) func(name string) string {
	t.Helper()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return func(name string) string { return filepath.Join(dir, name) }
}

// A service that others reach asks who they are, and says in its log what came
// of it, whatever level that has.
func TestGuardedService(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	pair, err := ca.Issue(sim.Leaf{Name: "trestle.example"})
	if err != nil {
		t.Fatal(err)
	}
	token, line, err := access.NewToken("olga", access.Operator)
	if err != nil {
		t.Fatal(err)
	}
	at := kept(t, t.TempDir(), map[string][]byte{"ca": ca.PEM, "crt": pair.Cert, "key": pair.Key, "tokens": []byte(line.Line())})
	w := newWorld(t, plan{})
	s := w.serve(func(c *config.Config) {
		c.ClusterService = config.ClusterService{
			Host: "0.0.0.0", TLS: config.TLSFiles{CA: at("ca"), Crt: at("crt"), Key: at("key")}, TokenFile: at("tokens"),
			Roles: []config.CertificateRole{{Name: "dashboard", Role: "viewer"}},
		}
	})
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.PEM)
	_, port, _ := strings.Cut(s.grpc, "]:")
	if port == "" {
		_, port, _ = strings.Cut(s.grpc, ":")
	}
	conn, err := grpc.NewClient("127.0.0.1:"+port, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "trestle.example"})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := bridge.NewClusterServiceClient(conn)
	cordon := &bridge.UpdateRequest{Name: clusterName(0), Property: &bridge.UpdateRequest_Cordoned{Cordoned: true}}
	if _, err := client.Update(w.ctx, cordon); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a caller without a name: %v", err)
	}
	olga := metadata.AppendToOutgoingContext(w.ctx, "authorization", "Bearer "+token.Reveal())
	if _, err := client.Update(olga, cordon); err != nil {
		t.Errorf("an operator: %v", err)
	}
	for _, text := range []string{
		`"msg":"a caller was refused","component":"audit","who":"","role":"none"`,
		`"msg":"a change was made","component":"audit","who":"olga","role":"operator","proof":"token"`,
	} {
		if !s.logs(text) {
			t.Errorf("the log does not say %s", text)
		}
	}
	if s.logs(token.Reveal()) {
		t.Error("the log shows a token")
	}
	if n := s.metric("trestle_certificate_expiry_timestamp_seconds", "of=grpc"); n == 0 {
		t.Error("it is not shown when the certificate expires")
	}
	s.stop()
}

// The files of a static cluster are replaced while it is heard.
func TestStaticFilesAreReplaced(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	secured, err := ca.ServerTLS(ca.server)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, plan{instances: 6, unregistered: true, sim: func(_ int, c *sim.Config) { c.TLS = secured }})
	dir := t.TempDir()
	at := kept(t, dir, map[string][]byte{"ca": ca.PEM, "crt": ca.client.Cert, "key": ca.client.Key})
	bridge := config.StaticBridge{
		Name: clusterName(0), URL: w.clusters[0].Addr(), State: "available", Govern: true,
		TLS: config.TLSFiles{CA: at("ca"), Crt: at("crt"), Key: at("key")},
	}
	s := w.serve(func(c *config.Config) {
		c.StaticBridges = []config.StaticBridge{bridge}
		if err := c.ReadFiles(); err != nil {
			t.Fatal(err)
		}
	})
	w.heard(1)
	w.sendAll(2)
	another, err := ca.Issue(sim.Leaf{})
	if err != nil {
		t.Fatal(err)
	}
	// Halfway they cannot be used, and the cluster is heard on.
	kept(t, dir, map[string][]byte{"key": another.Key})
	w.until("it is said", func() bool { return s.logs("are no pair") })
	w.sendAll(1)
	if n := w.clusters[0].Stats().Subscribed; n != 1 {
		t.Errorf("the stream was taken up %d times", n)
	}
	kept(t, dir, map[string][]byte{"crt": another.Cert})
	if err := w.clusters[0].Await(w.ctx, func(s sim.Stats) bool { return s.Subscribed == 2 && s.Subscribers == 1 }); err != nil {
		t.Fatal(err)
	}
	w.sendAll(every)
	w.settle(true)
	s.stop()
}
