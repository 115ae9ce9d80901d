package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/trestle-bridge/trestle/loadtest/record"
	"github.com/trestle-bridge/trestle/loadtest/report/chart"
)

// plainInterval is the time between two lines where there is no terminal.
const plainInterval = 15 * time.Second

// ProgressConfig says where progress is shown.
type ProgressConfig struct {
	Out io.Writer
	// Width is asked for the columns of the terminal before each line, so that
	// the line follows a change; nil: Out is no terminal.
	Width func() int
}

// Progress shows how far a run has come: one line that is written over, as wide
// as the terminal allows, or, where it would only fill a file, a line now and
// then and whenever a fault begins or ends. Safe for concurrent use.
type Progress struct {
	cfg ProgressConfig

	// mu guards what follows, and writing.
	mu     sync.Mutex
	drawn  bool
	shown  bool
	last   time.Duration
	faults []string
}

// NewProgress makes one; whoever made it calls End.
func NewProgress(cfg ProgressConfig) *Progress { return &Progress{cfg: cfg} }

// Show shows it. What cannot be written is lost, nothing else.
func (p *Progress) Show(now record.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cfg.Width == nil {
		if p.shown && now.Elapsed-p.last < plainInterval && slices.Equal(p.faults, now.Faults) {
			return
		}
		p.shown, p.last, p.faults = true, now.Elapsed, slices.Clone(now.Faults)
		fmt.Fprintln(p.cfg.Out, plainLine(now))
		return
	}
	p.drawn = true
	// The line is cleared after it has been written, lest it flicker. The last
	// column stays free: some terminals go to the next line from there.
	fmt.Fprint(p.cfg.Out, "\r", line(now, p.cfg.Width()-1), "\x1b[K")
}

// Say writes a line of its own, above the one that is written over.
func (p *Progress) Say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.drawn {
		fmt.Fprint(p.cfg.Out, "\r\x1b[K")
	}
	fmt.Fprintf(p.cfg.Out, "%s\n", printable(fmt.Sprintf(format, args...)))
}

// End leaves an empty line to whoever writes next.
func (p *Progress) End() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.drawn {
		fmt.Fprint(p.cfg.Out, "\r\x1b[K")
		p.drawn = false
	}
}

// plainLine has everything.
func plainLine(now record.Progress) string {
	return strings.Join(parts(now, 0), "  ")
}

// parts are the parts of a line, the most important ones first but for the order
// of reading; bar is the width of the bar, 0: none.
func parts(now record.Progress, bar int) []string {
	clock := chart.Clock(now.Elapsed.Seconds())
	if now.Planned > 0 {
		clock += " of " + chart.Clock(now.Planned.Seconds())
	}
	all := []string{
		clock,
		progressBar(now, bar),
		"sent " + Number(float64(now.Totals.Sent)),
		"published " + Number(float64(now.Last.Published)) + "/s",
		"waiting " + Number(float64(now.Waiting)),
	}
	if now.Last.Latency.Count > 0 {
		all = append(all, "p99 "+Milliseconds(now.Last.Latency.P99MS))
	}
	if now.Replicas > 0 {
		all = append(all, counted(int64(now.Replicas), "replica"))
	}
	if len(now.Faults) > 0 {
		all = append(all, "FAULT: "+printable(strings.Join(now.Faults, ", ")))
	}
	return slices.DeleteFunc(all, func(s string) bool { return s == "" })
}

// line fits into so many columns: the bar goes first, then what follows from the
// rest; at last it is cut.
func line(now record.Progress, width int) string {
	if width <= 0 {
		return ""
	}
	const widest, narrowest = 30, 8
	join := func(bar int) string { return strings.Join(parts(now, bar), "  ") }
	if now.Planned > 0 {
		bare := text.StringWidthWithoutEscSequences(join(0))
		if bar := min(width-bare-4, widest); bar >= narrowest {
			return join(bar)
		}
	}
	short := now
	for _, leave := range []func(){
		func() {},
		func() { short.Replicas = 0 },
		func() { short.Planned = 0 },
	} {
		leave()
		if all := strings.Join(parts(short, 0), "  "); text.StringWidthWithoutEscSequences(all) <= width {
			return all
		}
	}
	// A fault is what one wants to see: what comes before it gives way.
	all := parts(short, 0)
	for len(all) > 2 && text.StringWidthWithoutEscSequences(strings.Join(all, "  ")) > width {
		all = slices.Delete(all, 1, 2)
	}
	return text.Trim(strings.Join(all, "  "), width)
}

// progressBar is so many columns wide, with its ends.
func progressBar(now record.Progress, width int) string {
	if width < 3 || now.Planned <= 0 {
		return ""
	}
	inner := width - 2
	eighths := int(min(1, now.Elapsed.Seconds()/now.Planned.Seconds()) * float64(inner) * 8)
	bar := strings.Repeat("█", eighths/8)
	if rest := eighths % 8; rest > 0 {
		bar += string([]rune(" ▏▎▍▌▋▊▉")[rest])
	}
	return "▕" + text.Pad(bar, inner, ' ') + "▏"
}

// printable keeps what others have named from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '\uFFFD'
		}
		return r
	}, s)
}
