// Package report shows the figures of a benchmark: as a table for whoever ran
// it, as JSON for whoever compares, as a picture for whoever reads about it.
//
// Figures are plain values; the package owns none of them.
package report

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
)

// Figure is one thing that was measured.
type Figure struct {
	// ID groups figures: P1 to P7 are targets, L1 and so on the limits of the
	// machine underneath.
	ID   string `json:"id"`
	What string `json:"what"`
	// Figure is in Unit.
	Figure float64 `json:"figure"`
	Unit   string  `json:"unit"`
	// Baseline is what it is held against, in the same unit, and Ratio Figure
	// over Baseline; both are null if it stands alone.
	Baseline *float64 `json:"baseline"`
	Ratio    *float64 `json:"ratio"`
	// Target is "" for what is only told; then Holds is null.
	Target string `json:"target"`
	Holds  *bool  `json:"holds"`

	// margin is how far beyond its target it is, as a factor; 1: just there.
	margin float64
}

// Of says what a target is about.
type Of string

// The two things that a target can bound.
const (
	OfFigure Of = "figure"
	OfRatio  Of = "ratio"
)

// Target is a bound of a figure or of its ratio.
type Target struct {
	Of Of
	// AtLeast or AtMost is the bound; the other one is 0.
	AtLeast, AtMost float64
}

// New makes a figure. A baseline of 0 is none; a nil target, too.
func New(id, what string, figure float64, unit string, baseline float64, target *Target) Figure {
	f := Figure{ID: id, What: what, Figure: figure, Unit: unit}
	if baseline != 0 {
		ratio := figure / baseline
		f.Baseline, f.Ratio = &baseline, &ratio
	}
	if target == nil {
		return f
	}
	value := figure
	if target.Of == OfRatio {
		value = math.NaN()
		if f.Ratio != nil {
			value = *f.Ratio
		}
	}
	var holds bool
	if target.AtLeast != 0 {
		f.Target = fmt.Sprintf("%s >= %s", target.Of, Number(target.AtLeast))
		holds, f.margin = value >= target.AtLeast, value/target.AtLeast
	} else {
		f.Target = fmt.Sprintf("%s <= %s", target.Of, Number(target.AtMost))
		holds, f.margin = value <= target.AtMost, target.AtMost/max(value, target.AtMost/1000)
	}
	f.Holds = &holds
	return f
}

// Number writes a number with as many digits as mean something.
func Number(v float64) string {
	switch abs := math.Abs(v); {
	case math.IsNaN(v):
		return "-"
	case abs >= 1000:
		return thousands(int64(math.Round(v)))
	case abs >= 100, abs == math.Trunc(abs):
		return fmt.Sprintf("%.0f", v)
	case abs >= 10:
		return fmt.Sprintf("%.1f", v)
	case abs >= 0.1:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.2g", v)
	}
}

func thousands(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// WriteJSON writes a value as a file, indented.
func WriteJSON(path string, v any) error {
	encoded, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	if err := os.WriteFile(path, append(encoded, '\n'), 0o644); err != nil {
		return fmt.Errorf("write a result: %w", err)
	}
	return nil
}
