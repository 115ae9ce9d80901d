package scenario

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/trestle-bridge/trestle/loadtest"
)

// Parse reads the YAML form, fills in the defaults and checks. source is the
// name of the file, for errors, which are *Error and name lines and keys.
func Parse(source string, text []byte) (*Scenario, error) {
	d := decoder{source: source, lines: make(map[string]int)}
	var document yaml.Node
	if err := yaml.NewDecoder(bytes.NewReader(text)).Decode(&document); err != nil {
		return nil, &Error{[]Problem{{Source: source, What: strings.TrimPrefix(err.Error(), "yaml: ")}}}
	}
	s := &Scenario{}
	d.scenario(document.Content[0], s)
	if len(d.problems) == 0 {
		s.complete()
		d.problems = s.problems()
		for i := range d.problems {
			p := &d.problems[i]
			p.Source, p.Line = source, d.lineOf(p.Key)
		}
	}
	if len(d.problems) > 0 {
		return nil, &Error{d.problems}
	}
	return s, nil
}

// decoder reads YAML key by key, so that whatever is wrong has its line.
type decoder struct {
	source   string
	lines    map[string]int // of each key's path
	problems []Problem
}

// lineOf is the line of a key, or of what it would stand in.
func (d *decoder) lineOf(key string) int {
	for {
		if line, ok := d.lines[key]; ok {
			return line
		}
		cut := strings.LastIndexAny(key, ".[")
		if cut < 0 {
			return d.lines[""]
		}
		key = key[:cut]
	}
}

func (d *decoder) problem(n *yaml.Node, path, what string, args ...any) {
	d.problems = append(d.problems, Problem{d.source, n.Line, path, fmt.Sprintf(what, args...)})
}

// keys say how the value of each key is read.
type keys map[string]func(n *yaml.Node, path string)

func (d *decoder) object(n *yaml.Node, path string, of keys) {
	d.lines[path] = n.Line
	if n.Kind != yaml.MappingNode {
		d.problem(n, path, "give keys and values: %s", strings.Join(slices.Sorted(maps.Keys(of)), ", "))
		return
	}
	seen := make(map[string]bool)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := key.Value
		if path != "" {
			at = path + "." + key.Value
		}
		read, known := of[key.Value]
		switch {
		case !known:
			d.problem(key, at, "there is no such key; there are %s", strings.Join(slices.Sorted(maps.Keys(of)), ", "))
		case seen[key.Value]:
			d.problem(key, at, "the key is there twice")
		default:
			d.lines[at] = key.Line
			read(value, at)
		}
		seen[key.Value] = true
	}
}

func (d *decoder) scenario(n *yaml.Node, s *Scenario) {
	d.object(n, "", keys{
		"name":    d.text(&s.Name),
		"summary": d.text(&s.Summary),
		"fleet": func(n *yaml.Node, path string) {
			d.object(n, path, keys{
				"replicas": d.whole(&s.Fleet.Replicas),
				"lease":    d.duration(&s.Fleet.Lease),
				"serve": d.list(func(n *yaml.Node, path string) {
					s.Fleet.Serve = append(s.Fleet.Serve, "")
					d.text(&s.Fleet.Serve[len(s.Fleet.Serve)-1])(n, path)
				}),
			})
		},
		"work": func(n *yaml.Node, path string) {
			w := &s.Work
			d.object(n, path, keys{
				"shape": d.text((*string)(&w.Shape)), "duration": d.duration(&w.Duration), "rate": d.number(&w.Rate),
				"clusters": d.whole(&w.Clusters), "live": d.whole(&w.Live), "instances": d.whole(&w.Instances),
				"messages": d.whole(&w.Messages), "hot": d.number(&w.Hot), "odd": d.number(&w.Odd), "burst": d.whole(&w.Burst),
				"short": d.truth(&w.Short), "buffer": d.whole(&w.Buffer), "slowSubscribers": d.text(&w.SlowSubscribers),
			})
		},
		"faults": d.list(func(n *yaml.Node, path string) {
			f := Fault{}
			d.object(n, path, keys{
				"at": d.duration(&f.At), "do": d.text(&f.Do), "target": d.target(&f.Target), "for": d.duration(&f.For),
				"until": d.text(&f.Until), "count": d.whole(&f.Count), "delay": d.duration(&f.Delay), "slices": d.whole(&f.Slices),
			})
			s.Faults = append(s.Faults, f)
		}),
	})
}

func (d *decoder) list(item func(*yaml.Node, string)) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		if n.Kind != yaml.SequenceNode {
			d.problem(n, path, "give a list")
			return
		}
		for i, one := range n.Content {
			at := fmt.Sprintf("%s[%d]", path, i)
			d.lines[at] = one.Line
			item(one, at)
		}
	}
}

// scalar reads one value by a function that says whether it is one.
func (d *decoder) scalar(what string, read func(string) bool) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		if n.Kind != yaml.ScalarNode || !read(n.Value) {
			d.problem(n, path, "%q; give %s", n.Value, what)
		}
	}
}

func (d *decoder) text(to *string) func(*yaml.Node, string) {
	return d.scalar("a text", func(s string) bool { *to = s; return true })
}

func (d *decoder) whole(to *int) func(*yaml.Node, string) {
	return d.scalar("a whole number", func(s string) (ok bool) {
		n, err := strconv.Atoi(strings.ReplaceAll(s, "_", ""))
		*to = n
		return err == nil
	})
}

func (d *decoder) number(to *float64) func(*yaml.Node, string) {
	return d.scalar("a number", func(s string) bool {
		n, err := strconv.ParseFloat(strings.ReplaceAll(s, "_", ""), 64)
		*to = n
		return err == nil
	})
}

func (d *decoder) truth(to *bool) func(*yaml.Node, string) {
	return d.scalar("true or false", func(s string) bool {
		*to = s == "true"
		return s == "true" || s == "false"
	})
}

func (d *decoder) duration(to *time.Duration) func(*yaml.Node, string) {
	return d.scalar("a time with its unit, as in 5s, 250ms or 1m30s", func(s string) bool {
		t, err := time.ParseDuration(s)
		*to = t
		return err == nil && t >= 0
	})
}

func (d *decoder) target(to *Target) func(*yaml.Node, string) {
	return d.scalar("leader, owner, owner of cluster N, any, all, replica-N, postgres, redis, etcd, clusters or cluster N", func(s string) (ok bool) {
		*to, ok = parseTarget(s)
		return ok
	})
}

// Marshal writes the YAML form, which Parse reads: what is 0 or empty is left
// out.
func (s *Scenario) Marshal() ([]byte, error) {
	type fault struct {
		At     string `yaml:"at"`
		Do     string `yaml:"do"`
		Target string `yaml:"target,omitempty"`
		For    string `yaml:"for,omitempty"`
		Until  string `yaml:"until,omitempty"`
		Count  int    `yaml:"count,omitempty"`
		Delay  string `yaml:"delay,omitempty"`
		Slices int    `yaml:"slices,omitempty"`
	}
	var form struct {
		Name    string `yaml:"name"`
		Summary string `yaml:"summary"`
		Fleet   struct {
			Replicas int      `yaml:"replicas,omitempty"`
			Lease    string   `yaml:"lease,omitempty"`
			Serve    []string `yaml:"serve,omitempty"`
		} `yaml:"fleet"`
		Work struct {
			Shape           loadtest.Shape `yaml:"shape"`
			Duration        string         `yaml:"duration,omitempty"`
			Rate            float64        `yaml:"rate,omitempty"`
			Clusters        int            `yaml:"clusters,omitempty"`
			Live            int            `yaml:"live,omitempty"`
			Instances       int            `yaml:"instances,omitempty"`
			Messages        int            `yaml:"messages,omitempty"`
			Hot             float64        `yaml:"hot,omitempty"`
			Odd             float64        `yaml:"odd,omitempty"`
			Burst           int            `yaml:"burst,omitempty"`
			Short           bool           `yaml:"short,omitempty"`
			Buffer          int            `yaml:"buffer,omitempty"`
			SlowSubscribers string         `yaml:"slowSubscribers,omitempty"`
		} `yaml:"work"`
		Faults []fault `yaml:"faults,omitempty"`
	}
	form.Name, form.Summary = s.Name, s.Summary
	form.Fleet.Replicas, form.Fleet.Lease, form.Fleet.Serve = s.Fleet.Replicas, timeText(s.Fleet.Lease), s.Fleet.Serve
	w, to := &s.Work, &form.Work
	to.Shape, to.Duration, to.Rate, to.Clusters, to.Live = w.Shape, timeText(w.Duration), w.Rate, w.Clusters, w.Live
	to.Instances, to.Messages, to.Hot, to.Odd, to.Burst = w.Instances, w.Messages, w.Hot, w.Odd, w.Burst
	to.Short, to.Buffer, to.SlowSubscribers = w.Short, w.Buffer, w.SlowSubscribers
	for _, f := range s.Faults {
		form.Faults = append(form.Faults, fault{
			At: f.At.String(), Do: f.Do, Target: f.Target.String(), For: timeText(f.For), Until: f.Until,
			Count: f.Count, Delay: timeText(f.Delay), Slices: f.Slices,
		})
	}
	text, err := yaml.Marshal(form)
	if err != nil {
		return nil, fmt.Errorf("write the scenario %s: %w", s.Name, err)
	}
	return text, nil
}

func timeText(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return d.String()
}
