package report

import (
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/trestle-bridge/trestle/loadtest/record"
	"github.com/trestle-bridge/trestle/loadtest/report/chart"
)

// The parts of the page. They are put together when it is written, so that it
// needs nothing else.
var (
	//go:embed page/page.html
	pageHTML string
	//go:embed page/page.css
	pageCSS string
	//go:embed page/page.js
	pageJS string
)

// page is what the template is given.
type page struct {
	R        *record.Recording
	Sentence string
	Facts    []fact
	Zeros    []zero
	Figures  []keyFigure
	// Ticks and Bands are the same in all pictures.
	Ticks    []chart.Tick
	Bands    []band
	Faults   []faultRow
	Events   []lane
	Pictures []figure
	Latency  grid
	Moves    grid
	Settings []record.Setting
	Findings []string
	// LeftFindings is how many are in the recording alone.
	LeftFindings int

	Policy string
	Style  template.CSS
	Script template.JS
	Data   data
}

// data is what the script reads.
type data struct {
	Seconds  int                 `json:"seconds"`
	Duration float64             `json:"duration"`
	Columns  int                 `json:"columns"`
	Figures  map[string]unit     `json:"figures"`
	Values   map[string][]values `json:"values"`
	Faults   []dataFault         `json:"faults"`
}

type dataFault struct {
	Name string  `json:"name"`
	From float64 `json:"from"`
	End  float64 `json:"end"`
}

type fact struct{ Name, Value string }

type zero struct {
	record.Count
	Text string
}

// band is a fault in a picture: its cause, then its effects.
type band struct {
	Number       int
	Cause, After span
}

type faultRow struct {
	Number                  int
	Fault                   record.Fault
	At, For, Recovered, P99 string
	Waiting, Lowest         string
	Cause, After            span
	// Late labels are written on the left of what they label.
	Late bool
	// Place is where the label begins, or ends, in percent from there.
	Place string
}

// HTML writes one page that needs nothing else, neither the network nor a
// script.
func HTML(w io.Writer, r *record.Recording) error {
	t, err := template.New("page").Funcs(template.FuncMap{
		"percent": percent,
		"flip":    func(v float64) string { return percent(100 - v) },
	}).Parse(pageHTML)
	if err != nil {
		return fmt.Errorf("parse the page: %w", err)
	}
	if err := t.Execute(w, newPage(r)); err != nil {
		return fmt.Errorf("make the page of %q: %w", r.Scenario, err)
	}
	return nil
}

func newPage(r *record.Recording) *page {
	p := newPainter(r)
	hash := sha256.Sum256([]byte(pageJS))
	g := &page{
		R: r, Sentence: Sentence(r), Facts: facts(r), Figures: keyFigures(r),
		Ticks:    chart.Time(r.DurationS, 10),
		Events:   p.events(),
		Pictures: p.figures(),
		Latency:  latencyTable(r),
		Moves:    movesTable(r),
		Settings: append(slices.Clone(r.Parameters.Settings), r.Environment.Parts...),
		Findings: r.Verdict.Findings,
		Style:    template.CSS(pageCSS),
		Script:   template.JS(pageJS),
		// The page is one file; whatever slips into it cannot fetch anything.
		Policy: "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) + "'; base-uri 'none'; form-action 'none'",
	}
	const mostFindings = 50
	if n := len(g.Findings); n > mostFindings {
		g.Findings, g.LeftFindings = g.Findings[:mostFindings], n-mostFindings
	}
	for _, c := range r.Verdict.Zeros.List() {
		g.Zeros = append(g.Zeros, zero{c, humanize.Comma(c.Count)})
	}
	g.Data = data{Seconds: p.columns.Seconds, Duration: r.DurationS, Columns: p.columns.N, Figures: map[string]unit{}, Values: map[string][]values{}, Faults: []dataFault{}}
	for _, f := range g.Pictures {
		var list []values
		for _, s := range f.Legend {
			list = append(list, s.Values)
		}
		for _, row := range f.Rows {
			list = append(list, row.Values)
		}
		if list != nil {
			g.Data.Figures[f.ID], g.Data.Values[f.ID] = f.Unit, list
		}
	}
	for i := range r.Faults {
		row := p.fault(i)
		g.Faults = append(g.Faults, row)
		g.Bands = append(g.Bands, band{row.Number, row.Cause, row.After})
		g.Data.Faults = append(g.Data.Faults, dataFault{
			fmt.Sprintf("%d %s %s", row.Number, row.Fault.Name, row.Fault.Target), row.Fault.FromS, row.Fault.EndS()})
	}
	return g
}

func facts(r *record.Recording) []fact {
	where := "replicas of its own"
	if r.Environment.Installation == record.Existing {
		where = "an existing installation"
	}
	e, p := r.Environment, r.Parameters
	all := []fact{
		{"began", r.Began.UTC().Format("2006-01-02 15:04:05 UTC")},
		{"lasted", Seconds(r.DurationS)},
		{"version", r.Product},
		{"against", where},
		{"on", e.Machine},
		{"memory", Bytes(float64(e.MemoryBytes))},
		{"load", strings.TrimSpace(p.Shape + " " + optional(p.RatePerSecond, "/s"))},
		{"clusters", optional(float64(p.Clusters), "")},
		{"instances", optional(float64(p.Instances), "")},
		{"replicas", optional(float64(p.Replicas), "")},
		{"seed", fmt.Sprint(r.Seed)},
	}
	return slices.DeleteFunc(all, func(f fact) bool { return f.Value == "" || f.Value == "0 B" })
}

// optional is empty for 0, which does not apply.
func optional(v float64, suffix string) string {
	if v == 0 {
		return ""
	}
	return Number(v) + suffix
}

func (p *painter) fault(i int) faultRow {
	f := &p.r.Faults[i]
	got := figuresOf(p.r, f)
	row := faultRow{
		Number: i + 1, Fault: *f, At: chart.Clock(f.FromS), For: Seconds(f.UntilS - f.FromS), Recovered: recovery(f),
		P99: Milliseconds(got.p99), Waiting: Number(got.waiting), Lowest: Number(got.lowest),
		Cause: p.span(f.FromS, f.UntilS), After: p.span(f.UntilS, min(f.EndS(), p.r.DurationS)),
	}
	from, until := p.columns.Percent(f.FromS), p.columns.Percent(f.EndS())
	row.Late, row.Place = until > 60, percent(until)
	if row.Late {
		row.Place = percent(100 - from)
	}
	return row
}

// events has a lane for each kind.
func (p *painter) events() (lanes []lane) {
	const most = 500
	at := map[string]int{}
	for i, e := range p.r.Events {
		if i == most {
			break
		}
		n, known := at[e.Kind]
		if !known {
			n = len(lanes)
			at[e.Kind], lanes = n, append(lanes, lane{Name: e.Kind})
		}
		s := p.span(e.AtS, e.AtS)
		s.Label, s.Title = chart.Clock(e.AtS), e.What
		lanes[n].Spans = append(lanes[n].Spans, s)
	}
	return lanes
}

func latencyTable(r *record.Recording) grid {
	g := grid{Head: []string{"", "changes", "mean", "p50", "p90", "p99", "p99.9", "max"}}
	add := func(name string, l record.Latency) {
		g.Rows = append(g.Rows, []string{name, Number(float64(l.Count)), Milliseconds(l.MeanMS), Milliseconds(l.P50MS), Milliseconds(l.P90MS), Milliseconds(l.P99MS), Milliseconds(l.P999MS), Milliseconds(l.MaxMS)})
	}
	add("all", r.Latency.All)
	if r.Latency.Disturbed.Count > 0 {
		add("without faults", r.Latency.Calm)
		add("during faults", r.Latency.Disturbed)
	}
	if len(r.Clusters) > 1 {
		slow, left := slowest(r.Clusters, mostClusters)
		for _, c := range slow {
			add(c.Name, c.Latency)
		}
		if left > 0 {
			g.Note = fmt.Sprintf("The slowest clusters by p99; %s in the recording.", counted(int64(left), "more cluster"))
		}
	}
	return g
}

// movesTable has the moves that took longest.
func movesTable(r *record.Recording) grid {
	g := grid{Head: []string{"shard", "from", "to", "at", "without an owner for", "kind", "reason"}}
	moves := slices.SortedStableFunc(slices.Values(r.Moves), func(a, b record.Move) int { return cmp.Compare(b.TookS, a.TookS) })
	const most = 20
	for i, m := range moves {
		if i == most {
			g.Note = fmt.Sprintf("The longest ones; %s in the recording.", counted(int64(len(moves)-most), "more move"))
			break
		}
		g.Rows = append(g.Rows, []string{m.ShardName(), cmp.Or(m.From, nobody), cmp.Or(m.To, nobody), chart.Clock(m.AtS), Seconds(m.TookS), string(m.Kind), m.Reason})
	}
	for _, s := range moveSummaries(r) {
		g.Note = strings.TrimSpace(fmt.Sprintf("%s: median %s, longest %s. %s", counted(int64(s.count), s.name), Seconds(s.median), Seconds(s.longest.TookS), g.Note))
	}
	return g
}
