package report

import (
	"io"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// Table writes the figures for a terminal, in their order.
func Table(w io.Writer, title string, figures []Figure) {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.SetTitle("%s", title)
	t.SetStyle(table.StyleLight)
	t.Style().Title.Align = text.AlignLeft
	t.AppendHeader(table.Row{"", "what", "figure", "unit", "baseline", "ratio", "target", ""})
	right := text.AlignRight
	t.SetColumnConfigs([]table.ColumnConfig{
		{Number: 1, AutoMerge: true}, {Number: 3, Align: right}, {Number: 5, Align: right}, {Number: 6, Align: right},
	})
	last := ""
	for _, f := range figures {
		if last != "" && f.ID != last {
			t.AppendSeparator()
		}
		last = f.ID
		t.AppendRow(table.Row{f.ID, f.What, Number(f.Figure), f.Unit, number(f.Baseline), number(f.Ratio), f.Target, verdict(f)})
	}
	t.Render()
}

func number(v *float64) string {
	if v == nil {
		return ""
	}
	return Number(*v)
}

func verdict(f Figure) string {
	switch {
	case f.Holds == nil:
		return ""
	case *f.Holds:
		return "holds"
	}
	return "MISSED"
}
