package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
)

// screen is what a watch has printed.
type screen struct {
	// mu guards content.
	mu      sync.Mutex
	content bytes.Buffer
	grown   chan struct{} // has size 1: it coalesces
}

func newScreen() *screen { return &screen{grown: make(chan struct{}, 1)} }

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.grown <- struct{}{}:
	default:
	}
	return s.content.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.content.String()
}

// has waits until something is printed.
func (s *screen) has(t *testing.T, text string) {
	t.Helper()
	for !strings.Contains(s.String(), text) {
		select {
		case <-s.grown:
		case <-time.After(time.Minute):
			t.Fatalf("%q is not printed:\n%s", text, s)
		}
	}
}

// says is a watch that tells these messages, and then goes on until the client
// has enough, or ends with the error.
func says(end error, messages ...*trestlev1.WatchShardsResponse) func(grpc.ServerStreamingServer[trestlev1.WatchShardsResponse]) error {
	return func(stream grpc.ServerStreamingServer[trestlev1.WatchShardsResponse]) error {
		for _, m := range messages {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		if end != nil {
			return end
		}
		<-stream.Context().Done()
		return stream.Context().Err()
	}
}

// watch runs the program until end is called, which gives its exit code.
func watch(t *testing.T, address string, args ...string) (out, errOut *screen, end func() int) {
	t.Helper()
	out, errOut = newScreen(), newScreen()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan int, 1) // read once, by end
	go func() {
		ended <- run(ctx, append([]string{"shards", "--watch", "--address", address}, args...), streams{out: out, err: errOut}, func(string) (string, bool) { return "", false })
	}()
	end = sync.OnceValue(func() int { cancel(); return <-ended })
	t.Cleanup(func() { end() })
	return out, errOut, end
}

func owned(id, owner string, epoch int64) *trestlev1.Shard {
	return &trestlev1.Shard{Id: id, Owner: ref(owner), EpochIntended: epoch, EpochObserved: epoch, Phase: trestlev1.ShardPhase_SHARD_PHASE_OWNED, Since: ago(day * 3)}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	busy := owned("eu01", "a", 7)
	busy.Measured = &trestlev1.Measurement{Rate: 5}
	f := newFake(t, shown())
	f.watch = says(nil,
		&trestlev1.WatchShardsResponse{Initial: true, Shards: []*trestlev1.Shard{owned("eu01", "a", 7)}, More: true},
		&trestlev1.WatchShardsResponse{Shards: []*trestlev1.Shard{owned("us01", "a-long-name", 2)}},
		&trestlev1.WatchShardsResponse{Shards: []*trestlev1.Shard{busy}}, // nothing that moves
		&trestlev1.WatchShardsResponse{Shards: []*trestlev1.Shard{owned("eu01", "b", 8)}},
		&trestlev1.WatchShardsResponse{Removed: []string{"us01"}, Detached: true},
		&trestlev1.WatchShardsResponse{},
	)
	out, errOut, end := watch(t, f.addr, "--cluster", "eu01")
	out.has(t, "REMOVED")
	errOut.has(t, "cut off")
	if code := end(); code != exitOK {
		t.Errorf("exits with %d: %s", code, errOut)
	}
	const want = `
SHARD  REPLICA      PHASE    NEXT         EPOCH  SINCE  REASON  UPDATES/S  LIVE  LAG  HEARD
eu01   a            OWNED    -            7         3d  -               -     -    -      -
us01   a-long-name  OWNED    -            2         3d  -               -     -    -      -
eu01   b            OWNED    -            8         3d  -               -     -    -      -
us01   -            REMOVED  -            -          -  -               -     -    -      -
`
	if strings.TrimSpace(out.String()) != strings.TrimSpace(want) {
		t.Errorf("printed\n%s\nwant\n%s", out, want)
	}
	if asked := f.requests()[0].(*trestlev1.WatchShardsRequest); asked.GetCluster() != "eu01" {
		t.Errorf("asked for %v", asked)
	}

	for _, format := range []string{formatJSON, formatYAML} {
		out, errOut, end := watch(t, f.addr, "-o", format)
		out.has(t, "us01")
		errOut.has(t, "cut off")
		if code := end(); code != exitOK {
			t.Errorf("%s: exits with %d: %s", format, code, errOut)
		}
		messages, initial := 0, 0
		take := func(m map[string]any) {
			messages++
			if m["initial"] == true {
				initial++
			}
		}
		if format == formatJSON {
			for line := range strings.Lines(out.String()) {
				var m map[string]any
				if err := json.Unmarshal([]byte(line), &m); err != nil {
					t.Fatal(err)
				}
				take(m)
			}
		} else {
			for decoder := yaml.NewDecoder(strings.NewReader(out.String())); ; {
				var m map[string]any
				if decoder.Decode(&m) != nil {
					break
				}
				take(m)
			}
		}
		if messages < 5 || initial != 1 {
			t.Errorf("%s: %d messages, %d initial ones:\n%s", format, messages, initial, out)
		}
	}
}

// When its replica stops, a watch goes on with another, and shows what has
// changed meanwhile.
func TestWatchGoesOnElsewhere(t *testing.T) {
	t.Parallel()
	stops := status.Error(codes.Unavailable, "this replica stops")
	first := newFake(t, map[string]proto.Message{})
	first.watch = func(stream grpc.ServerStreamingServer[trestlev1.WatchShardsResponse]) error {
		first.health.Shutdown()
		return says(stops, &trestlev1.WatchShardsResponse{Initial: true, Shards: []*trestlev1.Shard{owned("eu01", "a", 7), owned("eu02", "a", 3), owned("eu03", "b", 1)}})(stream)
	}
	second := newFake(t, map[string]proto.Message{})
	second.watch = says(nil, &trestlev1.WatchShardsResponse{Initial: true, Shards: []*trestlev1.Shard{owned("eu01", "b", 8), owned("eu03", "b", 1)}})
	out, errOut, end := watch(t, first.addr+","+second.addr)
	out.has(t, "REMOVED")
	if code := end(); code != exitOK {
		t.Errorf("exits with %d", code)
	}
	errOut.has(t, "this replica stops")
	if text := out.String(); strings.Count(text, "eu01") != 2 || strings.Count(text, "eu02") != 2 || strings.Count(text, "eu03") != 1 {
		t.Errorf("printed\n%s", text)
	}
}

func TestWatchThatCannotBe(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what     string
		watch    func(grpc.ServerStreamingServer[trestlev1.WatchShardsResponse]) error
		code     int
		says     string
		patience string
	}{
		{"one that cannot say", says(status.Error(codes.Unavailable, "has not read")), exitUnreachable, "has not read", "1m"},
		{"one that says nothing", says(nil), exitUnreachable, "no answer within", "200ms"},
		{"one that does not know", says(status.Error(codes.NotFound, "there is no cluster")), exitNotFound, "there is no cluster", "1m"},
		{"one that breaks", says(status.Error(codes.Internal, "broken"), &trestlev1.WatchShardsResponse{Initial: true}), exitFailed, "broken", "1m"},
	} {
		f := newFake(t, nil)
		f.watch = c.watch
		call(t, f.addr, "shards", "-w", "--timeout", c.patience).says(t, c.what, c.code, c.says)
	}
}
