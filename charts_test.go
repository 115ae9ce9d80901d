package trestle_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// metricNames finds all texts in the sources that may name a metric: whole, or
// behind a beginning that its package puts before it.
func metricNames(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	for _, root := range []string{"internal", "coordinator", "pipeline"} {
		err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
				return err
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(parsed, func(n ast.Node) bool {
				if text, ok := n.(*ast.BasicLit); ok && text.Kind == token.STRING {
					if s, err := strconv.Unquote(text.Value); err == nil {
						names[s] = true
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return names
}

// What dashboard, alerts and runbook ask for is what the service has.
func TestChartAsksForMetricsThatExist(t *testing.T) {
	names := metricNames(t)
	asked := regexp.MustCompile(`\b(trestle_[a-z_]+|gitpod_[a-z_]+|workspace_startup_time\w*|first_user_activity_time\w*)\b`)
	for _, file := range []string{"charts/trestle/files/alerts.yaml", "charts/trestle/files/dashboard.json", "charts/trestle/examples/hpa-by-updates.yaml"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, name := range asked.FindAllString(string(text), -1) {
			if name == "trestle_updates_per_second" { // made by the adapter of the example
				continue
			}
			found++
			if !knows(names, name) {
				t.Errorf("%s asks for %s, which the service does not have", file, name)
			}
		}
		if found == 0 {
			t.Errorf("%s asks for nothing: the search is broken", file)
		}
	}
	if knows(names, "trestle_shards_unwoned") || !knows(names, "trestle_upstream_stream_up") {
		t.Error("the search is broken")
	}
}

func knows(names map[string]bool, name string) bool {
	for _, suffix := range []string{"", "_bucket", "_count", "_sum"} {
		bare, has := strings.CutSuffix(name, suffix)
		if !has {
			continue
		}
		for _, prefix := range []string{"", "trestle_", "trestle_upstream_"} {
			if rest, has := strings.CutPrefix(bare, prefix); has && names[rest] {
				return true
			}
		}
	}
	return false
}
