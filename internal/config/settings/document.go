package settings

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// section is the tree of the keys that a mapping may hold.
type section struct {
	names []string // in the order of the table
	child map[string]*section
	key   *Key // of a leaf
}

func newSection() *section { return &section{child: map[string]*section{}} }

func sectionOf(table []Key) *section {
	root := newSection()
	for i := range table {
		if table[i].NoFile {
			continue
		}
		s := root
		for name := range strings.SplitSeq(table[i].Path, ".") {
			next := s.child[name]
			if next == nil {
				next = newSection()
				s.child[name] = next
				s.names = append(s.names, name)
			}
			s = next
		}
		s.key = &table[i]
	}
	return root
}

func join(prefix, name string) string {
	if prefix == "" {
		return name
	}
	return prefix + "." + name
}

// document reads the tree of one file into the values of a table.
type document struct {
	file     string
	table    []Key
	problems []Problem
	warnings []Problem
	sources  Sources
}

func (d *document) problem(n *yaml.Node, path, what, allowed string) {
	d.problems = append(d.problems, Problem{Source: d.file, Line: n.Line, Key: path, What: what, Allowed: allowed})
}

func (d *document) note(n *yaml.Node, path string) {
	d.sources[path] = Source{Weight: FromFile, Name: d.file, Line: n.Line}
}

func (d *document) read(data []byte, table []Key) {
	d.table = table
	if content := d.parse(data); content != nil {
		d.mapping(content, sectionOf(table), "")
	}
}

// parse returns the root mapping, nil if the document is empty or broken.
func (d *document) parse(data []byte) *yaml.Node {
	decoder := yaml.NewDecoder(bytes.NewReader(plainEscapes(data)))
	var root, second yaml.Node
	switch err := decoder.Decode(&root); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		d.malformed(err)
		return nil
	}
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		d.problem(&second, "", "holds more than one document", "")
		return nil
	}
	content := resolve(root.Content[0])
	if isNull(content) {
		return nil
	}
	if content.Kind != yaml.MappingNode {
		d.problem(content, "", "is "+kindName(content), "a mapping of keys to values")
		return nil
	}
	return content
}

// malformed reports what the parser says, its "line 7: " put where it belongs.
func (d *document) malformed(err error) {
	what, line := strings.TrimPrefix(err.Error(), "yaml: "), 0
	if place, rest, ok := strings.Cut(what, ": "); ok {
		if digits, isLine := strings.CutPrefix(place, "line "); isLine {
			if n, err := strconv.Atoi(digits); err == nil {
				what, line = rest, n
			}
		}
	}
	d.problems = append(d.problems, Problem{Source: d.file, Line: line, What: "is neither YAML nor JSON: " + what})
}

// plainEscapes replaces those escapes of JSON that the YAML parser refuses by
// the characters that they stand for: the slash, and characters beyond the
// first plane, which come in two halves.
func plainEscapes(data []byte) []byte {
	if !bytes.Contains(data, []byte(`\u`)) && !bytes.Contains(data, []byte(`\/`)) || !json.Valid(data) {
		return data
	}
	out := make([]byte, 0, len(data))
	for i := 0; i < len(data); i++ {
		if data[i] != '\\' {
			out = append(out, data[i])
			continue
		}
		if i+12 <= len(data) && data[i+1] == 'u' && data[i+6] == '\\' && data[i+7] == 'u' {
			var both string
			if json.Unmarshal([]byte(`"`+string(data[i:i+12])+`"`), &both) == nil && len(both) == 4 {
				out = append(out, both...)
				i += 11
				continue
			}
		}
		// Of a valid document there is a next byte; it begins no escape.
		if data[i+1] != '/' {
			out = append(out, '\\')
		}
		out = append(out, data[i+1])
		i++
	}
	return out
}

// resolve follows an alias to what it stands for.
func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case yamlText:
		return "a text"
	case yamlWhole, yamlNumber:
		return "a number"
	case yamlTruth:
		return "true or false"
	case "!!null":
		return "empty"
	}
	return "a value of type " + strings.TrimPrefix(n.ShortTag(), "!!")
}

// mapping reads n, which stands at path, by the tree s.
func (d *document) mapping(n *yaml.Node, s *section, at string) {
	lines := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := resolve(n.Content[i]), resolve(n.Content[i+1])
		if k.Kind != yaml.ScalarNode {
			d.problem(k, at, "has a key that is "+kindName(k), "a text")
			continue
		}
		name, path := k.Value, join(at, k.Value)
		if line, twice := lines[name]; twice {
			d.problem(k, path, fmt.Sprintf("stands twice, first in line %d", line), "")
			continue
		}
		lines[name] = k.Line
		switch next := s.child[name]; {
		case next == nil:
			d.unknown(k, name, path, s)
		case isNull(v):
			// Written, but left open: templates do so for what nobody set.
		case next.key != nil:
			d.value(v, next.key, path)
		case v.Kind != yaml.MappingNode:
			d.problem(v, path, "is "+kindName(v), "a mapping of "+strings.Join(next.names, ", "))
		default:
			d.mapping(v, next, path)
		}
	}
}

func (d *document) unknown(k *yaml.Node, name, path string, s *section) {
	what := "is an unknown key"
	if near, ok := nearest(name, s.names); ok {
		what += fmt.Sprintf(" (did you mean %s?)", near)
	} else {
		// The right name in the wrong place is the next likely slip.
		for _, known := range d.table {
			if !known.NoFile && strings.EqualFold(known.Path[strings.LastIndexByte(known.Path, '.')+1:], name) {
				what += fmt.Sprintf(" (did you mean %s?)", known.Path)
				break
			}
		}
	}
	d.problem(k, path, what, strings.Join(slices.Sorted(slices.Values(s.names)), ", "))
}

func (d *document) value(n *yaml.Node, k *Key, path string) {
	switch v := k.Value.(type) {
	case nil:
		d.warnings = append(d.warnings, Problem{Source: d.file, Line: n.Line, Key: path, What: "means nothing here and is ignored"})
		return
	case JSON:
		d.json(n, v, path)
		return
	case Records:
		d.records(n, v, path)
		return
	case List:
		if n.Kind == yaml.SequenceNode {
			d.list(n, v, path)
			return
		}
	}
	if n.Kind != yaml.ScalarNode || !slices.Contains(k.Value.types(), n.ShortTag()) {
		what := "is " + kindName(n)
		if n.Kind == yaml.ScalarNode && slices.Contains(k.Value.types(), yamlText) {
			what += " without quotes"
		}
		d.problem(n, path, what, k.Value.allowed())
		return
	}
	if err := k.Value.set(n.Value); err != nil {
		d.problem(n, path, fmt.Sprintf("%q %v", k.Value.shown(n.Value), err), k.Value.allowed())
		return
	}
	d.note(n, path)
}

func (d *document) json(n *yaml.Node, v JSON, path string) {
	var free any
	err := n.Decode(&free)
	var out []byte
	if err == nil {
		out, err = json.Marshal(free)
	}
	if err != nil {
		d.problem(n, path, "cannot be written as JSON", v.allowed())
		return
	}
	*v.To = out
	d.note(n, path)
}

func (d *document) list(n *yaml.Node, v List, path string) {
	items := make([]string, 0, len(n.Content))
	for _, item := range n.Content {
		item = resolve(item)
		if item.Kind != yaml.ScalarNode || item.ShortTag() != yamlText {
			d.problem(item, path, "has an entry that is "+kindName(item), v.allowed())
			return
		}
		items = append(items, item.Value)
	}
	if err := v.setAll(items); err != nil {
		d.problem(n, path, fmt.Sprintf("%q %v", items, err), v.allowed())
		return
	}
	d.note(n, path)
}

func (d *document) records(n *yaml.Node, v Records, path string) {
	if n.Kind != yaml.SequenceNode {
		d.problem(n, path, "is "+kindName(n), v.allowed())
		return
	}
	d.note(n, path)
	for i, item := range n.Content {
		item, at := resolve(item), fmt.Sprintf("%s[%d]", path, i)
		d.note(item, at)
		table := v.Append()
		if item.Kind != yaml.MappingNode {
			d.problem(item, at, "is "+kindName(item), "a mapping")
			continue
		}
		d.mapping(item, sectionOf(table), at)
	}
}
