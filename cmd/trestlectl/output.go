package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	formatTable = "table"
	formatWide  = "wide"
	formatJSON  = "json"
	formatYAML  = "yaml"
)

func formats() []string { return []string{formatTable, formatWide, formatJSON, formatYAML} }

// forPeople says that tables are wanted, not what machines read.
func (p *program) forPeople() bool { return p.format == formatTable || p.format == formatWide }

// print writes an answer: as it came for machines, as show draws it for people.
func (p *program) print(m proto.Message, show func(*page)) error {
	if p.forPeople() {
		page := p.page()
		show(page)
		_, err := p.streams.out.Write(page.Bytes())
		return err
	}
	// The order and the blanks of protojson differ from build to build.
	raw, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return err
	}
	return p.printJSON(raw)
}

// printJSON writes JSON as it is, or as YAML.
func (p *program) printJSON(raw []byte) error {
	var out bytes.Buffer
	if p.format == formatYAML {
		if err := toYAML(&out, raw); err != nil {
			return err
		}
	} else {
		if err := json.Indent(&out, raw, "", "  "); err != nil {
			return err
		}
		out.WriteByte('\n')
	}
	_, err := p.streams.out.Write(out.Bytes())
	return err
}

// emit writes one of many: JSON on a line of its own, YAML as a document.
func (p *program) emit(raw []byte) error {
	var out bytes.Buffer
	if p.format == formatYAML {
		out.WriteString("---\n")
		if err := toYAML(&out, raw); err != nil {
			return err
		}
	} else {
		if err := json.Compact(&out, raw); err != nil {
			return err
		}
		out.WriteByte('\n')
	}
	_, err := p.streams.out.Write(out.Bytes())
	return err
}

// toYAML keeps the order of the JSON, which is YAML too.
func toYAML(w io.Writer, raw []byte) error {
	var node yaml.Node
	if err := yaml.Unmarshal(raw, &node); err != nil {
		return err
	}
	var block func(*yaml.Node)
	block = func(n *yaml.Node) {
		n.Style = 0
		for _, child := range n.Content {
			block(child)
		}
	}
	block(&node)
	encoder := yaml.NewEncoder(w)
	encoder.SetIndent(2)
	if err := encoder.Encode(&node); err != nil {
		return err
	}
	return encoder.Close()
}

// page is what people read, as of one time.
type page struct {
	bytes.Buffer
	wide bool
	now  time.Time
	// A table that goes on has no header. Its columns are at least as wide as
	// widths says, where that is set, which then says how wide they are.
	goesOn bool
	widths []int
}

func (p *program) page() *page { return &page{wide: p.format == formatWide, now: time.Now()} }

func (g *page) line(format string, args ...any) {
	for i, a := range args {
		if s, is := a.(string); is {
			args[i] = plain(s)
		}
	}
	fmt.Fprintf(&g.Buffer, format+"\n", args...)
}

// column is one of a table; those that are wide show with -o wide alone.
type column struct {
	title string
	wide  bool
	right bool
	// number says that it is one although it is not on the right.
	number bool
}

// counted says that its cells are compared as numbers.
func (c column) counted() bool { return c.right || c.number }

func (g *page) table(columns []column, rows [][]string) {
	w := table.NewWriter()
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	style.Format.Header = text.FormatDefault
	w.SetStyle(style)
	w.SuppressTrailingSpaces()
	var header table.Row
	var configs []table.ColumnConfig
	widths := make([]int, 0, len(columns))
	for i, c := range columns {
		if c.wide && !g.wide {
			continue
		}
		header = append(header, c.title)
		config := table.ColumnConfig{Number: len(header)}
		width := text.StringWidth(c.title)
		for _, row := range rows {
			width = max(width, text.StringWidth(plain(row[i])))
		}
		if len(g.widths) >= len(header) {
			width = max(width, g.widths[len(header)-1])
		}
		config.WidthMin = width
		widths = append(widths, width)
		if c.right {
			config.Align, config.AlignHeader = text.AlignRight, text.AlignRight
		}
		configs = append(configs, config)
	}
	if !g.goesOn {
		w.AppendHeader(header)
	}
	if g.widths != nil {
		g.widths = widths
	}
	w.SetColumnConfigs(configs)
	for _, row := range rows {
		var cells table.Row
		for i, c := range columns {
			if !c.wide || g.wide {
				cells = append(cells, plain(row[i]))
			}
		}
		w.AppendRow(cells)
	}
	g.WriteString(w.Render())
	g.WriteByte('\n')
}

// plain has no characters that a terminal would act on: texts come from other
// people.
func plain(s string, but ...rune) string {
	return strings.Map(func(r rune) rune {
		for _, b := range but {
			if r == b {
				return r
			}
		}
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return '·'
		}
		return r
	}, s)
}

// age is how long ago something was, roughly.
func (g *page) age(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return roughly(g.now.Sub(t.AsTime()))
}

// ends says when something lapses, in brackets, or nothing.
func (g *page) ends(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return fmt.Sprintf(" (for %s more)", roughly(t.AsTime().Sub(g.now)))
}

func roughly(d time.Duration) string {
	switch d = max(d, 0); {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// orNone is for cells that would be empty.
func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// warn tells of what makes an answer doubtful.
func (p *program) warn(format string, args ...any) {
	fmt.Fprintf(p.streams.err, "trestlectl: warning: "+format+"\n", args...)
}

func (p *program) warnDetached(detached bool) {
	if detached {
		p.warn("the replica that answers is cut off from etcd, so this may be old; ask another one with --address")
	}
}
