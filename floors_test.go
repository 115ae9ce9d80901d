// Package trestle_test holds the house together: which package may import
// which is decided by the table of floors, here and in docs/architecture.md.
package trestle_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/trestle-bridge/trestle/"

// floors says on which floor each room lies. A room is a package with all
// those below it; imports go to lower floors, or stay within the room. Tests may
// also use what is made for tests on their own floor.
func floors() map[string]int {
	return map[string]int{
		"cmd":        7,
		"charts/e2e": 7,

		"internal/app": 6,
		"loadtest":     6,

		"internal/api":     5,
		"internal/console": 5,
		"internal/peer":    5,
		"internal/worker":  5,

		"coordinator":        4,
		"internal/sweep":     4,
		"internal/classsync": 4,

		"pipeline": 3,

		"internal/upstream": 2,
		"internal/store":    2,
		"internal/publish":  2,

		"shard":           1,
		"internal/status": 1,
		"internal/event":  1,
		"internal/config": 1,
		"internal/access": 1,

		"proto":               0,
		"internal/bubbletest": 0,
		"internal/devstack":   0,
		"internal/secret":     0,
		"internal/observe":    0,
		"internal/tlsfile":    0,
	}
}

// independent are the packages that judge the product, or play its world, and
// so may know nothing of it but the contracts. Tests on any floor may use them.
// The others judge nothing by themselves: the benchmark measures parts of the
// product, the fleet and the stage run it, and play has it all played.
func independent(pkg string) bool {
	return strings.HasPrefix(pkg, "loadtest/") && !within(pkg, "loadtest/bench") && !within(pkg, "loadtest/fleet") &&
		!within(pkg, "loadtest/stage") && !within(pkg, "loadtest/play")
}

func within(pkg, room string) bool { return pkg == room || strings.HasPrefix(pkg, room+"/") }

// forTests says whether a package is made for tests, by the custom of its
// name (httptest).
func forTests(pkg string) bool {
	return strings.HasSuffix(path.Base(pkg), "test") && path.Base(pkg) != "loadtest"
}

func roomOf(pkg string, table map[string]int) (room string, ok bool) {
	for room = pkg; room != "."; room = path.Dir(room) {
		if _, ok := table[room]; ok {
			return room, true
		}
	}
	return "", false
}

// an edge is one import within the repository, by a file of tests or not.
type edge struct {
	from, to string
	inTest   bool
}

// fault says what is wrong with an import; empty = nothing.
func fault(e edge, table map[string]int) string {
	from, known := roomOf(e.from, table)
	if !known {
		return fmt.Sprintf("%s has no floor: add it to the table here and in docs/architecture.md", e.from)
	}
	to, known := roomOf(e.to, table)
	if !known {
		return fmt.Sprintf("%s has no floor: add it to the table here and in docs/architecture.md", e.to)
	}
	if forTests(e.to) && !e.inTest && !forTests(e.from) {
		return fmt.Sprintf("%s imports %s, which is for tests", e.from, e.to)
	}
	if independent(e.from) && to != "loadtest" && to != "proto" && !e.inTest {
		return fmt.Sprintf("%s imports %s: it must know nothing of the product but the contracts", e.from, e.to)
	}
	switch {
	case from == to:
		return ""
	case e.inTest && independent(e.to):
		return ""
	case e.inTest && forTests(e.to) && table[to] == table[from]:
		return ""
	case to == "internal/devstack" && table[from] < 6 && !e.inTest && !forTests(e.from):
		return fmt.Sprintf("%s imports %s: servers of our own are started by the floors above 5 and by tests alone", e.from, e.to)
	case table[to] >= table[from]:
		return fmt.Sprintf("%s (floor %d) imports %s (floor %d): imports go downward only", e.from, table[from], e.to, table[to])
	}
	return ""
}

// sources reads the imports of every Go file. It parses the files itself
// rather than ask the go command, so that the test cache sees what it read.
func sources(t *testing.T) (packages []string, edges []edge) {
	t.Helper()
	found := map[string]bool{}
	unique := map[edge]bool{}
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if file != "." && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata") {
				return filepath.SkipDir
			}
			// Another module, such as the pinned tools, is another house.
			if _, err := os.Stat(filepath.Join(file, "go.mod")); err == nil && file != "." {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || filepath.Dir(file) == "." {
			return nil
		}
		from := filepath.ToSlash(filepath.Dir(file))
		found[from] = true
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, i := range parsed.Imports {
			imported, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			if to, ours := strings.CutPrefix(imported, module); ours {
				unique[edge{from, to, strings.HasSuffix(name, "_test.go")}] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(maps.Keys(found)), slices.Collect(maps.Keys(unique))
}

func TestImportsGoDownward(t *testing.T) {
	packages, edges := sources(t)
	if len(packages) < 10 || len(edges) < 20 {
		t.Fatalf("found %d packages and %d imports: the search is broken", len(packages), len(edges))
	}
	table := floors()
	for _, p := range packages {
		if _, known := roomOf(p, table); !known {
			t.Errorf("%s has no floor: add it to the table here and in docs/architecture.md", p)
		}
	}
	var faults []string
	for _, e := range edges {
		if f := fault(e, table); f != "" {
			faults = append(faults, f)
		}
	}
	slices.Sort(faults)
	for _, f := range slices.Compact(faults) {
		t.Error(f)
	}
}

func TestBubblesSuitTheRaceDetector(t *testing.T) {
	packages, _ := sources(t)
	for _, p := range packages {
		if p == "internal/bubbletest" {
			continue
		}
		files, err := filepath.Glob(filepath.Join(p, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(text), "synctest.Test(") {
				t.Errorf("%s calls synctest.Test, under which the race detector can die: call bubbletest.Test", file)
			}
		}
	}
}

func TestTableIsTheOneInTheDocs(t *testing.T) {
	text, err := os.ReadFile("docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile(`(?m)^\| *([0-9]) *\|(.*)\|$`)
	name := regexp.MustCompile("`([^`]+)`")
	documented := map[string]int{}
	for _, r := range row.FindAllStringSubmatch(string(text), -1) {
		floor, err := strconv.Atoi(r[1])
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range name.FindAllStringSubmatch(r[2], -1) {
			documented[strings.TrimSuffix(n[1], "/*")] = floor
		}
	}
	if table := floors(); !maps.Equal(documented, table) {
		t.Errorf("docs/architecture.md has the floors\n%v, the test has\n%v", documented, table)
	}
}

func TestFaultsAreSeen(t *testing.T) {
	table := floors()
	for _, c := range []struct {
		e  edge
		ok bool
	}{
		{edge{"internal/app", "internal/store", false}, true},
		{edge{"cmd/trestle", "internal/app", false}, true},
		{edge{"cmd/trestle", "loadtest", false}, true},
		{edge{"pipeline", "internal/store", false}, true},
		{edge{"pipeline", "internal/app", false}, false},
		{edge{"pipeline", "internal/app", true}, false},
		{edge{"internal/api", "coordinator/table", false}, true},
		{edge{"coordinator", "internal/api", false}, false},
		{edge{"internal/upstream", "internal/store", false}, false},
		{edge{"internal/store", "internal/publish", false}, false},
		{edge{"internal/publish", "internal/upstream", true}, false},
		{edge{"shard", "internal/status", false}, false},
		{edge{"internal/config", "internal/config/settings", false}, true},
		{edge{"internal/nowhere", "proto/wsman", false}, false},
		{edge{"internal/app", "internal/nowhere", false}, false},
		{edge{"nowhere", "internal/secret", true}, false},
		{edge{"internal/store", "internal/devstack/devstacktest", true}, true},
		{edge{"internal/store", "internal/devstack/devstacktest", false}, false},
		{edge{"internal/store", "internal/devstack", false}, false},
		{edge{"internal/app", "internal/devstack", false}, true},
		{edge{"internal/api", "internal/devstack", false}, false},
		{edge{"loadtest", "internal/devstack", false}, true},
		{edge{"loadtest/oracle", "internal/status", false}, false},
		{edge{"loadtest/sim", "internal/devstack", false}, false},
		{edge{"loadtest/bench", "internal/devstack", false}, true},
		{edge{"loadtest/stage", "internal/devstack", false}, true},
		{edge{"loadtest/monitor", "internal/devstack", false}, false},
		{edge{"loadtest/bench/limits", "internal/status", false}, true},
		{edge{"internal/upstream", "loadtest/bench", true}, false},
		{edge{"loadtest/sim", "proto/wsman", false}, true},
		{edge{"loadtest/oracle", "loadtest/script", false}, true},
		{edge{"internal/upstream", "loadtest/sim", true}, true},
		{edge{"internal/upstream", "loadtest/sim", false}, false},
		{edge{"internal/upstream", "loadtest", true}, false},
		{edge{"internal/tlsfile", "internal/bubbletest", true}, true},
		{edge{"internal/tlsfile", "internal/bubbletest", false}, false},
		{edge{"internal/secret", "internal/tlsfile", true}, false},
		{edge{"internal/status", "internal/status/statustest", true}, true},
		{edge{"internal/status", "internal/status/statustest", false}, false},
	} {
		if f := fault(c.e, table); (f == "") != c.ok {
			t.Errorf("%+v: %q", c.e, f)
		}
	}
}
