package store_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/status/statustest"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/proto/wsman"
	"github.com/trestle-bridge/trestle/shard"
)

// lifecycle are the eight updates of an instance's life.
var lifecycle = []wsman.WorkspacePhase{
	wsman.WorkspacePhase_PENDING, wsman.WorkspacePhase_CREATING, wsman.WorkspacePhase_CREATING, wsman.WorkspacePhase_INITIALIZING,
	wsman.WorkspacePhase_RUNNING, wsman.WorkspacePhase_RUNNING, wsman.WorkspacePhase_STOPPING, wsman.WorkspacePhase_STOPPED,
}

// realistic is the step-th update of an instance's life, 700 to 1,000 bytes on
// the wire.
func realistic(id status.InstanceID, step int) *wsman.WorkspaceStatus {
	name := "coral-otter-" + id.String()[24:]
	url := "https://" + name + ".ws-eu01.workspaces.example.com"
	s := &wsman.WorkspaceStatus{
		Id: id.String(),
		Metadata: &wsman.WorkspaceMetadata{
			Owner: ownerOf(id), MetaId: workspaceOf(id),
			Metrics: &wsman.WorkspaceMetadata_Metrics{Image: &wsman.WorkspaceMetadata_ImageInfo{TotalSize: 5_123_456_789, WorkspaceImageSize: 812_345_678}},
		},
		Spec: &wsman.WorkspaceSpec{
			WorkspaceImage: "registry.example.com/workspace-images/" + id.String(), Url: url, Timeout: "30m0s", Class: "standard",
			IdeImage: &wsman.IDEImage{WebRef: "registry.example.com/ide/code:commit-0123456789abcdef", SupervisorRef: "registry.example.com/supervisor:main.1234"},
		},
		Phase:         lifecycle[step],
		Conditions:    &wsman.WorkspaceConditions{PullingImages: empty, Deployed: empty, StoppedByRequest: empty},
		Message:       "the workspace is on its way",
		Auth:          &wsman.WorkspaceAuthentication{OwnerToken: "3Kd0pQ7xWmZr8vTnYbLc5sHfJg2aUe9i"},
		StatusVersion: uint64(1_000_000 + step),
	}
	if step == 1 {
		s.Conditions.PullingImages = wsman.WorkspaceConditionBool_TRUE
	}
	if step >= 2 {
		s.Conditions.PullingImages, s.Conditions.Deployed = wsman.WorkspaceConditionBool_FALSE, wsman.WorkspaceConditionBool_TRUE
		s.Runtime = &wsman.WorkspaceRuntimeInfo{NodeName: "gke-eu01-workspaces-2a-6b1f3c2d-x9kq", PodName: "ws-" + id.String(), NodeIp: "10.132.15.201"}
	}
	if step >= 4 {
		s.InitializerMetrics = &wsman.InitializerMetrics{Git: &wsman.InitializerMetric{Duration: durationpb.New(2345 * time.Millisecond), Size: 123_456_789}}
	}
	if step >= 5 {
		s.Spec.ExposedPorts = []*wsman.PortSpec{
			{Port: 3000, Url: "https://3000-" + name + ".ws-eu01.workspaces.example.com"},
			{Port: 8080, Url: "https://8080-" + name + ".ws-eu01.workspaces.example.com", Visibility: wsman.PortVisibility_PORT_VISIBILITY_PUBLIC},
		}
	}
	return s
}

// lives are instances that each go through their eight updates, in batches
// that hold instances of every age, as they come when the bridge is busy.
type lives struct {
	group   int // instances that begin with each batch
	batches int
	base    int
}

func (l lives) instances() int { return (l.batches + 8) * l.group }

func (l lives) insert(b *bench) {
	rows := make([]*statustest.Row, 0, l.instances())
	for i := range l.instances() {
		rows = append(rows, &statustest.Row{
			ID: testID(l.base + i), Created: statustest.Epoch, Phase: "preparing",
			Status: map[string]any{"version": 0, "phase": "preparing", "conditions": map[string]any{"neededImageBuild": false}},
			Tokens: []string{testID(l.base+i).String() + "-default"},
		})
	}
	for len(rows) > 0 {
		n := min(len(rows), 2000)
		b.insert(rows[:n]...)
		rows = rows[n:]
	}
	b.exec("ANALYZE")
}

// batch gives what the instances of the k-th batch say.
func (l lives) batch(k int) (out []*wsman.WorkspaceStatus) {
	for step := range lifecycle {
		for i := range l.group {
			out = append(out, realistic(testID(l.base+(k+7-step)*l.group+i), step))
		}
	}
	return out
}

func benchmarkApply(b *testing.B, connections, shards, group, rows int, config ...func(*store.Config)) {
	s := newBench(b, append(config, func(c *store.Config) { c.Lifecycle = false })...)
	b.Cleanup(func() { reportHOT(b, s) })
	each := make([]lives, connections)
	batches := make([][][]*status.Change, connections)
	for c := range each {
		each[c] = lives{group: group, batches: max(8, b.N/connections+1), base: c * 100_000_000}
		each[c].insert(s)
		for k := range each[c].batches {
			var changes []*status.Change
			for _, said := range each[c].batch(k) {
				changes = append(changes, change(b, said, statustest.Epoch.Add(time.Duration(k)*time.Second)))
			}
			// A smaller batch is a part of the sliding window.
			for len(changes) > 0 {
				n := min(rows, len(changes))
				batches[c] = append(batches[c], changes[:n])
				changes = changes[n:]
			}
		}
	}
	fences := []shard.Fence{s.fence}
	for i := 1; i < shards; i++ {
		fences = append(fences, s.raise(shard.Whole(fmt.Sprintf("sim-%03d", i)), owner))
	}
	if shards > 1 {
		s.exec(`UPDATE workspace_instance SET region = ''`) // everybody's
		s.exec(`VACUUM ANALYZE`)
	}
	usage := startUsage(s)
	b.ResetTimer()
	var wait sync.WaitGroup
	for c := range each {
		wait.Go(func() {
			var published []store.OutboxRef
			for k := range max(1, b.N/connections) {
				batch := s.batch(batches[c][k]...)
				batch.Lane, batch.Published, batch.Fences = c, published, fences
				for i := range batch.Entries {
					batch.Entries[i].Fence = i % shards
				}
				commit, err := s.Apply(context.Background(), batch)
				if err != nil {
					b.Error(err)
					return
				}
				published = published[:0]
				for _, row := range commit.Outbox {
					published = append(published, row.Ref)
				}
			}
		})
	}
	wait.Wait()
	usage.report(b)
	b.ReportMetric(float64(b.N*rows)/b.Elapsed().Seconds(), "rows/s")
}

// usage is the processor time of the backends of a bench's database, and of this
// process. Unlike times of day it can be compared on a machine that others use.
type usage struct {
	s             *bench
	backends, own time.Duration
}

func startUsage(s *bench) usage {
	backends, own := readUsage(s)
	return usage{s, backends, own}
}

func (u usage) report(b *testing.B) {
	b.StopTimer()
	backends, own := readUsage(u.s)
	b.ReportMetric(float64((backends-u.backends).Microseconds())/float64(b.N), "postgres-us/op")
	b.ReportMetric(float64((own-u.own).Microseconds())/float64(b.N), "own-us/op")
}

func readUsage(s *bench) (backends, own time.Duration) {
	s.Helper()
	for _, pid := range s.texts(`SELECT pid::text FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'`) {
		stat, err := os.ReadFile("/proc/" + pid + "/schedstat")
		if err != nil {
			s.Fatal(err)
		}
		nanoseconds, _, _ := strings.Cut(string(stat), " ")
		n, err := strconv.ParseInt(nanoseconds, 10, 64)
		if err != nil {
			s.Fatal(err)
		}
		backends += time.Duration(n)
	}
	var self syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &self); err != nil {
		s.Fatal(err)
	}
	return backends, time.Duration(self.Utime.Nano() + self.Stime.Nano())
}

func reportHOT(b *testing.B, s *bench) {
	updates, hot := countHOT(b, s)
	b.Logf("%d batches: %d of %d updates were HOT (%.3f)", b.N, hot, updates, float64(hot)/float64(max(updates, 1)))
}

func benchmarkRaw(b *testing.B, connections, group, rows int) {
	s := newBench(b)
	b.Cleanup(func() { reportHOT(b, s) })
	each := make([]lives, connections)
	type raw struct {
		ids       [][16]byte
		versions  []int64
		documents []string
		phases    []string
	}
	batches := make([][]raw, connections)
	for c := range each {
		each[c] = lives{group: group, batches: max(8, b.N/connections+1), base: c * 100_000_000}
		each[c].insert(s)
		for k := range each[c].batches {
			var r raw
			for _, said := range each[c].batch(k) {
				chg := change(b, said, statustest.Epoch)
				r.ids = append(r.ids, chg.ID)
				r.versions = append(r.versions, int64(chg.Version))
				r.documents = append(r.documents, rawDocument(b, chg))
				r.phases = append(r.phases, string(chg.Rungs()[0].Phase))
			}
			for from := 0; from < len(r.ids); from += rows {
				to := min(from+rows, len(r.ids))
				batches[c] = append(batches[c], raw{r.ids[from:to], r.versions[from:to], r.documents[from:to], r.phases[from:to]})
			}
		}
	}
	usage := startUsage(s)
	b.ResetTimer()
	var wait sync.WaitGroup
	for c := range each {
		wait.Go(func() {
			for k := range max(1, b.N/connections) {
				r := batches[c][k]
				_, err := s.db.Exec(context.Background(), `
					UPDATE workspace_instance i SET status_version = u.version, phase = u.phase, status = u.document
					FROM unnest($1::uuid[], $2::bigint[], $3::jsonb[], $4::text[]) AS u (id, version, document, phase)
					WHERE i.id = u.id AND i.status_version < u.version`, r.ids, r.versions, r.documents, r.phases)
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
	usage.report(b)
	b.ReportMetric(float64(b.N*rows)/b.Elapsed().Seconds(), "rows/s")
}

// rawDocument is the whole document that the change leads to.
func rawDocument(t testing.TB, c *status.Change) string {
	document := map[string]any{}
	for _, part := range [][]byte{c.Document, c.Rungs()[0].Kept()} {
		if part != nil {
			if err := json.Unmarshal(part, &document); err != nil {
				t.Fatal(err)
			}
		}
	}
	document["conditions"] = json.RawMessage(c.Conditions)
	document["phase"] = c.Rungs()[0].Phase
	return string(encode(t, document))
}

func BenchmarkBatch(b *testing.B) {
	for _, connections := range []int{1, 2} {
		b.Run(fmt.Sprintf("apply-%d", connections), func(b *testing.B) { benchmarkApply(b, connections, 1, 62, 496) })
		b.Run(fmt.Sprintf("raw-%d", connections), func(b *testing.B) { benchmarkRaw(b, connections, 62, 496) })
	}
}

func BenchmarkSingle(b *testing.B) {
	for _, connections := range []int{1, 4} {
		b.Run(fmt.Sprintf("apply-%d", connections), func(b *testing.B) { benchmarkApply(b, connections, 1, 1, 1) })
		b.Run(fmt.Sprintf("raw-%d", connections), func(b *testing.B) { benchmarkRaw(b, connections, 1, 1) })
	}
}

// BenchmarkSmall compares, for small batches, the function with the statement for
// large ones.
func BenchmarkSmall(b *testing.B) {
	for _, rows := range []int{1, 2, 4, 8, 16, 32} {
		for name, rowByRow := range map[string]int{"rows": rows, "statement": -1} {
			b.Run(fmt.Sprintf("%s-%d", name, rows), func(b *testing.B) {
				benchmarkApply(b, 1, 1, max(1, rows/8), rows, func(c *store.Config) { c.RowByRow = rowByRow })
			})
		}
	}
}

// BenchmarkShards writes batches that come from one shard and from many.
func BenchmarkShards(b *testing.B) {
	for _, shards := range []int{1, 62, 200} {
		b.Run(strconv.Itoa(shards), func(b *testing.B) { benchmarkApply(b, 2, shards, 62, 496) })
	}
}
