package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/trestle-bridge/trestle/coordinator"
	"github.com/trestle-bridge/trestle/coordinator/table"
	"github.com/trestle-bridge/trestle/internal/access"
	"github.com/trestle-bridge/trestle/internal/api"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/pipeline"
	"github.com/trestle-bridge/trestle/pipeline/trace"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
	"github.com/trestle-bridge/trestle/shard"
)

// world is what the replica of these tests knows, and what it was asked to do.
type world struct {
	// mu guards all of it, but for what is set before the replica serves.
	mu       sync.Mutex
	state    coordinator.State
	plan     shard.Plan
	refuses  error // what the leader says
	broken   error // what the database says
	commands []coordinator.Command
	row      *store.InstanceRow
	refused  []store.QuarantinedChange
	memories []api.Memory
	retry    func(cluster string, id status.InstanceID) (string, pipeline.Decided, bool, error)
	retried  []string
}

func (w *world) State() (coordinator.State, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state, nil
}

func (w *world) Do(_ context.Context, c coordinator.Command) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.commands = append(w.commands, c)
	return w.refuses
}

func (w *world) Plan() shard.Plan                                                 { return w.plan }
func (w *world) Ranks([]shard.ID) [][]shard.Ranked                                { return nil }
func (w *world) Request(context.Context, string) error                            { return nil }
func (w *world) Confirm(context.Context, string) error                            { return nil }
func (w *world) Clusters(context.Context) ([]store.Cluster, error)                { return nil, w.broken }
func (w *world) RegisterCluster(context.Context, store.Cluster) error             { return w.broken }
func (w *world) UpdateCluster(context.Context, string, store.ClusterChange) error { return w.broken }
func (w *world) DeregisterCluster(context.Context, string, bool) error            { return w.broken }

func (w *world) Why(context.Context, status.InstanceID) []api.Memory { return w.memories }

func (w *world) Retry(_ context.Context, cluster string, id status.InstanceID) (string, pipeline.Decided, bool, error) {
	w.mu.Lock()
	w.retried = append(w.retried, cluster+" "+id.String())
	w.mu.Unlock()
	return w.retry(cluster, id)
}

func (w *world) Instance(_ context.Context, id status.InstanceID) (*store.InstanceRow, error) {
	if id != instanceID(1) {
		return nil, w.broken
	}
	return w.row, w.broken
}

func (w *world) ListQuarantine(_ context.Context, f store.QuarantineFilter, limit int) ([]store.QuarantinedChange, int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []store.QuarantinedChange
	for _, c := range w.refused {
		if (f.Cluster == "" || c.Cluster == f.Cluster) && (f.Instance == nil || c.Instance == *f.Instance) {
			list = append(list, c)
		}
	}
	return list[:min(limit, len(list))], int64(len(list)), w.broken
}

func (w *world) DropQuarantine(_ context.Context, changes []store.QuarantinedChange) (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := len(w.refused)
	w.refused = slices.DeleteFunc(slices.Clone(w.refused), func(c store.QuarantinedChange) bool { return slices.Contains(changes, c) })
	return int64(before - len(w.refused)), w.broken
}

// asked gives what operators have asked the fleet for.
func (w *world) asked() []coordinator.Command {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.commands)
}

func instanceID(n byte) status.InstanceID { return status.InstanceID{6: 0x40, 8: 0x80, 15: n} }

func refusedChange(n byte, cluster string, version, row uint64) store.QuarantinedChange {
	return store.QuarantinedChange{
		Poison: store.Poison{
			Instance: instanceID(n), Cluster: cluster, Kind: "regular", Version: version, Hash: uint64(n),
			Fault: store.Fault{SQLState: "22001", Reason: "value too long for type character varying(255)"},
			At:    time.Now().Add(-3 * day), Times: 4,
		},
		First: time.Now().Add(-5 * day), HasRow: row > 0, Stored: row,
	}
}

// newWorld has two clusters, one of them cut in two, and two replicas.
func newWorld() *world {
	w := &world{}
	since := time.Now().Add(-3 * day)
	w.state = coordinator.State{
		Known:  true,
		Leader: table.Leader{Incarnation: "a.1", Name: "a", Since: since},
		Shards: []coordinator.ShardState{
			{
				ID: shard.Whole("eu01"), Observed: 7, Measured: coordinator.Measured{Rate: 10, Live: 100},
				Stored: table.Shard{Record: shard.Record{Epoch: 7, Owner: "a.1", Phase: shard.PhaseOwned, Pin: shard.Pin{Replica: "a"}}, Weight: 12, Since: since},
			},
			{
				ID: shard.Slice("us01", 0, 2), Observed: 2, Measured: coordinator.Measured{Rate: 200, Live: 2000},
				Stored: table.Shard{Record: shard.Record{Epoch: 2, Owner: "a.1", Phase: shard.PhaseOwned, Generation: 1}, Weight: 250, Since: since},
			},
			{
				ID: shard.Slice("us01", 1, 2), Observed: 2, Measured: coordinator.Measured{Rate: 100, Live: 1000},
				Stored: table.Shard{Record: shard.Record{Epoch: 2, Owner: "b.1", Phase: shard.PhaseOwned, Generation: 1}, Weight: 150, Since: since},
			},
		},
		Replicas: []coordinator.ReplicaState{
			{Incarnation: "a.1", Member: table.Member{Name: "a", Revision: "v1"}, Joined: since},
			{Incarnation: "b.1", Member: table.Member{Name: "b", Revision: "v1"}, Joined: since},
		},
		Clusters: map[string]table.Cluster{"us01": {Slices: 2, Generation: 1}},
	}
	w.plan = shard.Plan{Proposals: []shard.Proposal{{Cluster: "us01", Slices: 4, Text: "it makes 300 updates/s"}}}
	w.refused = []store.QuarantinedChange{refusedChange(1, "eu01", 9, 8), refusedChange(2, "us01", 5, 6), refusedChange(3, "us01", 5, 0)}
	return w
}

// serve runs a real gRPC server of a world, and gives its address.
func (w *world) serve(t *testing.T, change ...func(*api.Config)) string {
	t.Helper()
	cfg := api.Config{
		Address: "127.0.0.1:0", Registry: w, Registerer: prometheus.NewRegistry(), Fleet: w, Sweeps: w, Instances: w, Rows: w, Incarnation: "a.1",
		Logger: slog.New(slog.DiscardHandler),
	}
	for _, c := range change {
		c(&cfg)
	}
	server, err := api.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1) // read once, below
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return server.Addr().String()
}

func TestQuarantineIsShown(t *testing.T) {
	t.Parallel()
	w := newWorld()
	addr := w.serve(t)
	const header = "INSTANCE                              CLUSTER  VERSION  ROW AT  LAST  TIMES  SQLSTATE  NOTE                           REASON\n"
	const (
		one   = "00000000-0000-4000-8000-000000000001  eu01           9       8    3d      4  22001     the row lacks it               value too long for type character varying(255)\n"
		two   = "00000000-0000-4000-8000-000000000002  us01           5       6    3d      4  22001     past: a later update was written  value too long for type character varying(255)\n"
		three = "00000000-0000-4000-8000-000000000003  us01           5       -    3d      4  22001     there is no row                value too long for type character varying(255)\n"
	)
	fields := func(text string) string { return strings.Join(strings.Fields(text), " ") }
	reads := func(what, want string, args ...string) {
		t.Helper()
		if o := call(t, addr, args...); o.code != exitOK || fields(o.out) != fields(want) {
			t.Errorf("%s: exits with %d: %s\n%s\nwant\n%s", what, o.code, o.err, o.out, want)
		}
	}
	reads("all", header+one+two+three, "quarantine", "list")
	reads("those of a cluster", header+two+three, "quarantine", "list", "--cluster", "us01")
	reads("those of an instance", header+one, "quarantine", "show", instanceID(1).String())
	reads("of a cluster without any", "Nothing that ap01 said is in quarantine.", "quarantine", "list", "--cluster", "ap01")
	reads("of an instance without any", "Nothing of 00000000-0000-4000-8000-000000000009 is in quarantine.", "quarantine", "show", instanceID(9).String())

	asJSON := call(t, addr, "quarantine", "list", "-o", "json")
	got := &trestlev1.ListQuarantineResponse{}
	if err := protojson.Unmarshal([]byte(asJSON.out), got); err != nil || got.GetTotal() != 3 || !got.GetChanges()[1].GetPast() || got.GetChanges()[2].Stored != nil {
		t.Errorf("as JSON (%v): %+v", err, asJSON)
	}

	w.refused = nil
	reads("nothing", "Nothing is in quarantine.", "quarantine", "list")
	for n := range 1100 {
		c := refusedChange(1, "eu01", 9, 8)
		c.Hash = uint64(n)
		w.refused = append(w.refused, c)
	}
	if o := call(t, addr, "quarantine", "list"); !strings.HasSuffix(o.out, "\nAnd 100 more; --cluster shows those of one cluster.\n") || strings.Count(o.out, "\n") != 1002 {
		t.Errorf("of 1100 it lists %d lines: …%s", strings.Count(o.out, "\n"), o.out[max(len(o.out)-200, 0):])
	}
}

func TestQuarantineIsTriedAgain(t *testing.T) {
	t.Parallel()
	decided := func(d trace.Decision, version uint64) pipeline.Decided {
		return pipeline.Decided{Entry: trace.Entry{Decision: d, Version: version, Updates: 1}, Shard: shard.Whole("eu01"), Epoch: 7}
	}
	one := instanceID(1).String()
	for _, c := range []struct {
		what   string
		who    string
		does   func(*world) (pipeline.Decided, bool, error)
		exit   int
		prints string
		says   []string
		left   int // of three
	}{
		{"written", "b.1", func(*world) (pipeline.Decided, bool, error) { return decided(trace.Applied, 11), true, nil }, exitOK,
			one + " is written: version 11, by b, owner of eu01.", nil, 2},
		{"as written before", "a.1", func(*world) (pipeline.Decided, bool, error) { return decided(trace.Unchanged, 11), true, nil }, exitOK,
			one + " was tried, and is unchanged: version 11, by a, owner of eu01.", nil, 2},
		{"not known to the cluster", "a.1", func(*world) (pipeline.Decided, bool, error) { return pipeline.Decided{}, false, nil }, exitOK,
			"The cluster does not speak of " + one + " any more: there was nothing to try. If it does again, that is tried.", nil, 2},
		{"refused again", "a.1", func(w *world) (pipeline.Decided, bool, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.refused = slices.Clone(w.refused)
			w.refused[0].Times++
			return decided(trace.Quarantined, 9), true, nil
		}, exitRefused, "", []string{one + " was REFUSED AGAIN (version 9, by a, owner of eu01): value too long", "(SQLSTATE 22001)", "quarantine drop"}, 3},
		{"with nobody to do it", "", func(*world) (pipeline.Decided, bool, error) {
			return pipeline.Decided{}, false, fmt.Errorf("%w: nobody owns eu01", pipeline.ErrCannotRetry)
		}, exitRefused, "", []string{"nobody owns eu01; nothing was changed"}, 3},
		{"without an answer", "", func(*world) (pipeline.Decided, bool, error) { return pipeline.Decided{}, false, errors.New("silent") },
			exitUnreachable, "", []string{"has not answered", "trace the instance"}, 3},
	} {
		w := newWorld()
		w.retry = func(string, status.InstanceID) (string, pipeline.Decided, bool, error) {
			d, heard, err := c.does(w)
			return c.who, d, heard, err
		}
		addr := w.serve(t)
		o := call(t, addr, "quarantine", "retry", one, "--reason", "the column is longer now")
		o.says(t, c.what, c.exit, c.says...)
		if strings.TrimSpace(o.out) != c.prints {
			t.Errorf("%s: prints %q, want %q", c.what, o.out, c.prints)
		}
		if strings.Count(strings.ToLower(o.err), "nothing was changed") > 1 {
			t.Errorf("%s: says it twice: %s", c.what, o.err)
		}
		if len(w.retried) != 1 || w.retried[0] != "eu01 "+one {
			t.Errorf("%s: tried %q", c.what, w.retried)
		}
		if len(w.refused) != c.left {
			t.Errorf("%s: leaves %d in quarantine", c.what, len(w.refused))
		}
	}
	// A replica that has done nothing is passed over for the next, one that may
	// have done something is not.
	unread, good := newWorld(), newWorld()
	unread.state.Known = false
	good.retry = func(string, status.InstanceID) (string, pipeline.Decided, bool, error) {
		return "a.1", decided(trace.Applied, 11), true, nil
	}
	both := unread.serve(t) + "," + good.serve(t)
	if o := call(t, both, "quarantine", "retry", one, "--reason", "r"); o.code != exitOK || len(good.retried) != 1 {
		t.Errorf("at the second replica: %+v", o)
	}
	silent := newWorld()
	silent.retry = func(string, status.InstanceID) (string, pipeline.Decided, bool, error) {
		return "", pipeline.Decided{}, false, errors.New("silent")
	}
	good.refused = newWorld().refused
	if o := call(t, silent.serve(t)+","+good.serve(t), "quarantine", "retry", one, "--reason", "r"); o.code != exitUnreachable || len(good.retried) != 1 {
		t.Errorf("after an unknown end: %+v, tried %q elsewhere", o, good.retried)
	}
}

func TestQuarantineIsDropped(t *testing.T) {
	t.Parallel()
	w := newWorld()
	again := refusedChange(1, "eu01", 10, 8)
	again.Hash = 77
	w.refused = append(w.refused, again)
	addr := w.serve(t)
	one := instanceID(1).String()
	call(t, addr, "quarantine", "drop", one, "--reason", "past").reads(t, "a drop", "2 records of "+one+" are removed.")
	if len(w.refused) != 2 {
		t.Errorf("%d are left", len(w.refused))
	}
	call(t, addr, "quarantine", "drop", one, "--reason", "past").says(t, "another", exitNotFound, "nothing of instance "+one, "trestlectl quarantine list")
	call(t, addr, "quarantine", "drop", instanceID(2).String(), "--reason", "past", "-o", "json").reads(t, "as JSON", "{\n  \"removed\": \"1\"\n}")
}

func TestInstanceTrace(t *testing.T) {
	t.Parallel()
	now := time.Now()
	at := func(ago time.Duration) time.Time { return now.Add(-ago) }
	entry := func(d trace.Decision, ago time.Duration, stored, version uint64, updates int, phase status.Phase, epoch shard.Epoch) pipeline.Decided {
		return pipeline.Decided{
			Entry: trace.Entry{Decision: d, At: at(ago), Version: version, Stored: stored, KnowsStored: stored != 0, Updates: updates, Phase: phase},
			Shard: shard.Whole("eu01"), Epoch: epoch,
		}
	}
	w := newWorld()
	w.state.Shards[0].Measured.Deaf = true
	w.row = &store.InstanceRow{
		WorkspaceID: "amber-ant", Type: "prebuild", Region: "eu01", Phase: "stopping", Version: 12, Message: "evil\x1b[2J", NodeName: "node-1", Failed: "out of space",
		Created: at(10 * day), Started: at(9 * day), Swept: true, Deleted: true,
		Prebuild: &store.PrebuildRow{ID: "p1", State: "failed", Error: "out of space", Version: 12, Instance: instanceID(9).String()},
	}
	w.memories = []api.Memory{
		{Incarnation: "b.1", Decided: []pipeline.Decided{
			entry(trace.Applied, 5*day, 0, 8, 3, "running", 6),
			entry(trace.Repeat, 110*time.Hour, 8, 9, 40, "", 6),
			entry(trace.Stale, 100*time.Hour, 9, 7, 2, "", 6),
			entry(trace.Fenced, 76*time.Hour, 0, 10, 1, "stopping", 6),
		}},
		{Incarnation: "a.1", Decided: []pipeline.Decided{
			entry(trace.Applied, 75*time.Hour, 9, 12, 2, "stopping", 7),
			entry(trace.Quarantined, 74*time.Hour, 0, 13, 1, "stopped", 7),
			entry(trace.Foreign, 73*time.Hour, 12, 1, 1, "", 0),
		}, Undecided: []pipeline.Undecided{
			{Shard: shard.Whole("eu01"), Epoch: 7, Version: 14, Updates: 1, Since: at(50 * time.Hour), Phase: "stopping", InFlight: true},
			{Shard: shard.Whole("eu01"), Epoch: 7, Version: 20, Updates: 6, Since: at(49 * time.Hour), Phase: "stopped"},
			{Shard: shard.Whole("eu01"), Version: 21, Updates: 1, Since: at(48 * time.Hour), Phase: "stopped"},
		}},
		{Incarnation: "c.1", Err: errors.New("it does not answer")},
	}
	addr := w.serve(t)
	o := call(t, addr, "instance", "trace", instanceID(1).String())
	o.says(t, "a trace", exitOK, "warning: c.1 could not be asked, so what it remembers is missing: it does not answer")
	var lines []string
	for line := range strings.Lines(o.out) {
		// Times are what they are; ages are rough.
		if fields := strings.Fields(line); len(fields) > 2 && strings.HasPrefix(fields[0], "20") {
			fields[0], fields[1] = "DAY", "TIME"
			line = strings.Join(fields, " ")
		} else if strings.HasPrefix(line, "  created") || strings.HasPrefix(line, "  started") {
			fields := strings.Fields(line)
			line = fields[0] + " " + strings.Join(fields[3:], " ")
		} else {
			line = strings.Join(strings.Fields(line), " ")
		}
		lines = append(lines, line)
	}
	want := strings.TrimPrefix(`
Instance 00000000-0000-4000-8000-000000000001 is STOPPING at version 12.
workspace amber-ant
type prebuild
region eu01
created (10d ago)
started (9d ago)
message evil·[2J
failed out of space
node node-1
swept a sweep has stopped it, and nothing was heard of it since
deleted yes
prebuild p1 is failed at version 12 of instance 00000000-0000-4000-8000-000000000009: out of space
Its shard eu01 is carried by a under epoch 7, OWNED since 3d.
Its owner CANNOT HEAR the cluster.
In quarantine for 5d: version 9, refused 4 times: value too long for type character varying(255) (SQLSTATE 22001).

AT (UTC) AGE DECISION FROM TO PHASE UPDATES REPLICA EPOCH
DAY TIME 5d ago applied ? 8 running 3 b 6
DAY TIME 4d ago repeat 8 9 - 40 b 6
DAY TIME 4d ago stale 9 7 - 2 b 6
DAY TIME 3d ago fenced ? 10 stopping 1 b 6
DAY TIME 3d ago applied 9 12 stopping 2 a 7
DAY TIME 3d ago quarantined ? 13 stopped 1 a 7
DAY TIME 3d ago foreign - 1 - 1 a -
Heard and not decided: version 14 (stopping, 1 updates since 2d ago) is being written by a.
Heard and not decided: version 20 (stopped, 6 updates since 2d ago) waits to be written by a.
Heard and not decided: version 21 (stopped, 1 updates since 2d ago) waits at a, which only prepares to take the shard over.
`, "\n")
	if got := strings.Join(lines, "\n") + "\n"; got != want {
		t.Errorf("reads\n%s\nwant\n%s", got, want)
	}
	asJSON := call(t, addr, "instance", "trace", instanceID(1).String(), "-o", "json")
	got := &trestlev1.TraceInstanceResponse{}
	if err := protojson.Unmarshal([]byte(asJSON.out), got); err != nil || len(got.GetDecisions()) != 7 || got.GetRow().GetPhase() != "stopping" || len(got.GetUnheard()) != 1 {
		t.Errorf("as JSON (%v): %+v", err, asJSON)
	}

	// A row whose region nobody hears, that nobody remembers.
	w.row = &store.InstanceRow{Region: "old", Phase: "running", Version: 3}
	w.memories, w.refused = nil, nil
	if o := call(t, addr, "instance", "trace", instanceID(1).String()); o.code != exitOK ||
		!strings.Contains(o.out, `No replica hears it: "old" is no cluster that is heard here.`) || !strings.Contains(o.out, "No replica remembers what was decided") {
		t.Errorf("of a row that nobody hears: %+v", o)
	}
	// One whose shard nobody carries.
	w.row.Region = "eu01"
	w.state.Shards = slices.Clone(w.state.Shards)
	w.state.Shards[0].Stored.Owner, w.state.Shards[0].Stored.Phase = "", shard.PhaseUnowned
	if o := call(t, addr, "instance", "trace", instanceID(1).String()); o.code != exitOK || !strings.Contains(o.out, "Its shard eu01 is carried by NOBODY, UNOWNED since 3d.") {
		t.Errorf("of a shard that nobody carries: %+v", o)
	}
	// One that is heard of, without a row.
	w.row, w.memories = nil, []api.Memory{{Incarnation: "a.1", Decided: []pipeline.Decided{entry(trace.Unknown, 5*day, 0, 8, 3, "", 7)}}}
	o = call(t, addr, "instance", "trace", instanceID(1).String())
	if fields := strings.Fields(o.out); o.code != exitOK || !strings.Contains(o.out, "has no row in the database") || !strings.Contains(strings.Join(fields, " "), "unknown - 8 - 3 a 7") {
		t.Errorf("without a row: %+v", o)
	}
	w.memories = nil
	call(t, addr, "instance", "trace", instanceID(1).String()).says(t, "nothing at all", exitNotFound, "no row of instance", "workspace")
	call(t, addr, "instance", "trace", "amber-ant").says(t, "no UUID", exitUsage, `"amber-ant" is no UUID`, "trestlectl instance trace --help")
}

func TestSlices(t *testing.T) {
	t.Parallel()
	w := newWorld()
	addr := w.serve(t)
	call(t, addr, "slices").reads(t, "the list", `
CLUSTER  SLICES  REPLICAS  UPDATES/S  LIVE  WEIGHT  PINS  NOTES
eu01          1         1         10   100      12     1  -
us01          2         2        300  3000     400     0  4 are proposed: it makes 300 updates/s`)
	call(t, addr, "slices", "us01", "4", "--reason", "hot", "--author", "ann").reads(t, "a cut", "us01 is being cut into 4; see trestlectl explain us01.")
	call(t, addr, "slices", "eu01", "2", "--reason", "hot", "--author", "ann", "--for", "1m").reads(t, "one that ends a pin",
		"eu01 is being cut into 2; see trestlectl explain eu01. The pins of eu01 END with these shards; pin the new ones if they should stay where they were.")
	asked := w.asked()
	if len(asked) != 2 || asked[0].Kind != coordinator.CommandSlices || asked[0].Cluster != "us01" || asked[0].Slices != 4 || asked[0].Reason != "hot" ||
		asked[0].Author != "ann" || !asked[0].Until.IsZero() || asked[1].Slices != 2 || asked[1].Until.IsZero() {
		t.Errorf("asked for %+v", asked)
	}
	us01 := w.state.Clusters["us01"]
	us01.Reslice = &shard.Reslice{Cluster: "us01", From: 2, To: 4, Generation: 2, Phase: shard.ResliceRelease, Reason: "hot", Author: "ann"}
	w.state.Clusters = map[string]table.Cluster{"us01": us01}
	w.plan = shard.Plan{}
	call(t, addr, "slices", "-o", "wide").reads(t, "while it is cut", `
CLUSTER  SLICES  GENERATION  REPLICAS  UPDATES/S  LIVE  WEIGHT  PINS  NOTES
eu01          1           0         1         10   100      12     1  -
us01          2           1         2        300  3000     400     0  being cut into 4: the old shards are being released`)
	asJSON := call(t, addr, "slices", "-o", "json")
	got := &trestlev1.ListSlicesResponse{}
	if err := protojson.Unmarshal([]byte(asJSON.out), got); err != nil || len(got.GetCuts()) != 2 || got.GetCuts()[1].GetReslice().GetReason() != "hot" {
		t.Errorf("as JSON (%v): %+v", err, asJSON)
	}
	w.refuses = fmt.Errorf("%w: us01 is being cut already", coordinator.ErrCommand)
	call(t, addr, "slices", "us01", "8", "--reason", "hot").says(t, "one that is refused", exitRefused, "the leader refuses: us01 is being cut already")
	call(t, addr, "slices", "us09", "8", "--reason", "hot").says(t, "an unknown cluster", exitNotFound, `"us09"`, "eu01")
	w.state.Detached = true
	if o := call(t, addr, "slices"); o.code != exitOK || !strings.Contains(o.err, "cut off from etcd") {
		t.Errorf("of a replica that is cut off: %+v", o)
	}
	w.state.Shards, w.state.Detached = nil, false
	call(t, addr, "slices").reads(t, "nothing", "There are no clusters that are heard.")
}

// A token that was made, and its line in the file of a replica, open the door;
// what it says when it stays shut tells what to do.
func TestTokenOpensTheDoor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var lines []string
	made := func(name, role string) string {
		t.Helper()
		o := call(t, "", "token", name, "--role", role, "-o", "json")
		var both struct{ Token, Line string }
		if err := json.Unmarshal([]byte(o.out), &both); err != nil || o.code != exitOK {
			t.Fatalf("%v: %+v", err, o)
		}
		lines = append(lines, both.Line)
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(both.Token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	viewer, operator := made("vera", "viewer"), made("olga", "operator")
	stranger := made("eve", "operator")
	tokens := filepath.Join(dir, "tokens")
	if err := os.WriteFile(tokens, []byte(strings.Join(lines[:2], "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	who, err := access.New(access.Config{TokenFile: tokens, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	addr := newWorld().serve(t, func(c *api.Config) { c.Access = who })
	drop := []string{"quarantine", "drop", instanceID(1).String(), "--reason", "past"}
	for _, c := range []struct {
		what  string
		token string
		args  []string
		exit  int
		says  []string
	}{
		{"nobody", "", []string{"slices"}, exitRefused, []string{"say who you are", "--token-file"}},
		{"a stranger", stranger, []string{"slices"}, exitRefused, []string{"token"}},
		{"a viewer who looks", viewer, []string{"slices"}, exitOK, nil},
		{"a viewer who looks at an instance", viewer, []string{"quarantine", "show", instanceID(1).String()}, exitOK, nil},
		{"a viewer who changes", viewer, drop, exitRefused, []string{"operator", "Nothing was changed"}},
		{"an operator", operator, drop, exitOK, nil},
	} {
		args := c.args
		if c.token != "" {
			args = append(slices.Clone(args), "--token-file", c.token)
		}
		call(t, addr, args...).says(t, c.what, c.exit, c.says...)
	}

	for _, args := range [][]string{{"token", "olga", "--role", "king"}, {"token", "two words"}, {"token", "#olga"}, {"token"}} {
		if o := call(t, "", args...); o.code != exitUsage || o.out != "" || !strings.Contains(o.err, "trestlectl token --help") {
			t.Errorf("%q: %+v", args, o)
		}
	}
	o := call(t, "", "token", "olga")
	token, line := "", ""
	for l := range strings.Lines(o.out) {
		if fields := strings.Fields(l); len(fields) == 1 {
			token = fields[0]
		} else if len(fields) == 3 && fields[0] == "olga" {
			line = strings.TrimSpace(l)
		}
	}
	if parsed, err := access.ParseTokens([]byte(line)); o.code != exitOK || token == "" || err != nil || len(parsed) != 1 || parsed[0].Role != access.Viewer || strings.Contains(line, token) {
		t.Errorf("a token for people (%v): %+v", err, o)
	}
}

// A failure names what was attempted, and on what, before what came of it; what
// is not gRPC is told apart.
func TestFailuresSayWhatWasAttempted(t *testing.T) {
	t.Parallel()
	addr := newWorld().serve(t)
	call(t, addr, "pin", "eu01", "z", "--reason=r").says(t, "a pin", exitNotFound, `trestlectl: pin eu01 z: there is no replica "z"`)
	call(t, addr, "quarantine", "retry", instanceID(9).String(), "--reason=r").says(t, "a retry", exitNotFound, "trestlectl: quarantine retry "+instanceID(9).String()+": nothing of")
	call(t, addr, "explain", "evil\x1b[2J").says(t, "a name that acts on terminals", exitUsage, "trestlectl: explain evil·[2J: cluster: ")
	call(t, addr, "pin", "eu01").says(t, "wrong usage", exitUsage, "trestlectl: REPLICA is missing")
	call(t, addr, "slices", "--tls").says(t, "TLS where none is spoken", exitUnreachable, "trestlectl: slices: no replica can be asked", "plain text: leave out --tls")

	plainHTTP := httptest.NewServer(http.NotFoundHandler())
	defer plainHTTP.Close()
	call(t, plainHTTP.Listener.Addr().String(), "slices").says(t, "an HTTP server", exitUnreachable, "speaks HTTP and not gRPC")
}

// Every exit code that is documented, from a real replica.
func TestExitCodesOfAReplica(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.row = &store.InstanceRow{Region: "eu01", Phase: "running"}
	w.refuses = fmt.Errorf("%w: not now", coordinator.ErrCommand)
	w.retry = func(string, status.InstanceID) (string, pipeline.Decided, bool, error) {
		return "", pipeline.Decided{}, false, fmt.Errorf("%w: nobody owns eu01", pipeline.ErrCannotRetry)
	}
	good := w.serve(t)
	broken := newWorld()
	broken.broken = errors.New("out of order")
	wrong := broken.serve(t)
	unread := newWorld()
	unread.state.Known = false
	starting := unread.serve(t)
	slow := newWorld()
	slow.refuses = coordinator.ErrUnanswered
	leaderless := slow.serve(t)
	one, nine, why := instanceID(1).String(), instanceID(9).String(), "--reason=r"
	for _, c := range []struct {
		addr string
		exit int
		args []string
		says string
	}{
		{good, exitOK, []string{"instance", "trace", one}, ""},
		{good, exitOK, []string{"quarantine", "list"}, ""},
		{good, exitOK, []string{"slices"}, ""},
		{wrong, exitFailed, []string{"instance", "trace", one}, "internal error; the log of the service says more"},
		{wrong, exitFailed, []string{"quarantine", "list"}, "internal error"},
		{wrong, exitFailed, []string{"quarantine", "drop", one, why}, "internal error"},
		{leaderless, exitFailed, []string{"slices", "us01", "4", why}, "trestlectl commands"},
		{leaderless, exitFailed, []string{"pin", "eu01", "b", why}, "no leader has acted on this yet; it stands"},
		{good, exitUsage, []string{"instance", "trace", "x"}, "no UUID"},
		{good, exitUsage, []string{"quarantine", "show", "x"}, "no UUID"},
		{good, exitUsage, []string{"quarantine", "retry", one}, "--reason is missing"},
		{good, exitUsage, []string{"quarantine", "drop", one, "--reason", strings.Repeat("x", 600)}, "reason"},
		{good, exitUsage, []string{"slices", "us01"}, "N is missing"},
		{good, exitNotFound, []string{"instance", "trace", nine}, nine},
		{good, exitNotFound, []string{"quarantine", "retry", nine, why}, "trestlectl quarantine list"},
		{good, exitNotFound, []string{"slices", "nix", "2", why}, `"nix"`},
		{good, exitNotFound, []string{"pin", "eu01", "z", why}, `"z"`},
		{good, exitRefused, []string{"quarantine", "retry", one, why}, "nobody owns eu01"},
		{good, exitRefused, []string{"pin", "eu01", "b", why}, "the leader refuses: not now"},
		{starting, exitUnreachable, []string{"instance", "trace", one}, "has not read yet"},
		{starting, exitUnreachable, []string{"quarantine", "retry", one, why}, "has not read yet"},
		{starting, exitUnreachable, []string{"slices"}, "has not read yet"},
		{"127.0.0.1:1", exitUnreachable, []string{"quarantine", "list"}, "127.0.0.1:1: "},
		{"127.0.0.1:1", exitUnreachable, []string{"instance", "trace", one}, "port-forward"},
	} {
		o := call(t, c.addr, c.args...)
		o.says(t, strings.Join(c.args, " "), c.exit, c.says)
		if c.exit != exitOK && o.out != "" {
			t.Errorf("%v prints %s", c.args, o.out)
		}
	}
}
