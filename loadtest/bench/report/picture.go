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
	pictureWidth = 1320
	lineHeight   = 400

	// The names lie left of barLeft, the bars between barLeft and barRight,
	// what was measured right of that.
	barLeft   = 560
	barRight  = 980
	barTop    = 84
	barHeight = 26
)

// Picture draws how far each figure is beyond its target and, if there are any,
// the latencies, as a PNG.
func Picture(path, subtitle string, figures []Figure, latencies []Latencies) error {
	bars := bars(figures)
	if len(bars) == 0 {
		return nil
	}
	barsHeight := 2*barTop + barHeight*len(bars)
	height := barsHeight
	if len(latencies) > 0 {
		height += lineHeight
	}
	p := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputPNG, Width: pictureWidth, Height: height})
	p.FilledRect(0, 0, pictureWidth, height, charts.ColorWhite, charts.ColorWhite, 0)
	drawBars(p, subtitle, bars)
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

// bars are the figures that have a target.
func bars(figures []Figure) (out []Figure) {
	for _, f := range figures {
		if f.Holds != nil {
			out = append(out, f)
		}
	}
	return out
}

// drawBars draws the table of bars by hand: a chart has no room for names as
// long as ours, nor for what was measured behind each bar.
func drawBars(p *charts.Painter, subtitle string, figures []Figure) {
	const margin = 16
	var (
		dark   = charts.Color{R: 0x33, G: 0x33, B: 0x33, A: 0xff}
		pale   = charts.Color{R: 0xdd, G: 0xdd, B: 0xe4, A: 0xff}
		held   = charts.Color{R: 0x9a, G: 0xcf, B: 0x9f, A: 0xff}
		missed = charts.Color{R: 0xf0, G: 0x9a, B: 0x94, A: 0xff}
	)
	font := func(size float64) charts.FontStyle { return charts.FontStyle{FontSize: size, FontColor: dark} }
	p.Text("How far each figure is beyond its target (1 = just there)", margin, 32, 0, font(14))
	p.Text(subtitle, margin, 54, 0, font(9))
	at := func(margin float64) int {
		return barLeft + int(float64(barRight-barLeft)*min(margin, mostMargin)/mostMargin)
	}
	bottom := barTop + barHeight*len(figures)
	for tick := 0.0; tick <= mostMargin; tick += 0.5 {
		width, color := 1.0, pale
		if tick == 1 {
			width, color = 2, dark
		}
		p.LineStroke([]charts.Point{{X: at(tick), Y: barTop - 4}, {X: at(tick), Y: bottom}}, color, width)
		p.Text(Number(tick), at(tick)-6, bottom+18, 0, font(9))
	}
	for i, f := range figures {
		y := barTop + barHeight*i
		name := f.ID + "  " + f.What
		p.Text(name, barLeft-10-p.MeasureText(name, 0, font(9)).Width(), y+16, 0, font(9))
		color := missed
		if *f.Holds {
			color = held
		}
		p.FilledRect(barLeft, y+3, max(at(f.margin), barLeft+2), y+barHeight-3, color, color, 0)
		said := Number(f.Figure) + " " + f.Unit
		if f.Ratio != nil {
			said += " = " + Number(*f.Ratio) + " x " + Number(*f.Baseline)
		}
		p.Text(said+"   ("+f.Target+")", barRight+12, y+16, 0, font(9))
	}
	// The line of the target lies over the bars.
	p.LineStroke([]charts.Point{{X: at(1), Y: barTop - 4}, {X: at(1), Y: bottom}}, dark, 2)
}

func drawLatencies(p *charts.Painter, latencies []Latencies) error {
	var values [][]float64
	var names []string
	for _, l := range latencies {
		values = append(values, []float64{l.P50, l.P90, l.P99, l.P999})
		names = append(names, l.Name)
	}
	opt := charts.NewBarChartOptionWithData(values)
	opt.Title.Text = "P3: from send to publish, and of a raw write, in ms"
	opt.Title.FontStyle.FontSize = 14
	opt.Legend.SeriesNames = names
	opt.Legend.Offset = charts.OffsetStr{Left: charts.PositionRight}
	opt.CategoryAxis.Labels = []string{"p50", "p90", "p99", "p99.9"}
	opt.ValueAxis = []charts.ValueAxisOption{{Min: charts.Ptr(0.0), ValueFormatter: Number}}
	for i := range opt.SeriesList {
		opt.SeriesList[i].Label.Show = charts.Ptr(true)
		opt.SeriesList[i].Label.ValueFormatter = Number
		opt.SeriesList[i].Label.FontStyle.FontSize = 9
	}
	opt.Padding = charts.NewBoxEqual(16)
	return p.BarChart(opt)
}
