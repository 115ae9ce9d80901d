package report

import (
	"bytes"
	"encoding/json"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func sample() []Figure {
	return []Figure{
		New("P1", "storm: one cluster, 2,000 instances x 8 updates, wave after wave", 38123, "updates/s", 0, &Target{Of: OfFigure, AtLeast: 20000}),
		New("P1", "processor time of the service for 1,000 updates", 0.0155, "CPU-s", 0, &Target{Of: OfFigure, AtMost: 0.04}),
		New("P2", "rows, each published before the instance's next update; generator's CPU counted out", 17000, "rows/s", 43000, &Target{Of: OfRatio, AtLeast: 0.45}),
		New("P3", "p50 at 300 updates/s, send to publish, against a raw write", 1.4, "ms", 0.7, &Target{Of: OfRatio, AtMost: 2}),
		New("P3", "p99 at 3000 updates/s, send to publish, against a raw write", 9, "ms", 2, &Target{Of: OfRatio, AtMost: 2}),
		New("P4", "1000000 repeats, against a stream thrown away undecoded", 410000, "messages/s", 500000, &Target{Of: OfRatio, AtLeast: 0.7}),
		New("P4", "allocations a message beyond those of the raw stream", 0, "", 0, &Target{Of: OfFigure, AtMost: 0.05}),
		New("P6", "highest memory of the service", 142, "MiB RSS", 0, &Target{Of: OfFigure, AtMost: 150}),
		New("L1", "raw batch write, 500 rows a statement, 2 connections", 43000, "rows/s", 0, nil),
	}
}

func TestFigures(t *testing.T) {
	for _, c := range []struct {
		f     Figure
		holds bool
	}{
		{New("P", "", 10, "", 0, &Target{Of: OfFigure, AtLeast: 10}), true},
		{New("P", "", 9.9, "", 0, &Target{Of: OfFigure, AtLeast: 10}), false},
		{New("P", "", 10, "", 0, &Target{Of: OfFigure, AtMost: 10}), true},
		{New("P", "", 10.1, "", 0, &Target{Of: OfFigure, AtMost: 10}), false},
		{New("P", "", 5, "", 10, &Target{Of: OfRatio, AtLeast: 0.5}), true},
		{New("P", "", 21, "", 10, &Target{Of: OfRatio, AtMost: 2}), false},
		// Without its baseline a ratio holds nothing.
		{New("P", "", 21, "", 0, &Target{Of: OfRatio, AtMost: 2}), false},
	} {
		if c.f.Holds == nil || *c.f.Holds != c.holds || c.holds != (c.f.margin >= 1) {
			t.Errorf("%+v holds: want %v", c.f, c.holds)
		}
	}
	if f := New("L", "", 1, "", 0, nil); f.Holds != nil || f.Ratio != nil {
		t.Errorf("%+v has a target", f)
	}
}

func TestJSONHasEveryKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bench.json")
	if err := WriteJSON(path, sample()); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var list []map[string]any
	if err := json.Unmarshal(content, &list); err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		for _, key := range []string{"id", "what", "figure", "unit", "baseline", "ratio", "target", "holds"} {
			if _, there := f[key]; !there {
				t.Errorf("%v has no %s", f, key)
			}
		}
	}
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	Table(&out, "a machine, 100% idle", sample())
	for _, want := range []string{"a machine, 100% idle", "38,123", "ratio >= 0.45", "MISSED", "holds"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table does not say %q:\n%s", want, &out)
		}
	}
}

func TestMarkdown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bench.md")
	if err := Markdown(path, "a machine", sample()); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a machine", "| P1 |", "38,123", "MISSED"} {
		if !strings.Contains(string(content), want) {
			t.Errorf("it does not say %q:\n%s", want, content)
		}
	}
}

func TestPicture(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bench.png")
	latencies := []Latencies{
		{"bridge, 300/s", 1.4, 2.2, 7.1, 13}, {"raw write, 300/s", 0.7, 1.1, 5.2, 10},
		{"bridge, 3000/s", 1.9, 3.5, 9, 21}, {"raw write, 3000/s", 0.4, 0.9, 2, 6},
	}
	if err := Picture(path, "a machine", sample(), latencies); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := png.Decode(file); err != nil {
		t.Error(err)
	}
}
