package bench

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/internal/devstack/process"
	"github.com/trestle-bridge/trestle/loadtest"
	"github.com/trestle-bridge/trestle/loadtest/ledger"
)

func TestLimitsComeBehindTargets(t *testing.T) {
	ids := []string{"L2", "P7", "L1", "P1"}
	slices.SortFunc(ids, compareIDs)
	if want := []string{"P1", "P7", "L1", "L2"}; !slices.Equal(ids, want) {
		t.Errorf("got %v, want %v", ids, want)
	}
}

func TestUnknownFiguresAreRefused(t *testing.T) {
	if err := Run(t.Context(), Config{Only: []string{"P13"}}); err == nil || !strings.Contains(err.Error(), "P13") {
		t.Errorf("got %v", err)
	}
}

func TestUsageAddsSeriesUp(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte(`# HELP trestle_store_statement_seconds help
trestle_store_statement_seconds_bucket{statement="apply",le="1"} 7
trestle_store_statement_seconds_count{statement="apply"} 7
trestle_store_statement_seconds_count{statement="delete outbox"} 3
go_memstats_mallocs_total 1.5e+06
trestle_pipeline_commit_seconds_sum 2
trestle_pipeline_commit_seconds_count 4
trestle_pipeline_changes_total 40
`))
	}))
	defer server.Close()
	s := &service{http: strings.TrimPrefix(server.URL, "http://"), proc: (*process.Process)(nil)}
	got, err := s.usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := usage{statements: 10, allocations: 1.5e6, commitSeconds: 2, batches: 4, changes: 40}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	l := load{did: got.since(usage{})}
	if l.changesPerBatch() != 10 || l.commit() != 500 {
		t.Errorf("%g changes a batch, %g ms a commit", l.changesPerBatch(), l.commit())
	}
}

func TestMemoryOfAProcess(t *testing.T) {
	s := &service{proc: &process.Process{PID: os.Getpid()}}
	rss, err := s.memory("VmRSS")
	if err != nil {
		t.Skip(err) // not on Linux
	}
	highest, err := s.memory("VmHWM")
	if err != nil || rss < 1<<20 || highest < rss/2 {
		t.Errorf("%d bytes, %d at most, %v", rss, highest, err)
	}
	if _, err := s.memory("VmNone"); err == nil {
		t.Error("a line that is not there was read")
	}
}

func TestQuarters(t *testing.T) {
	var s samples
	s.mark("begin")
	for i := range 8 {
		s.rss = append(s.rss, int64(i))
	}
	s.mark("end")
	if second, last := s.quarters("begin", "end"); second != 2 || last != 6 {
		t.Errorf("means %d and %d", second, last)
	}
	if h := s.highest("", "begin"); h != 0 {
		t.Errorf("highest of nothing is %d", h)
	}
	if h := s.highest("begin", "end"); h != 7 {
		t.Errorf("highest is %d", h)
	}
}

func TestUnsoundIsSaid(t *testing.T) {
	b := &bench{}
	b.judge("good", &loadtest.Report{Verdict: &ledger.Verdict{}})
	if len(b.unsound) != 0 {
		t.Errorf("%v", b.unsound)
	}
	b.judge("bad", &loadtest.Report{Verdict: &ledger.Verdict{Lost: 3}})
	b.judge("worse", &loadtest.Report{Verdict: &ledger.Verdict{}, Unsettled: "one waits"})
	if len(b.unsound) != 2 || !strings.Contains(b.unsound[0].Error(), "3 lost") || !strings.Contains(b.unsound[1].Error(), "one waits") {
		t.Errorf("%v", b.unsound)
	}
}

func TestProgressLine(t *testing.T) {
	var out bytes.Buffer
	p := newProgressLine(&out, true)
	p.begin("first, and long")
	p.begin("second")
	p.show("5 sent")
	p.end()
	if text := out.String(); strings.Contains(text, "\n") || strings.Count(text, "\r") != 5 || !strings.Contains(text, "second: 5 sent") {
		t.Errorf("%q", text)
	}
	out.Reset()
	p = newProgressLine(&out, false)
	p.begin("first")
	p.show("too soon")
	p.last = time.Time{}
	p.show("now")
	if text := out.String(); strings.Count(text, "\n") != 2 || strings.Contains(text, "too soon") {
		t.Errorf("%q", text)
	}
}
