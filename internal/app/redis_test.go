package app

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/trestle-bridge/trestle/internal/config"
	"github.com/trestle-bridge/trestle/internal/devstack"
	"github.com/trestle-bridge/trestle/internal/devstack/devstacktest"
	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/internal/secret"
	"github.com/trestle-bridge/trestle/loadtest/script"
	"github.com/trestle-bridge/trestle/loadtest/sim"
)

// authorityFiles are PEM files of an authority, a server that it has signed, and
// a client.
type authorityFiles struct{ ca, server, serverKey, client, clientKey string }

// newAuthorityFiles writes them where servers of other accounts can read them. The
// server's name is localhost.
func newAuthorityFiles(t *testing.T) authorityFiles {
	t.Helper()
	a, err := sim.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	server, err := a.Issue(sim.Leaf{Name: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	client, err := a.Issue(sim.Leaf{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return authorityFiles{
		ca: write("ca.crt", a.PEM), server: write("server.crt", server.Cert), serverKey: write("server.key", server.Key),
		client: write("client.crt", client.Cert), clientKey: write("client.key", client.Key),
	}
}

// settings make a Redis, or a Sentinel, speak TLS on a port, with those alone
// whom the authority has signed.
func (f authorityFiles) settings(port string) map[string]string {
	return map[string]string{
		"tls-port": port, "tls-auth-clients": "yes", "tls-replication": "yes", "tls-ca-cert-file": f.ca,
		"tls-cert-file": f.server, "tls-key-file": f.serverKey,
		"tls-client-cert-file": f.client, "tls-client-key-file": f.clientKey,
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	reserved, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := reserved.Close(); err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(reserved.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// securedSentinel starts a Sentinel that knows a master on a port of localhost,
// speaks TLS itself, and names servers by name.
func securedSentinel(t *testing.T, w *world, files authorityFiles, master string) (port string) {
	t.Helper()
	port = freePort(t)
	path := filepath.Join(t.TempDir(), "sentinel.conf")
	var text strings.Builder
	fmt.Fprintf(&text, "bind 127.0.0.1\nport 0\ndir %s\nsentinel resolve-hostnames yes\nsentinel announce-hostnames yes\nsentinel monitor main localhost %s 1\n", filepath.Dir(path), master)
	for name, value := range files.settings(port) {
		fmt.Fprintf(&text, "%s %s\n", name, value)
	}
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("redis-server", path, "--sentinel")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(cmd.Process.Kill(), cmd.Wait()) })
	w.until("the Sentinel listens", func() bool {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
	return port
}

// A Redis under an authority of its own, which wants to see a certificate, as the
// keys redis.tls.* say: by address, and found by a Sentinel that speaks TLS too.
func TestRedisOverTLS(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{instances: 3})
	files, strangers := newAuthorityFiles(t), newAuthorityFiles(t)
	secured := freePort(t)
	server := devstacktest.OwnRedis(t, devstack.RedisConfig{Settings: files.settings(secured)})
	sentinel := securedSentinel(t, w, files, secured)

	plain := redis.NewClient(&redis.Options{Addr: server.Addr()})
	sub := plain.Subscribe(w.ctx, event.ChannelInstances)
	t.Cleanup(func() {
		if err := errors.Join(sub.Close(), plain.Close()); err != nil {
			t.Error(err)
		}
	})
	if _, err := sub.Receive(w.ctx); err != nil {
		t.Fatal(err)
	}

	load := func(url, ca, crt, key string) func(*config.Config) {
		path := filepath.Join(t.TempDir(), "trestle.yaml")
		text := fmt.Sprintf("redis:\n  url: %q\n  tls: {ca: %q, crt: %q, key: %q}\n", url, ca, crt, key)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		loaded, _, err := config.Load(config.Input{Path: path})
		if err == nil {
			err = loaded.ReadFiles()
		}
		if err != nil {
			t.Fatal(err)
		}
		return func(c *config.Config) { c.Redis = loaded.Redis }
	}
	direct, found := "rediss://localhost:"+secured, "rediss://localhost:"+sentinel+"?master_name=main"
	for n, c := range []struct{ name, url string }{{"by address", direct}, {"by Sentinel", found}} {
		s := w.serve(load(c.url, files.ca, files.client, files.clientKey))
		w.until(c.name+" it is ready", func() bool { code, _ := s.get("/readyz"); return code == http.StatusOK })
		w.say(n, w.status(n, 1, nil))
		message, err := sub.ReceiveMessage(w.ctx)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if want := fmt.Sprintf(`"instanceID":%q`, script.FormatUUID(w.subject(n).ID.Instance)); !strings.Contains(message.Payload, want) {
			t.Errorf("%s: heard %s, want %s", c.name, message.Payload, want)
		}
		s.stop()
	}
	for name, change := range map[string]func(*config.Config){
		"a strange authority":                    load(direct, strangers.ca, files.client, files.clientKey),
		"a strange authority, at the Sentinel":   load(found, strangers.ca, files.client, files.clientKey),
		"no certificate of ours":                 load(direct, files.ca, "", ""),
		"a certificate of a strange authority":   load(direct, files.ca, strangers.client, strangers.clientKey),
		"the machine's authorities":              func(c *config.Config) { c.Redis = config.Redis{Server: secret.NewURL(direct)} },
		"the machine's, for those of a Sentinel": func(c *config.Config) { c.Redis = config.Redis{Server: secret.NewURL(found)} },
	} {
		s := w.serve(change)
		if code, body := s.get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "redis: failing") {
			t.Errorf("%s: /readyz answers %d: %s", name, code, body)
		}
		s.stop()
	}
}
