package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/jedib0t/go-pretty/v6/text"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
)

// topAt is when the looks of these tests are made.
var topAt = time.Date(2026, 10, 5, 3, 0, 0, 0, time.UTC)

func carriedShard(id, owner string, rate float64, live int64, lag time.Duration, since time.Duration) *trestlev1.Shard {
	return &trestlev1.Shard{
		Id: id, Cluster: id, Slices: 1, Owner: ref(owner), EpochIntended: 1, EpochObserved: 1, Phase: trestlev1.ShardPhase_SHARD_PHASE_OWNED,
		Since:    timestamppb.New(topAt.Add(-since)),
		Measured: &trestlev1.Measurement{Rate: rate, LiveInstances: live, Lag: durationpb.New(lag), LastEvent: timestamppb.New(topAt.Add(-since / 2))},
	}
}

func liveReplica(name string, joined time.Duration, shards int32) *trestlev1.Replica {
	return &trestlev1.Replica{
		Name: name, Incarnation: name + ".1", State: trestlev1.ReplicaState_REPLICA_STATE_LIVE, Shards: shards,
		Joined: timestamppb.New(topAt.Add(-joined)),
	}
}

// look is one that sees three shards on two replicas.
func topLook() seen {
	return seen{
		at: topAt,
		replicas: &trestlev1.ListReplicasResponse{
			Replicas: []*trestlev1.Replica{liveReplica("a", time.Hour*5, 2), liveReplica("b", time.Hour*72, 1)},
			Fleet:    &trestlev1.Fleet{Leader: ref("a"), LeadsSince: timestamppb.New(topAt.Add(-time.Hour * 3))},
		},
		shards: &trestlev1.ListShardsResponse{Shards: []*trestlev1.Shard{
			carriedShard("ap01", "a", 9, 300, 20*time.Millisecond, 10*time.Hour),
			carriedShard("eu01", "b", 120, 20, 1500*time.Millisecond, 9*time.Hour),
			carriedShard("us01", "a", 30, 1000, 0, 100*time.Hour),
		}},
	}
}

// topModel is one that has taken in these messages.
func topModel(t *testing.T, messages ...tea.Msg) *top {
	t.Helper()
	m := newTop(func() tea.Msg { return nil }, time.Second, false)
	for _, msg := range messages {
		m.Update(msg)
	}
	return m
}

var topKeys = map[string]rune{
	"left": tea.KeyLeft, "right": tea.KeyRight, "up": tea.KeyUp, "down": tea.KeyDown, "pgup": tea.KeyPgUp, "pgdown": tea.KeyPgDown,
	"home": tea.KeyHome, "end": tea.KeyEnd, "esc": tea.KeyEscape, "enter": tea.KeyEnter, "tab": tea.KeyTab, "backspace": tea.KeyBackspace,
}

// press presses keys one after the other, and gives what the last one asks for.
func (m *top) press(keys ...string) (cmd tea.Cmd) {
	for _, key := range keys {
		msg := tea.KeyPressMsg{}
		if code, special := topKeys[key]; special {
			msg.Code = code
		} else if key == "space" {
			msg.Code, msg.Text = tea.KeySpace, " "
		} else if key == "ctrl+c" {
			msg.Code, msg.Mod = 'c', tea.ModCtrl
		} else {
			msg.Code, msg.Text = []rune(key)[0], key
		}
		_, cmd = m.Update(msg)
	}
	return cmd
}

// first gives the first cells of the rows that are drawn.
func (m *top) first() []string {
	var first []string
	lines := m.lines()
	for _, line := range lines[4 : len(lines)-1] {
		if fields := strings.Fields(line); len(fields) > 0 {
			first = append(first, fields[0])
		}
	}
	return first
}

func quits(cmd tea.Cmd) bool {
	if cmd == nil {
		return false
	}
	_, is := cmd().(tea.QuitMsg)
	return is
}

func TestTopDraws(t *testing.T) {
	t.Parallel()
	m := topModel(t, tea.WindowSizeMsg{Width: 110, Height: 12}, topLook())
	const keys = "s shards  r replicas  </> sort  - reverse  / filter  space hold  q quit"
	if got, want := strings.Join(m.lines(), "\n"), strings.TrimPrefix(`
2 replicas, 3 shards: 159 updates/s, 1320 live instances, longest lag 1.5s
a leads since 3h.

SHARD  REPLICA  PHASE  NEXT  EPOCH  SINCE  REASON  UPDATES/Sv  LIVE   LAG  HEARD
eu01   b        OWNED  -     1         9h  -              120    20  1.5s     4h
us01   a        OWNED  -     1         4d  -               30  1000    0s     2d
ap01   a        OWNED  -     1        10h  -                9   300  20ms     5h




`+keys, "\n"); got != want {
		t.Errorf("draws\n%s\nwant\n%s", got, want)
	}
	m.press("r")
	if got, want := strings.Join(m.lines(), "\n"), strings.TrimPrefix(`
2 replicas, 3 shards: 159 updates/s, 1320 live instances, longest lag 1.5s
a leads since 3h.

REPLICA^  STATE  SHARDS  UPDATES/S  LIVE   LAG  LOAD  CAP  REVISION  JOINED
a         LIVE        2         39  1300  20ms     0    -  -             5h
b         LIVE        1        120    20  1.5s     0    -  -             3d





`+keys, "\n"); got != want {
		t.Errorf("draws\n%s\nwant\n%s", got, want)
	}
	if v := m.View(); !v.AltScreen || v.Content != strings.Join(m.lines(), "\n") {
		t.Errorf("the view is %+v", v)
	}
}

func TestTopSorts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		keys   string
		marked string
		want   string
	}{
		{"", "UPDATES/Sv", "eu01 us01 ap01"},
		{"-", "UPDATES/S^", "ap01 us01 eu01"},
		{"- -", "UPDATES/Sv", "eu01 us01 ap01"},
		{"right", "LIVEv", "us01 ap01 eu01"}, // by number: 1000, 300, 20
		{"right right", "LAGv", "eu01 ap01 us01"},
		{"left", "REASON^", "ap01 eu01 us01"}, // all the same: the order stays
		{"left left", "SINCEv", "us01 ap01 eu01"},
		{"left left -", "SINCE^", "eu01 ap01 us01"},                  // by time, as 9h is above 10h as a text
		{"right right right right", "SHARD^", "ap01 eu01 us01"},      // round the end, past what only -o wide shows
		{"right right right right left", "HEARDv", "us01 ap01 eu01"}, // and back
		{"right right right right right -", "REPLICAv", "eu01 ap01 us01"},
		{"r", "REPLICA^", "a b"},
		{"r -", "REPLICAv", "b a"},
		{"r right right right", "UPDATES/Sv", "b a"},
		{"r left", "JOINEDv", "b a"},
		{"r left s", "UPDATES/Sv", "eu01 us01 ap01"}, // each list has an order of its own
		{"- r s", "UPDATES/S^", "ap01 us01 eu01"},
		{"tab", "REPLICA^", "a b"},
		{"tab tab", "UPDATES/Sv", "eu01 us01 ap01"},
	} {
		m := topModel(t, tea.WindowSizeMsg{Width: 200, Height: 24}, topLook())
		m.press(strings.Fields(c.keys)...)
		if got := strings.Join(m.first(), " "); got != c.want {
			t.Errorf("%q: lists %s, want %s", c.keys, got, c.want)
		}
		if header := m.lines()[3]; !slices.Contains(strings.Fields(header), c.marked) {
			t.Errorf("%q: the header is %s, want %s", c.keys, header, c.marked)
		}
	}
	// With -o wide the other columns take part, and every column can be sorted by.
	m := topModel(t, tea.WindowSizeMsg{Width: 300, Height: 24}, topLook())
	m.wide = true
	for _, keys := range [][]string{{"s"}, {"r"}} {
		m.press(keys...)
		columns, _ := m.rows()
		seen := map[int]bool{}
		for range columns {
			m.press("right")
			seen[m.views[m.view].sort] = true
			m.press("-")
			if n := len(m.first()); n < 2 {
				t.Errorf("%v: %d rows by %s", keys, n, columns[m.views[m.view].sort].title)
			}
		}
		if len(seen) != len(columns) {
			t.Errorf("%v: sorts by %d columns of %d", keys, len(seen), len(columns))
		}
	}
}

// An epoch is a number, though it is listed with what is held beside it.
func TestTopSortsEpochs(t *testing.T) {
	t.Parallel()
	look := topLook()
	for i, epoch := range []int64{9, 10, 100} {
		look.shards.Shards[i].EpochIntended, look.shards.Shards[i].EpochObserved = epoch, epoch
	}
	m := topModel(t, tea.WindowSizeMsg{Width: 200, Height: 24}, look)
	m.press("left", "left", "left")
	if header := m.lines()[3]; !strings.Contains(header, "EPOCHv") {
		t.Fatalf("the header is %s", header)
	}
	if got := strings.Join(m.first(), " "); got != "us01 eu01 ap01" {
		t.Errorf("lists %s", got)
	}
}

func TestTopFilters(t *testing.T) {
	t.Parallel()
	m := topModel(t, tea.WindowSizeMsg{Width: 110, Height: 12}, topLook())
	lists := func(what, want, footer string) {
		t.Helper()
		lines := m.lines()
		if got := strings.Join(m.first(), " "); got != want {
			t.Errorf("%s: lists %q, want %q", what, got, want)
		}
		if last := text.StripEscape(lines[len(lines)-1]); !strings.Contains(last, footer) {
			t.Errorf("%s: the footer is %q, want %q", what, last, footer)
		}
	}
	if m.press("/"); !m.filtering {
		t.Fatal("/ does not begin a filter")
	}
	// While it is written, letters are letters, and the list follows.
	for _, key := range []string{"q", "s", "-"} {
		m.press(key)
	}
	if got := m.filter.Value(); got != "qs-" {
		t.Errorf("the filter is %q", got)
	}
	m.press("backspace", "backspace", "backspace", "U", "0", "0")
	lists("nothing has it", "", "/U00")
	m.press("backspace", "backspace", "S")
	lists("in whatever case", "us01", "/US")
	m.press("enter")
	if m.filtering {
		t.Error("enter does not end the writing")
	}
	lists("after enter", "us01", "/US  s shards")
	m.press("r")
	lists("of replicas", "", "/US")
	m.press("s", "esc")
	lists("after esc", "eu01 us01 ap01", "s shards")
	m.press("/", "b", "esc")
	if m.filtering {
		t.Error("esc does not end the writing")
	}
	lists("given up", "eu01 us01 ap01", "s shards")
	m.press("/", "b", "enter")
	lists("by another column", "eu01", "/b")
	m.press("esc", "/")
	m.Update(tea.PasteMsg{Content: "us01"})
	lists("pasted", "us01", "/us01")
	m.press("esc")
	m.Update(tea.PasteMsg{Content: "us01"})
	lists("pasted nowhere", "eu01 us01 ap01", "s shards")
	m.press("/", "b", "enter")
	// What was seen is whole: the head counts all.
	if head := m.lines()[0]; !strings.HasPrefix(head, "2 replicas, 3 shards: 159 updates/s") {
		t.Errorf("the head is %q", head)
	}
	m.press("/")
	if !quits(m.press("ctrl+c")) {
		t.Error("ctrl+c does not quit while a filter is written")
	}
}

func TestTopScrolls(t *testing.T) {
	t.Parallel()
	look := topLook()
	look.shards.Shards = nil
	for i := range 30 {
		look.shards.Shards = append(look.shards.Shards, carriedShard(fmt.Sprintf("c%02d", i), "a", float64(100-i), 1, 0, time.Hour))
	}
	m := topModel(t, tea.WindowSizeMsg{Width: 110, Height: 16}, look) // ten rows fit
	for _, c := range []struct {
		keys  string
		first string
		shows string
	}{
		{"", "c00", "1-10 of 30"},
		{"up", "c00", "1-10 of 30"},
		{"down down", "c02", "3-12 of 30"},
		{"pgdown", "c12", "13-22 of 30"},
		{"pgdown", "c20", "21-30 of 30"},
		{"down", "c20", "21-30 of 30"},
		{"up", "c19", "20-29 of 30"},
		{"pgup", "c09", "10-19 of 30"},
		{"end", "c20", "21-30 of 30"},
		{"home", "c00", "1-10 of 30"},
		{"end / c", "c20", "21-30 of 30"}, // a new filter begins at the top, and this one leaves all
		{"esc", "", ""},
	} {
		m.press(strings.Fields(c.keys)...)
		if c.first == "" {
			continue
		}
		if m.filtering {
			m.press("enter")
			c.first, c.shows = "c00", "1-10 of 30"
		}
		lines := m.lines()
		if first := m.first(); len(first) != 10 || first[0] != c.first || !strings.Contains(lines[len(lines)-1], c.shows) {
			t.Errorf("%q: lists %v, says %q; want %s first, %s", c.keys, first, lines[len(lines)-1], c.first, c.shows)
		}
	}
	// Fewer rows than before: what is left is shown.
	m.press("end")
	m.lines()
	less := topLook()
	m.Update(less)
	if got := strings.Join(m.first(), " "); got != "eu01 us01 ap01" {
		t.Errorf("with fewer rows it lists %s", got)
	}
	m.Update(tea.WindowSizeMsg{Width: 110, Height: 60})
	if got := len(m.lines()); got != 60 {
		t.Errorf("a higher terminal gets %d lines", got)
	}
}

// Each look takes the place of the one before.
func TestTopLooksAgain(t *testing.T) {
	t.Parallel()
	m := topModel(t, tea.WindowSizeMsg{Width: 110, Height: 12})
	looked := 0
	m.look = func() tea.Msg { looked++; return topLook() }
	m.interval = time.Millisecond
	if m.Init()() == nil || looked != 1 {
		t.Fatalf("it has looked %d times at first", looked)
	}
	// A look is followed by a wait, which is followed by a look.
	_, cmd := m.Update(topLook())
	msg := cmd()
	if _, is := msg.(due); !is {
		t.Fatalf("after a look: %T", msg)
	}
	if _, cmd = m.Update(msg); cmd == nil {
		t.Fatal("it does not look again")
	}
	if cmd(); looked != 2 {
		t.Errorf("it has looked %d times", looked)
	}
	// A failing one is, too.
	if _, cmd = m.Update(seen{err: errors.New("none")}); cmd == nil {
		t.Error("after an error it looks no more")
	}

	second := topLook()
	second.at = topAt.Add(2 * time.Second)
	second.shards.Shards[0].Measured.Rate = 500
	second.shards.Shards[0].Owner = ref("b")
	m.Update(second)
	if got := strings.Join(m.first(), " "); got != "ap01 eu01 us01" {
		t.Errorf("lists %s", got)
	}
	if head := m.lines()[0]; !strings.Contains(head, "650 updates/s") {
		t.Errorf("the head is %q", head)
	}
	m.press("r")
	rates := map[string]string{}
	for _, line := range m.lines()[4:6] {
		fields := strings.Fields(line)
		rates[fields[0]] = fields[3]
	}
	if rates["a"] != "30" || rates["b"] != "620" {
		t.Errorf("the replicas' rates are %v", rates)
	}
}

func TestTopReplicaGoesAway(t *testing.T) {
	t.Parallel()
	m := topModel(t, tea.WindowSizeMsg{Width: 110, Height: 12}, topLook())
	m.press("r")
	gone := topLook()
	gone.replicas.Replicas[1].State = trestlev1.ReplicaState_REPLICA_STATE_GONE
	gone.replicas.Replicas[1].Gone = timestamppb.New(topAt)
	gone.replicas.Replicas[1].Shards = 0
	orphan := gone.shards.Shards[1]
	orphan.Former, orphan.Owner, orphan.Measured, orphan.Phase = orphan.Owner, nil, nil, trestlev1.ShardPhase_SHARD_PHASE_UNOWNED
	m.Update(gone)
	lines := m.lines()
	if got := strings.Fields(lines[5]); got[0] != "b" || got[1] != "GONE" || got[2] != "0" || got[3] != "0" || got[4] != "0" {
		t.Errorf("the replica that went is %q", lines[5])
	}
	if !strings.HasPrefix(lines[0], "1 replicas and 1 GONE, 3 shards: 39 updates/s, 1300 live instances, longest lag 20ms") {
		t.Errorf("the head is %q", lines[0])
	}
	m.press("s")
	var line string
	for _, l := range m.lines() {
		if strings.HasPrefix(l, "eu01") {
			line = l
		}
	}
	if got := strings.Fields(line); len(got) < 8 || got[1] != "-" || got[2] != "UNOWNED" || got[7] != "-" {
		t.Errorf("its shard is %q", line)
	}
	// Forgotten altogether, it is no row any more.
	forgotten := proto.Clone(gone.replicas).(*trestlev1.ListReplicasResponse)
	forgotten.Replicas = forgotten.Replicas[:1]
	m.Update(seen{at: topAt, replicas: forgotten, shards: gone.shards})
	m.press("r")
	if got := strings.Join(m.first(), " "); got != "a" {
		t.Errorf("lists %s", got)
	}
}

func TestTopWithoutAnswers(t *testing.T) {
	t.Parallel()
	size := tea.WindowSizeMsg{Width: 100, Height: 12}
	m := topModel(t, size)
	for _, keys := range [][]string{nil, {"r"}, {"right"}, {"-"}, {"end"}, {"pgup"}, {"/", "x", "enter"}, {"s", "left"}} {
		m.press(keys...)
		if lines := m.lines(); len(lines) != size.Height || lines[1] != "Asking ..." || len(m.first()) != 0 {
			t.Errorf("%v: before the first answer it draws\n%s", keys, strings.Join(lines, "\n"))
		}
	}
	m = topModel(t, size, seen{err: &unreachableError{[]string{"a:1: connection refused", "b:1: no answer within 1s"}}})
	if line := m.lines()[1]; !strings.HasPrefix(line, "NO ANSWER: no replica can be asked:") || !strings.Contains(line, "a:1: connection refused") || !strings.Contains(line, "b:1") {
		t.Errorf("without any answer it says %q", line)
	}
	// What was seen stays, and so does what is wrong, until there is an answer.
	m = topModel(t, size, topLook(), seen{err: errors.New("away\nfor good")})
	if lines := m.lines(); lines[1] != "NO ANSWER: away for good" || strings.Join(m.first(), " ") != "eu01 us01 ap01" {
		t.Errorf("without an answer it draws\n%s", strings.Join(lines, "\n"))
	}
	m.Update(topLook())
	if line := m.lines()[1]; line != "a leads since 3h." {
		t.Errorf("with an answer again it says %q", line)
	}
	detached := topLook()
	detached.replicas.Fleet.Detached = true
	m.Update(detached)
	if line := m.lines()[1]; !strings.HasPrefix(line, "DETACHED: ") {
		t.Errorf("of a replica that is cut off it says %q", line)
	}
	m.Update(seen{at: topAt, replicas: &trestlev1.ListReplicasResponse{}, shards: &trestlev1.ListShardsResponse{}})
	if lines := m.lines(); lines[1] != "Nobody leads: nothing is moved until a replica does." || len(m.first()) != 0 {
		t.Errorf("of an empty fleet it draws\n%s", strings.Join(lines, "\n"))
	}
}

func TestTopHolds(t *testing.T) {
	t.Parallel()
	m := topModel(t, tea.WindowSizeMsg{Width: 110, Height: 12}, topLook())
	m.press("space")
	other := topLook()
	other.shards.Shards = other.shards.Shards[:1]
	m.Update(other)
	lines := m.lines()
	if len(m.first()) != 3 || !strings.HasPrefix(lines[len(lines)-1], "HELD") {
		t.Errorf("held, it draws\n%s", strings.Join(lines, "\n"))
	}
	m.press("space")
	m.Update(other)
	if lines = m.lines(); len(m.first()) != 1 || strings.Contains(lines[len(lines)-1], "HELD") {
		t.Errorf("going on, it draws\n%s", strings.Join(lines, "\n"))
	}
	// There is nothing to hold before the first look.
	m = topModel(t)
	m.press("space")
	m.Update(topLook())
	if len(m.first()) != 3 {
		t.Errorf("held too early, it draws\n%s", strings.Join(m.lines(), "\n"))
	}
}

func TestTopQuits(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"q", "ctrl+c"} {
		if !quits(topModel(t, topLook()).press(key)) {
			t.Errorf("%s does not quit", key)
		}
	}
	if quits(topModel(t, topLook()).press("x")) {
		t.Error("x quits")
	}
}

// No line is wider than the terminal, and no picture higher.
func TestTopFits(t *testing.T) {
	t.Parallel()
	look := topLook()
	look.shards.Shards[0].Text = "世界 moves on"
	look.replicas.Fleet.Freeze = &trestlev1.Freeze{Reason: "世界世界世界世界世界世界世界世界世界世界世界世界\x1b[2J", Author: "ann"}
	for _, width := range []int{1, 2, 7, 20, 39, 79, 80, 81, 300} {
		for _, height := range []int{1, 2, 3, 5, 7, 24} {
			m := topModel(t, tea.WindowSizeMsg{Width: width, Height: height}, look)
			for _, keys := range [][]string{{"s"}, {"r"}, {"/", "e"}, {"enter", "space"}} {
				m.press(keys...)
				lines := m.lines()
				if len(lines) > height {
					t.Errorf("%d by %d after %v: %d lines", width, height, keys, len(lines))
				}
				for _, line := range lines {
					if w := text.StringWidthWithoutEscSequences(line); w > width {
						t.Errorf("%d by %d after %v: %q is %d wide", width, height, keys, line, w)
					}
					if strings.Contains(line, "[2J") && strings.Contains(line, "\x1b[2J") {
						t.Errorf("%q acts on the terminal", line)
					}
				}
			}
		}
	}
}

func TestTopNeedsATerminal(t *testing.T) {
	t.Parallel()
	// Nobody is asked: nothing listens there.
	const nobody = "127.0.0.1:1"
	call(t, nobody, "top").says(t, "no terminal", exitUsage, "needs a terminal", "trestlectl shards")
	call(t, nobody, "top", "-o", "json").says(t, "for machines", exitUsage, "trestlectl shards --watch -o json")
	call(t, nobody, "top", "--interval", "1ms").says(t, "too often", exitUsage, "--interval 1ms", "200ms")
}

// A look asks for both lists, and says what is wrong.
func TestTopLooks(t *testing.T) {
	t.Parallel()
	f := newFake(t, shown())
	p := &program{addresses: []string{f.addr}, timeout: time.Minute}
	if s := p.look(t.Context()); s.err != nil || len(s.replicas.GetReplicas()) != 3 || len(s.shards.GetShards()) != 3 || s.at.IsZero() {
		t.Errorf("sees %+v", s)
	}
	if asked := f.requests(); len(asked) != 2 {
		t.Errorf("asks %v", asked)
	}
	p.addresses = []string{"127.0.0.1:1"}
	if s := p.look(t.Context()); s.err == nil || !strings.Contains(s.err.Error(), "127.0.0.1:1") {
		t.Errorf("of nobody: %v", s.err)
	}
}
