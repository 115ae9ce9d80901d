package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"charm.land/bubbles/v2/textinput"
	tea "charm.land/bubbletea/v2"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
)

func (p *program) top() *cobra.Command {
	interval := 2 * time.Second
	c := p.reading(&cobra.Command{
		Use:   "top",
		Short: "Watch replicas, shards, rates and lag, live",
		Long: `Watch replicas, shards, rates and lag, live.

Keys:
  r, s            replicas, or shards
  left, right     sort by another column
  -               sort the other way round
  /               show only what has this text in any column; esc ends that
  up, down, page up, page down, home, end
                  scroll
  space           hold the picture, or go on
  q, ctrl+c       quit`,
	}, nil, func(c *cobra.Command, _ []string) error {
		switch {
		case interval < 200*time.Millisecond:
			return usage("--interval %s: give at least 200ms", interval)
		case !p.forPeople():
			return usage("top draws for people; for machines there is trestlectl shards --watch -o %s", p.format)
		}
		screen, is := p.streams.out.(*os.File)
		if !is || !term.IsTerminal(int(screen.Fd())) {
			return usage("top needs a terminal to draw on; trestlectl shards and trestlectl replicas write what it shows")
		}
		m := newTop(func() tea.Msg { return p.look(c.Context()) }, interval, p.format == formatWide)
		_, err := tea.NewProgram(m, tea.WithContext(c.Context()), tea.WithOutput(screen)).Run()
		if c.Context().Err() != nil {
			return nil
		}
		return err
	})
	c.Flags().DurationVar(&interval, "interval", interval, "time between two looks")
	return c
}

// seen is one look at the fleet, or why there is none.
type seen struct {
	at       time.Time
	replicas *trestlev1.ListReplicasResponse
	shards   *trestlev1.ListShardsResponse
	err      error
}

func (p *program) look(ctx context.Context) seen {
	s := seen{at: time.Now()}
	s.err = p.ask(ctx, func(ctx context.Context, r *replica) (err error) {
		if s.replicas, err = r.shards().ListReplicas(ctx, &trestlev1.ListReplicasRequest{}); err != nil {
			return err
		}
		s.shards, err = allShards(ctx, r, "", "")
		return err
	})
	return s
}

// due says that it is time to look again.
type due struct{}

// topView is one of the two lists.
type topView struct {
	sort     int // column
	reversed bool
	scroll   int
}

const (
	viewShards = iota
	viewReplicas
	views
)

// top is what the screen shows. Update alone changes it.
type top struct {
	look     func() tea.Msg
	interval time.Duration
	wide     bool

	width, height int
	last          seen // the last look that saw anything
	err           error
	held          bool
	view          int
	views         [views]topView
	filter        textinput.Model
	filtering     bool // the filter is being written
}

func newTop(look func() tea.Msg, interval time.Duration, wide bool) *top {
	m := &top{look: look, interval: interval, wide: wide, width: 80, height: 24, filter: textinput.New()}
	m.filter.Prompt = "/"
	// The busiest shards first.
	m.views[viewShards] = topView{sort: slices.IndexFunc(shardColumns(), func(c column) bool { return c.title == "UPDATES/S" }), reversed: true}
	return m
}

// Init looks for the first time.
func (m *top) Init() tea.Cmd { return m.look }

// Update takes in a key, a look or the size of the screen.
func (m *top) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case seen:
		// Before the first look there is nothing to hold.
		if m.err = msg.err; msg.err == nil && (!m.held || m.last.replicas == nil) {
			m.last = msg
		}
		return m, tea.Tick(m.interval, func(time.Time) tea.Msg { return due{} })
	case due:
		return m, m.look
	case tea.KeyPressMsg:
		return m, m.key(msg)
	case tea.PasteMsg:
		if m.filtering {
			return m, m.write(msg)
		}
	}
	return m, nil
}

func (m *top) key(msg tea.KeyPressMsg) tea.Cmd {
	key := msg.String()
	if key == "ctrl+c" {
		return tea.Quit
	}
	if m.filtering {
		switch key {
		case "esc":
			m.filter.Reset()
			fallthrough
		case "enter":
			m.filtering = false
			m.filter.Blur()
			return nil
		}
		return m.write(msg)
	}
	v := &m.views[m.view]
	columns, _ := m.rows()
	rows := m.room()
	switch key {
	case "q":
		return tea.Quit
	case "s":
		m.view = viewShards
	case "r":
		m.view = viewReplicas
	case "tab":
		m.view = (m.view + 1) % views
	case "left", "right":
		step := 1
		if key == "left" {
			step = len(columns) - 1
		}
		for v.sort = (v.sort + step) % len(columns); columns[v.sort].wide && !m.wide; {
			v.sort = (v.sort + step) % len(columns)
		}
		// What is counted is wanted with the most first.
		v.reversed = columns[v.sort].counted()
	case "-":
		v.reversed = !v.reversed
	case "/":
		m.filtering = true
		return m.filter.Focus()
	case "esc":
		m.filter.Reset()
	case "space", " ":
		m.held = !m.held
	case "up":
		v.scroll--
	case "down":
		v.scroll++
	case "pgup":
		v.scroll -= rows
	case "pgdown":
		v.scroll += rows
	case "home":
		v.scroll = 0
	case "end":
		v.scroll = 1 << 30
	}
	return nil
}

// write changes the filter, and shows the list from its beginning.
func (m *top) write(msg tea.Msg) (cmd tea.Cmd) {
	m.filter, cmd = m.filter.Update(msg)
	m.views[m.view].scroll = 0
	return cmd
}

// room is how many rows of the list fit.
func (m *top) room() int { return max(m.height-6, 1) }

// topRow is one row of a list, and what it is sorted by.
type topRow struct {
	cells []string
	keys  []float64 // for the columns that are counted
}

// rows gives the columns and the rows of the list that is shown, all of them.
func (m *top) rows() ([]column, []topRow) {
	g := &page{now: m.last.at, wide: m.wide}
	var rows []topRow
	if m.view == viewReplicas {
		for _, r := range m.last.replicas.GetReplicas() {
			rate, live, late := m.carried(r.GetIncarnation())
			state := stateName(r.GetState())
			if r.GetLeads() {
				state += ", leads"
			}
			rows = append(rows, topRow{
				[]string{orNone(r.GetName()), state, fmt.Sprint(r.GetShards()), number(rate), fmt.Sprint(live), shortLag(late), number(r.GetLoad()), limit(r.GetCap()),
					orNone(r.GetRevision()), g.age(r.GetJoined()), r.GetIncarnation()},
				[]float64{2: float64(r.GetShards()), 3: rate, 4: float64(live), 5: late.Seconds(), 6: r.GetLoad(), 7: r.GetCap(), 9: m.last.at.Sub(r.GetJoined().AsTime()).Seconds()},
			})
		}
		return []column{
			{title: "REPLICA"}, {title: "STATE"}, {title: "SHARDS", right: true}, {title: "UPDATES/S", right: true}, {title: "LIVE", right: true}, {title: "LAG", right: true},
			{title: "LOAD", right: true}, {title: "CAP", right: true}, {title: "REVISION"}, {title: "JOINED", right: true}, {title: "PROCESS", wide: true},
		}, rows
	}
	for _, s := range m.last.shards.GetShards() {
		measured := s.GetMeasured()
		rows = append(rows, topRow{
			shardRow(g, s),
			[]float64{
				4: float64(s.GetEpochIntended()), 5: m.last.at.Sub(s.GetSince().AsTime()).Seconds(), 7: measured.GetRate(), 8: float64(measured.GetLiveInstances()), 9: measured.GetLag().AsDuration().Seconds(),
				10: m.last.at.Sub(measured.GetLastEvent().AsTime()).Seconds(), 12: s.GetWeight(), 13: float64(s.GetGeneration()), 15: 0,
			},
		})
	}
	return shardColumns(), rows
}

// carried sums up what a replica measures; of the lag it is the longest.
func (m *top) carried(incarnation string) (rate float64, live int64, late time.Duration) {
	for _, s := range m.last.shards.GetShards() {
		if incarnation == "" || s.GetOwner().GetIncarnation() == incarnation {
			rate += s.GetMeasured().GetRate()
			live += s.GetMeasured().GetLiveInstances()
			late = max(late, s.GetMeasured().GetLag().AsDuration())
		}
	}
	return rate, live, late
}

func shortLag(d time.Duration) string {
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(100 * time.Millisecond).String()
}

// shown filters and sorts.
func (m *top) shown() ([]column, [][]string) {
	columns, rows := m.rows()
	v := m.views[m.view]
	if wanted := strings.ToLower(m.filter.Value()); wanted != "" {
		rows = slices.DeleteFunc(rows, func(r topRow) bool {
			return !slices.ContainsFunc(r.cells, func(cell string) bool { return strings.Contains(strings.ToLower(cell), wanted) })
		})
	}
	slices.SortStableFunc(rows, func(a, b topRow) int {
		order := strings.Compare(a.cells[v.sort], b.cells[v.sort])
		if columns[v.sort].counted() {
			order = 0
			switch x, y := a.keys[v.sort], b.keys[v.sort]; {
			case x < y:
				order = -1
			case x > y:
				order = 1
			}
		}
		if v.reversed {
			return -order
		}
		return order
	})
	cells := make([][]string, len(rows))
	for i, r := range rows {
		cells[i] = r.cells
	}
	return columns, cells
}

// View draws.
func (m *top) View() tea.View {
	v := tea.NewView(strings.Join(m.lines(), "\n"))
	v.AltScreen = true
	v.WindowTitle = "trestlectl top"
	return v
}

func (m *top) lines() []string {
	columns, cells := m.shown()
	v := &m.views[m.view]
	rows := m.room()
	v.scroll = max(min(v.scroll, len(cells)-rows), 0)
	all := len(cells)
	cells = cells[v.scroll:min(v.scroll+rows, all)]

	g := &page{now: m.last.at, wide: m.wide}
	rate, live, late := m.carried("")
	here, gone := 0, ""
	for _, r := range m.last.replicas.GetReplicas() {
		if r.GetState() != trestlev1.ReplicaState_REPLICA_STATE_GONE {
			here++
		}
	}
	if n := len(m.last.replicas.GetReplicas()) - here; n > 0 {
		gone = fmt.Sprintf(" and %d GONE", n)
	}
	g.line("%d replicas%s, %d shards: %s updates/s, %d live instances, longest lag %s",
		here, gone, len(m.last.shards.GetShards()), number(rate), live, shortLag(late))
	fleet := m.last.replicas.GetFleet()
	switch {
	case m.err != nil:
		g.line("NO ANSWER: %s", strings.ReplaceAll(message(m.err), "\n", " "))
	case m.last.replicas == nil:
		g.line("Asking ...")
	case fleet.GetDetached():
		g.line("DETACHED: the replica that answers is cut off from etcd, so this may be old; ask another one with --address")
	default:
		concerns := &page{now: m.last.at}
		concerns.concerns(fleet)
		g.line("%s", strings.ReplaceAll(strings.TrimSpace(concerns.String()), "\n", " "))
	}
	g.line("")
	marked := slices.Clone(columns)
	arrow := "^"
	if v.reversed {
		arrow = "v"
	}
	marked[v.sort].title += arrow
	g.table(marked, cells)
	lines := strings.Split(strings.TrimSuffix(g.String(), "\n"), "\n")
	for len(lines) < m.height-1 {
		lines = append(lines, "")
	}
	lines = lines[:max(m.height-1, 0)]
	for i := range lines {
		lines[i] = text.Trim(lines[i], m.width)
	}
	return append(lines, text.Trim(m.footer(all, len(cells)), m.width))
}

func (m *top) footer(all, fit int) string {
	if m.filtering {
		return m.filter.View()
	}
	var notes []string
	if m.held {
		notes = append(notes, "HELD")
	}
	if filter := m.filter.Value(); filter != "" {
		notes = append(notes, "/"+filter)
	}
	if all > fit {
		notes = append(notes, fmt.Sprintf("%d-%d of %d", m.views[m.view].scroll+1, m.views[m.view].scroll+fit, all))
	}
	notes = append(notes, "s shards  r replicas  </> sort  - reverse  / filter  space hold  q quit")
	return strings.Join(notes, "  ")
}
