package app

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/trestle-bridge/trestle/internal/config"
	"github.com/trestle-bridge/trestle/loadtest/script"
	"github.com/trestle-bridge/trestle/loadtest/sim"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

// hostile is a workspace manager that wishes us ill. It speaks gRPC by hand, so
// that it can also speak it wrongly.
type hostile struct {
	addr string
	// blows counts what it has done to us.
	blows atomic.Int64
}

// attack writes the answer of one call, until it is tired of it or the call
// ends. Blow sends bytes as they are, and says whether there is anybody to send
// them to.
type attack func(blow func([]byte) bool)

func newHostile(t *testing.T, subscribe, snapshot attack) *hostile {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hostile{addr: listener.Addr().String()}
	server := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		do := snapshot
		switch {
		case strings.HasSuffix(r.URL.Path, "/Subscribe"):
			do = subscribe
		case strings.HasSuffix(r.URL.Path, "/DescribeCluster"):
			do = garbage
		}
		if do == nil { // a stream on which nothing is said
			<-r.Context().Done()
			return
		}
		flush := http.NewResponseController(w)
		do(func(b []byte) bool {
			if r.Context().Err() != nil {
				return false
			}
			if _, err := w.Write(b); err != nil {
				return false
			}
			h.blows.Add(1)
			return flush.Flush() == nil
		})
		w.Header().Set("Grpc-Status", "0")
	})}
	server.Protocols.SetUnencryptedHTTP2(true)
	served := make(chan error, 1) // read once, below
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Close() // what it says of its last connections is no matter
		<-served
	})
	return h
}

// framed is a gRPC message.
func framed(message []byte) []byte { return framedAs(0, uint32(len(message)), message) }

// framedAs says of a message what it likes.
func framedAs(compressed byte, length uint32, message []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{compressed}, length), message...)
}

// garbage is noise in frames that are well formed, without end.
func garbage(blow func([]byte) bool) {
	noise := rand.New(rand.NewPCG(1, 2))
	for {
		message := make([]byte, noise.IntN(2000))
		for i := range message {
			message[i] = byte(noise.Uint32())
		}
		if !blow(framed(message)) {
			return
		}
	}
}

// quiet says nothing and ends well: an empty answer.
func quiet(blow func([]byte) bool) { blow(framed(nil)) }

// says makes an attack of statuses without end.
func says(next func(n int) *wsman.WorkspaceStatus) attack {
	return func(blow func([]byte) bool) {
		for n := 0; ; n++ {
			encoded, err := proto.Marshal(next(n))
			if err != nil {
				panic(err)
			}
			if !blow(framed(sim.AppendStatus(nil, encoded))) {
				return
			}
		}
	}
}

func ofNobody(n int, version uint64) *wsman.WorkspaceStatus {
	return &wsman.WorkspaceStatus{
		Id: script.FormatUUID(numbered(n)), Metadata: &wsman.WorkspaceMetadata{Owner: "owner", MetaId: "workspace"}, Spec: &wsman.WorkspaceSpec{},
		Phase: wsman.WorkspacePhase_RUNNING, Conditions: &wsman.WorkspaceConditions{}, StatusVersion: version, Message: fmt.Sprint(n, version),
	}
}

// A workspace manager may say what it likes: the service goes on, no row of
// another cluster changes, and all that another cluster says meanwhile is written
// and published as it must be.
func TestHostileClusters(t *testing.T) {
	t.Parallel()
	const own = "aa000000-0000-4000-8000-0000000000aa" // an instance of the hostile cluster
	theirs := func(w *world, n int) *wsman.WorkspaceStatus {
		return w.status(n%w.plan.instances, math.MaxInt64, func(s *wsman.WorkspaceStatus) {
			s.Phase = wsman.WorkspacePhase_STOPPED
			s.Message = "not yours any more"
			s.Conditions.Failed = fmt.Sprint("hostile ", n)
		})
	}
	mean := []string{
		"'; DROP TABLE workspace_instance; --", "%s%n%x%!d(string=x)", "\x00NUL\x00", "<script>alert(1)</script>", `{"a": "\u0000"}`,
		"\u202e\u200b\ufeff", strings.Repeat("long ", 20_000), "${jndi:ldap://x}", "\\", "\x1b[2J",
	}
	for _, c := range []struct {
		what                string
		subscribe, snapshot func(w *world) attack
		// after looks at what has come of it.
		after func(w *world, s *service)
	}{
		{
			what:      "garbage on the stream and in the snapshot",
			subscribe: func(*world) attack { return garbage },
			snapshot:  func(*world) attack { return garbage },
		},
		{
			what: "messages without end",
			subscribe: func(*world) attack {
				return says(func(n int) *wsman.WorkspaceStatus { return ofNobody(0, uint64(1+n)) })
			},
		},
		{
			what: "ids of nobody without end",
			subscribe: func(*world) attack {
				return says(func(n int) *wsman.WorkspaceStatus { return ofNobody(n, 1) })
			},
		},
		{
			what: "updates of 100 MiB",
			subscribe: func(*world) attack {
				part := make([]byte, 1<<20)
				return func(blow func([]byte) bool) {
					for blow(framedAs(0, 100<<20, nil)) {
						for range 100 {
							if !blow(part) {
								return
							}
						}
					}
				}
			},
		},
		{
			what: "a message that claims 4 GiB and never comes",
			subscribe: func(*world) attack {
				return func(blow func([]byte) bool) {
					for blow(framedAs(0, math.MaxUint32, []byte{0x0a})) {
					}
				}
			},
		},
		{
			what: "a bomb of compressed zeros",
			subscribe: func(*world) attack {
				var small bytes.Buffer
				z := gzip.NewWriter(&small)
				zeros := make([]byte, 1<<20)
				for range 64 {
					z.Write(zeros) // into memory: no error
				}
				z.Close()
				return func(blow func([]byte) bool) {
					for blow(framedAs(1, uint32(small.Len()), small.Bytes())) {
					}
				}
			},
		},
		{
			what:      "a snapshot that never ends",
			subscribe: func(*world) attack { return nil },
			snapshot: func(w *world) attack {
				status, err := proto.Marshal(ofNobody(1, 1))
				if err != nil {
					w.t.Fatal(err)
				}
				entry := sim.AppendStatus(nil, status)
				return func(blow func([]byte) bool) {
					if blow(framedAs(0, math.MaxInt32, nil)) {
						for blow(entry) {
						}
					}
				}
			},
		},
		{
			what:      "a snapshot of one entry that never ends",
			subscribe: func(*world) attack { return nil },
			snapshot: func(*world) attack {
				part := make([]byte, 64<<10)
				return func(blow func([]byte) bool) {
					if blow(framedAs(0, math.MaxInt32, []byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x03})) {
						for blow(part) {
						}
					}
				}
			},
		},
		{
			what:      "streams that end as soon as they are open",
			subscribe: func(*world) attack { return quiet },
		},
		{
			what: "instances of another cluster",
			subscribe: func(w *world) attack {
				return says(func(n int) *wsman.WorkspaceStatus { return theirs(w, n) })
			},
			snapshot: func(w *world) attack {
				return func(blow func([]byte) bool) {
					var all []byte
					for n := range w.plan.instances {
						status, err := proto.Marshal(theirs(w, n))
						if err != nil {
							panic(err)
						}
						all = sim.AppendStatus(all, status)
					}
					blow(framed(all))
				}
			},
			after: func(w *world, s *service) {
				if n := ask[int](w, `SELECT count(*) FROM workspace_instance WHERE status ->> 'message' = 'not yours any more'`); n > 0 {
					w.t.Errorf("%d rows of another cluster were changed", n)
				}
				if s.metric("trestle_pipeline_foreign_updates_total") == 0 {
					w.t.Error("nobody has noticed")
				}
			},
		},
		{
			what: "versions at the edges",
			subscribe: func(*world) attack {
				versions := []uint64{0, 1, math.MaxInt64, math.MaxInt64 + 1, math.MaxUint64, math.MaxUint64 - 1, 0, math.MaxInt64 - 1}
				return says(func(n int) *wsman.WorkspaceStatus {
					s := ofNobody(0, versions[n%len(versions)])
					s.Id = own
					return s
				})
			},
			after: func(w *world, _ *service) {
				w.until("the greatest version that there is", func() bool {
					return ask[int64](w, `SELECT status_version FROM workspace_instance WHERE id = $1`, own) == math.MaxInt64
				})
			},
		},
		{
			what: "texts that mean something elsewhere, in every field",
			subscribe: func(*world) attack {
				return says(func(n int) *wsman.WorkspaceStatus {
					text := strings.ToValidUTF8(mean[n%len(mean)], "?")
					return &wsman.WorkspaceStatus{
						Id: own, StatusVersion: uint64(1 + n), Phase: wsman.WorkspacePhase(n % 9), Message: text,
						Metadata: &wsman.WorkspaceMetadata{Owner: text, MetaId: text, Annotations: map[string]string{text: text}},
						Spec: &wsman.WorkspaceSpec{
							WorkspaceImage: text, Url: text, Timeout: text, Class: text, Type: wsman.WorkspaceType(n % 6),
							ExposedPorts: []*wsman.PortSpec{{Port: math.MaxUint32, Url: text, Visibility: 77, Protocol: -1}},
						},
						Conditions: &wsman.WorkspaceConditions{Failed: text, Timeout: text, Snapshot: text, HeadlessTaskFailed: text},
						Runtime:    &wsman.WorkspaceRuntimeInfo{NodeName: text, PodName: text, NodeIp: text},
						Auth:       &wsman.WorkspaceAuthentication{OwnerToken: text, Admission: 99},
					}
				})
			},
			after: func(w *world, s *service) {
				w.until("the last of them is written", func() bool {
					return ask[int64](w, `SELECT status_version FROM workspace_instance WHERE id = $1`, own) > int64(2*len(mean))
				})
				if s.logs("%!") {
					w.t.Error("the log took a text for a format")
				}
			},
		},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, plan{instances: 24, seed: 2_000_000 + uint64(len(c.what))})
			w.exec(`INSERT INTO workspace_instance (id, workspace_id, region) VALUES ($1, 'hostile', 'hostile')`, own)
			subscribe, snapshot := c.subscribe(w), attack(quiet)
			if c.snapshot != nil {
				snapshot = c.snapshot(w)
			}
			h := newHostile(t, subscribe, snapshot)
			w.exec(`INSERT INTO workspace_cluster (name, url) VALUES ('hostile', $1)`, h.addr)
			const limit = 1000
			s := w.serve(func(c *config.Config) {
				c.Pipeline.MaxWaitingPerCluster, c.Pipeline.MaxWaiting = limit, 2*limit
				c.Upstream.MaxSnapshotBytes, c.Upstream.SnapshotBudgetBytes = 8<<20, 16<<20
			})
			w.heard(1)
			w.until("the attack has begun", func() bool { return h.blows.Load() > 2 })
			w.sendAll(every)
			w.settle(false)
			before := h.blows.Load()
			w.until("the attack goes on", func() bool { return h.blows.Load() > before })
			if c.after != nil {
				c.after(w, s)
			}
			if n := s.metric(waitingInstances, "workspace_cluster=hostile"); n > limit {
				t.Errorf("%v instances of it wait, the limit is %d", n, limit)
			}
			if code, body := s.get("/healthz"); code != http.StatusOK {
				t.Errorf("the service is not healthy: %s", body)
			}
			if log := s.log.String(); strings.Contains(log, "panic") || strings.Contains(log, "goroutine ") {
				t.Error("something has panicked")
			}
		})
	}
}
