package settings

import (
	"fmt"
	"strings"
)

// Error is everything that is wrong with a configuration.
type Error struct {
	Problems []Problem // at least one
}

// Error lists the problems, one a line if there are several.
func (e *Error) Error() string {
	if len(e.Problems) == 1 {
		return "configuration: " + e.Problems[0].String()
	}
	var out strings.Builder
	fmt.Fprintf(&out, "configuration: %d problems", len(e.Problems))
	for _, p := range e.Problems {
		out.WriteString("\n  " + p.String())
	}
	return out.String()
}

// Problem is one thing that is wrong, or that is worth a warning. It holds no
// secret.
type Problem struct {
	Source  string // the file, or "environment NAME", or "flag --name"; empty = no single one
	Line    int    // in the file, counted from 1; 0 = unknown
	Key     string // path of the key, as in pipeline.lanes; empty = the file as a whole
	What    string // what is wrong
	Allowed string // what is allowed there; empty = said by What
}

// String is the problem in one line, the place first.
func (p Problem) String() string {
	var parts []string
	switch {
	case p.Line > 0:
		parts = append(parts, fmt.Sprintf("%s:%d", p.Source, p.Line))
	case p.Source != "":
		parts = append(parts, p.Source)
	}
	if p.Key != "" {
		parts = append(parts, p.Key)
	}
	what := p.What
	if p.Allowed != "" {
		what += "; allowed is " + p.Allowed
	}
	return strings.Join(append(parts, what), ": ")
}

// nearest returns the known name that name was likely meant to be: the one
// with the fewest letters changed, if they are few.
func nearest(name string, known []string) (string, bool) {
	best, found := 1+max(1, len(name)/3), ""
	for _, k := range known {
		if d := distance(strings.ToLower(name), strings.ToLower(k)); d < best {
			best, found = d, k
		}
	}
	return found, found != ""
}

// distance counts the letters to insert, remove, replace or swap with their
// neighbour to make b of a.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	// Rows of the table before last, last and now.
	older, old, row := make([]int, len(y)+1), make([]int, len(y)+1), make([]int, len(y)+1)
	for j := range old {
		old[j] = j
	}
	for i := 1; i <= len(x); i++ {
		row[0] = i
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			row[j] = min(old[j]+1, row[j-1]+1, old[j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				row[j] = min(row[j], older[j-2]+1)
			}
		}
		older, old, row = old, row, older
	}
	return old[len(y)]
}
