package config

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/trestle-bridge/trestle/internal/config/settings"
	"github.com/trestle-bridge/trestle/internal/secret"
)

func writeFile(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func environment(of map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := of[name]; return v, ok }
}

func flags(t testing.TB, args ...string) *pflag.FlagSet {
	t.Helper()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	AddFlags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return fs
}

func problemsOf(t testing.TB, err error) []settings.Problem {
	t.Helper()
	var e *settings.Error
	if !errors.As(err, &e) {
		t.Fatalf("error is %v, want a *settings.Error", err)
	}
	return e.Problems
}

// sample is one key: its default, three other values in the shape of the file
// and of a text, and values that are refused.
type sample struct {
	get     func(*Config) any
	byHand  any       // the default
	file    string    // as written in YAML
	texts   [2]string // for the environment and the flag
	want    [3]any    // of file and texts
	refused []string  // as written in YAML
}

func whole(get func(*Config) any, byHand int, low, high int) sample {
	return sample{
		get: get, byHand: byHand, file: fmt.Sprint(low), texts: [2]string{fmt.Sprint(high), fmt.Sprint(low + 1)},
		want:    [3]any{low, high, low + 1},
		refused: []string{fmt.Sprint(low - 1), fmt.Sprint(high + 1), "1.5", `"8"`, "many", "true", "[1]", "{a: 1}", "0x1f", "99999999999999999999"},
	}
}

func duration(get func(*Config) any, byHand time.Duration, low, high int, fractions bool) sample {
	s := sample{
		get: get, byHand: byHand, file: fmt.Sprint(low + 1), texts: [2]string{fmt.Sprint(high), fmt.Sprint(low + 2)},
		want:    [3]any{time.Duration(low+1) * time.Second, time.Duration(high) * time.Second, time.Duration(low+2) * time.Second},
		refused: []string{"-1", "0", fmt.Sprint(high + 1), `"60"`, "60s", "soon", ".nan", ".inf", "true", "[1]"},
	}
	if fractions {
		s.texts[1], s.want[2] = fmt.Sprint(low)+"1.25", time.Duration(low)*10*time.Second+1250*time.Millisecond
	} else {
		s.refused = append(s.refused, "4.5")
	}
	return s
}

func truth(get func(*Config) any, byHand bool) sample {
	return sample{
		get: get, byHand: byHand, file: fmt.Sprint(!byHand), texts: [2]string{"true", "false"},
		want:    [3]any{!byHand, true, false},
		refused: []string{"yes", "1", `"true"`, "[true]"},
	}
}

func word(get func(*Config) any, byHand string, values [3]string, refused ...string) sample {
	return sample{
		get: get, byHand: byHand, file: values[0], texts: [2]string{values[1], values[2]},
		want:    [3]any{values[0], values[1], values[2]},
		refused: append(refused, "12", "true", "[a]", "{a: b}"),
	}
}

func server(get func(*Config) secret.URL, byHand string, values [3]string, refused ...string) sample {
	return word(func(c *Config) any { return get(c).Reveal() }, byHand, values, refused...)
}

func bytesOf(get func(*Config) settings.Bytes, byHand settings.Bytes) sample {
	return sample{
		get: func(c *Config) any { return get(c) }, byHand: byHand, file: "2MiB", texts: [2]string{"3145728", "1024KiB"},
		want:    [3]any{2 * settings.MiB, 3 * settings.MiB, settings.MiB},
		refused: []string{"0", "1", "-1", "4MB", "4 Mebi", "1.5MiB", "9999999999GiB", "99999999999999999999", "true", "2048GiB", "[1MiB]"},
	}
}

var addresses = [3]string{"127.0.0.1:1", ":0", `"[::1]:65535"`}

func listen(get func(*Config) any, byHand string) sample {
	s := word(get, byHand, addresses, "localhost", "'localhost:'", "localhost:65536", "localhost:-1", "localhost:http", "a b:1", "a/b:1", `""`)
	s.texts[1], s.want[2] = "[::1]:65535", "[::1]:65535"
	return s
}

// console may listen nowhere; on addresses that others reach, see TestTogether.
func console() sample {
	s := listen(func(c *Config) any { return c.Console.Address }, "localhost:8090")
	s.texts[0], s.want[1] = "localhost:0", "localhost:0"
	s.refused = slices.DeleteFunc(s.refused, func(v string) bool { return v == `""` })
	return s
}

// samples has every key of the table but those apart; TestEveryKeyHasASample
// sees to it.
func samples() map[string]sample {
	return map[string]sample{
		"installation":           word(func(c *Config) any { return c.Installation }, "local", [3]string{"a", "b", "c"}, `""`, `"a\u0007"`),
		"allowPlaintextClusters": truth(func(c *Config) any { return c.AllowPlaintextClusters }, false),

		"clusterService.host": word(func(c *Config) any { return c.ClusterService.Host }, "localhost", [3]string{"a", "b", "c"}),
		"clusterService.port": whole(func(c *Config) any { return c.ClusterService.Port }, 8080, 0, 65535),
		"http.address":        listen(func(c *Config) any { return c.HTTP.Address }, ":9500"),
		"console.address":     console(),
		"console.exposed":     truth(func(c *Config) any { return c.Console.Exposed }, false),
		"console.hosts": {
			get: func(c *Config) any { return c.Console.Hosts }, byHand: []string(nil),
			file: "[a.example, b]", texts: [2]string{"c.example, d", "e"},
			want:    [3]any{[]string{"a.example", "b"}, []string{"c.example", "d"}, []string{"e"}},
			refused: []string{"[a, a]", "['a b']", "'a:1'", "'http://a'", "'*.a'", "[1]", "12", "{a: 1}"},
		},
		"peer.listen":              listen(func(c *Config) any { return c.Peer.Listen }, "localhost:0"),
		"peer.advertise":           word(func(c *Config) any { return c.Peer.Advertise }, "", [3]string{"a:1", "b:2", "c:3"}, "a", "a:0", ":1"),
		"clusterService.insecure":  truth(func(c *Config) any { return c.ClusterService.Insecure }, false),
		"clusterService.tokenFile": word(func(c *Config) any { return c.ClusterService.TokenFile }, "", [3]string{"a", "b", "c"}),
		"clusterService.callsPerSecond": {
			get: func(c *Config) any { return c.ClusterService.CallsPerSecond }, byHand: 50.0,
			file: "1", texts: [2]string{"0.5", "100000"}, want: [3]any{1.0, 0.5, 100000.0}, refused: []string{"0", "-1", "1e9", ".nan", ".inf", "many", `"1"`},
		},
		"clusterService.callsAtOnce":     whole(func(c *Config) any { return c.ClusterService.CallsAtOnce }, 64, 1, 256),
		"clusterService.maxRequestBytes": bytesOf(func(c *Config) settings.Bytes { return c.ClusterService.MaxRequestBytes }, settings.MiB),

		"postgres.url": server(func(c *Config) secret.URL { return c.Postgres.URL }, "",
			[3]string{"postgres://u:p@h/d", "postgresql://h", "host=h dbname=d"}, "mysql://h", "h:5432", "postgres://"),
		"postgres.maxConnections":          whole(func(c *Config) any { return c.Postgres.MaxConnections }, 0, 0, 1000),
		"postgres.statementTimeoutSeconds": duration(func(c *Config) any { return c.Postgres.StatementTimeout }, 15*time.Second, 1, 3600, true),
		"redis.address":                    word(func(c *Config) any { return c.Redis.Address }, "", [3]string{"a:1", "b:2", "c:3"}, "a", "redis://a:1", ":1"),
		"redis.url": server(func(c *Config) secret.URL { return c.Redis.URL }, "",
			[3]string{"redis://h:1", "rediss://u:p@h:1/2", "unix:///s"}, "h:1", "http://h", "redis://", "redis://h/one", `"redis://h:port"`),
		"redis.username": word(func(c *Config) any { return c.Redis.Username }, "", [3]string{"a", "b", "c"}),
		"redis.password": {
			get: func(c *Config) any { return c.Redis.Password.Reveal() }, byHand: "",
			file: "a", texts: [2]string{"b", ""}, want: [3]any{"a", "b", nil}, refused: []string{"12", "[a]"},
		},
		"etcd.endpoints": {
			get: func(c *Config) any { return c.Etcd.Endpoints }, byHand: []string(nil),
			file: "[a:1, 'http://b:2']", texts: [2]string{"https://c:3, d:4", "unix:///s"},
			want:    [3]any{[]string{"a:1", "http://b:2"}, []string{"https://c:3", "d:4"}, []string{"unix:///s"}},
			refused: []string{"a", "[a]", "[a:1, a:1]", "ftp://a:1", "[1]", "[[a:1]]", "{a: 1}", "'a:1,,b:2'", "12", "['unix://']"},
		},
		"etcd.prefix":       word(func(c *Config) any { return c.Etcd.Prefix }, "/trestle", [3]string{"/a", "/b/c", "/d"}, "a", "/", "/a/", "'/a b'"),
		"etcd.leaseSeconds": duration(func(c *Config) any { return c.Etcd.Lease }, 10*time.Second, 2, 3600, false),

		"replica.id":       word(nil, "", [3]string{"a", "b", "c"}, "a/b", "'a b'", strings.Repeat("x", 201)),
		"replica.revision": word(func(c *Config) any { return c.Replica.Revision }, "v0", [3]string{"a", "b", "c"}, "a/b"),

		"controllerIntervalSeconds":           duration(func(c *Config) any { return c.ControllerInterval }, time.Minute, 1, day, true),
		"controllerMaxDisconnectSeconds":      duration(func(c *Config) any { return c.ControllerMaxDisconnect }, 150*time.Second, 1, day, true),
		"wsClusterDBReconcileIntervalSeconds": duration(func(c *Config) any { return c.ClusterReconcileInterval }, time.Minute, 1, day, true),
		"clusterSyncIntervalSeconds":          duration(func(c *Config) any { return c.ClusterSyncInterval }, time.Minute, 1, day, true),
		"timeouts.preparingPhaseSeconds":      duration(func(c *Config) any { return c.Timeouts.Preparing }, time.Hour, 1, year, true),
		"timeouts.buildingPhaseSeconds":       duration(func(c *Config) any { return c.Timeouts.Building }, time.Hour, 1, year, true),
		"timeouts.unknownPhaseSeconds":        duration(func(c *Config) any { return c.Timeouts.Unknown }, 10*time.Minute, 1, year, true),
		"timeouts.pendingPhaseSeconds":        duration(func(c *Config) any { return c.Timeouts.Pending }, time.Hour, 1, year, true),
		"timeouts.stoppingPhaseSeconds":       duration(func(c *Config) any { return c.Timeouts.Stopping }, time.Hour, 1, year, true),

		"prebuild.decisivePhase": word(func(c *Config) any { return c.Prebuild.DecisivePhase }, "stopping", [3]string{"stopped", "stopping", "stopped"}, "STOPPED", "running", `""`),
		"lifecycle.sink": server(func(c *Config) secret.URL { return c.Lifecycle.Sink }, "none",
			[3]string{"log", "https://key:@h/v1/track", "http://h"}, "file", "https://", "ftp://h", `""`),

		"pipeline.lanes":                   whole(func(c *Config) any { return c.Pipeline.Lanes }, 2, 1, 256),
		"pipeline.fleetLanes":              whole(func(c *Config) any { return c.Pipeline.FleetLanes }, 4, 1, 10000),
		"pipeline.batchLimit":              whole(func(c *Config) any { return c.Pipeline.BatchLimit }, 500, 1, 10_000),
		"pipeline.traceBytes":              bytesOf(func(c *Config) settings.Bytes { return c.Pipeline.TraceBytes }, 27*settings.MiB/2),
		"pipeline.dedupEntries":            whole(func(c *Config) any { return c.Pipeline.DedupEntries }, 131072, 1, 100_000_000),
		"pipeline.maxWaiting":              whole(func(c *Config) any { return c.Pipeline.MaxWaiting }, 200_000, 1, 100_000_000),
		"pipeline.maxWaitingPerCluster":    whole(func(c *Config) any { return c.Pipeline.MaxWaitingPerCluster }, 120_000, 1, 100_000_000),
		"upstream.maxUpdateBytes":          bytesOf(func(c *Config) settings.Bytes { return c.Upstream.MaxUpdateBytes }, 4*settings.MiB),
		"upstream.maxSnapshotBytes":        bytesOf(func(c *Config) settings.Bytes { return c.Upstream.MaxSnapshotBytes }, 512*settings.MiB),
		"upstream.snapshotBudgetBytes":     bytesOf(func(c *Config) settings.Bytes { return c.Upstream.SnapshotBudgetBytes }, settings.GiB),
		"upstream.snapshotIntervalSeconds": duration(func(c *Config) any { return c.Upstream.SnapshotInterval }, 5*time.Minute, 1, day, true),

		"shutdown.timeoutSeconds": duration(func(c *Config) any { return c.Shutdown.Timeout }, 25*time.Second, 1, 3600, true),
		"migrations.atStart":      truth(func(c *Config) any { return c.Migrations.AtStart }, true),
		"log.level": {
			get: func(c *Config) any { return c.Log.Level }, byHand: slog.LevelInfo,
			file: "debug", texts: [2]string{"WARN", "error"}, want: [3]any{slog.LevelDebug, slog.LevelWarn, slog.LevelError},
			refused: []string{"trace", "1", "''"},
		},
		"log.format":       word(func(c *Config) any { return c.Log.Format }, "json", [3]string{"text", "json", "text"}, "xml"),
		"tracing.endpoint": word(func(c *Config) any { return c.Tracing.Endpoint }, "", [3]string{"a:4317", "http://b:1", "https://c"}, "a", "ftp://a:1", "'a b:1'"),
		"tracing.sampleRatio": {
			get: func(c *Config) any { return c.Tracing.SampleRatio }, byHand: 0.01,
			file: "1", texts: [2]string{"0.5", "0"}, want: [3]any{1.0, 0.5, 0.0}, refused: []string{"-0.1", "1.1", ".nan", "half", `"1"`},
		},
	}
}

// related are keys that are checked against another one, with what makes room.
func related(path string) []string {
	switch path {
	case "pipeline.maxWaiting":
		return []string{"--pipeline.maxWaitingPerCluster=1"}
	case "pipeline.maxWaitingPerCluster":
		return []string{"--pipeline.maxWaiting=100000000"}
	case "upstream.snapshotBudgetBytes":
		return []string{"--upstream.maxSnapshotBytes=1MiB"}
	}
	return nil
}

// inFile writes a value under its path, as YAML does.
func inFile(path, v string) string {
	names, out := strings.Split(path, "."), ""
	for depth, name := range names {
		out += strings.Repeat("  ", depth) + name + ":"
		if depth < len(names)-1 {
			out += "\n"
		}
	}
	return out + " " + v + "\n"
}

func TestEveryKeyHasASample(t *testing.T) {
	c := Default()
	known := samples()
	for _, k := range keys(&c) {
		apart := k.Value == nil || k.NoFile || k.Path == bridgesKey || k.Path == rolesKey ||
			strings.HasPrefix(k.Path, "etcd.tls.") || strings.HasPrefix(k.Path, "redis.tls.") || strings.HasPrefix(k.Path, "clusterService.tls.")
		if _, ok := known[k.Path]; !ok && !apart {
			t.Errorf("%s is not tested", k.Path)
		}
		if k.Value != nil && k.Usage == "" {
			t.Errorf("%s does not say what it is", k.Path)
		}
		delete(known, k.Path)
	}
	for path := range known {
		t.Errorf("%s is no key", path)
	}
}

func TestEveryKey(t *testing.T) {
	variables := map[string]string{}
	c := Default()
	for _, k := range keys(&c) {
		variables[k.Path] = k.Env
	}
	for path, s := range samples() {
		t.Run(path, func(t *testing.T) {
			if s.get == nil {
				t.Skip("has a test of its own")
			}
			load := func(what string, want any, in Input) {
				t.Helper()
				in.Version = "v0"
				cfg, warnings, err := Load(in)
				if err != nil || len(warnings) > 0 {
					t.Fatalf("%s: %v, warnings %v", what, err, warnings)
				}
				if got := s.get(cfg); !reflect.DeepEqual(got, want) {
					t.Errorf("%s gives %v, want %v", what, got, want)
				}
			}
			room := related(path)
			if path == "postgres.maxConnections" {
				// Fewer than the lanes are refused.
				s.texts, s.want = [2]string{"1000", "5"}, [3]any{0, 1000, 5}
			}
			file := writeFile(t, "trestle.yaml", inFile(path, s.file))
			load("nothing", s.byHand, Input{})
			load("the file", s.want[0], Input{Path: file, Flags: flags(t, room...)})

			env := map[string]string{}
			if name := variables[path]; name != "" {
				env[name] = s.texts[0]
				load("the environment", s.want[1], Input{Path: file, LookupEnv: environment(env), Flags: flags(t, room...)})
				load("an empty variable", s.want[0], Input{Path: file, LookupEnv: environment(map[string]string{name: ""}), Flags: flags(t, room...)})
			}
			if s.want[2] != nil {
				load("the flag", s.want[2], Input{Path: file, LookupEnv: environment(env), Flags: flags(t, append(room, "--"+path+"="+s.texts[1])...)})
			}
			if text, isText := s.byHand.(string); isText && text == "" {
				load("an empty text", s.byHand, Input{Path: writeFile(t, "trestle.yaml", inFile(path, `""`)), Flags: flags(t)})
			}
			load("null", s.byHand, Input{Path: writeFile(t, "trestle.yaml", inFile(path, "")), Flags: flags(t)})
		})
	}
}

func TestEveryKeyRefuses(t *testing.T) {
	for path, s := range samples() {
		for _, bad := range s.refused {
			file := writeFile(t, "trestle.yaml", "\n# a comment\n"+inFile(path, bad))
			cfg, _, err := Load(Input{Path: file})
			problems := problemsOf(t, err)
			p := problems[0]
			line := 3 + strings.Count(path, ".")
			if len(problems) != 1 || p.Source != file || p.Line != line || !strings.HasPrefix(p.Key, path) || p.What == "" || p.Allowed == "" {
				t.Errorf("%s: %s is refused with %+v, want line %d", path, bad, problems, line)
			}
			if s.get != nil && path != "replica.revision" && !reflect.DeepEqual(s.get(cfg), s.byHand) {
				t.Errorf("%s: %s was refused and is in force all the same: %v", path, bad, s.get(cfg))
			}
		}
	}
}

func TestRefusedTextsNameTheirSource(t *testing.T) {
	_, _, err := Load(Input{
		LookupEnv: environment(map[string]string{"TRESTLE_HTTP_ADDRESS": "nowhere", "TRESTLE_GRPC_ADDRESS": "x", "TRESTLE_POSTGRES_URL": "mysql://u:hunter2@h"}),
		Flags:     flags(t, "--pipeline.lanes=none", "--allowPlaintextClusters=maybe"),
	})
	var got []string
	for _, p := range problemsOf(t, err) {
		got = append(got, p.Source+" "+p.Key)
	}
	want := []string{
		"environment TRESTLE_GRPC_ADDRESS clusterService.address",
		"environment TRESTLE_HTTP_ADDRESS http.address",
		"environment TRESTLE_POSTGRES_URL postgres.url",
		"flag --allowPlaintextClusters allowPlaintextClusters",
		"flag --pipeline.lanes pipeline.lanes",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("problems of %q, want %q", got, want)
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error shows a password: %v", err)
	}
}

func TestGRPCAddress(t *testing.T) {
	file := writeFile(t, "trestle.yaml", "clusterService: {host: 127.0.0.2, port: 1}")
	cfg, _, err := Load(Input{Path: file})
	if err != nil || cfg.ClusterService.Address() != "127.0.0.2:1" {
		t.Fatalf("address %s, %v", cfg.ClusterService.Address(), err)
	}
	cfg, _, err = Load(Input{Path: file, LookupEnv: environment(map[string]string{"TRESTLE_GRPC_ADDRESS": "[::1]:2"})})
	if err != nil || cfg.ClusterService.Address() != "[::1]:2" {
		t.Fatalf("address %s, %v", cfg.ClusterService.Address(), err)
	}
	cfg, _, err = Load(Input{
		Path: file, LookupEnv: environment(map[string]string{"TRESTLE_GRPC_ADDRESS": "[::1]:2"}),
		Flags: flags(t, "--clusterService.address=:3", "--clusterService.port=4", "--clusterService.insecure"),
	})
	// Of two flags the one that stands later in the table counts.
	if err != nil || cfg.ClusterService.Address() != ":3" {
		t.Fatalf("address %s, %v", cfg.ClusterService.Address(), err)
	}
}

func TestReplica(t *testing.T) {
	first, _, err := Load(Input{Version: "1.2.3"})
	if err != nil {
		t.Fatal(err)
	}
	second, _, _ := Load(Input{})
	if first.Replica.ID == second.Replica.ID || replicaName(first.Replica.ID) != nil || first.Replica.ID == "" {
		t.Errorf("replicas %q and %q", first.Replica.ID, second.Replica.ID)
	}
	if first.Replica.Revision != "1.2.3" {
		t.Errorf("revision %q", first.Replica.Revision)
	}
	named, _, err := Load(Input{Path: writeFile(t, "c.yaml", "replica: {id: a}"), LookupEnv: environment(map[string]string{"TRESTLE_REPLICA_ID": "b"})})
	if err != nil || named.Replica.ID != "b" {
		t.Errorf("replica %q, %v", named.Replica.ID, err)
	}
}

func TestRedis(t *testing.T) {
	type of = map[string]string
	for _, c := range []struct {
		name, file string
		env        of
		want       string // of Server; begins with ! = a problem that says this
	}{
		{"nothing", "", nil, ""},
		{"address", "redis: {address: 'h:1'}", nil, "redis://h:1"},
		{"address and user", "redis: {address: 'h:1'}", of{"REDIS_USERNAME": "u", "REDIS_PASSWORD": "p@/:"}, "redis://u:p%40%2F%3A@h:1"},
		{"address and password", "redis: {address: 'h:1'}", of{"REDIS_PASSWORD": "p"}, "redis://:p@h:1"},
		{"address and user alone", "redis: {address: 'h:1', username: u}", nil, "redis://u@h:1"},
		{"URL", "redis: {url: 'rediss://u:p@h:1/2?dial_timeout=3s'}", nil, "rediss://u:p@h:1/2?dial_timeout=3s"},
		{"URL over the file's address", "redis: {address: 'h:1'}", of{"TRESTLE_REDIS_URL": "redis://o:2"}, "redis://o:2"},
		{"URL beside an address", "redis: {address: 'h:1', url: 'redis://o:2'}", nil, "!beside redis.address"},
		{"user of the URL stays", "redis: {username: n, password: q}", of{"TRESTLE_REDIS_URL": "redis://u:p@o:2"}, "redis://u:p@o:2"},
		{"user of the URL yields", "redis: {url: 'redis://u:p@o:2'}", of{"REDIS_USERNAME": "n", "REDIS_PASSWORD": "q"}, "redis://n:q@o:2"},
		{"same source", "", of{"TRESTLE_REDIS_URL": "redis://u@o:2", "REDIS_USERNAME": "n", "REDIS_PASSWORD": "q"}, "redis://u:q@o:2"},
		{"Sentinel", "redis: {url: 'redis://s:1?master_name=m&addr=s2%3A1'}", of{"REDIS_USERNAME": "u", "REDIS_PASSWORD": "p&"}, "redis://s:1?addr=s2%3A1&master_name=m&password=p%26&username=u"},
		{"user of Sentinel stays", "redis: {password: q}", of{"TRESTLE_REDIS_URL": "redis://su:sp@s:1?master_name=m&password=p"}, "redis://su:sp@s:1?master_name=m&password=p"},
		{"URL without user", "", of{"TRESTLE_REDIS_URL": "redis://o:2", "REDIS_USERNAME": "n", "REDIS_PASSWORD": "q"}, "redis://n:q@o:2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, _, err := Load(Input{Path: writeFile(t, "c.yaml", c.file), LookupEnv: environment(c.env)})
			if text, isProblem := strings.CutPrefix(c.want, "!"); isProblem {
				if p := problemsOf(t, err); len(p) != 1 || !strings.Contains(p[0].What, text) || p[0].Line != 1 {
					t.Errorf("problems %+v", p)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := cfg.Redis.Server.Reveal(); got != c.want {
				t.Errorf("server %s, want %s", got, c.want)
			}
		})
	}
}

func TestTogether(t *testing.T) {
	for _, c := range []struct{ file, key string }{
		{"pipeline: {maxWaiting: 10}", "pipeline.maxWaitingPerCluster"},
		{"upstream: {snapshotBudgetBytes: 1MiB}", "upstream.maxSnapshotBytes"},
		{"postgres: {maxConnections: 2}", "postgres.maxConnections"},
		{"etcd: {tls: {crt: a}}", "etcd.tls.crt"},
		{"etcd: {tls: {key: a}}", "etcd.tls.key"},
		{"console: {address: ':8090'}", "console.address"},
		{"console: {address: '0.0.0.0:8090'}", "console.address"},
		{"console: {address: '[::]:8090'}", "console.address"},
		{"console: {address: '192.0.2.1:8090'}", "console.address"},
		{"console: {address: 'console.example:8090'}", "console.address"},
		{"redis: {tls: {crt: a}}", "redis.tls.crt"},
		{"redis: {tls: {key: a}}", "redis.tls.key"},
		{"redis: {tls: {ca: a}, url: 'unix:///s'}", "redis.tls.ca"},
	} {
		_, _, err := Load(Input{Path: writeFile(t, "c.yaml", c.file)})
		if p := problemsOf(t, err); len(p) != 1 || p[0].Key != c.key || p[0].Allowed == "" {
			t.Errorf("%s: %+v", c.file, p)
		}
	}
	for _, file := range []string{"console: {address: ':8090', exposed: true}", `console: {address: ""}`} {
		if _, _, err := Load(Input{Path: writeFile(t, "c.yaml", file)}); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	cfg, _, err := Load(Input{Flags: flags(t, "--pipeline.lanes=8")})
	if err != nil || cfg.PostgresConnections() != 12 {
		t.Errorf("connections %d, %v", cfg.PostgresConnections(), err)
	}
	cfg, _, err = Load(Input{Flags: flags(t, "--postgres.maxConnections=5")})
	if err != nil || cfg.PostgresConnections() != 5 {
		t.Errorf("connections %d, %v", cfg.PostgresConnections(), err)
	}
}

func TestNeeds(t *testing.T) {
	all := []Need{NeedPostgres, NeedRedis, NeedEtcd}
	_, _, err := Load(Input{Needs: all})
	var got []string
	for _, p := range problemsOf(t, err) {
		got = append(got, p.Key)
		if !strings.Contains(p.What, "TRESTLE_") {
			t.Errorf("%s does not say how to set it", p)
		}
	}
	if !reflect.DeepEqual(got, []string{"postgres.url", "redis.url", "etcd.endpoints"}) {
		t.Errorf("missing are %q", got)
	}
	if _, _, err := Load(Input{Needs: all, LookupEnv: environment(map[string]string{
		"TRESTLE_POSTGRES_URL": "postgres://h", "TRESTLE_REDIS_URL": "redis://h", "TRESTLE_ETCD_ENDPOINTS": "h:1",
	})}); err != nil {
		t.Error(err)
	}
	for listen, fine := range map[string]bool{":7070": false, "0.0.0.0:7070": false, "[::]:7070": false, "10.0.0.1:7070": true, "localhost:0": true} {
		env := map[string]string{"TRESTLE_ETCD_ENDPOINTS": "h:1", "TRESTLE_PEER_LISTEN": listen}
		if _, _, err := Load(Input{Needs: []Need{NeedEtcd}, LookupEnv: environment(env)}); (err == nil) != fine {
			t.Errorf("peer.listen %s: %v", listen, err)
		}
		env["TRESTLE_PEER_ADVERTISE"] = "replica-1:7070"
		if _, _, err := Load(Input{Needs: []Need{NeedEtcd}, LookupEnv: environment(env)}); err != nil {
			t.Errorf("peer.listen %s, advertised: %v", listen, err)
		}
	}
	if _, _, err := Load(Input{Needs: []Need{NeedRedis}, Path: writeFile(t, "c.yaml", "redis: {address: 'h:1'}")}); err != nil {
		t.Error(err)
	}
}

// predecessor is a file as existing installations have it.
const predecessor = `{
	"installation": "eu02",
	"staticBridges": [
		{
			"name": "eu01",
			"url": "dns:///ws-manager.eu01.example:8080",
			"tls": { "ca": "/certs/ca.crt", "crt": "/certs/tls.crt", "key": "/certs/tls.key" },
			"state": "available",
			"score": 50,
			"maxScore": 50,
			"govern": true,
			"region": "europe",
			"admissionConstraints": [{ "type": "has-permission", "permission": "new\/class \ud83d\ude00", "n": 12345678901 }],
			"preferredWorkspaceClass": "small"
		},
		{ "name": "dev", "url": "localhost:12001", "tls": null }
	],
	"wsClusterDBReconcileIntervalSeconds": 61,
	"controllerIntervalSeconds": 62,
	"controllerMaxDisconnectSeconds": 151,
	"timeouts": {
		"metaInstanceCheckIntervalSeconds": 60,
		"preparingPhaseSeconds": 3601,
		"buildingPhaseSeconds": 3602,
		"unknownPhaseSeconds": 601,
		"pendingPhaseSeconds": 3603,
		"stoppingPhaseSeconds": 3604
	},
	"clusterService": { "port": 8080, "host": "localhost" },
	"emulatePreparingIntervalSeconds": 10,
	"clusterSyncIntervalSeconds": 63,
	"redis": { "address": "redis:6379" }
}`

func TestPredecessorsFile(t *testing.T) {
	cfg, warnings, err := Load(Input{Path: writeFile(t, "ws-manager-bridge.json", predecessor)})
	if err != nil {
		t.Fatal(err)
	}
	var ignored []string
	for _, w := range warnings {
		ignored = append(ignored, w.Key)
		if w.Line == 0 || !strings.Contains(w.What, "ignored") {
			t.Errorf("warning %v", w)
		}
	}
	want := []string{"staticBridges[0].preferredWorkspaceClass", "timeouts.metaInstanceCheckIntervalSeconds", "emulatePreparingIntervalSeconds"}
	if !reflect.DeepEqual(ignored, want) {
		t.Errorf("ignored are %q, want %q", ignored, want)
	}
	bridges := []StaticBridge{
		{
			Name: "eu01", URL: "dns:///ws-manager.eu01.example:8080", TLS: TLSFiles{"/certs/ca.crt", "/certs/tls.crt", "/certs/tls.key"},
			State: "available", Score: 50, MaxScore: 50, Govern: true, Region: "europe",
			AdmissionConstraints: []byte(`[{"n":12345678901,"permission":"new/class 😀","type":"has-permission"}]`),
		},
		{Name: "dev", URL: "localhost:12001", State: "available", Score: 50, MaxScore: 100, Govern: true},
	}
	if !reflect.DeepEqual(cfg.StaticBridges, bridges) {
		t.Errorf("static bridges are\n%+v, want\n%+v", cfg.StaticBridges, bridges)
	}
	if cfg.Timeouts != (Timeouts{3601 * time.Second, 3602 * time.Second, 601 * time.Second, 3603 * time.Second, 3604 * time.Second}) ||
		cfg.ClusterReconcileInterval != 61*time.Second || cfg.ControllerInterval != 62*time.Second || cfg.ClusterSyncInterval != 63*time.Second ||
		cfg.ControllerMaxDisconnect != 151*time.Second || cfg.Installation != "eu02" || cfg.Redis.Server.Reveal() != "redis://redis:6379" {
		t.Errorf("read as %+v", cfg)
	}
}

func TestStaticBridgesRefuse(t *testing.T) {
	good := "{name: a, url: 'h:1'}"
	for _, c := range []struct{ name, list, key string }{
		{"no list", "{a: b}", "staticBridges"},
		{"no mapping", "[a]", "staticBridges[0]"},
		{"no name", "[{url: 'h:1'}]", "staticBridges[0].name"},
		{"empty name", "[{name: ' ', url: 'h:1'}]", "staticBridges[0].name"},
		{"name of another type", "[{name: 1, url: 'h:1'}]", "staticBridges[0].name"},
		{"same name", "[" + good + ", {name: a, url: 'h:2'}]", "staticBridges[1].name"},
		{"no url", "[{name: a}]", "staticBridges[0].url"},
		{"url without port", "[{name: a, url: h}]", "staticBridges[0].url"},
		{"url of the web", "[{name: a, url: 'https://h:1'}]", "staticBridges[0].url"},
		{"dns without port", "[{name: a, url: 'dns:///h'}]", "staticBridges[0].url"},
		{"half of tls", "[{name: a, url: 'h:1', tls: {ca: c, crt: d}}]", "staticBridges[0].tls.key"},
		{"tls is a text", "[{name: a, url: 'h:1', tls: x}]", "staticBridges[0].tls"},
		{"state", "[{name: a, url: 'h:1', state: gone}]", "staticBridges[0].state"},
		{"score", "[{name: a, url: 'h:1', score: -1}]", "staticBridges[0].score"},
		{"maxScore", "[{name: a, url: 'h:1', maxScore: 1.5}]", "staticBridges[0].maxScore"},
		{"govern", "[{name: a, url: 'h:1', govern: 'true'}]", "staticBridges[0].govern"},
		{"region", "[{name: a, url: 'h:1', region: 1}]", "staticBridges[0].region"},
		{"constraints", "[{name: a, url: 'h:1', admissionConstraints: {1: .nan}}]", "staticBridges[0].admissionConstraints"},
		{"unknown", "[{name: a, url: 'h:1', scor: 1}]", "staticBridges[0].scor"},
	} {
		_, _, err := Load(Input{Path: writeFile(t, "c.yaml", "staticBridges: "+c.list)})
		if p := problemsOf(t, err); len(p) != 1 || p[0].Key != c.key || p[0].Line != 1 {
			t.Errorf("%s: %+v", c.name, p)
		}
	}
	for _, target := range []string{"h:1", "dns:///h:1", "dns://1.1.1.1/h:1", "passthrough:///h:1", "unix:///s", "unix:s", "'[::1]:1'", "ipv4:///127.0.0.1:1"} {
		if _, _, err := Load(Input{Path: writeFile(t, "c.yaml", "staticBridges: [{name: a, url: "+target+"}]")}); err != nil {
			t.Errorf("%s: %v", target, err)
		}
	}
}

func TestPrintIsReadAgain(t *testing.T) {
	in := Input{
		Path:      writeFile(t, "c.json", predecessor),
		LookupEnv: environment(map[string]string{"TRESTLE_HTTP_ADDRESS": ":1", "TRESTLE_ETCD_ENDPOINTS": "a:1,b:2", "REDIS_USERNAME": "true", "TRESTLE_REPLICA_ID": "12"}),
		Flags:     flags(t, "--upstream.maxUpdateBytes=100000", "--shutdown.timeoutSeconds=1.5", "--allowPlaintextClusters", "--postgres.url=postgres://h/d", "--log.level=debug"),
		Version:   "v1",
	}
	cfg, _, err := Load(in)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := cfg.Print(&out); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"installation: eu02 # " + in.Path + ":2",
		"  address: :1 # environment TRESTLE_HTTP_ADDRESS",
		"staticBridges: # " + in.Path + ":3",
		"      - \"n\": 12345678901",
		"  timeoutSeconds: 1.5 # flag --shutdown.timeoutSeconds",
		"  lanes: 2 # default",
		"  endpoints: ['a:1', 'b:2'] # environment TRESTLE_ETCD_ENDPOINTS",
	} {
		if !strings.Contains(out.String(), line+"\n") {
			t.Errorf("%q is not in what is printed:\n%s", line, out.String())
		}
	}

	again, warnings, err := Load(Input{Path: writeFile(t, "printed.yaml", out.String())})
	if err != nil || len(warnings) > 0 {
		t.Fatalf("what was printed is refused: %v %v\n%s", err, warnings, out.String())
	}
	cfg.sources, again.sources = nil, nil
	// The secrets are compared by what they reveal.
	if !again.Postgres.URL.Equal(cfg.Postgres.URL) || !again.Redis.Server.Equal(cfg.Redis.Server) || !again.Lifecycle.Sink.Equal(cfg.Lifecycle.Sink) {
		t.Error("addresses differ")
	}
	again.Postgres.URL, again.Redis.Server, again.Lifecycle.Sink = cfg.Postgres.URL, cfg.Redis.Server, cfg.Lifecycle.Sink
	if !reflect.DeepEqual(again, cfg) {
		t.Errorf("what was printed reads as\n%+v, want\n%+v", again, cfg)
	}
}

func TestPrintHidesSecrets(t *testing.T) {
	cfg, _, err := Load(Input{LookupEnv: environment(map[string]string{
		"TRESTLE_POSTGRES_URL":   "postgres://u:hunter2@h/d?password=hunter2",
		"TRESTLE_REDIS_URL":      "redis://u:hunter2@h:1",
		"REDIS_PASSWORD":         "hunter2",
		"TRESTLE_LIFECYCLE_SINK": "https://hunter2x:hunter2@h/?key=hunter2",
	})})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := cfg.Print(&out); err != nil {
		t.Fatal(err)
	}
	printed := strings.ReplaceAll(out.String()+fmt.Sprintf("%+v %#v", cfg, *cfg), "hunter2x", "user")
	if strings.Contains(printed, "hunter2") {
		t.Errorf("a password is printed:\n%s", printed)
	}
	if !strings.Contains(printed, "password: '[redacted]'") {
		t.Errorf("that there is a password is not printed:\n%s", printed)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(predecessor)
	f.Add("pipeline: {lanes: 4}\nstaticBridges: [{name: a, url: 'h:1'}]\n")
	f.Add("a: &a [*a]\nb: *a\n")
	f.Add("etcd: {endpoints: [a:1]}\n---\n")
	f.Fuzz(func(t *testing.T, content string) {
		cfg, _, err := Load(Input{Path: writeFile(t, "c.yaml", content)})
		if err != nil {
			for _, p := range problemsOf(t, err) {
				if p.What == "" || p.String() == "" {
					t.Errorf("a problem says nothing: %+v", p)
				}
			}
			return
		}
		var out bytes.Buffer
		if err := cfg.Print(&out); err != nil {
			t.Fatalf("cannot be printed: %v", err)
		}
	})
}
