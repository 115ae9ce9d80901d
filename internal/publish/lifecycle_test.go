package publish

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/internal/secret"
)

// memoryQueue is a Queue that can be away.
type memoryQueue struct {
	mu      sync.Mutex // guards the rest
	rows    []Pending
	noRead  int // this many calls of Pending fail
	noDone  int // this many calls of Done fail
	removed chan struct{}
}

func newQueue(rows ...Pending) *memoryQueue {
	// Room for one: a waiter needs the last news only.
	return &memoryQueue{rows: rows, removed: make(chan struct{}, 1)}
}

func (q *memoryQueue) Pending(ctx context.Context, limit int) ([]Pending, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if q.noRead > 0 {
		q.noRead--
		return nil, errors.New("the database is away")
	}
	return slices.Clone(q.rows[:min(limit, len(q.rows))]), nil
}

func (q *memoryQueue) Done(ctx context.Context, ids []int64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if q.noDone > 0 {
		q.noDone--
		return errors.New("the database is away")
	}
	q.rows = slices.DeleteFunc(q.rows, func(p Pending) bool { return slices.Contains(ids, p.ID) })
	select {
	case q.removed <- struct{}{}:
	default:
	}
	return nil
}

func (q *memoryQueue) add(rows ...Pending) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.rows = append(q.rows, rows...)
}

// awaitLeft waits until the rows that are left are exactly those.
func (q *memoryQueue) awaitLeft(t *testing.T, ids ...int64) {
	t.Helper()
	for ctx := testContext(t); ; {
		q.mu.Lock()
		var left []int64
		for _, row := range q.rows {
			left = append(left, row.ID)
		}
		q.mu.Unlock()
		if slices.Equal(left, ids) {
			return
		}
		select {
		case <-q.removed:
		case <-ctx.Done():
			t.Fatalf("left in the queue: %v, want %v", left, ids)
		}
	}
}

func pending(id int64) Pending {
	return Pending{ID: id, Lifecycle: event.Lifecycle{
		Event:      event.WorkspaceStopped,
		MessageID:  fmt.Sprintf("bridge-wsstopped-%d", id),
		UserID:     "u",
		Timestamp:  time.Date(2024, 2, 3, 4, 5, 6, 7_890_000, time.FixedZone("CET", 3600)),
		Properties: map[string]any{"instanceId": fmt.Sprint(id), "workspaceId": "w"},
	}}
}

// receiver is the sink's other end. It answers by what is said for the event's
// message id, else 200.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex // guards the rest
	answer func(message string, times int) (code int, header http.Header)
	times  map[string]int
	bodies []string
	auth   []string
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{times: map[string]int{}}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(request.Body)
		if err != nil {
			t.Error(err)
		}
		var call struct{ MessageID string }
		if err := json.Unmarshal(body, &call); err != nil {
			t.Error(err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.times[call.MessageID]++
		r.bodies = append(r.bodies, string(body))
		user, password, _ := request.BasicAuth()
		r.auth = append(r.auth, user+":"+password)
		if request.Method != http.MethodPost || request.Header.Get("Content-Type") != "application/json" {
			t.Errorf("got a %s of %s", request.Method, request.Header.Get("Content-Type"))
		}
		code := http.StatusOK
		if r.answer != nil {
			var header http.Header
			code, header = r.answer(call.MessageID, r.times[call.MessageID])
			for name, values := range header {
				w.Header()[name] = values
			}
		}
		w.WriteHeader(code)
	}))
	t.Cleanup(r.Close)
	return r
}

// start runs a Lifecycle until the test ends, or until stop is called.
func start(t *testing.T, cfg LifecycleConfig) (l *Lifecycle, stop func()) {
	t.Helper()
	if cfg.MinBackoff == 0 {
		cfg.MinBackoff = time.Millisecond
	}
	if cfg.Interval == 0 {
		cfg.Interval = time.Hour
	}
	l, err := NewLifecycle(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1) // Run can leave its result before anyone asks
	go func() { ended <- l.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run ended with %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
	})
	t.Cleanup(stop)
	return l, stop
}

func TestTrackCall(t *testing.T) {
	r := newReceiver(t)
	q := newQueue(pending(7))
	address := strings.Replace(r.URL, "http://", "http://write%40key:@", 1) + "/v1/track?source=x"
	_, stop := start(t, LifecycleConfig{Queue: q, Sink: secret.New(address)})
	q.awaitLeft(t)
	stop()
	want := `{"type":"track","event":"workspace_stopped","messageId":"bridge-wsstopped-7","userId":"u",` +
		`"timestamp":"2024-02-03T03:05:06.007Z","properties":{"instanceId":"7","workspaceId":"w"},"context":{"library":{"name":"trestle"}}}`
	if len(r.bodies) != 1 || r.bodies[0] != want {
		t.Errorf("got %v, want %s", r.bodies, want)
	}
	if len(r.auth) != 1 || r.auth[0] != "write@key:" {
		t.Errorf("basic authentication is %v", r.auth)
	}
}

func TestWakeAndInterval(t *testing.T) {
	r := newReceiver(t)
	q := newQueue(pending(1))
	l, _ := start(t, LifecycleConfig{Queue: q, Sink: secret.New(r.URL)})
	q.awaitLeft(t)
	for id := int64(2); id < 5; id++ {
		q.add(pending(id))
		l.Wake()
		l.Wake()
		q.awaitLeft(t)
	}

	unasked := newQueue(pending(1))
	_, _ = start(t, LifecycleConfig{Queue: unasked, Sink: secret.New(r.URL), Interval: time.Millisecond})
	unasked.awaitLeft(t)
	unasked.add(pending(2))
	unasked.awaitLeft(t)
}

func TestManyEvents(t *testing.T) {
	r := newReceiver(t)
	q := newQueue()
	const n = 3*roundLimit + 17
	for id := range int64(n) {
		q.add(pending(id))
	}
	l, stop := start(t, LifecycleConfig{Queue: q, Sink: secret.New(r.URL)})
	q.awaitLeft(t)
	stop()
	if len(r.times) != n || len(r.bodies) != n {
		t.Errorf("%d calls for %d events, want %d of both", len(r.bodies), len(r.times), n)
	}
	if sent := testutil.ToFloat64(l.metrics.sent); sent != n {
		t.Errorf("%v counted as sent", sent)
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		code    int
		dropped bool
	}{
		{400, true}, {413, true}, {422, true},
		{301, false}, {307, false}, {401, false}, {403, false}, {404, false}, {408, false}, {429, false}, {500, false}, {503, false},
	} {
		t.Run(fmt.Sprint(c.code), func(t *testing.T) {
			r := newReceiver(t)
			r.answer = func(message string, times int) (int, http.Header) {
				if message == "bridge-wsstopped-1" && times < 3 {
					return c.code, http.Header{"Location": {"/elsewhere"}}
				}
				return 200, nil
			}
			q := newQueue(pending(1), pending(2), pending(3))
			var log logLines
			l, stop := start(t, LifecycleConfig{Queue: q, Sink: secret.New(r.URL + "/track?key=hunter2"), Log: log.logger()})
			q.awaitLeft(t)
			stop()
			wantTimes, wantDropped, wantFailed := 3, 0.0, 2.0
			if c.dropped {
				wantTimes, wantDropped, wantFailed = 1, 1, 0
			}
			if r.times["bridge-wsstopped-1"] != wantTimes || r.times["bridge-wsstopped-2"] != 1 || r.times["bridge-wsstopped-3"] != 1 {
				t.Errorf("the events were sent %v times", r.times)
			}
			if d, f := testutil.ToFloat64(l.metrics.dropped), testutil.ToFloat64(l.metrics.failed); d != wantDropped || f != wantFailed {
				t.Errorf("%v dropped and %v failed, want %v and %v", d, f, wantDropped, wantFailed)
			}
			if !strings.Contains(log.String(), fmt.Sprint(c.code)) || strings.Contains(log.String(), "hunter2") {
				t.Errorf("the log is %s", log.String())
			}
		})
	}
}

// Events that the sink alone fails on do not keep back the others for ever.
func TestStubbornEventsLetOthersPass(t *testing.T) {
	r := newReceiver(t)
	r.answer = func(message string, _ int) (int, http.Header) {
		if strings.HasPrefix(message, "bridge-wsstopped-9") {
			return 500, nil
		}
		return 200, nil
	}
	q := newQueue(pending(90), pending(91), pending(92))
	for id := range int64(2 * roundLimit) {
		q.add(pending(1000 + id))
	}
	_, _ = start(t, LifecycleConfig{Queue: q, Sink: secret.New(r.URL), MaxBackoff: time.Millisecond})
	q.awaitLeft(t, 90, 91, 92)
}

func TestSinkAwayThenBack(t *testing.T) {
	r := newReceiver(t)
	address := r.Listener.Addr().String()
	r.Close()
	q := newQueue()
	for id := range int64(50) {
		q.add(pending(id))
	}
	var log logLines
	l, stop := start(t, LifecycleConfig{Queue: q, Sink: secret.New("http://hunter2:hunter2@" + address), Log: log.logger(), MaxBackoff: time.Millisecond})
	for ctx := testContext(t); testutil.ToFloat64(l.metrics.failed) < 3*maxFailures; {
		if ctx.Err() != nil {
			t.Fatal("no failures are counted")
		}
	}
	stop()
	if strings.Contains(log.String(), "hunter2") || !strings.Contains(log.String(), "reach the sink") {
		t.Errorf("the log is %s", log.String())
	}

	back := newReceiver(t)
	_, _ = start(t, LifecycleConfig{Queue: q, Sink: secret.New(back.URL)})
	q.awaitLeft(t)
}

func TestSinkThatHangs(t *testing.T) {
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer server.Close()
	defer close(release)
	q := newQueue(pending(1))
	l, stop := start(t, LifecycleConfig{Queue: q, Sink: secret.New(server.URL), RequestTimeout: 5 * time.Millisecond})
	for ctx := testContext(t); testutil.ToFloat64(l.metrics.failed) < 2; {
		if ctx.Err() != nil {
			t.Fatal("a request without an answer is waited for")
		}
	}
	stop()
	q.awaitLeft(t, 1)
}

// What the sink has taken is not sent again because the queue was away.
func TestQueueAway(t *testing.T) {
	r := newReceiver(t)
	q := newQueue(pending(1), pending(2))
	q.noRead, q.noDone = 3, 5
	_, stop := start(t, LifecycleConfig{Queue: q, Sink: secret.New(r.URL)})
	q.awaitLeft(t)
	stop()
	if r.times["bridge-wsstopped-1"] != 1 || r.times["bridge-wsstopped-2"] != 1 {
		t.Errorf("the events were sent %v times", r.times)
	}
}

type sinkFunc func(ctx context.Context, e *event.Lifecycle) error

func (f sinkFunc) send(ctx context.Context, e *event.Lifecycle) error { return f(ctx, e) }
func (sinkFunc) close()                                               {}

// Told to end in the middle of a round, Run removes what the sink has taken and
// leaves the rest.
func TestEndRemovesWhatWasTaken(t *testing.T) {
	q := newQueue(pending(1), pending(2))
	l, err := NewLifecycle(LifecycleConfig{Queue: q, Sink: secret.New("log")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	taken := make(chan struct{})
	l.sink = sinkFunc(func(ctx context.Context, e *event.Lifecycle) error {
		if e.MessageID == "bridge-wsstopped-1" {
			close(taken)
			return nil
		}
		<-taken
		cancel()
		<-ctx.Done()
		return ctx.Err()
	})
	if err := l.Run(ctx); err != nil {
		t.Fatal(err)
	}
	q.awaitLeft(t, 2)
}

func TestRetryAfter(t *testing.T) {
	response := func(code int, after string) *http.Response {
		return &http.Response{StatusCode: code, Header: http.Header{"Retry-After": {after}}}
	}
	for _, c := range []struct {
		after string
		want  time.Duration
	}{{"7", 7 * time.Second}, {"0", 0}, {"-3", 0}, {"soon", 0}, {"999999999", 24 * time.Hour}} {
		err := judgeStatus(response(429, c.after))
		var later *retryAfterError
		if errors.As(err, &later) != (c.want > 0) || later != nil && later.wait != c.want {
			t.Errorf("Retry-After %q gives %v", c.after, err)
		}
	}
	if err := judgeStatus(response(204, "7")); err != nil {
		t.Error(err)
	}
}

func TestBackoffGrowsToItsLimit(t *testing.T) {
	l := &Lifecycle{cfg: LifecycleConfig{MinBackoff: time.Second, MaxBackoff: time.Minute}}
	for failures, want := range map[int]time.Duration{0: time.Second, 1: 2 * time.Second, 3: 8 * time.Second, 6: time.Minute, 1000: time.Minute} {
		if d := l.backoff(failures); d < want*4/5 || d > want*6/5 {
			t.Errorf("after %d failures %v, want about %v", failures, d, want)
		}
	}
}

func TestLogSink(t *testing.T) {
	var log logLines
	q := newQueue(pending(1))
	_, stop := start(t, LifecycleConfig{Queue: q, Sink: secret.New("log"), Log: log.logger()})
	q.awaitLeft(t)
	stop()
	if !strings.Contains(log.String(), "bridge-wsstopped-1") {
		t.Errorf("the log is %s", log.String())
	}
}

func TestNoSinkLeavesTheQueue(t *testing.T) {
	for _, sink := range []string{"", "none"} {
		q := newQueue(pending(1))
		_, stop := start(t, LifecycleConfig{Queue: q, Sink: secret.New(sink), Interval: time.Nanosecond})
		stop()
		q.awaitLeft(t, 1)
	}
}

func TestBadSinks(t *testing.T) {
	for _, sink := range []string{"stdout", "ftp://hunter2@host", "https://", "http://hunter2:%zz@host", "https://hunter2@ho st"} {
		if _, err := NewLifecycle(LifecycleConfig{Queue: newQueue(), Sink: secret.New(sink)}); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("for the sink %q the error is %v", sink, err)
		}
	}
	if _, err := NewLifecycle(LifecycleConfig{Sink: secret.New("log")}); err == nil {
		t.Error("a sink without a queue is taken")
	}
}
