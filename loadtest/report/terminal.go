package report

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/trestle-bridge/trestle/loadtest/record"
	"github.com/trestle-bridge/trestle/loadtest/report/chart"
)

// TerminalConfig says what the terminal can do.
type TerminalConfig struct {
	// Width in columns; 0: 100, as for a file.
	Width int
	// Color marks what is good and bad, for terminals.
	Color bool
}

// maxLines is how many lines of a kind are shown; the page has more of them.
const maxLines = 12

// terminal gathers the text.
type terminal struct {
	cfg TerminalConfig
	r   *record.Recording
	out strings.Builder
}

// Terminal writes the report for a terminal.
func Terminal(w io.Writer, cfg TerminalConfig, r *record.Recording) error {
	if cfg.Width <= 0 {
		cfg.Width = 100
	}
	cfg.Width = max(cfg.Width, 40)
	t := &terminal{cfg: cfg, r: r}
	t.verdict()
	t.timeline()
	t.latency()
	t.faults()
	t.replicas()
	t.notes()
	if _, err := io.WriteString(w, t.out.String()); err != nil {
		return fmt.Errorf("write the report of %q: %w", r.Scenario, err)
	}
	return nil
}

func (t *terminal) colored(s string, good bool) string {
	if !t.cfg.Color {
		return s
	}
	if good {
		return text.Colors{text.FgGreen, text.Bold}.EscapeSeq() + s + text.Reset.EscapeSeq()
	}
	return text.Colors{text.FgRed, text.Bold}.EscapeSeq() + s + text.Reset.EscapeSeq()
}

func (t *terminal) line(format string, args ...any) {
	t.out.WriteString(printable(fmt.Sprintf(format, args...)) + "\n")
}

// table renders rows; columns after the first are set to the right but for those
// named in left.
func (t *terminal) table(title string, header table.Row, rows []table.Row, left ...int) {
	if len(rows) == 0 {
		return
	}
	w := table.NewWriter()
	w.SetStyle(table.StyleLight)
	w.Style().Title.Align = text.AlignLeft
	w.Style().Format.Header = text.FormatDefault
	w.Style().Size.WidthMax = t.cfg.Width
	w.SetTitle("%s", title)
	w.AppendHeader(header)
	var columns []table.ColumnConfig
	for i := range header {
		c := table.ColumnConfig{Number: i + 1, Align: text.AlignRight, AlignHeader: text.AlignRight}
		if i == 0 || slices.Contains(left, i+1) {
			c.Align, c.AlignHeader = text.AlignLeft, text.AlignLeft
			c.WidthMax, c.WidthMaxEnforcer = t.cfg.Width*2/5, text.WrapSoft
		}
		columns = append(columns, c)
	}
	w.SetColumnConfigs(columns)
	for _, row := range rows {
		w.AppendRow(row)
	}
	t.out.WriteString(w.Render() + "\n\n")
}

func (t *terminal) verdict() {
	r := t.r
	mark := "✔ "
	if !r.Verdict.Held {
		mark = "✘ "
	}
	t.line("%s: %s", r.Scenario, r.Description)
	t.line("%s, seed %d, %s, %s", Seconds(r.DurationS), r.Seed, r.Product, environment(r))
	sentence := text.WrapSoft(printable(mark+Sentence(r)), t.cfg.Width)
	for l := range strings.SplitSeq(sentence, "\n") {
		t.out.WriteString("\n" + t.colored(strings.TrimRight(l, " "), r.Verdict.Held))
	}
	t.out.WriteString("\n\n")
	t.zeros()
	var rows []table.Row
	for _, e := range r.Verdict.Expectations {
		word := "met"
		if !e.Held {
			word = "MISSED"
		}
		rows = append(rows, table.Row{printable(e.What), printable(e.Want), printable(e.Got), t.colored(word, e.Held)})
	}
	t.table("expectations", table.Row{"", "want", "got", ""}, rows, 2, 3)
}

// zeros are in one row where that fits, and one below the other where not. What
// is not zero is explained.
func (t *terminal) zeros() {
	const wide = 92
	var header, counts table.Row
	var rows []table.Row
	var wrong []record.Count
	for _, c := range t.r.Verdict.Zeros.List() {
		count := t.colored(Number(float64(c.Count)), c.Count == 0)
		header, counts = append(header, c.Name), append(counts, count)
		rows = append(rows, table.Row{c.Name, count})
		if c.Count != 0 {
			wrong = append(wrong, c)
		}
	}
	if t.cfg.Width >= wide {
		t.table("must be zero", header, []table.Row{counts})
	} else {
		t.table("must be zero", table.Row{"", "count"}, rows)
	}
	for _, c := range wrong {
		t.line("%s: %s", c.Name, c.What)
	}
	if len(wrong) > 0 {
		t.out.WriteString("\n")
	}
}

func environment(r *record.Recording) string {
	where := "replicas of its own"
	if r.Environment.Installation == record.Existing {
		where = "an existing installation"
	}
	text := where + " on " + r.Environment.Machine
	for _, p := range r.Environment.Parts {
		text += ", " + p.Name + " " + p.Value
	}
	return text
}

// timeline draws what happened as lines of blocks, the faults below.
func (t *terminal) timeline() {
	const label = 13
	r := t.r
	columns := chart.NewColumns(r.DurationS, t.cfg.Width-label-14)
	if columns.N == 0 {
		return
	}
	rates, p99, waiting := secondly(r)
	draw := func(name string, values, drawn []float64, log bool, format func(float64) string) {
		most, least := extremes(values)
		scale := chart.Linear(most, 1, format)
		if log {
			scale = chart.Logarithmic(least, most, format)
		} else {
			scale.High = max(most, 1)
		}
		t.line("%-*s%s  max %s", label, name, blocks(drawn, scale), format(most))
	}
	draw("published/s", rates, columns.Mean(rates), false, Number)
	draw("p99 latency", p99, columns.Gather(p99, chart.Max), true, Milliseconds)
	draw("waiting", waiting, columns.Gather(waiting, chart.Max), false, Number)
	marks := []rune(strings.Repeat(" ", columns.N))
	for i, f := range r.Faults {
		from, until := place(columns, f.FromS), place(columns, f.EndS())
		for c := from; c <= until; c++ {
			if marks[c] == ' ' {
				marks[c] = '─'
			}
		}
		marks[from] = badge(i + 1)
	}
	if len(r.Faults) > 0 {
		t.line("%-*s%s", label, "faults", string(marks))
	}
	ticks := []rune(strings.Repeat(" ", columns.N+8))
	for _, tick := range chart.Time(r.DurationS, max(2, columns.N/12)) {
		copy(ticks[int(tick.Percent/100*float64(columns.N-1)):], []rune(tick.Label))
	}
	t.line("%-*s%s", label, "", strings.TrimRight(string(ticks), " "))
	t.out.WriteString("\n")
}

// place is the column of a moment; what is beyond the end is at the end.
func place(c chart.Columns, at float64) int {
	return min(max(int(at)/c.Seconds, 0), c.N-1)
}

// badge is a number in a single column.
func badge(n int) rune {
	if n <= 20 {
		return '①' + rune(n-1)
	}
	return '●'
}

// blocks draws values, one column each.
func blocks(values []float64, s chart.Scale) string {
	levels := []rune("▁▂▃▄▅▆▇█")
	var out strings.Builder
	for _, v := range values {
		if math.IsNaN(v) {
			out.WriteByte(' ')
			continue
		}
		out.WriteRune(levels[min(int(s.Place(v)*float64(len(levels))), len(levels)-1)])
	}
	return out.String()
}

func (t *terminal) latency() {
	row := func(name string, l record.Latency) table.Row {
		return table.Row{printable(name), Number(float64(l.Count)), Milliseconds(l.P50MS), Milliseconds(l.P90MS), Milliseconds(l.P99MS), Milliseconds(l.P999MS), Milliseconds(l.MaxMS)}
	}
	l := t.r.Latency
	rows := []table.Row{row("all", l.All)}
	if l.Disturbed.Count > 0 {
		rows = append(rows, row("without faults", l.Calm), row("during faults", l.Disturbed))
	}
	slow, left := slowest(t.r.Clusters, maxLines/2)
	if len(t.r.Clusters) > 1 {
		for _, c := range slow {
			rows = append(rows, row(c.Name, c.Latency))
		}
	}
	t.table("latency, from when an update was due to its publish", table.Row{"", "changes", "p50", "p90", "p99", "p99.9", "max"}, rows)
	if left > 0 {
		t.line("%s with lower p99 not shown\n", counted(int64(left), "more cluster"))
	}
	rows = nil
	for _, m := range moveSummaries(t.r) {
		rows = append(rows, table.Row{m.name, m.count, Seconds(m.median), Seconds(m.longest.TookS), printable(m.longest.ShardName())})
	}
	t.table("shards that moved, and how long they had no owner", table.Row{"", "moves", "median", "longest", "of"}, rows, 5)
}

func (t *terminal) faults() {
	var rows []table.Row
	for i := range t.r.Faults {
		f := &t.r.Faults[i]
		if i == maxLines {
			break
		}
		got := figuresOf(t.r, f)
		rows = append(rows, table.Row{
			string(badge(i+1)) + " " + printable(f.Name), printable(f.Target), chart.Clock(f.FromS), Seconds(f.UntilS - f.FromS), recovery(f),
			Milliseconds(got.p99), Number(got.waiting),
		})
	}
	t.table("faults", table.Row{"", "target", "at", "for", "recovered after", "worst p99", "most waiting"}, rows, 2)
	if left := len(t.r.Faults) - maxLines; left > 0 {
		t.line("%s not shown\n", counted(int64(left), "more fault"))
	}
}

// recovery is how long after a fault's end all was as before.
func recovery(f *record.Fault) string {
	if f.RecoveredS == nil {
		return unknown
	}
	return Seconds(math.Max(0, *f.RecoveredS-f.UntilS))
}

func (t *terminal) replicas() {
	var rows []table.Row
	for _, p := range t.r.Replicas {
		u := usageOf(&p)
		rows = append(rows, table.Row{printable(p.Name), len(p.Lives), Cores(u.cpuMean), Cores(u.cpu), Bytes(u.rss), Number(u.waiting), shardsRange(u)})
	}
	t.table("replicas", table.Row{"", "lives", "cores", "most", "memory", "most waiting", "shards"}, rows)
}

func shardsRange(u usage) string {
	if math.IsNaN(u.shardsLeast) {
		return unknown
	}
	if u.shardsLeast == u.shardsMost {
		return Number(u.shardsMost)
	}
	return Number(u.shardsLeast) + " to " + Number(u.shardsMost)
}

func (t *terminal) notes() {
	var rows []table.Row
	for _, c := range t.r.Verdict.Information {
		rows = append(rows, table.Row{printable(c.Name), Number(float64(c.Count)), printable(c.What)})
	}
	t.table("for information", table.Row{"", "count", ""}, rows, 3)
	v := &t.r.Verdict
	if v.Unsettled != "" {
		t.line("not settled: %s", v.Unsettled)
	}
	for i, f := range v.Findings {
		if i == maxLines {
			t.line("and %s, in the recording", counted(int64(len(v.Findings)-i), "more finding"))
			break
		}
		t.line("%s", f)
	}
}
