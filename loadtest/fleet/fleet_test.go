package fleet

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSettingsOfTheCallerAreLeftOut(t *testing.T) {
	got := WithoutSettings([]string{"PATH=/bin", "TRESTLE_LOG_LEVEL=debug", "REDIS_PASSWORD=x", "GOGC=50"})
	if want := []string{"PATH=/bin", "GOGC=50"}; !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

func TestAnIncompleteFleetIsRefused(t *testing.T) {
	for _, cfg := range []Config{{}, {Binary: "b"}, {Binary: "b", Dir: "d"}, {Dir: "d", Stop: 1}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
		}
	}
}

// TestLogsOfAnEarlierTestStay: a folder of logs can be used again. The replica is
// a shell that says where it listens.
func TestLogsOfAnEarlierTestStay(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "replica")
	script := "#!/bin/sh\necho '{\"msg\": \"trestle is up\", \"http\": \"127.0.0.1:'$PORT'\"}'\nexec sleep 1000\n"
	if err := os.WriteFile(binary, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	var r *Replica
	for _, port := range []string{"1001", "1002"} {
		f, err := New(Config{Binary: binary, Dir: dir, Stop: time.Second, Env: []string{"PORT=" + port}})
		if err != nil {
			t.Fatal(err)
		}
		if r, err = f.Launch(t.Context(), "replica-1", "v1"); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if want := "127.0.0.1:" + port; r.HTTP != want {
			t.Errorf("the replica is taken to be at %s, want %s", r.HTTP, want)
		}
	}
	log, err := os.ReadFile(r.Log)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(log), ":1001") || !strings.Contains(string(log), ":1002") {
		t.Errorf("the log of both is %q", log)
	}
}
