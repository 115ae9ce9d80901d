// Package alerts holds the tests of the alerts and of the dashboard of the chart. It
// is a module of its own, since Prometheus is large.
package alerts

import (
	"encoding/json"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
)

const dir = "../trestle"

func rules(t *testing.T) []rulefmt.Rule {
	t.Helper()
	text, err := os.ReadFile(dir + "/files/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	groups, errs := rulefmt.Parse(text, false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	for _, err := range errs {
		t.Error(err)
	}
	if groups == nil || len(groups.Groups) == 0 {
		t.Fatal("no rules")
	}
	return groups.Groups[0].Rules
}

// Each alert has a severity, a summary, and an entry in the runbook that says
// what it means, what to look at and what to do.
func TestAlertsAreExplained(t *testing.T) {
	text, err := os.ReadFile("../../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	runbook := string(text)
	known := map[string]bool{}
	for _, rule := range rules(t) {
		known[rule.Alert] = true
		if rule.Labels["severity"] == "" || rule.Annotations["summary"] == "" {
			t.Errorf("%s has no severity or summary", rule.Alert)
		}
		if want := "RUNBOOK#" + strings.ToLower(rule.Alert); rule.Annotations["runbook_url"] != want {
			t.Errorf("%s links to %s, want %s", rule.Alert, rule.Annotations["runbook_url"], want)
		}
		_, entry, found := strings.Cut(runbook, "## "+rule.Alert+"\n")
		entry, _, _ = strings.Cut(entry, "\n## ")
		for _, part := range []string{"**Means.**", "**Look at.**", "**Do.**"} {
			if !found || !strings.Contains(entry, part) {
				t.Errorf("%s: the runbook lacks %s", rule.Alert, part)
			}
		}
	}
	for _, heading := range regexp.MustCompile(`(?m)^## (Trestle\w+)$`).FindAllStringSubmatch(runbook, -1) {
		if !known[heading[1]] {
			t.Errorf("the runbook explains %s, which is no alert", heading[1])
		}
	}
}

// What each alert says of a fleet in which it must fire (at 30 minutes), and
// that none says anything of one that is well.
func TestAlertsFire(t *testing.T) {
	const labels = `namespace="bridge", job="ws-manager-bridge", pod="a"`
	series := map[string]struct{ name, extra, bad, well string }{
		"TrestleShardsUnowned":    {"trestle_shards_unowned_seconds", "", "45+0x40", "0x40"},
		"TrestleNoLeader":         {"trestle_leader", "", "0x40", "1x40"},
		"TrestleReplicaDetached":  {"trestle_detached", "", "1x40", "0x40"},
		"TrestleBrake":            {"trestle_brake", "", "1x40", "0x40"},
		"TrestleLag":              {"trestle_pipeline_oldest_waiting_seconds", `, workspace_cluster="eu01", shard="eu01"`, "60x40", "0.05x40"},
		"TrestleClusterDeaf":      {"trestle_upstream_stream_up", `, workspace_cluster="eu01"`, "0x40", "1x40"},
		"TrestleOutboxOld":        {"trestle_outbox_oldest_seconds", "", "300x40", "1x40"},
		"TrestleQuarantine":       {"trestle_pipeline_quarantined_total", "", "0+1x40", "7x40"},
		"TrestleFencedWrites":     {"trestle_pipeline_fenced_writes_total", `, workspace_cluster="eu01"`, "0+1x40", "3x40"},
		"TrestleHandoversAborted": {"trestle_handovers_aborted_total", `, why="timeout"`, "0+1x40", "3x40"},
		"TrestleShardsUnplaced":   {"trestle_shards_unplaced", "", "2x40", "0x40"},
		"TrestleDatabaseErrors":   {"trestle_store_errors_total", `, statement="apply"`, "0+10x40", "4x40"},
		"TrestleInstancesHeld":    {"trestle_sweep_held_instances", `, workspace_cluster="eu01"`, "40x40", "0x40"},
		"TrestleSweepsFail":       {"trestle_sweep_rounds_total", `, outcome="failed"`, "0+1x40", "1x40"},
	}
	for _, rule := range rules(t) {
		s, ok := series[rule.Alert]
		if !ok {
			t.Errorf("%s: no test", rule.Alert)
			continue
		}
		for _, c := range []struct {
			values string
			fires  bool
		}{{s.bad, true}, {s.well, false}} {
			engine := promqltest.NewTestEngine(t, false, 0, promqltest.DefaultMaxSamplesPerQuery)
			storage := promqltest.LoadedStorage(t, "load 1m\n  "+s.name+"{"+labels+s.extra+"} "+c.values+"\n")
			query, err := engine.NewInstantQuery(t.Context(), storage, nil, rule.Expr, time.Unix(30*60, 0))
			if err != nil {
				t.Fatalf("%s: %v", rule.Alert, err)
			}
			vector, err := query.Exec(t.Context()).Vector()
			if err != nil {
				t.Fatalf("%s: %v", rule.Alert, err)
			}
			if fires := len(vector) > 0; fires != c.fires {
				t.Errorf("%s on %s: fires %v", rule.Alert, c.values, fires)
			}
		}
	}
}

// Every expression of the dashboard can be read.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile(dir + "/files/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title, Type string
			Targets     []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	p, fill := parser.NewParser(parser.Options{}), strings.NewReplacer("$__rate_interval", "5m", "$job", "j", "$namespace", "n")
	for _, panel := range dashboard.Panels {
		if panel.Type != "row" && len(panel.Targets) == 0 {
			t.Errorf("%s asks nothing", panel.Title)
		}
		for _, target := range panel.Targets {
			if _, err := p.ParseExpr(fill.Replace(target.Expr)); err != nil {
				t.Errorf("%s: %s: %v", panel.Title, target.Expr, err)
			}
		}
	}
}
