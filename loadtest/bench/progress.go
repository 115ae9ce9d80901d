package bench

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// quietInterval is the time between two lines where there is no terminal.
const quietInterval = 15 * time.Second

// progressLine says what goes on: one line that is written over, or, where it
// would only fill a file, a line now and then. Safe for concurrent use.
type progressLine struct {
	w        io.Writer
	terminal bool
	start    time.Time

	// mu guards what follows, and writing.
	mu    sync.Mutex
	what  string
	last  time.Time
	width int
}

func newProgressLine(w io.Writer, terminal bool) *progressLine {
	return &progressLine{w: w, terminal: terminal, start: time.Now()}
}

// begin says what is done from now on.
func (p *progressLine) begin(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.what = what
	p.write("")
}

// show says how far it has come.
func (p *progressLine) show(how string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal || time.Since(p.last) >= quietInterval {
		p.write(": " + how)
	}
}

// write needs mu. What a progress line cannot write is lost, nothing else.
func (p *progressLine) write(how string) {
	p.last = time.Now()
	line := fmt.Sprintf("%6.0fs  %s%s", time.Since(p.start).Seconds(), p.what, how)
	if !p.terminal {
		fmt.Fprintln(p.w, line)
		return
	}
	fmt.Fprint(p.w, "\r", line, strings.Repeat(" ", max(0, p.width-len(line))))
	p.width = len(line)
}

// end leaves an empty line to whoever writes next.
func (p *progressLine) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal {
		fmt.Fprint(p.w, "\r", strings.Repeat(" ", p.width), "\r")
		p.width = 0
	}
}
