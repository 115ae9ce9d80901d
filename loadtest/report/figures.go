package report

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"

	"github.com/trestle-bridge/trestle/loadtest/record"
	"github.com/trestle-bridge/trestle/loadtest/report/chart"
)

// mostColumns is how many columns a run is drawn in.
const mostColumns = 400

// unit says how the values of a figure are written, here and by the script.
type unit string

const (
	unitRate  unit = "rate"
	unitMS    unit = "ms"
	unitCount unit = "count"
	unitBytes unit = "bytes"
	unitCores unit = "cores"
)

func (u unit) format(v float64) string {
	switch u {
	case unitMS:
		return Milliseconds(v)
	case unitBytes:
		return Bytes(v)
	case unitCores:
		return Cores(v)
	case unitRate:
		if math.IsNaN(v) {
			return unknown
		}
		return Number(v) + "/s"
	}
	return Number(v)
}

// A figure is one picture over the time of the run, with its table.
type figure struct {
	ID, Title, Caption string
	Unit               unit
	// Legend tells series apart; it is where the script writes values.
	Legend []series
	// Of these, one is set: a plot with an axis of values, rows with one small
	// plot each, or lanes of spans.
	Plot  *plot
	Rows  []row
	Lanes []lane
	Table grid
}

// series is one line of a plot. Its values are those of the columns.
type series struct {
	Name string
	// Class is how it is drawn, Summary its value for the whole run.
	Class, Summary string
	Values         values
}

// path is a shape; Class says how it is drawn.
type path struct{ Class, D string }

type plot struct {
	// Alt says what is seen, for whoever does not.
	Alt   string
	Scale chart.Scale
	Paths []path
}

// row is a small plot of its own beside its name; all rows of a figure have one
// scale.
type row struct {
	Name string
	// Color is a number of the colors for replicas, 0 for none of them.
	Color  int
	Class  string
	Values values
	Paths  []path
	// Most is the highest value, in words.
	Most string
	// Absent are times when there was nothing to tell.
	Absent []span
}

type lane struct {
	Name  string
	Spans []span
}

// span is a length of time. Left and Width are in percent.
type span struct {
	Left, Width string
	Color       int
	Class       string
	Label       string
	Title       string
}

// grid is the table behind a picture.
type grid struct {
	Head []string
	Rows [][]string
	Note string
}

// values are numbers for the script; what is not known is null.
type values []float64

// MarshalJSON writes as many digits as can be seen.
func (v values) MarshalJSON() ([]byte, error) {
	out := []byte{'['}
	for i, x := range v {
		if i > 0 {
			out = append(out, ',')
		}
		if math.IsNaN(x) || math.IsInf(x, 0) {
			out = append(out, "null"...)
		} else {
			out = strconv.AppendFloat(out, x, 'g', 5, 64)
		}
	}
	return append(out, ']'), nil
}

var _ json.Marshaler = values{}

// painter makes the figures of a recording.
type painter struct {
	r       *record.Recording
	columns chart.Columns
	// colors are the numbers of the replicas' colors, from 1.
	colors map[string]int
}

func newPainter(r *record.Recording) *painter {
	p := &painter{r: r, columns: chart.NewColumns(r.DurationS, mostColumns), colors: map[string]int{}}
	for i, replica := range r.Replicas {
		p.colors[replica.Name] = i%colorCount + 1
	}
	return p
}

// colorCount is how many colors the page has for replicas: twice the seven that
// can be told apart, the second time striped, and once more dotted.
const colorCount = 21

// span places a length of time.
func (p *painter) span(from, until float64) span {
	left := p.columns.Percent(from)
	return span{Left: percent(left), Width: percent(p.columns.Percent(until) - left)}
}

func percent(v float64) string { return strconv.FormatFloat(v, 'f', 3, 64) }

// figures are all that there is something to show in.
func (p *painter) figures() []figure {
	if p.columns.N == 0 {
		return nil
	}
	all := []figure{p.throughput(), p.latency(), p.waiting()}
	all = append(all, p.ownership()...)
	all = append(all, p.replicas()...)
	if f, ok := p.clusters(); ok {
		all = append(all, f)
	}
	return all
}

func (p *painter) each(f func(i int, s *record.Second) float64) []float64 {
	out := make([]float64, len(p.r.Seconds))
	for i := range p.r.Seconds {
		out[i] = f(i, &p.r.Seconds[i])
	}
	return out
}

func (p *painter) throughput() figure {
	due := p.each(func(i int, s *record.Second) float64 { return rate(p.r, i, s.Due) })
	sent := p.each(func(i int, s *record.Second) float64 { return rate(p.r, i, s.Sent) })
	published := p.each(func(i int, s *record.Second) float64 { return rate(p.r, i, s.Published) })
	most, _ := extremes(due, sent, published)
	scale := chart.Linear(most, 4, Number)
	meanDue, meanSent, meanPublished := p.columns.Mean(due), p.columns.Mean(sent), p.columns.Mean(published)
	low, high := p.columns.Gather(published, chart.Min), p.columns.Gather(published, chart.Max)
	f := figure{
		ID: "throughput", Title: "Throughput", Unit: unitRate,
		Caption: "Messages sent, and changes that a publish has followed, each second. Not every message is a change.",
		Plot: &plot{
			Scale: scale,
			Alt:   fmt.Sprintf("Lines over time: up to %s published, %s on average.", unitRate.format(maxOf(published)), unitRate.format(meanOf(published))),
		},
	}
	if p.columns.Seconds > 1 {
		f.Caption += fmt.Sprintf(" Lines are means of %d s, the shade spans the lowest and the highest second.", p.columns.Seconds)
		f.Plot.Paths = append(f.Plot.Paths, path{"shade published", p.columns.Band(low, high, scale)})
	}
	if maxOf(due) > 0 {
		f.Plot.Paths = append(f.Plot.Paths, path{"line due", p.columns.Line(meanDue, scale)})
		f.Legend = append(f.Legend, series{"due", "due", "mean " + unitRate.format(meanOf(due)), meanDue})
	}
	f.Plot.Paths = append(f.Plot.Paths,
		path{"line sent", p.columns.Line(meanSent, scale)}, path{"line published", p.columns.Line(meanPublished, scale)})
	f.Legend = append(f.Legend,
		series{"sent", "sent", "mean " + unitRate.format(meanOf(sent)), meanSent},
		series{"published", "published", "mean " + unitRate.format(meanOf(published)), meanPublished})
	f.Table = p.secondsTable(unitRate, []string{"due", "sent", "published", "fewest published"},
		[][]float64{meanDue, meanSent, meanPublished, low}, []chart.Combine{nil, nil, nil, chart.Min})
	return f
}

func (p *painter) latency() figure {
	quantile := func(of func(l *record.Latency) float64) []float64 {
		return p.columns.Gather(p.each(func(_ int, s *record.Second) float64 { return latencyOr(s.Latency, of(&s.Latency)) }), chart.Max)
	}
	rows := []series{
		{Name: "p50", Class: "q50", Summary: Milliseconds(p.r.Latency.All.P50MS), Values: quantile(func(l *record.Latency) float64 { return l.P50MS })},
		{Name: "p99", Class: "q99", Summary: Milliseconds(p.r.Latency.All.P99MS), Values: quantile(func(l *record.Latency) float64 { return l.P99MS })},
		{Name: "p99.9", Class: "q999", Summary: Milliseconds(p.r.Latency.All.P999MS), Values: quantile(func(l *record.Latency) float64 { return l.P999MS })},
	}
	most, lowest := extremes(rows[0].Values, rows[1].Values, rows[2].Values)
	scale := chart.Logarithmic(lowest, most, Milliseconds)
	f := figure{
		ID: "latency", Title: "Latency", Unit: unitMS, Legend: rows,
		Caption: "From when an update was due to the publish that followed it, of what was published in each second; powers of ten.",
		Plot:    &plot{Scale: scale, Alt: fmt.Sprintf("Lines over time: p50, p99 and p99.9; the worst p99.9 of a second is %s.", Milliseconds(maxOf(rows[2].Values)))},
	}
	if p.columns.Seconds > 1 {
		f.Caption += fmt.Sprintf(" Of every %d s the worst is drawn.", p.columns.Seconds)
	}
	for i := len(rows) - 1; i >= 0; i-- {
		f.Plot.Paths = append(f.Plot.Paths, path{"line " + rows[i].Class, p.columns.Line(rows[i].Values, scale)})
	}
	f.Table = p.secondsTable(unitMS, []string{"worst p50", "worst p99", "worst p99.9"},
		[][]float64{rows[0].Values, rows[1].Values, rows[2].Values}, []chart.Combine{chart.Max, chart.Max, chart.Max})
	return f
}

func (p *painter) waiting() figure {
	waiting := p.columns.Gather(p.each(func(_ int, s *record.Second) float64 { return float64(s.Waiting) }), chart.Max)
	scale := chart.Linear(maxOf(waiting), 3, Number)
	f := figure{
		ID: "waiting", Title: "Waiting", Unit: unitCount,
		Caption: "Changes that had been sent and that no publish had followed yet, at the end of each second.",
		Legend:  []series{{"waiting", "waiting", "most " + Number(maxOf(waiting)), waiting}},
		Plot: &plot{
			Scale: scale, Alt: fmt.Sprintf("An area over time; the most that waited is %s.", Number(maxOf(waiting))),
			Paths: []path{{"fill waiting", p.columns.Area(waiting, scale)}, {"line waiting", p.columns.Line(waiting, scale)}},
		},
	}
	f.Table = p.secondsTable(unitCount, []string{"most waiting"}, [][]float64{waiting}, []chart.Combine{chart.Max})
	return f
}

// mostRows is how many rows a table behind a picture has.
const mostRows = 60

// secondsTable makes fewer rows of the columns; a combine of nil is the mean.
func (p *painter) secondsTable(u unit, names []string, columns [][]float64, combine []chart.Combine) grid {
	g := grid{Head: append([]string{"from"}, names...)}
	per := (p.columns.N + mostRows - 1) / mostRows
	for from := 0; from < p.columns.N; from += per {
		cells := []string{chart.Clock(p.columns.Start(from))}
		for c, all := range columns {
			part := all[from:min(from+per, len(all))]
			v := meanOf(part)
			if combine[c] != nil {
				v = combined(part, combine[c])
			}
			cells = append(cells, u.format(v))
		}
		g.Rows = append(g.Rows, cells)
	}
	if seconds := per * p.columns.Seconds; seconds > 1 {
		g.Note = fmt.Sprintf("Each row is %d s; every second is in the recording.", seconds)
	}
	return g
}

func combined(list []float64, combine chart.Combine) float64 {
	out := math.NaN()
	for _, v := range list {
		switch {
		case math.IsNaN(v):
		case math.IsNaN(out):
			out = v
		default:
			out = combine(out, v)
		}
	}
	return out
}

// maxOf is NaN if nothing is known.
func maxOf(list []float64) float64 { return combined(list, chart.Max) }

func meanOf(list []float64) float64 {
	n := 0.0
	sum := combined(list, func(a, b float64) float64 { return a + b })
	for _, v := range list {
		if !math.IsNaN(v) {
			n++
		}
	}
	return sum / n
}
