package record_test

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/loadtest/record"
	"github.com/trestle-bridge/trestle/loadtest/record/recordtest"
)

func TestRoundTrip(t *testing.T) {
	for name, cfg := range map[string]recordtest.Config{
		"small":   {Seconds: 10, Replicas: 1, Clusters: 1, Rate: 100, Calm: true},
		"faults":  {Seconds: 60, Replicas: 3, Clusters: 4, Slices: 2, Rate: 2000},
		"failed":  {Seconds: 20, Replicas: 2, Clusters: 2, Rate: 50, Failed: true},
		"hostile": {Seconds: 20, Replicas: 2, Clusters: 2, Rate: 50, Failed: true, Hostile: true},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "recording.json")
			if err := record.Write(path, recordtest.Make(cfg)); err != nil {
				t.Fatal(err)
			}
			first, err := record.Read(path)
			if err != nil {
				t.Fatal(err)
			}
			var again bytes.Buffer
			if err := record.Encode(&again, first); err != nil {
				t.Fatal(err)
			}
			written, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(written, again.Bytes()) {
				t.Error("what was read is written differently")
			}
			second, err := record.Decode(&again)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(first, second) {
				t.Error("it is not the same after a round trip")
			}
			if bytes.Contains(written, []byte("null,")) && cfg.Calm {
				t.Error("an empty list is null")
			}
		})
	}
}

func TestWriteLeavesNothingHalf(t *testing.T) {
	dir := t.TempDir()
	rec := recordtest.Make(recordtest.Config{Seconds: 3, Replicas: 1, Clusters: 1, Rate: 10, Calm: true})
	rec.Seconds[1].Latency.P50MS = math.NaN()
	if err := record.Write(filepath.Join(dir, "r.json"), rec); err == nil {
		t.Error("NaN is written")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestValidate(t *testing.T) {
	for _, c := range []struct {
		name   string
		breaks func(*record.Recording)
		want   string
	}{
		{"another format", func(r *record.Recording) { r.Format = 99 }, "format 99"},
		{"negative", func(r *record.Recording) { r.DurationS = -1 }, "-1 s"},
		{"cluster", func(r *record.Recording) { r.Clusters[0].Seconds = r.Clusters[0].Seconds[:3] }, "has 3 seconds"},
		{"fault", func(r *record.Recording) { r.Faults[0].UntilS = 0 }, "before it begins"},
		{"samples", func(r *record.Recording) { r.Replicas[0].Samples[0].AtS = 1000 }, "out of order"},
		{"spans", func(r *record.Recording) { r.Shards[0].Spans[0].UntilS = 5 }, "out of order"},
		{"verdict", func(r *record.Recording) { r.Verdict.Zeros.Early = 1 }, "held=true"},
	} {
		rec := recordtest.Make(recordtest.Config{Seconds: 20, Replicas: 2, Clusters: 2, Rate: 50})
		if err := rec.Validate(); err != nil {
			t.Fatal(err)
		}
		c.breaks(rec)
		if err := rec.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q in it", c.name, err, c.want)
		}
	}
	for _, text := range []string{"", "{}", `{"format":1`, `[]`} {
		if _, err := record.Decode(strings.NewReader(text)); err == nil {
			t.Errorf("%q is decoded", text)
		}
	}
}

func TestVerdict(t *testing.T) {
	zeros := reflect.TypeFor[record.Zeros]().NumField()
	for i := range zeros {
		var v record.Verdict
		if v.Judge(); !v.Held {
			t.Fatal("nothing is wrong, and it does not hold")
		}
		reflect.ValueOf(&v.Zeros).Elem().Field(i).SetInt(2)
		if v.Judge(); v.Held || v.Zeros.Sum() != 2 {
			t.Errorf("field %d of the zeros is not counted", i)
		}
	}
	if n := len(record.Zeros{}.List()); n != zeros {
		t.Errorf("%d zeros are listed of %d", n, zeros)
	}
	v := record.Verdict{Expectations: []record.Expectation{{Held: true}, {}}}
	if v.Judge(); v.Held {
		t.Error("an expectation was not met, and it holds")
	}
	v = record.Verdict{Unsettled: "something"}
	if v.Judge(); v.Held {
		t.Error("it did not settle, and holds")
	}
	for range 2 * record.MaxFindings {
		v.AddFinding("x")
	}
	if len(v.Findings) != record.MaxFindings {
		t.Errorf("%d findings are kept", len(v.Findings))
	}
}

var began = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func after(s float64) time.Time { return began.Add(time.Duration(s * float64(time.Second))) }

func recorder(t *testing.T) *record.Recorder {
	t.Helper()
	r, err := record.NewRecorder(record.RecorderConfig{Began: began, Clusters: []string{"a", "b"}, KeepClusters: true, Planned: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRecorder(t *testing.T) {
	r := recorder(t)
	r.Due(after(0.1), 3)
	r.Sent(0, after(0.1), true)
	r.Sent(1, after(0.2), true)
	r.Sent(1, after(0.3), false)
	r.Uncounted(1, 0, 0)
	r.Published(0, after(0.2), 100*time.Millisecond)
	kill := r.Fault(after(1.5), "kill", "r1", "It died.")
	r.Published(1, after(2.2), 2*time.Second)
	if p := r.Progress(after(2.5)); p.Waiting != 0 || len(p.Faults) != 1 || p.Totals.Sent != 3 || p.Planned != time.Minute {
		t.Errorf("progress is %+v", p)
	}
	kill.End(after(1.5))
	kill.Recovered(after(2.4))
	r.Sent(0, after(8.5), true)
	r.Published(0, after(8.6), 100*time.Millisecond)
	// Heard late, told later: counted for the first second that is still open.
	r.Published(0, after(3))
	if p := r.Progress(after(9.1)); p.Last.Latency.Count != 1 || p.Last.Sent != 1 || len(p.Faults) != 0 {
		t.Errorf("progress is %+v", p)
	}
	rec := r.Finish(after(9.5))
	rec.Verdict.Judge()
	if err := rec.Validate(); err != nil {
		t.Fatal(err)
	}
	if n := len(rec.Seconds); n != 10 || rec.DurationS != 9.5 {
		t.Fatalf("%d seconds in %g s", n, rec.DurationS)
	}
	want := record.Second{Due: 3, Sent: 3, Changes: 2, Published: 1, Publishes: 1, Waiting: 1, Latency: rec.Seconds[0].Latency}
	if rec.Seconds[0] != want {
		t.Errorf("second 0 is %+v", rec.Seconds[0])
	}
	if rec.Seconds[1].Waiting != 1 || rec.Seconds[2].Waiting != 0 {
		t.Errorf("seconds 1 and 2 are %+v", rec.Seconds[1:3])
	}
	l := rec.Latency
	if l.All.Count != 3 || l.Disturbed.Count != 1 || l.Calm.Count != 2 || l.Disturbed.MaxMS != 2000 || l.Calm.MaxMS != 100 {
		t.Errorf("latencies are %+v", l)
	}
	publishes := int64(0)
	for _, s := range rec.Seconds {
		publishes += s.Publishes
	}
	if publishes != 4 || rec.Totals.Publishes != 4 {
		t.Errorf("%d publishes in seconds, %d in all, want 4", publishes, rec.Totals.Publishes)
	}
	if a := rec.Clusters[0]; a.Name != "a" || a.Latency.Count != 2 || a.Seconds[8].Sent != 1 {
		t.Errorf("cluster a is %+v", a)
	}
}

func TestRecorderOfAFleet(t *testing.T) {
	r := recorder(t)
	r.Started(began.Add(-time.Second), "r1", "v1")
	r.Sampled(after(1), "r1", record.Sample{CPUCores: 0.5})
	r.Sampled(after(0.5), "r1", record.Sample{CPUCores: 9}) // out of order
	r.Owned(after(0), "a", 0, 1, "", 0)
	r.Owned(after(1), "a", 0, 1, "r1", 1)
	r.Owned(after(2), "a", 0, 1, "r1", 1)
	r.Owned(after(3), "a", 0, 1, "r2", 2)
	r.Dissolved(after(4), "a", 0, 1)
	r.Ended(after(3), "r1", "killed")
	r.Ended(after(4), "r1", "stopped") // it does not live
	r.Started(after(5), "r1", "v2")
	if p := r.Progress(after(6)); p.Replicas != 1 {
		t.Errorf("%d replicas live", p.Replicas)
	}
	r.Moved(record.Move{AtS: 2, Cluster: "a", From: "r1", To: "r2", Kind: record.Crash})
	open := r.Fault(after(6), "outage", "etcd", "")
	r.Event(after(2), "later", "x")
	r.Event(after(1), "sooner", "%d", 1)
	rec := r.Finish(after(10))
	open.End(after(11)) // too late for the recording
	rec.Verdict.Judge()
	if err := rec.Validate(); err != nil {
		t.Fatal(err)
	}
	wantLives := []record.Life{{FromS: 0, UntilS: 3, Revision: "v1", Ended: "killed"}, {FromS: 5, UntilS: 10, Revision: "v2"}}
	if got := rec.Replicas[0]; !reflect.DeepEqual(got.Lives, wantLives) || len(got.Samples) != 1 {
		t.Errorf("the replica is %+v", got)
	}
	wantSpans := []record.Span{{UntilS: 1}, {Replica: "r1", Epoch: 1, FromS: 1, UntilS: 3}, {Replica: "r2", Epoch: 2, FromS: 3, UntilS: 4}}
	if got := rec.Shards[0].Spans; !reflect.DeepEqual(got, wantSpans) {
		t.Errorf("the spans are %+v", got)
	}
	if f := rec.Faults[0]; f.UntilS != 10 {
		t.Errorf("the open fault is %+v", f)
	}
	if rec.Events[0].Kind != "sooner" {
		t.Errorf("the events are %+v", rec.Events)
	}
	if len(rec.MovesOf(record.Crash)) != 1 || len(rec.MovesOf(record.Planned)) != 0 {
		t.Errorf("the moves are %+v", rec.Moves)
	}
}

func TestRecorderTakesAllAtOnce(t *testing.T) {
	const workers, each = 8, 2000
	r := recorder(t)
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for i := range each {
				at := after(float64(i) / 100)
				r.Sent(w%2, at, true)
				r.Published(w%2, at, time.Duration(i)*time.Microsecond)
				r.Owned(at, "a", w, workers, "r", 1)
				if i%100 == 0 {
					r.Progress(at)
					r.Sampled(at, "r", record.Sample{})
				}
			}
		})
	}
	group.Wait()
	rec := r.Finish(after(each / 100))
	sent, published := int64(0), int64(0)
	for _, s := range rec.Seconds {
		sent, published = sent+s.Sent, published+s.Published
	}
	const all = workers * each
	if sent != all || published != all || rec.Latency.All.Count != all || rec.Latency.Calm.Count != all {
		t.Errorf("sent %d, published %d, latency of %d and %d, want %d", sent, published, rec.Latency.All.Count, rec.Latency.Calm.Count, all)
	}
}

func TestNewRecorderRefuses(t *testing.T) {
	for _, cfg := range []record.RecorderConfig{
		{}, {Began: began}, {Clusters: []string{"a"}}, {Began: began, Clusters: []string{"a"}, Planned: -1},
	} {
		if _, err := record.NewRecorder(cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
		}
	}
}
