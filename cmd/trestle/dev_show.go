package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/term"

	"github.com/trestle-bridge/trestle/loadtest/ledger"
)

// screen is where a run of dev shows itself. On a terminal one line is written
// again and again; elsewhere lines follow each other, and there are no control
// characters. One goroutine at a time uses it.
type screen struct {
	out io.Writer
	// terminal: lines can be written over. colour: and coloured.
	terminal, colour bool
	fd               int
	// open: the last line is to be written over.
	open bool
}

// newScreen makes a screen of w.
func newScreen(w io.Writer) *screen {
	s := &screen{out: w}
	if file, ok := w.(*os.File); ok && term.IsTerminal(int(file.Fd())) && os.Getenv("TERM") != "dumb" {
		s.fd = int(file.Fd())
		s.terminal = true
		s.colour = os.Getenv("NO_COLOR") == ""
	}
	return s
}

// interval is how often progress is worth a line.
func (s *screen) interval() time.Duration {
	if s.terminal {
		return 500 * time.Millisecond
	}
	return 2 * time.Second
}

// print writes text. A terminal that is gone is no reason to end: errors of
// writing are not looked at.
func (s *screen) print(text string) { _, _ = io.WriteString(s.out, text) }

// say writes a line that stays.
func (s *screen) say(line string) {
	if s.open {
		s.print("\r\x1b[K")
		s.open = false
	}
	s.print(line + "\n")
}

// fact writes a name and what there is to it.
func (s *screen) fact(name, what string) {
	s.say("  " + s.paint(dim, fmt.Sprintf("%-11s", name)) + " " + what)
}

// progress writes a line that the next one takes the place of: the first of the
// versions that fits. A line that wraps cannot be written over.
func (s *screen) progress(versions ...string) {
	if !s.terminal {
		s.say(versions[0])
		return
	}
	width, _, err := term.GetSize(s.fd)
	if err != nil || width <= 0 {
		width = 80
	}
	line := ""
	for _, line = range versions {
		if len(line) < width {
			break
		}
	}
	s.print("\r" + line[:min(len(line), width-1)] + "\x1b[K")
	s.open = true
}

// endProgress lets the last line of progress stay.
func (s *screen) endProgress() {
	if s.open {
		s.print("\n")
		s.open = false
	}
}

const (
	bold  = "1"
	dim   = "2"
	red   = "1;31"
	green = "1;32"
)

func (s *screen) paint(style, text string) string {
	if !s.colour || text == "" {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

// banner says what runs where.
func (d *dev) banner(r *running) {
	s, redis := d.screen, d.stack.Redis
	host, port, _ := strings.Cut(redis.Addr(), ":")
	s.say("")
	s.fact("PostgreSQL", strings.TrimPrefix(d.stack.Postgres.Kind(), "PostgreSQL "))
	s.fact("", s.paint(bold, fmt.Sprintf("psql '%s'", d.database)))
	s.fact("Redis", redis.Kind())
	s.fact("", s.paint(bold, fmt.Sprintf("redis-cli -h %s -p %s subscribe chan:workspace-instances", host, port)))
	s.fact("etcd", d.stack.Etcd.Kind()+", "+d.stack.Etcd.Endpoints()[0])
	for _, replica := range r.fleet.Living() {
		s.fact(replica.Name, s.paint(bold, "curl http://"+replica.HTTP+"/metrics")+"   (/healthz, /readyz)   gRPC "+replica.GRPC)
		s.fact("", "console "+s.paint(bold, "http://"+replica.Console+"/"))
	}
	s.fact("", "logs in "+d.logs)
}

// counts are the sums that progress shows.
type counts struct {
	sent, publishes int64
	waiting         int
	latency         ledger.Histogram
}

// progress shows counts as they grow. It belongs to one goroutine.
type progress struct {
	screen *screen
	fleet  *running
	// whole is how long it takes, 0: nobody knows.
	whole time.Duration

	elapsed  time.Duration
	before   counts
	checking bool
}

func (p *progress) show(ctx context.Context, elapsed time.Duration, now counts) {
	if p.whole > 0 && p.elapsed >= p.whole {
		// All has been sent, and shown.
		if !p.checking {
			p.checking = true
			p.screen.endProgress()
			p.screen.say("  Checking every row and every publish ...")
		}
		return
	}
	// What a killed replica had counted is gone with it.
	committed := comma(p.fleet.sum(ctx, "trestle_pipeline_changes_total")["trestle_pipeline_changes_total"])
	rate := float64(now.sent-p.before.sent) / (elapsed - p.elapsed).Seconds()
	recent := now.latency.Since(&p.before.latency)
	p.elapsed, p.before = elapsed, now

	bar := ""
	if p.whole > 0 && p.screen.terminal {
		const width = 16
		done := min(width, int(width*elapsed/p.whole))
		bar = "[" + strings.Repeat("=", done) + strings.Repeat(" ", width-done) + "] "
	}
	at := fmt.Sprintf("%4.0f s %6s/s", elapsed.Seconds(), comma(rate))
	sent, published := fmt.Sprintf("  sent %7s", comma(now.sent)), fmt.Sprintf("  published %7s", comma(now.publishes))
	between := fmt.Sprintf("  committed %7s", committed)
	waiting := fmt.Sprintf("  waiting %4s", comma(now.waiting))
	latency := fmt.Sprintf("  p50 %6s  p99 %6s", short(recent.Quantile(0.5)), short(recent.Quantile(0.99)))
	p.screen.progress("  "+bar+at+sent+between+published+waiting+latency, at+sent+between+published+waiting+latency,
		at+sent+published+waiting+latency, at+sent+published+latency)
}

// summary shows what came of it. It returns an error if anything is not as it
// must be.
func (d *dev) summary(r *result) error {
	s, v := d.screen, r.verdict
	row := func(name string, n int64, note string) {
		s.say(fmt.Sprintf("  %-22s %10s   %s", name, comma(n), s.paint(dim, note)))
	}
	s.say("")
	row("updates sent", r.sent, fmt.Sprintf("%s a second for %.1f s", comma(float64(r.sent)/max(r.sending.Seconds(), 0.001)), r.sending.Seconds()))
	row("  of them repeats", r.repeats, "say nothing new, write nothing")
	row("  of them stale", r.stale, "older than the row, change nothing")
	row("  of them invalid", r.invalid, "cannot be used, and stop nobody")
	row("folded", r.folded, "written together with a later one of their instance")
	row("rows written", r.rows, fmt.Sprintf("%.1f %% of them without touching an index", 100*float64(r.hot)/float64(max(r.rows, 1))))
	row("publishes", r.publishes, "one for each change of a row")
	if r.drops > 0 {
		row("drops by a cluster", int64(r.drops), "healed by a new subscription and a snapshot")
	}
	s.say(fmt.Sprintf("  %-22s p50 %s, p99 %s, longest %s", "from send to publish", short(r.latency.P50), short(r.latency.P99), short(r.latency.Max)))
	for _, e := range r.events {
		s.say(fmt.Sprintf("  %-22s longest %s   %s", e.name, short(e.longest), s.paint(dim, e.note)))
	}
	s.say("")
	row("instances checked", int64(v.Instances), fmt.Sprintf("%s of them update by update, the others for their latest state", comma(v.Exact)))
	bad := 0
	for _, c := range []struct {
		name, note string
		n          int
	}{
		{"lost", "the row has not come to the last update", v.Lost},
		{"regressed", "the row has gone back", v.Regressed},
		{"wrong", "the row holds another value than it must", v.Wrong},
		{"unpublished", "a change that nobody was told of", v.Unpublished},
		{"doubled", "a publish too many", v.Doubled},
		{"early", "a publish before its commit", v.Early},
		{"malformed", "a publish that does not read as it must", v.Malformed},
	} {
		style := green
		if c.n > 0 {
			style = red
		}
		bad += c.n
		s.say(fmt.Sprintf("  %-22s %s   %s", c.name, s.paint(style, fmt.Sprintf("%10s", comma(c.n))), s.paint(dim, c.note)))
	}
	s.say("")
	if bad == 0 && r.unsettled == "" {
		s.say("  " + s.paint(green, "Every row and every publish is as it must be."))
		return nil
	}
	const most = 10
	for i, difference := range v.Differences {
		if i == most {
			s.say(fmt.Sprintf("  and %s more", comma(len(v.Differences)-most)))
			break
		}
		s.say("  " + difference.String())
	}
	if r.unsettled != "" {
		return fmt.Errorf("not everything was published: %s", r.unsettled)
	}
	return fmt.Errorf("%s differences from what must be", comma(bad))
}

func comma[N int | int64 | float64](n N) string { return humanize.Comma(int64(n)) }

// short is a duration with three digits at most.
func short(t time.Duration) string {
	switch ms := float64(t) / float64(time.Millisecond); {
	case ms < 10:
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 1000:
		return fmt.Sprintf("%.0f ms", ms)
	default:
		return fmt.Sprintf("%.1f s", ms/1000)
	}
}
