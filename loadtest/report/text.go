package report

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/trestle-bridge/trestle/loadtest/record"
)

// unknown stands for a value that was not recorded.
const unknown = "–"

// Milliseconds writes a latency with as many digits as mean something.
func Milliseconds(ms float64) string {
	switch {
	case math.IsNaN(ms):
		return unknown
	case ms == 0:
		return "0 ms"
	case ms < 1:
		return fmt.Sprintf("%.2g ms", ms)
	case ms < 9.95:
		return trim("%.1f", ms) + " ms"
	case ms < 999.5:
		return fmt.Sprintf("%.0f ms", ms)
	}
	return Seconds(ms / 1000)
}

// Seconds writes a length of time.
func Seconds(s float64) string {
	switch {
	case math.IsNaN(s):
		return unknown
	case s == 0:
		return "0 s"
	case s < 0.9995:
		return Milliseconds(s * 1000)
	case s < 9.95:
		return trim("%.1f", s) + " s"
	case s < 119.5:
		return fmt.Sprintf("%.0f s", s)
	}
	minutes := int(math.Round(s)) / 60
	rest := int(math.Round(s)) % 60
	text := fmt.Sprintf("%d min", minutes)
	if minutes >= 60 {
		text = fmt.Sprintf("%d h %d min", minutes/60, minutes%60)
	}
	if rest > 0 {
		text += fmt.Sprintf(" %d s", rest)
	}
	return strings.ReplaceAll(text, " 0 min", "")
}

// Number writes a count or a rate.
func Number(v float64) string {
	switch {
	case math.IsNaN(v):
		return unknown
	case math.Abs(v) >= 9.95 || v == math.Trunc(v):
		return humanize.Comma(int64(math.Round(v)))
	}
	return trim("%.2g", v)
}

// Bytes writes a size.
func Bytes(v float64) string {
	if math.IsNaN(v) {
		return unknown
	}
	return humanize.IBytes(uint64(max(v, 0)))
}

// Cores writes processor time over time.
func Cores(v float64) string {
	if math.IsNaN(v) {
		return unknown
	}
	return trim("%.2f", v)
}

func trim(format string, v float64) string {
	text := fmt.Sprintf(format, v)
	if strings.Contains(text, ".") && !strings.Contains(text, "e") {
		text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	}
	return text
}

// counted writes a number of things; many gets its s by itself.
func counted(n int64, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return humanize.Comma(n) + " " + one + "s"
}

// Sentence says in one sentence what came of the run.
func Sentence(r *record.Recording) string {
	v := &r.Verdict
	if v.Held && r.Totals.Changes == 0 {
		return "Nothing was tested: no update was sent."
	}
	if v.Held {
		text := "Nothing was lost, late or doubled in " + counted(r.Totals.Sent, "update")
		if n := len(r.Clusters); n > 0 {
			text += " of " + counted(int64(n), "cluster")
		}
		if n := len(r.Faults); n > 0 {
			text += ", through " + counted(int64(n), "fault")
		}
		return text + "."
	}
	var wrong []string
	for _, c := range v.Zeros.List() {
		if c.Count != 0 {
			wrong = append(wrong, humanize.Comma(c.Count)+" "+c.Name)
		}
	}
	missed := 0
	for _, e := range v.Expectations {
		if !e.Held {
			missed++
		}
	}
	if missed > 0 {
		wrong = append(wrong, fmt.Sprintf("%d of %s not met", missed, counted(int64(len(v.Expectations)), "expectation")))
	}
	if v.Unsettled != "" {
		wrong = append(wrong, "not all had settled at the end")
	}
	return "It did not hold: " + strings.Join(wrong, ", ") + "."
}

// keyFigure is a number that stands for the run.
type keyFigure struct {
	// Label says what it is, Note how to take it.
	Label, Value, Note string
}

// keyFigures are those that one looks for first.
func keyFigures(r *record.Recording) []keyFigure {
	mean, peak := rates(r)
	figures := []keyFigure{
		{"published", Number(mean) + "/s", "changes, on average; " + Number(peak) + "/s in the busiest second"},
	}
	calm, note := r.Latency.Calm, "without faults, p50"
	if calm.Count == 0 {
		calm, note = r.Latency.All, "p50"
	}
	figures = append(figures,
		keyFigure{"latency", Milliseconds(calm.P50MS), note + ", from when an update was due to its publish"},
		keyFigure{"latency p99", Milliseconds(calm.P99MS), "p99.9 " + Milliseconds(calm.P999MS)},
	)
	if d := r.Latency.Disturbed; d.Count > 0 {
		figures = append(figures, keyFigure{"p99 during faults", Milliseconds(d.P99MS), "max " + Milliseconds(d.MaxMS)})
	}
	figures = append(figures, keyFigure{"most waiting", Number(float64(r.PeakWaiting())), "changes sent and not yet published"})
	for _, m := range moveSummaries(r) {
		figures = append(figures, keyFigure{"longest " + m.name, Seconds(m.longest.TookS), "without an owner, of " + counted(int64(m.count), "move")})
	}
	return figures
}

// rates are changes published a second, on average and in the busiest one.
func rates(r *record.Recording) (mean, peak float64) {
	sum := 0.0
	for _, s := range r.Seconds {
		sum += float64(s.Published)
		peak = max(peak, float64(s.Published))
	}
	if r.DurationS > 0 {
		mean = sum / r.DurationS
	}
	return mean, peak
}

type moveSummary struct {
	name    string
	count   int
	median  float64
	longest *record.Move
}

// moveSummaries are those of the kinds of moves that there were.
func moveSummaries(r *record.Recording) (all []moveSummary) {
	for _, k := range []struct {
		kind record.MoveKind
		name string
	}{{record.Planned, "planned move"}, {record.Crash, "take-over"}} {
		moves := r.MovesOf(k.kind)
		if len(moves) == 0 {
			continue
		}
		took := make([]float64, len(moves))
		for i, m := range moves {
			took[i] = m.TookS
		}
		all = append(all, moveSummary{k.name, len(moves), median(took), record.LongestMove(moves)})
	}
	return all
}

func median(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}

// faultFigures are what a fault did to the whole.
type faultFigures struct {
	p99, waiting float64
	// lowest is the fewest changes that were published in a second.
	lowest float64
}

func figuresOf(r *record.Recording, f *record.Fault) faultFigures {
	figures := faultFigures{lowest: math.NaN()}
	for i, s := range r.Seconds {
		if !f.Disturbs(i) {
			continue
		}
		figures.p99 = max(figures.p99, s.Latency.P99MS)
		figures.waiting = max(figures.waiting, float64(s.Waiting))
		if whole := float64(i+1) <= r.DurationS; whole {
			figures.lowest = least(figures.lowest, float64(s.Published))
		}
	}
	return figures
}

// least is the lower one of two, of which a may be unknown.
func least(a, b float64) float64 {
	if math.IsNaN(a) {
		return b
	}
	return min(a, b)
}
