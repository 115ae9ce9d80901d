package main

import (
	"os"
	"testing"

	"github.com/trestle-bridge/trestle/loadtest/play"
	"github.com/trestle-bridge/trestle/loadtest/scenario"
)

// What may happen to a fleet while updates flow: nothing is lost, nothing goes
// back, and what was planned is told once. These are three scenarios of many,
// small; make e2e plays all of them at their size.
func TestFleet(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"rolling-upgrade", "owner-crash", "phantom-owner"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := scenario.Builtin(name)
			if err != nil {
				t.Fatal(err)
			}
			s.Fleet.Replicas, s.Work.Clusters, s.Work.Rate = 3, 6, 300
			logs := t.TempDir()
			rec, err := play.Play(t.Context(), play.Config{
				Scenario: s, Seed: 11, Own: &play.Own{Trestle: self, Logs: logs, Env: []string{asProgram + "=yes"}},
				Tell: func(line string) { t.Log(line) },
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range rec.Verdict.Expectations {
				if !e.Held {
					t.Errorf("%s: want %s, got %s", e.What, e.Want, e.Got)
				}
			}
			if !rec.Verdict.Held {
				t.Errorf("%+v", rec.Verdict)
			}
			if len(rec.Moves) == 0 || len(rec.Faults) != 1 || rec.Faults[0].RecoveredS == nil {
				t.Errorf("nothing was seen to happen: %d moves, faults %+v", len(rec.Moves), rec.Faults)
			}
			if t.Failed() {
				entries, err := os.ReadDir(logs)
				for _, e := range entries {
					log, _ := os.ReadFile(logs + "/" + e.Name())
					t.Logf("the end of %s (%v):\n%s", e.Name(), err, log[max(0, len(log)-3000):])
				}
			}
		})
	}
}
