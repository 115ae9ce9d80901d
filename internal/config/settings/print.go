package settings

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Print writes what is in force as YAML, secrets masked, behind every value
// where it comes from. What is printed is a valid file again, but for the
// masked secrets.
func Print(w io.Writer, table []Key, from Sources) error {
	root := mappingNode()
	for _, k := range table {
		if k.Value == nil || k.NoFile {
			continue
		}
		put(root, k.Path, nodeOf(k.Value.plain()), from[k.Path].String())
	}
	encoder := yaml.NewEncoder(w)
	encoder.SetIndent(2)
	err := encoder.Encode(root)
	if err == nil {
		err = encoder.Close()
	}
	if err != nil {
		return fmt.Errorf("print the settings: %w", err)
	}
	return nil
}

func mappingNode() *yaml.Node { return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"} }

func textNode(s string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: yamlText, Value: s}
}

// put sets the value of a path, making the mappings on the way; the comment
// stands in the line of the key.
func put(m *yaml.Node, path string, v *yaml.Node, comment string) {
	name, rest, nested := strings.Cut(path, ".")
	if !nested {
		k := textNode(name)
		if v.Kind != yaml.ScalarNode && v.Style != yaml.FlowStyle {
			k.LineComment = comment // behind the value it would stand below all of it
		} else {
			v.LineComment = comment
		}
		m.Content = append(m.Content, k, v)
		return
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == name {
			put(m.Content[i+1], rest, v, comment)
			return
		}
	}
	child := mappingNode()
	put(child, rest, v, comment)
	m.Content = append(m.Content, textNode(name), child)
}

func nodeOf(v any) *yaml.Node {
	switch v := v.(type) {
	case string:
		return textNode(v)
	case bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: yamlTruth, Value: strconv.FormatBool(v)}
	case int:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: yamlWhole, Value: strconv.Itoa(v)}
	case float64:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: yamlNumber, Value: strconv.FormatFloat(v, 'f', -1, 64)}
	case []string:
		n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Style: yaml.FlowStyle}
		for _, s := range v {
			n.Content = append(n.Content, textNode(s))
		}
		return n
	case [][]Key:
		n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		if len(v) == 0 {
			n.Style = yaml.FlowStyle
		}
		for _, row := range v {
			n.Content = append(n.Content, recordNode(row))
		}
		return n
	}
	n := &yaml.Node{}
	if err := n.Encode(v); err != nil {
		return textNode(fmt.Sprint(v))
	}
	return n
}

// recordNode leaves out what is empty: nobody wrote it.
func recordNode(row []Key) *yaml.Node {
	m := mappingNode()
	for _, k := range row {
		if k.Value == nil {
			continue
		}
		if v := k.Value.plain(); v != nil && v != "" {
			put(m, k.Path, nodeOf(v), "")
		}
	}
	return m
}
