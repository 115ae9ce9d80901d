package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"flag"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/trestle-bridge/trestle/loadtest/record"
	"github.com/trestle-bridge/trestle/loadtest/record/recordtest"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what it was; if it is better, run the test with -update. It is\n%s", path, got)
	}
}

// configs are recordings short and long, with few and many of everything.
func configs() map[string]recordtest.Config {
	return map[string]recordtest.Config{
		"tiny":    {Seconds: 10, Replicas: 1, Clusters: 1, Rate: 100, Calm: true},
		"faults":  {Seconds: 120, Replicas: 3, Clusters: 4, Slices: 2, Rate: 2000},
		"hostile": {Seconds: 40, Replicas: 3, Clusters: 2, Rate: 200, Failed: true, Hostile: true},
		"empty":   {Replicas: 1, Clusters: 1, Calm: true},
	}
}

func TestTerminal(t *testing.T) {
	for name, cfg := range configs() {
		for _, width := range []int{0, 60} {
			var out bytes.Buffer
			if err := Terminal(&out, TerminalConfig{Width: width}, recordtest.Make(cfg)); err != nil {
				t.Fatal(err)
			}
			suffix := ".txt"
			if width > 0 {
				suffix = "-narrow.txt"
			}
			golden(t, name+suffix, out.Bytes())
		}
	}
}

func TestTerminalIsNotSteered(t *testing.T) {
	rec := recordtest.Make(recordtest.Config{Seconds: 5, Replicas: 2, Clusters: 2, Rate: 10})
	const steering = "\x1b[2J\r\u009b31m"
	rec.Scenario, rec.Description = steering, steering
	rec.Replicas[0].Name, rec.Faults[0].Name, rec.Faults[0].Target, rec.Clusters[0].Name = steering, steering, steering, steering
	rec.Moves[0].Cluster = steering
	rec.Verdict.Information[0].What = steering
	rec.Verdict.Expectations[0].Got = steering
	rec.Verdict.AddFinding(steering)
	var out bytes.Buffer
	if err := Terminal(&out, TerminalConfig{}, rec); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(out.String(), "\x1b\r\u009b") {
		t.Errorf("it is steered:\n%q", out.String())
	}
	out.Reset()
	if err := Terminal(&out, TerminalConfig{Color: true}, rec); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "\x1b[") {
		t.Error("it has no color")
	}
}

func TestJSON(t *testing.T) {
	var out bytes.Buffer
	if err := record.Encode(&out, recordtest.Make(configs()["tiny"])); err != nil {
		t.Fatal(err)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, out.Bytes(), "", "  "); err != nil {
		t.Fatal(err)
	}
	golden(t, "tiny.json", indented.Bytes())
}

func pageOf(t *testing.T, rec *record.Recording) string {
	t.Helper()
	var out bytes.Buffer
	if err := HTML(&out, rec); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// voids are the elements that have no end.
func void(name string) bool {
	switch name {
	case "meta", "input", "br", "img", "link":
		return true
	}
	return false
}

// TestPageIsWellFormed holds that every element is closed where it should be,
// that nothing is fetched, and that nothing runs but the page's own script.
func TestPageIsWellFormed(t *testing.T) {
	all := configs()
	all["shards"] = recordtest.Config{Seconds: 60, Replicas: 20, Clusters: 50, Slices: 10, Rate: 8000}
	for name, cfg := range all {
		t.Run(name, func(t *testing.T) {
			content := pageOf(t, recordtest.Make(cfg))
			z := html.NewTokenizer(strings.NewReader(content))
			var open []string
			scripts := 0
			ids := map[string]bool{}
			for z.Next() != html.ErrorToken {
				token := z.Token()
				switch token.Type {
				case html.StartTagToken:
					if !void(token.Data) {
						open = append(open, token.Data)
					}
					if token.Data == "script" {
						scripts++
					}
				case html.EndTagToken:
					if len(open) == 0 || open[len(open)-1] != token.Data {
						t.Fatalf("</%s> closes %v", token.Data, open)
					}
					open = open[:len(open)-1]
				}
				for _, a := range token.Attr {
					if strings.HasPrefix(a.Key, "on") || a.Key == "src" || a.Key == "href" || strings.Contains(a.Val, "ZgotmplZ") {
						t.Errorf("<%s> has %s=%q", token.Data, a.Key, a.Val)
					}
					if a.Key == "id" && ids[a.Val] {
						t.Errorf("the id %q comes twice", a.Val)
					} else if a.Key == "id" {
						ids[a.Val] = true
					}
					if a.Key == "d" && strings.Contains(a.Val, "NaN") {
						t.Errorf("a path has %q", a.Val)
					}
				}
			}
			if z.Err() != io.EOF || len(open) > 0 {
				t.Errorf("%v are left open: %v", open, z.Err())
			}
			if scripts != 2 {
				t.Errorf("%d scripts, want the data and the page's own", scripts)
			}
			if strings.Contains(content, "ZgotmplZ") || strings.Contains(content, "://") {
				t.Error("something was refused by the template, or an address is in it")
			}
		})
	}
}

func TestPageSaysTheVerdictFirst(t *testing.T) {
	for name, want := range map[string]string{"faults": "Nothing was lost, late or doubled in", "hostile": "It did not hold: 3 lost, 1 doubled"} {
		content := pageOf(t, recordtest.Make(configs()[name]))
		verdict, picture := strings.Index(content, want), strings.Index(content, "<svg")
		zeros := strings.Index(content, "Counts that must be zero")
		if verdict < 0 || zeros < verdict || picture < zeros {
			t.Errorf("%s: verdict at %d, zeros at %d, pictures at %d", name, verdict, zeros, picture)
		}
	}
}

func TestPageShowsAll(t *testing.T) {
	content := pageOf(t, recordtest.Make(configs()["faults"]))
	for _, id := range []string{"faults", "throughput", "latency", "waiting", "ownership", "queue", "outbox", "updates", "cpu", "memory", "clusters"} {
		if !strings.Contains(content, `<figure id="`+id+`">`) {
			t.Errorf("there is no picture of %s", id)
		}
	}
	if pictures, tables := strings.Count(content, "<figure"), strings.Count(content, "<details>"); pictures != tables {
		t.Errorf("%d pictures have %d tables", pictures, tables)
	}
}

func TestManyShardsAreCounted(t *testing.T) {
	cfg := recordtest.Config{Seconds: 30, Replicas: 5, Clusters: 200, Slices: 10, Rate: 100}
	p := newPainter(recordtest.Make(cfg))
	f := p.ownership()[0]
	if len(f.Lanes) != 0 || len(f.Rows) != 6 || f.Rows[0].Name != nobody {
		t.Fatalf("%d lanes, %d rows", len(f.Lanes), len(f.Rows))
	}
	for column := range p.columns.N {
		owned := 0.0
		for _, r := range f.Rows[1:] {
			owned += r.Values[column]
		}
		if without := f.Rows[0].Values[column]; owned > 2000 || owned+without < 2000 {
			t.Errorf("second %d: %g owned, %g without an owner, of 2000", column, owned, without)
		}
	}
}

func TestWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	rec := recordtest.Make(configs()["faults"])
	files, err := Write(dir, "run", rec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := record.Read(files.Recording); err != nil {
		t.Error(err)
	}
	content, err := os.ReadFile(files.HTML)
	if err != nil || string(content) != pageOf(t, rec) {
		t.Errorf("the page is another one: %v", err)
	}
	rec.DurationS = -1
	if _, err := Write(dir, "broken", rec); err == nil {
		t.Error("a broken recording is written")
	}
}

func TestWords(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{Milliseconds(0), "0 ms"}, {Milliseconds(0.0123), "0.012 ms"}, {Milliseconds(1.04), "1 ms"}, {Milliseconds(9.94), "9.9 ms"},
		{Milliseconds(9.96), "10 ms"}, {Milliseconds(999.4), "999 ms"}, {Milliseconds(999.6), "1 s"}, {Milliseconds(2340), "2.3 s"},
		{Milliseconds(math.NaN()), unknown}, {Seconds(0.05), "50 ms"}, {Seconds(12.4), "12 s"}, {Seconds(119), "119 s"}, {Seconds(120), "2 min"},
		{Seconds(3600), "1 h"}, {Seconds(3725), "1 h 2 min 5 s"}, {Number(1234567), "1,234,567"}, {Number(0.034), "0.034"},
		{Number(3), "3"}, {Number(3.26), "3.3"}, {Bytes(150 << 20), "150 MiB"}, {Cores(0.5), "0.5"}, {Cores(1.256), "1.26"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
}

func TestNothingTestedIsNotHeld(t *testing.T) {
	rec := recordtest.Make(configs()["empty"])
	if got := Sentence(rec); got != "Nothing was tested: no update was sent." {
		t.Error(got)
	}
}

func progressed() record.Progress {
	return record.Progress{
		Elapsed: 63 * time.Second, Planned: 2 * time.Minute, Totals: record.Totals{Sent: 239968}, Waiting: 123, Replicas: 3,
		Last: record.Second{Published: 1784, Latency: record.Latency{Count: 1, P99MS: 9}}, Faults: []string{"kill r1"},
	}
}

func TestProgressFits(t *testing.T) {
	now := progressed()
	for width := range 200 {
		if got := []rune(line(now, width)); len(got) > width {
			t.Errorf("%d columns for %d: %s", len(got), width, string(got))
		}
	}
	if got := line(now, 40); !strings.Contains(got, "1:03") || !strings.Contains(got, "FAULT: kill r1") {
		t.Errorf("time or fault are not in %q", got)
	}
	if got := line(now, 150); !strings.Contains(got, "█") || !strings.Contains(got, "p99 9 ms") {
		t.Errorf("bar or latency are not in %q", got)
	}
}

func TestProgress(t *testing.T) {
	var out bytes.Buffer
	p := NewProgress(ProgressConfig{Out: &out})
	now := progressed()
	for _, at := range []time.Duration{0, 1, 14, 15, 16} {
		now.Elapsed = at * time.Second
		p.Show(now)
	}
	now.Faults = nil
	p.Show(now)
	p.Say("ready: %s", "\x1b[2Jr1")
	p.End()
	if got := strings.Count(out.String(), "\n"); got != 4 || strings.ContainsAny(out.String(), "\r\x1b") {
		t.Errorf("%d lines:\n%q", got, out.String())
	}
	out.Reset()
	p = NewProgress(ProgressConfig{Out: &out, Width: func() int { return 80 }})
	p.Show(now)
	p.Show(now)
	p.Say("ready")
	p.End()
	if got := out.String(); strings.Count(got, "\n") != 1 || !strings.HasSuffix(got, "\r\x1b[K") || strings.Count(got, "\r") != 4 {
		t.Errorf("%q", got)
	}
}

// The paths of a page are numbers and letters that a browser understands.
func TestPagesArePlainSVG(t *testing.T) {
	content := pageOf(t, recordtest.Make(configs()["faults"]))
	for rest := content; ; {
		from := strings.Index(rest, "<svg")
		if from < 0 {
			break
		}
		to := from + strings.Index(rest[from:], "</svg>") + len("</svg>")
		if err := xml.Unmarshal([]byte(rest[from:to]), new(struct{})); err != nil {
			t.Fatalf("%v in %.200s", err, rest[from:to])
		}
		rest = rest[to:]
	}
}
