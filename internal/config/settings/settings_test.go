package settings_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/trestle-bridge/trestle/internal/config/settings"
)

// house is a small table with a bit of everything.
type house struct {
	name  string
	lanes int
	limit int
	free  json.RawMessage
	rooms []room
	tags  []string
}

type room struct{ name string }

func (h *house) table() []settings.Key {
	row := func(r *room) []settings.Key {
		return []settings.Key{{Path: "name", Value: settings.Text{To: &r.name, What: "a name"}}, {Path: "door.old"}}
	}
	return []settings.Key{
		{Path: "name", Env: "HOUSE_NAME", Usage: "its name", Value: settings.Text{To: &h.name, What: "a text"}},
		{Path: "pipeline.lanes", Env: "HOUSE_LANES", Value: settings.Whole{To: &h.lanes, Min: 1, Max: 8}},
		{Path: "pipeline.batchLimit", Value: settings.Whole{To: &h.limit, Min: 0, Max: 8}},
		{Path: "old.one"},
		{Path: "free", Value: settings.JSON{To: &h.free}},
		{Path: "tags", Value: settings.List{To: &h.tags, What: "tags", Check: func(string) error { return nil }}},
		{Path: "rooms", Value: settings.Records{
			Append: func() []settings.Key {
				h.rooms = append(h.rooms, room{})
				return row(&h.rooms[len(h.rooms)-1])
			},
			Rows: func() (rows [][]settings.Key) {
				for i := range h.rooms {
					rows = append(rows, row(&h.rooms[i]))
				}
				return rows
			},
		}},
	}
}

func read(t testing.TB, content string) (h *house, warnings, problems []settings.Problem) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "house.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	h = &house{name: "n", lanes: 4}
	_, warnings, problems = settings.Read(h.table(), settings.Input{Path: path})
	for i := range problems {
		problems[i].Source = filepath.Base(problems[i].Source)
	}
	return h, warnings, problems
}

func TestProblems(t *testing.T) {
	const top = "; allowed is free, name, old, pipeline, rooms, tags"
	for _, c := range []struct {
		name, file string
		want       []string
	}{
		{"letter missing", "pipeline: {lane: 4}", []string{"house.yaml:1: pipeline.lane: is an unknown key (did you mean lanes?); allowed is batchLimit, lanes"}},
		{"letters swapped", "pieplin: {lanes: 4}", []string{"house.yaml:1: pieplin: is an unknown key (did you mean pipeline?)" + top}},
		{"other case", "Name: a", []string{"house.yaml:1: Name: is an unknown key (did you mean name?)" + top}},
		{"other place", "lanes: 4", []string{"house.yaml:1: lanes: is an unknown key (did you mean pipeline.lanes?)" + top}},
		{"nothing near", "zzzzzz: 4", []string{"house.yaml:1: zzzzzz: is an unknown key" + top}},
		{"flat instead of nested", "pipeline.lanes: 4", []string{"house.yaml:1: pipeline.lanes: is an unknown key" + top}},
		{"in a record", "rooms:\n- name: a\n- nam: b", []string{"house.yaml:3: rooms[1].nam: is an unknown key (did you mean name?); allowed is door, name"}},
		{"section is a number", "pipeline: 4", []string{"house.yaml:1: pipeline: is a number; allowed is a mapping of lanes, batchLimit"}},
		{"value is a section", "name: {a: b}", []string{"house.yaml:1: name: is a mapping; allowed is a text"}},
		{"number for a text", "name: 12", []string{"house.yaml:1: name: is a number without quotes; allowed is a text"}},
		{"date for a text", "name: 2001-02-03", []string{"house.yaml:1: name: is a value of type timestamp without quotes; allowed is a text"}},
		{"list in a list", "tags: [[a]]", []string{"house.yaml:1: tags: has an entry that is a list; allowed is tags"}},
		{"null in a list", "tags: [~]", []string{"house.yaml:1: tags: has an entry that is empty; allowed is tags"}},
		{"same tag twice", "tags: [a, a]", []string{`house.yaml:1: tags: ["a" "a"] names the same twice; allowed is tags`}},
		{"key twice", "name: a\nname: b", []string{"house.yaml:2: name: stands twice, first in line 1"}},
		{"key that is a list", "? [a]\n: b", []string{"house.yaml:1: has a key that is a list; allowed is a text"}},
		{"not a mapping", "- a", []string{"house.yaml:1: is a list; allowed is a mapping of keys to values"}},
		{"two documents", "name: a\n---\nname: b", []string{"house.yaml:2: holds more than one document"}},
		{"not YAML", "name: a\n  b: c", []string{"house.yaml:2: is neither YAML nor JSON: mapping values are not allowed in this context"}},
		{"merge key", "<<: {name: a}", []string{"house.yaml:1: <<: is an unknown key" + top}},
		{"all at once", "nam: a\npipeline:\n  lanes: 9\n  batchLimit: x\nrooms: 4", []string{
			"house.yaml:1: nam: is an unknown key (did you mean name?)" + top,
			`house.yaml:3: pipeline.lanes: "9" is out of range; allowed is a whole number from 1 to 8`,
			"house.yaml:4: pipeline.batchLimit: is a text; allowed is a whole number from 0 to 8",
			"house.yaml:5: rooms: is a number; allowed is a list of mappings",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, problems := read(t, c.file)
			var got []string
			for _, p := range problems {
				got = append(got, p.String())
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("problems\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

func TestReads(t *testing.T) {
	for _, c := range []struct {
		name, file string
		want       house
	}{
		{"nothing", "", house{name: "n", lanes: 4}},
		{"a comment", "# nothing\n", house{name: "n", lanes: 4}},
		{"null", "~", house{name: "n", lanes: 4}},
		{"a byte order mark", "\ufeffname: a", house{name: "a", lanes: 4}},
		{"left open", "name:\npipeline:\nrooms: null\n", house{name: "n", lanes: 4}},
		{"anchors", "name: &a b\ntags: [*a]\nrooms: [&r {name: *a}, *r]", house{name: "b", lanes: 4, tags: []string{"b"}, rooms: []room{{"b"}, {"b"}}}},
		{"JSON with tabs", "{\n\t\"name\": \"a\\/\\ud83d\\ude00\\\\u0041\\u0042\",\n\t\"pipeline\": {\"lanes\": 2}\n}", house{name: `a/😀\u0041B`, lanes: 2}},
		{"texts by commas", "tags: a, b", house{name: "n", lanes: 4, tags: []string{"a", "b"}}},
		{"free", "free: {a: [1, true, ~, x]}", house{name: "n", lanes: 4, free: json.RawMessage(`{"a":[1,true,null,"x"]}`)}},
		{"Windows lines", "name: a\r\npipeline:\r\n  lanes: 3\r\n", house{name: "a", lanes: 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, warnings, problems := read(t, c.file)
			if len(warnings)+len(problems) > 0 {
				t.Fatalf("problems %v, warnings %v", problems, warnings)
			}
			if !reflect.DeepEqual(*h, c.want) {
				t.Errorf("read as %+v, want %+v", *h, c.want)
			}
		})
	}
}

func TestAliasBombIsRefused(t *testing.T) {
	var bomb strings.Builder
	bomb.WriteString("free:\n  a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := range 12 {
		line := strings.Repeat("*aN, ", 9) + "*aN"
		line = strings.ReplaceAll(line, "N", string(rune('0'+i%10))+strings.Repeat("_", i/10))
		name := string(rune('0'+(i+1)%10)) + strings.Repeat("_", (i+1)/10)
		bomb.WriteString("  a" + name + ": &a" + name + " [" + line + "]\n")
	}
	_, _, problems := read(t, bomb.String())
	if len(problems) != 1 || problems[0].Key != "free" {
		t.Errorf("problems %v", problems)
	}
}

func TestFileThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	large := filepath.Join(dir, "large")
	if err := os.WriteFile(large, bytes.Repeat([]byte("#"), 9<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "none"): "cannot be read: no such file or directory",
		dir:                        "cannot be read: read " + dir + ": is a directory",
		large:                      "cannot be read: is larger than 8MiB",
	} {
		h := house{}
		_, _, problems := settings.Read(h.table(), settings.Input{Path: path})
		if len(problems) != 1 || problems[0].Source != path || problems[0].What != want {
			t.Errorf("problems %v, want %s", problems, want)
		}
	}
}

func TestObsoleteKeysAreWarnedOf(t *testing.T) {
	_, warnings, problems := read(t, "old: {one: {any: thing}}\nrooms: [{name: a, door: {old: 1}}]")
	if len(problems) > 0 || len(warnings) != 2 || warnings[0].Key != "old.one" || warnings[1].Key != "rooms[0].door.old" {
		t.Errorf("problems %v, warnings %v", problems, warnings)
	}
}

func TestSourcesByWeight(t *testing.T) {
	path := filepath.Join(t.TempDir(), "house.yaml")
	if err := os.WriteFile(path, []byte("\nname: file\npipeline: {lanes: 1, batchLimit: 1}\nrooms: [{name: a}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := house{}
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	settings.AddFlags(flags, h.table())
	if flags.Lookup("rooms") != nil || flags.Lookup("old.one") != nil || !strings.Contains(flags.Lookup("name").Usage, "its name ($HOUSE_NAME)") {
		t.Error("flags are wrong")
	}
	if err := flags.Parse([]string{"--pipeline.batchLimit", "3"}); err != nil {
		t.Fatal(err)
	}
	from, _, problems := settings.Read(h.table(), settings.Input{Path: path, Flags: flags, LookupEnv: func(name string) (string, bool) {
		return "2", name == "HOUSE_LANES"
	}})
	if len(problems) > 0 || h.name != "file" || h.lanes != 2 || h.limit != 3 {
		t.Errorf("read %+v, %v", h, problems)
	}
	for key, want := range map[string]string{
		"name": path + ":2", "pipeline.lanes": "environment HOUSE_LANES", "pipeline.batchLimit": "flag --pipeline.batchLimit",
		"tags": "default", "rooms": path + ":4", "rooms[0]": path + ":4", "rooms[0].name": path + ":4",
	} {
		if got := from[key].String(); got != want {
			t.Errorf("%s comes from %s, want %s", key, got, want)
		}
	}
}

func TestErrorListsEverything(t *testing.T) {
	one := &settings.Error{Problems: []settings.Problem{{What: "is wrong"}}}
	if one.Error() != "configuration: is wrong" {
		t.Error(one)
	}
	two := &settings.Error{Problems: []settings.Problem{{Source: "f", Line: 2, Key: "k", What: "is wrong", Allowed: "right"}, {Key: "l", What: "too"}}}
	if two.Error() != "configuration: 2 problems\n  f:2: k: is wrong; allowed is right\n  l: too" {
		t.Error(two)
	}
}

func TestBytes(t *testing.T) {
	for b, want := range map[settings.Bytes]string{
		0: "0", 1: "1", 1023: "1023", 1024: "1KiB", 1536: "1536", 3 << 20: "3MiB", 5 << 30: "5GiB", 1<<31 - 1: "2147483647",
	} {
		if b.String() != want {
			t.Errorf("%d is %s, want %s", int64(b), b, want)
		}
	}
}

// FuzzRead asks that nothing panics, and that what was read without a problem
// is printed so that it is read the same.
func FuzzRead(f *testing.F) {
	f.Add("name: a\npipeline: {lanes: 1}\nfree: {a: [1]}\nrooms: [{name: b}]\ntags: [c]")
	f.Add("{\"name\": \"\\ud83d\\ude00\\/\"}")
	f.Add("a: &a [*a]\nname: *a")
	f.Fuzz(func(t *testing.T, content string) {
		h, _, problems := read(t, content)
		if len(problems) > 0 {
			for _, p := range problems {
				if p.What == "" || p.Source == "" {
					t.Errorf("a problem says nothing: %+v", p)
				}
			}
			return
		}
		var out bytes.Buffer
		if err := settings.Print(&out, h.table(), nil); err != nil {
			t.Fatalf("cannot be printed: %v", err)
		}
		again, _, problems := read(t, out.String())
		if len(problems) > 0 {
			t.Fatalf("printed, it is refused: %v\n%s", problems, out.String())
		}
		if again.name != h.name || again.lanes != h.lanes || len(again.rooms) != len(h.rooms) {
			t.Errorf("printed, it reads as %+v, want %+v\n%s", again, h, out.String())
		}
	})
}
