package publish

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"github.com/trestle-bridge/trestle/internal/devstack"
	"github.com/trestle-bridge/trestle/internal/devstack/devstacktest"
	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/internal/secret"
)

func secretURL(raw string) secret.URL { return secret.NewURL(raw) }

func TestAddresses(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  Redis
		want func(o *redis.Options) string // what is wrong
	}{
		{"address", Redis{Address: "redis:6379", Username: "u", Password: secret.New("pw")}, func(o *redis.Options) string {
			return differ(o.Addr, "redis:6379", o.Username, "u", o.Password, "pw", o.TLSConfig == nil, true)
		}},
		{"URL", Redis{URL: secretURL("redis://u:p%40w@redis:1234/3?read_timeout=1s"), Address: "ignored"}, func(o *redis.Options) string {
			return differ(o.Addr, "redis:1234", o.Username, "u", o.Password, "p@w", o.DB, 3, o.ReadTimeout.String(), "1s", o.WriteTimeout, ioTimeout)
		}},
		{"fields win over the URL", Redis{URL: secretURL("redis://u:p@redis"), Username: "v", Password: secret.New("q")}, func(o *redis.Options) string {
			return differ(o.Addr, "redis:6379", o.Username, "v", o.Password, "q")
		}},
		{"TLS by scheme", Redis{URL: secretURL("rediss://redis:6380")}, func(o *redis.Options) string {
			return differ(o.TLSConfig != nil && o.TLSConfig.ServerName == "redis", true)
		}},
		{"TLS by field", Redis{Address: "redis:6380", TLS: &tls.Config{ServerName: "other"}}, func(o *redis.Options) string {
			return differ(o.TLSConfig.ServerName, "other")
		}},
		{"unix socket", Redis{URL: secretURL("unix:///run/redis.sock?db=2")}, func(o *redis.Options) string {
			return differ(o.Network, "unix", o.Addr, "/run/redis.sock", o.DB, 2)
		}},
		{"Sentinel", Redis{URL: secretURL("redis://su:sp@s1:26379/4?master_name=main&addr=s2:26379&username=u&password=p")}, func(o *redis.Options) string {
			return differ(o.Addr, "FailoverClient", o.Username, "u", o.Password, "p", o.DB, 4)
		}},
		{"TLS with Sentinel, which is one of several servers", Redis{URL: secretURL("rediss://s1?master_name=main&addr=s2:26379")}, func(o *redis.Options) string {
			return differ(o.TLSConfig != nil && o.TLSConfig.ServerName == "", true)
		}},
		{"no retries, no endless waits", Redis{URL: secretURL("redis://redis?max_retries=5&read_timeout=-1")}, func(o *redis.Options) string {
			return differ(o.MaxRetries, 0, o.ReadTimeout, ioTimeout, o.DialTimeout, ioTimeout, o.ContextTimeoutEnabled, true)
		}},
		{"no retries with Sentinel", Redis{URL: secretURL("redis://s1?master_name=main&max_retries=5&read_timeout=-1")}, func(o *redis.Options) string {
			return differ(o.MaxRetries, 0, o.ReadTimeout, ioTimeout, o.DialTimeout, ioTimeout, o.ContextTimeoutEnabled, true)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPublisher(t, Config{Redis: c.cfg})
			if wrong := c.want(p.client.Options()); wrong != "" {
				t.Error(wrong)
			}
		})
	}
}

// differ compares pairs of what is and what should be.
func differ(pairs ...any) string {
	var wrong []string
	for pair := range slices.Chunk(pairs, 2) {
		if pair[0] != pair[1] {
			wrong = append(wrong, fmt.Sprintf("%v, want %v", pair[0], pair[1]))
		}
	}
	return strings.Join(wrong, "; ")
}

func TestBadAddressesShowNoPassword(t *testing.T) {
	for _, cfg := range []Redis{
		{},
		{Address: "redis"},
		{URL: secretURL("redis://u:hunter2/x@redis:6379")},
		{URL: secretURL("redis://u:123/hunter2@redis:6379")},
		{URL: secretURL("redis://u:hunter2%zz@redis:6379")},
		{URL: secretURL("http://u:hunter2@redis:6379")},
		{URL: secretURL("redis://redis/hunter2@")},
		{URL: secretURL("redis://redis?password=hunter2&x=y")},
		{URL: secretURL("redis://redis?colour=red")},
		{URL: secretURL("redis://s1?master_name=")},
		{URL: secretURL("redis://s1?master_name=m&addr=x")},
		{URL: secretURL("redis://s1?master_name=m&replica_only=true")},
		{URL: secretURL("redis://s1?master_name=m&route_randomly=true")},
	} {
		p, err := New(Config{Redis: cfg})
		if err == nil {
			t.Errorf("%v is taken", cfg)
			_ = p.Close()
			continue
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

func TestPasswordAndRights(t *testing.T) {
	server := devstacktest.OwnRedis(t, devstack.RedisConfig{})
	admin := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer func() { _ = admin.Close() }()
	for _, rule := range [][]any{
		{"acl", "setuser", "publisher", "on", ">hunter2", "+@connection", "-client|kill", "-client|info", "+publish", "&chan:*"},
		{"acl", "setuser", "narrow", "on", ">hunter2", "+@connection", "+publish", "resetchannels", "&chan:workspace-instances"},
	} {
		if err := admin.Do(testContext(t), rule...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	sub := listen(t, server.Addr())

	var log logLines
	wrong := newPublisher(t, Config{Redis: Redis{Address: server.Addr(), Username: "publisher", Password: secret.New("hunter3")}, Log: log.logger()})
	sets := []event.Set{instances("login", 2)}
	if err := wrong.Publish(testContext(t), sets, nil); err == nil || strings.Contains(err.Error(), "hunter3") {
		t.Errorf("with a wrong password the error is %v", err)
	}
	if n := testutil.ToFloat64(wrong.metrics.ok[kindInstance][0]); n != 0 {
		t.Errorf("%v messages counted as taken without a login", n)
	}

	right := newPublisher(t, Config{Redis: Redis{Address: server.Addr(), Username: "publisher", Password: secret.New("hunter2")}, Log: log.logger()})
	for range 2 {
		if err := right.Publish(testContext(t), sets, nil); err != nil {
			t.Error(err)
		}
	}
	if n := strings.Count(log.String(), "late messages"); n != 1 {
		t.Errorf("the missing fence is logged %d times, want once: %s", n, log.String())
	}
	if strings.Contains(log.String(), "hunter") {
		t.Errorf("the log shows a password: %s", log.String())
	}

	// One channel of two is refused: an error, and the connection stays.
	narrow := newPublisher(t, Config{Redis: Redis{Address: server.Addr(), Username: "narrow", Password: secret.New("hunter2")}})
	mixed := []event.Set{{Instances: sets[0].Instances, Headless: []event.Headless{{Type: "started"}}}}
	if err := narrow.Publish(testContext(t), mixed, nil); err == nil {
		t.Error("a refused message is no error")
	}
	if len(narrow.idle) != 1 || len(narrow.doubtful) != 0 {
		t.Errorf("after a refusal %d sessions are idle and %d doubtful", len(narrow.idle), len(narrow.doubtful))
	}
	want := expected(t, []event.Set{sets[0], sets[0], sets[0]})
	if got := receiveUntil(t, sub, server.Addr()); !slices.Equal(got, want) {
		t.Errorf("heard %v, want %v", got, want)
	}
}

func TestEmbeddedServer(t *testing.T) {
	server := devstacktest.OwnRedis(t, devstack.RedisConfig{Embedded: true})
	sub := listen(t, server.Addr())
	p := newPublisher(t, Config{Redis: Redis{URL: secretURL(server.URL())}})
	sets := []event.Set{instances("embedded", 2*chunkSize)}
	if err := p.Publish(testContext(t), sets, nil); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, sub, 2*chunkSize); !slices.Equal(got, expected(t, sets)) {
		t.Error("heard something else")
	}
}

func TestTLS(t *testing.T) {
	server := devstacktest.Redis(t)
	authority := httptest.NewTLSServer(nil)
	defer authority.Close()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", authority.TLS)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			forwardTLS(conn, server.Addr())
		}
	}()

	trusted := x509.NewCertPool()
	trusted.AddCert(authority.Certificate())
	for name, want := range map[string]bool{"127.0.0.1": true, "example.com": true, "": true, "other.example": false} {
		p := newPublisher(t, Config{Redis: Redis{Address: listener.Addr().String(), TLS: &tls.Config{RootCAs: trusted, ServerName: name}}})
		if err := p.Publish(testContext(t), []event.Set{instances("tls", 1)}, nil); (err == nil) != want {
			t.Errorf("with server name %q the error is %v", name, err)
		}
	}
	strangers := newPublisher(t, Config{Redis: Redis{URL: secretURL("rediss://" + listener.Addr().String())}})
	if err := strangers.Ping(testContext(t)); err == nil {
		t.Error("a certificate of nobody's is trusted")
	}
}

// forwardTLS joins conn and Redis; both directions end with either connection.
func forwardTLS(conn net.Conn, target string) {
	server, err := net.Dial("tcp", target)
	if err != nil {
		_ = conn.Close()
		return
	}
	for _, pair := range [][2]net.Conn{{conn, server}, {server, conn}} {
		go func() {
			buffer := make([]byte, 32<<10)
			for {
				n, err := pair[0].Read(buffer)
				if n > 0 {
					_, _ = pair[1].Write(buffer[:n])
				}
				if err != nil {
					_ = pair[0].Close()
					_ = pair[1].Close()
					return
				}
			}
		}()
	}
}

func TestSentinelFindsTheMaster(t *testing.T) {
	server := devstacktest.OwnRedis(t, devstack.RedisConfig{})
	host, port, err := net.SplitHostPort(server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	address := startSentinel(t, host, port)
	sub := listen(t, server.Addr())
	p := newPublisher(t, Config{Redis: Redis{URL: secretURL("redis://" + address + "?master_name=main")}})
	sets := []event.Set{instances("sentinel", chunkSize+1)}
	if err := p.Publish(testContext(t), sets, nil); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, sub, chunkSize+1); !slices.Equal(got, expected(t, sets)) {
		t.Error("heard something else")
	}
}

func startSentinel(t *testing.T, masterHost, masterPort string) string {
	t.Helper()
	reserved, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := reserved.Addr().String()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "sentinel.conf")
	settings := fmt.Sprintf("bind 127.0.0.1\nport %s\ndir %s\nsentinel monitor main %s %s 1\n", port, dir, masterHost, masterPort)
	if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := reserved.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("redis-server", file, "--sentinel")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	client := redis.NewClient(&redis.Options{Addr: address, MaxRetries: -1})
	defer func() { _ = client.Close() }()
	for ctx := testContext(t); client.Ping(ctx).Err() != nil; {
		if ctx.Err() != nil {
			t.Fatal("Sentinel does not answer")
		}
	}
	return address
}
