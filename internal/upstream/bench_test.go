package upstream

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

// realistic gives an update of some 900 bytes.
func realistic(n int, version uint64) *wsman.WorkspaceStatus {
	s := at(n, version)
	s.Spec.WorkspaceImage = "registry.cluster.example/workspace-images/0a8f2f0f4b118d6a4f8e3f0d4a539c560a8f2f0f4b11:latest"
	s.Spec.IdeImage = &wsman.IDEImage{WebRef: "registry.cluster.example/ide/code:commit-0a8f2f0f4b118d6a", SupervisorRef: "registry.cluster.example/supervisor:commit-4a539c560a8f"}
	s.Spec.Class = "g1-standard"
	for _, port := range []uint32{3000, 8080} {
		s.Spec.ExposedPorts = append(s.Spec.ExposedPorts, &wsman.PortSpec{Port: port, Url: fmt.Sprintf("https://%d-trestlebrid-trestle-8u2k3m1x9qz.ws-eu117.cluster.example", port)})
	}
	s.Metadata.Annotations = map[string]string{"workspaceful/size": "large"}
	s.Conditions.Deployed = wsman.WorkspaceConditionBool_TRUE
	s.Message = strings.Repeat("running ", 20)
	s.Runtime = &wsman.WorkspaceRuntimeInfo{NodeName: "workspace-node-7f3a", PodName: "ws-" + s.Id, NodeIp: "10.0.17.4"}
	s.Auth = &wsman.WorkspaceAuthentication{OwnerToken: "kR2mXw8cQyT5vN1zB7hJ4gF9dS6aL3pE"}
	return s
}

// tally is a sink that counts.
type tally struct {
	offered atomic.Int64
	until   int64
	done    chan struct{}
}

func (s *tally) Offer(status.Heard) error {
	if s.offered.Add(1) == s.until {
		close(s.done)
	}
	return nil
}
func (s *tally) Invalid(err error)                 { panic(err) }
func (s *tally) Drained(ctx context.Context) error { return ctx.Err() }
func (s *tally) Room(ctx context.Context) error    { return ctx.Err() }
func (s *tally) Subscribed()                       {}

func benchClient(b *testing.B, f *fakeCluster, sink Sink) *Client {
	b.Helper()
	metrics, err := NewMetrics(prometheus.NewRegistry())
	if err != nil {
		b.Fatal(err)
	}
	c, err := New(Config{
		Cluster: Cluster{Name: "eu1", URL: f.address}, Sink: sink, Metrics: metrics,
		Timing: Timing{Settle: time.Hour, SecondLook: time.Hour},
	})
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// BenchmarkStream measures what a message costs from end to end, server and
// network included: raw is a stream whose messages are thrown away unread,
// client is ours, with a sink that counts.
func BenchmarkStream(b *testing.B) {
	flood := func(b *testing.B) *fakeCluster {
		f := newFake(b)
		f.flood, f.floodCount = bytesOf(b, &wsman.SubscribeResponse{Status: realistic(1, 1<<40)}), b.N
		f.onSnapshot = func(context.Context) (encoded, error) { return encoded{}, nil }
		f.start(b, nil)
		b.SetBytes(int64(len(f.flood)))
		b.ReportAllocs()
		return f
	}
	b.Run("raw", func(b *testing.B) {
		f := flood(b)
		c := benchClient(b, f, &tally{})
		conn, _, err := c.connect()
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		ctx, cancel := context.WithCancel(b.Context())
		defer cancel()
		b.ResetTimer()
		stream, err := c.open(ctx, conn)
		if err != nil {
			b.Fatal(err)
		}
		var m message
		for range b.N {
			if err := stream.RecvMsg(&m); err != nil {
				b.Fatal(err)
			}
			m.release()
		}
		b.StopTimer()
	})
	b.Run("client", func(b *testing.B) {
		f := flood(b)
		sink := &tally{until: int64(b.N), done: make(chan struct{})}
		c := benchClient(b, f, sink)
		ctx, cancel := context.WithCancel(b.Context())
		ended := make(chan error, 1)
		b.ResetTimer()
		go func() { ended <- c.Run(ctx) }()
		<-sink.done
		b.StopTimer()
		cancel()
		<-ended
	})
}

// BenchmarkSnapshot reads one of 100,000 instances, and reports the most heap
// that was in use meanwhile above what it was before.
func BenchmarkSnapshot(b *testing.B) {
	const instances = 100_000
	f := newFake(b)
	var response encoded
	for n := range instances {
		response = append(response, entryOf(bytesOf(b, realistic(n, 1<<40)))...)
	}
	f.onSnapshot = func(context.Context) (encoded, error) { return response, nil }
	f.start(b, nil)
	sink := &tally{}
	c := benchClient(b, f, sink)
	metrics := c.cfg.Metrics.begin("eu1")
	defer metrics.end()
	b.SetBytes(int64(len(response)))
	b.ReportAllocs()
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var peak uint64
	for b.Loop() {
		n := 0
		read, err := c.getWorkspaces(b.Context(), func(entry []byte, _ int64) error {
			if n++; n%20_000 == 0 {
				runtime.ReadMemStats(&now)
				peak = max(peak, now.HeapInuse)
			}
			return c.offer(entry, status.Heard{Snapshot: true}, metrics, sink.Offer)
		})
		if err != nil || read.entries != instances {
			b.Fatalf("%d entries, %v", read.entries, err)
		}
	}
	b.ReportMetric((float64(peak)-float64(before.HeapInuse))/(1<<20), "peak-MiB")
	b.ReportMetric(float64(instances)*float64(b.N)/b.Elapsed().Seconds(), "instances/s")
}
