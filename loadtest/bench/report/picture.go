package report

import (
	"fmt"
	"os"

	"github.com/go-analyze/charts"
)

// Latencies are quantiles in milliseconds.
type Latencies struct {
	Name                string
	P50, P90, P99, P999 float64
}

// mostMargin is where bars are cut off: beyond it only the number counts.
const mostMargin = 3.0

const (
	pictureWidth = 1240
	barHeight    = 26
	lineHeight   = 420
)

// Picture draws how far each figure is beyond its target and, if there are any,
// the latencies, as a PNG.
func Picture(path, subtitle string, figures []Figure, latencies []Latencies) error {
	bars := bars(figures)
	if len(bars) == 0 {
		return nil
	}
	barsHeight := 130 + barHeight*len(bars)
	height := barsHeight
	if len(latencies) > 0 {
		height += lineHeight
	}
	p := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputPNG, Width: pictureWidth, Height: height})
	p.FilledRect(0, 0, pictureWidth, height, charts.ColorWhite, charts.ColorWhite, 0)
	top := p.Child(charts.PainterBoxOption(charts.NewBox(0, 0, pictureWidth, barsHeight)))
	if err := drawBars(top, subtitle, bars); err != nil {
		return fmt.Errorf("draw the targets: %w", err)
	}
	if len(latencies) > 0 {
		below := p.Child(charts.PainterBoxOption(charts.NewBox(0, barsHeight, pictureWidth, height)))
		if err := drawLatencies(below, latencies); err != nil {
			return fmt.Errorf("draw the latencies: %w", err)
		}
	}
	encoded, err := p.Bytes()
	if err != nil {
		return fmt.Errorf("draw %s: %w", path, err)
	}
	if err := os.WriteFile(path, encoded, 0o644); err != nil {
		return fmt.Errorf("write a picture: %w", err)
	}
	return nil
}

// bars are the figures that have a target; the first goes to the top, and the
// axis counts from the bottom.
func bars(figures []Figure) (out []Figure) {
	for i := len(figures) - 1; i >= 0; i-- {
		if figures[i].Holds != nil {
			out = append(out, figures[i])
		}
	}
	return out
}

func drawBars(p *charts.Painter, subtitle string, figures []Figure) error {
	held, missed := make([]float64, len(figures)), make([]float64, len(figures))
	names := make([]string, len(figures))
	for i, f := range figures {
		names[i] = f.ID + "  " + f.What
		if *f.Holds {
			held[i] = min(f.margin, mostMargin)
		} else {
			missed[i] = f.margin
		}
	}
	label := func(values []float64) charts.SeriesLabel {
		return charts.SeriesLabel{
			Show:      charts.Ptr(true),
			FontStyle: charts.FontStyle{FontSize: 9},
			LabelFormatter: func(i int, _ string, _ float64) (string, *charts.LabelStyle) {
				if values[i] == 0 {
					return "", nil
				}
				f := figures[i]
				text := fmt.Sprintf("%s %s", Number(f.Figure), f.Unit)
				if f.Ratio != nil {
					text += fmt.Sprintf(" = %s x baseline", Number(*f.Ratio))
				}
				return text + "  (" + f.Target + ")", nil
			},
		}
	}
	series := charts.NewSeriesListBar([][]float64{held, missed})
	series[0].Name, series[0].Label = "holds", label(held)
	series[1].Name, series[1].Label = "missed", label(missed)
	opt := charts.NewBarChartOptionWithSeries(series)
	opt.Horizontal = true
	opt.StackSeries = charts.Ptr(true)
	opt.SeriesLabelPosition = charts.PositionLeft
	opt.BarSize = 0.8
	opt.Theme = charts.GetDefaultTheme().WithSeriesColors([]charts.Color{
		{R: 0x9a, G: 0xcf, B: 0x9f, A: 255}, {R: 0xf0, G: 0x9a, B: 0x94, A: 255},
	})
	opt.Title.Text = "How far each figure is beyond its target (1 = just there)"
	opt.Title.Subtext = subtitle
	opt.Title.FontStyle.FontSize = 14
	opt.Title.SubtextFontStyle.FontSize = 9
	opt.Legend.Offset = charts.OffsetStr{Left: charts.PositionRight}
	opt.CategoryAxis.Labels = names
	opt.CategoryAxis.LabelFontStyle.FontSize = 9
	opt.ValueAxis = []charts.ValueAxisOption{{
		Min: charts.Ptr(0.0), Max: charts.Ptr(mostMargin), Unit: 0.5, LabelCount: 7, SplitLineShow: charts.Ptr(true),
	}}
	opt.Padding = charts.NewBoxEqual(16)
	return p.BarChart(opt)
}

func drawLatencies(p *charts.Painter, latencies []Latencies) error {
	var values [][]float64
	var names []string
	for _, l := range latencies {
		values = append(values, []float64{l.P50, l.P90, l.P99, l.P999})
		names = append(names, l.Name)
	}
	opt := charts.NewLineChartOptionWithData(values)
	opt.Title.Text = "P3: latency by percentile, ms"
	opt.Title.FontStyle.FontSize = 14
	opt.Legend.SeriesNames = names
	opt.Legend.Offset = charts.OffsetStr{Left: charts.PositionRight}
	opt.XAxis.Labels = []string{"p50", "p90", "p99", "p99.9"}
	opt.YAxis = []charts.YAxisOption{{Min: charts.Ptr(0.0)}}
	opt.ValueFormatter = Number
	for i := range opt.SeriesList {
		opt.SeriesList[i].Label.Show = charts.Ptr(true)
		opt.SeriesList[i].Label.ValueFormatter = Number
	}
	opt.Padding = charts.NewBoxEqual(16)
	return p.LineChart(opt)
}
