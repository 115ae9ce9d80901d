package shard

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the transcripts anew")

// A transcript is a file of commands, each after "> ", and what they answered,
// below each. Lines with '#' and empty ones are kept as they are.
func transcripts(t *testing.T, pattern string, start func() func(words []string) (string, error)) {
	files, err := filepath.Glob(filepath.Join("testdata", pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %v, %v", pattern, files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			do := start()
			var b strings.Builder
			for n, line := range strings.Split(strings.TrimRight(string(content), "\n"), "\n") {
				command, ok := strings.CutPrefix(line, "> ")
				if !ok {
					if line == "" || strings.HasPrefix(line, "#") {
						b.WriteString(line + "\n")
					}
					continue
				}
				answer, err := do(strings.Fields(command))
				if err != nil {
					t.Fatalf("%s:%d: %v", file, n+1, err)
				}
				b.WriteString(line + "\n")
				if answer != "" {
					b.WriteString(strings.TrimRight(answer, "\n") + "\n")
				}
			}
			if *update {
				if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, got := strings.Split(string(content), "\n"), strings.Split(b.String(), "\n")
			for i := range max(len(want), len(got)) {
				if i >= len(want) || i >= len(got) || want[i] != got[i] {
					t.Fatalf("%s:%d differs; got\n%s", file, i+1, b.String())
				}
			}
		})
	}
}

// "<seconds passed> <event> [replica] [field=value …]", and "<seconds> leader"
// for another leader that takes up the stored record.
func TestHandoverTranscripts(t *testing.T) {
	transcripts(t, "handover_*.txt", func() func([]string) (string, error) {
		now := t0
		h := Resume(Record{}, Limits{}, now)
		return func(words []string) (string, error) {
			if len(words) < 2 {
				return "", fmt.Errorf("%v is too short", words)
			}
			seconds, err := strconv.Atoi(words[0])
			if err != nil {
				return "", err
			}
			now = now.Add(time.Duration(seconds) * time.Second)
			if words[1] == "leader" {
				h = Resume(h.Record, Limits{}, now)
				return describe(h, Outcome{}, now), nil
			}
			e := Event{Kind: EventKind(words[1]), Epoch: h.Record.Epoch, Attempt: h.Record.Attempt}
			if !slices.Contains(eventKinds, e.Kind) {
				return "", fmt.Errorf("no event %q", words[1])
			}
			for _, word := range words[2:] {
				name, value, ok := strings.Cut(word, "=")
				n, _ := strconv.ParseInt(value, 10, 64)
				switch {
				case !ok:
					e.Replica = word
				case name == "epoch":
					e.Epoch = Epoch(n)
				case name == "attempt":
					e.Attempt = n
				case name == "reason":
					e.Reason = Reason(value)
				case name == "pin":
					e.Pin.Replica = value
				default:
					return "", fmt.Errorf("no field %q", name)
				}
			}
			var out Outcome
			h, out = h.Step(e, now)
			return describe(h, out, now), nil
		}
	})
}

// Commands change a fleet; "plan" prints a plan and carries it out, "look" only
// prints it.
func TestPlanTranscripts(t *testing.T) {
	transcripts(t, "plan_*.txt", func() func([]string) (string, error) {
		f := &fleetScript{now: t0}
		return f.do
	})
}

type fleetScript struct {
	s   State
	now time.Time
}

func (f *fleetScript) do(words []string) (string, error) {
	fields := map[string]string{}
	var names []string
	for _, word := range words[1:] {
		if name, value, ok := strings.Cut(word, "="); ok {
			fields[name] = value
		} else {
			names = append(names, word)
		}
	}
	number := func(name string) float64 {
		v, _ := strconv.ParseFloat(fields[name], 64)
		return v
	}
	each := func(change func(*Replica)) {
		for i := range f.s.Replicas {
			if slices.Contains(names, f.s.Replicas[i].ID) {
				change(&f.s.Replicas[i])
			}
		}
	}
	eachShard := func(change func(*Shard)) error {
		for _, name := range names {
			i := slices.IndexFunc(f.s.Shards, func(sh Shard) bool { return sh.ID.String() == name })
			if i < 0 {
				return fmt.Errorf("no shard %s", name)
			}
			change(&f.s.Shards[i])
		}
		return nil
	}
	switch words[0] {
	case "join":
		for _, name := range names {
			f.s.Replicas = append(f.s.Replicas, Replica{
				ID: name, Revision: fields["revision"], Joined: f.now, Capacity: number("capacity"), Cap: number("cap"),
			})
		}
	case "leave":
		f.s.Replicas = slices.DeleteFunc(f.s.Replicas, func(r Replica) bool { return slices.Contains(names, r.ID) })
	case "lose":
		each(func(r *Replica) { r.Gone = f.now })
	case "return":
		each(func(r *Replica) { r.Gone = time.Time{} })
	case "drain":
		each(func(r *Replica) { r.Draining = true })
	case "undrain":
		each(func(r *Replica) { r.Draining = false })
	case "shards":
		for _, name := range names {
			id, err := ParseID(name)
			if err != nil {
				return "", err
			}
			f.s.Shards = append(f.s.Shards, Shard{ID: id, Weight: number("weight")})
		}
	case "weigh":
		return "", eachShard(func(sh *Shard) { sh.Weight = number("weight") })
	case "pin":
		return "", eachShard(func(sh *Shard) {
			sh.Pin = Pin{Replica: fields["to"]}
			if d := number("for"); d > 0 {
				sh.Pin.Until = f.now.Add(time.Duration(d) * time.Second)
			}
		})
	case "moving":
		return "", eachShard(func(sh *Shard) { sh.Next = fields["to"] })
	case "freeze":
		f.s.Freeze = Freeze{On: true}
		if d := number("for"); d > 0 {
			f.s.Freeze.Until = f.now.Add(time.Duration(d) * time.Second)
		}
	case "unfreeze":
		f.s.Freeze = Freeze{}
	case "release":
		f.s.Brake = f.s.Brake.Release(f.now)
	case "wait":
		d, err := time.ParseDuration(names[0])
		if err != nil {
			return "", err
		}
		f.now = f.now.Add(d)
	case "look", "plan":
		p := f.s.Plan(f.now)
		if words[0] == "plan" {
			f.s = carried(f.s, p, f.now)
		}
		return f.print(p), nil
	default:
		return "", fmt.Errorf("no command %q", words[0])
	}
	return "", nil
}

func (f *fleetScript) print(p Plan) string {
	var b strings.Builder
	for _, m := range p.Moves {
		fmt.Fprintf(&b, "  %s: %s -> %s, %s: %s\n", m.Shard, m.From, m.To, m.Reason, m.Text)
	}
	for _, id := range p.Cancel {
		fmt.Fprintf(&b, "  cancel %s\n", id)
	}
	for _, u := range p.Unplaced {
		fmt.Fprintf(&b, "  unplaced %s: %s\n", u.Shard, u.Why)
	}
	for _, id := range p.Overloaded {
		fmt.Fprintf(&b, "  overloaded %s\n", id)
	}
	for _, pr := range p.Proposals {
		fmt.Fprintf(&b, "  proposal: %s in %d slices: %s\n", pr.Cluster, pr.Slices, pr.Text)
	}
	if !p.Brake.Since.IsZero() {
		fmt.Fprintf(&b, "  brake: holds %v, limited %v\n", p.Brake.Holds(), p.Brake.Limited)
	}
	if len(p.Forget) > 0 {
		fmt.Fprintf(&b, "  forget %s\n", strings.Join(p.Forget, " "))
	}
	fmt.Fprintf(&b, "  max %.1f -> %.1f of mean %.1f", p.Before.Max, p.After.Max, p.After.Mean)
	if !p.Wake.IsZero() {
		fmt.Fprintf(&b, ", wake in %v", p.Wake.Sub(f.now))
	}
	return b.String()
}
