package report

import (
	"fmt"
	"io"
	"os"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// Table writes the figures for a terminal, in their order.
func Table(w io.Writer, title string, figures []Figure) {
	t := newTable(figures, true)
	t.SetOutputMirror(w)
	t.SetTitle("%s", title)
	t.Render()
}

// Markdown writes the figures as a file that can be read beside the docs.
func Markdown(path, title string, figures []Figure) error {
	content := "# Measured\n\n" + title + "\n\n" + newTable(figures, false).RenderMarkdown() + "\n"
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		return fmt.Errorf("write a result: %w", err)
	}
	return nil
}

func newTable(figures []Figure, separated bool) table.Writer {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Title.Align = text.AlignLeft
	t.AppendHeader(table.Row{"", "what", "figure", "unit", "baseline", "ratio", "target", ""})
	right := text.AlignRight
	t.SetColumnConfigs([]table.ColumnConfig{
		{Number: 1, AutoMerge: true}, {Number: 3, Align: right}, {Number: 5, Align: right}, {Number: 6, Align: right},
	})
	last := ""
	for _, f := range figures {
		if separated && last != "" && f.ID != last {
			t.AppendSeparator()
		}
		last = f.ID
		t.AppendRow(table.Row{f.ID, f.What, Number(f.Figure), f.Unit, number(f.Baseline), number(f.Ratio), f.Target, verdict(f)})
	}
	return t
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
