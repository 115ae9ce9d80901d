package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trestle-bridge/trestle/internal/app"
	"github.com/trestle-bridge/trestle/internal/config/settings"
)

// call runs the program with an environment of its own.
func call(t *testing.T, env map[string]string, args ...string) (code int, out, errOut string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = run(t.Context(), append([]string{}, args...), streams{out: &stdout, err: &stderr}, func(name string) (string, bool) {
		v, ok := env[name]
		return v, ok
	})
	return code, stdout.String(), stderr.String()
}

func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "trestle.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExitCodes(t *testing.T) {
	typo := file(t, "pipelin:\n  lanes: 4\n")
	outOfRange := file(t, "\npipeline:\n  lanes: 0\n")
	obsolete := file(t, "emulatePreparingIntervalSeconds: 10\n")
	certificates := file(t, "staticBridges: [{name: a, url: 'h:1', tls: {ca: /none, crt: /none, key: /none}}]")
	// Nothing listens on port 1.
	away := map[string]string{"TRESTLE_POSTGRES_URL": "postgres://u:hunter2@127.0.0.1:1/d?connect_timeout=1", "TRESTLE_REDIS_URL": "redis://:hunter2@127.0.0.1:1",
		"TRESTLE_ETCD_ENDPOINTS": "127.0.0.1:1"}
	for _, c := range []struct {
		name string
		args []string
		env  map[string]string
		code int
		says []string // on stderr
	}{
		{"nothing", nil, nil, exitUsage, []string{"a command is missing", "trestle --help"}},
		{"help", []string{"--help"}, nil, exitClean, nil},
		{"version", []string{"version"}, nil, exitClean, nil},
		{"unknown command", []string{"sevre"}, nil, exitUsage, []string{"sevre"}},
		{"unknown flag", []string{"serve", "--lanes=4"}, nil, exitUsage, []string{"--lanes", "trestle serve --help"}},
		{"flag without its value", []string{"serve", "--config"}, nil, exitUsage, []string{"--config"}},
		{"argument too many", []string{"serve", "now"}, nil, exitUsage, []string{"now"}},
		{"nothing configured", []string{"serve"}, nil, exitUsage, []string{"postgres.url", "TRESTLE_POSTGRES_URL", "redis.url"}},
		{"unknown key", []string{"serve", "--config", typo}, away, exitUsage, []string{typo + ":1: pipelin: is an unknown key (did you mean pipeline?)"}},
		{"out of range", []string{"serve"}, map[string]string{"TRESTLE_CONFIG": outOfRange}, exitUsage, []string{outOfRange + ":3: pipeline.lanes", "from 1 to 256"}},
		{"flag over the file", []string{"config", "--config", typo}, map[string]string{"TRESTLE_CONFIG": outOfRange}, exitUsage, []string{typo}},
		{"wrong flag", []string{"serve", "--pipeline.lanes=none"}, away, exitUsage, []string{"flag --pipeline.lanes", "whole number"}},
		{"no such file", []string{"serve", "--config=/none"}, away, exitUsage, []string{"/none: cannot be read"}},
		{"certificates away", []string{"serve", "--config", certificates}, away, exitUsage, []string{"staticBridges[0].tls.ca"}},
		{"checked", []string{"config", "--check", "--config", certificates}, nil, exitUsage, []string{"postgres.url"}},
		{"checked certificates", []string{"config", "--check", "--config", certificates}, away, exitUsage, []string{"staticBridges[0].tls.ca"}},
		{"not checked", []string{"config", "--config", certificates}, nil, exitClean, nil},
		{"warning", []string{"config", "--config", obsolete}, nil, exitClean, []string{obsolete + ":1: emulatePreparingIntervalSeconds: means nothing here"}},
		{"database away", []string{"migrate"}, away, exitFailure, []string{`"level":"ERROR"`, "127.0.0.1:1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, out, errOut := call(t, c.env, c.args...)
			if code != c.code {
				t.Errorf("exits with %d, want %d: %s", code, c.code, errOut)
			}
			for _, want := range c.says {
				if !strings.Contains(errOut, want) {
					t.Errorf("does not say %q: %s", want, errOut)
				}
			}
			if strings.Contains(out+errOut, "hunter2") {
				t.Errorf("shows a password: %s%s", out, errOut)
			}
			if c.code != exitClean && out != "" {
				t.Errorf("prints %s", out)
			}
		})
	}
}

func TestExitCodeOfErrors(t *testing.T) {
	for want, err := range map[int]error{
		exitFailure:    errors.New("any"),
		exitIncomplete: fmt.Errorf("serve: %w", app.ErrIncomplete),
		exitUsage:      fmt.Errorf("load: %w", &settings.Error{Problems: []settings.Problem{{What: "is wrong"}}}),
	} {
		if got := exitCode(err); got != want {
			t.Errorf("%v exits with %d, want %d", err, got, want)
		}
	}
}

func TestConfigPrintsWhatIsInForce(t *testing.T) {
	_, out, _ := call(t, map[string]string{
		"TRESTLE_POSTGRES_URL": "postgres://u:hunter2@db/d", "TRESTLE_CONFIG": file(t, "installation: eu01"), "TRESTLE_HTTP_ADDRESS": ":1",
	}, "config", "--http.address=:2", "--pipeline.lanes", "8")
	for _, want := range []string{
		"url: postgres://u:xxxxx@db/d # environment TRESTLE_POSTGRES_URL\n",
		"installation: eu01 # ", "address: :2 # flag --http.address\n", "lanes: 8 # flag --pipeline.lanes\n", "batchLimit: 500 # default\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing from\n%s", want, out)
		}
	}
}

func TestVersion(t *testing.T) {
	_, out, _ := call(t, nil, "version")
	if lines := strings.Split(out, "\n"); len(lines) != 4 || !strings.HasPrefix(lines[0], "trestle ") || !strings.HasPrefix(lines[1], "revision ") || !strings.HasPrefix(lines[2], "go1.") {
		t.Errorf("prints %q", out)
	}
}

func TestHelpNamesEverything(t *testing.T) {
	_, out, _ := call(t, nil, "help")
	for _, command := range []string{"serve", "migrate", "config", "dev", "version"} {
		if !strings.Contains(out, "\n  "+command+" ") {
			t.Errorf("%s is missing from\n%s", command, out)
		}
	}
	_, out, _ = call(t, nil, "serve", "--help")
	for _, flag := range []string{"--postgres.url", "--config", "($TRESTLE_POSTGRES_URL)", "--clusterService.address"} {
		if !strings.Contains(out, flag) {
			t.Errorf("%s is missing from\n%s", flag, out)
		}
	}
	if strings.Contains(out, "--redis.password") {
		t.Error("a password can be given as a flag")
	}
}
