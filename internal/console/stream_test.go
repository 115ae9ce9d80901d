package console_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/trestle-bridge/trestle/coordinator"
	"github.com/trestle-bridge/trestle/shard"
)

// watcher is a client of the stream.
type watcher struct {
	t      *testing.T
	body   *bufio.Reader
	cancel context.CancelFunc
}

// told is one event.
type told struct {
	kind      string
	Answering *struct{ Detached bool }
	Health    *struct{ Checks []any }
	Moves     []any
	Replicas  []struct{ Name string }
	Shards    []struct {
		ID    string
		Epoch int
		Owner struct{ Name string }
	}
	RemovedShards, RemovedReplicas []string
}

func watch(t *testing.T, address string) *watcher {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{t, bufio.NewReader(response.Body), func() { cancel(); response.Body.Close() }}
	t.Cleanup(w.cancel)
	if kind := response.Header.Get("Content-Type"); response.StatusCode != http.StatusOK || kind != "text/event-stream" {
		t.Fatalf("%s, %s", response.Status, kind)
	}
	return w
}

// next is the next event.
func (w *watcher) next() told {
	w.t.Helper()
	var e told
	for {
		line, err := w.body.ReadString('\n')
		if err != nil {
			w.t.Fatal(err)
		}
		field, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch field {
		case "event":
			e.kind = value
		case "data":
			if err := json.Unmarshal([]byte(value), &e); err != nil {
				w.t.Fatalf("%v: %s", err, value)
			}
		case "":
			return e
		}
	}
}

// until reads events until one is as it is to be.
func (w *watcher) until(is func(told) bool) told {
	w.t.Helper()
	for {
		if e := w.next(); is(e) {
			return e
		}
	}
}

func TestStreamTellsWhatChanges(t *testing.T) {
	f := newFleet(3, 50)
	address, stop := serve(t, config(f))
	w := watch(t, address)
	first := w.next()
	if first.kind != "all" || len(first.Shards) != 50 || len(first.Replicas) != 3 || first.Answering == nil {
		t.Fatalf("%+v", first)
	}
	w.until(func(e told) bool { return e.kind == "change" && e.Health != nil && len(e.Health.Checks) == 5 })

	f.change(func(s *coordinator.State) { moved(s, "eu07", 3, shard.ReasonLevel) })
	e := w.until(func(e told) bool { return e.kind == "change" && len(e.Shards) > 0 })
	if len(e.Shards) != 1 || e.Shards[0].ID != "eu07" || e.Shards[0].Epoch != 4 || e.Shards[0].Owner.Name != "replica-3" || len(e.Replicas) != 0 || len(e.Moves) == 0 || e.Answering != nil {
		t.Errorf("%+v", e)
	}
	f.change(func(s *coordinator.State) {
		s.Detached = true
		s.Shards = slices.Delete(s.Shards, 0, 1)
		s.Replicas = slices.Delete(s.Replicas, 1, 2)
	})
	e = w.until(func(e told) bool { return e.kind == "change" && e.RemovedShards != nil })
	if !slices.Equal(e.RemovedShards, []string{"eu01"}) || !slices.Equal(e.RemovedReplicas, []string{incarnation(2)}) || e.Answering == nil || !e.Answering.Detached {
		t.Errorf("%+v", e)
	}
	// The end of the server is the end of its streams.
	ended := make(chan struct{})
	go func() { defer close(ended); stop() }()
	if _, err := w.body.ReadString(0); err == nil {
		t.Error("the stream goes on")
	}
	<-ended
}

// Many changes at once are one look and one event, for all who watch.
func TestChangesAreGathered(t *testing.T) {
	f := newFleet(2, 10)
	address, _ := serve(t, config(f))
	var watchers []*watcher
	for range 8 {
		w := watch(t, address)
		if first := w.next(); first.kind != "all" {
			t.Fatalf("%+v", first)
		}
		watchers = append(watchers, w)
	}
	const changes = 2000
	before := f.looked()
	for range changes {
		f.change(func(s *coordinator.State) { moved(s, "eu01", 2, shard.ReasonLevel) })
		runtime.Gosched()
	}
	for _, w := range watchers {
		events := 0
		w.until(func(e told) bool {
			events++
			return len(e.Shards) > 0 && e.Shards[0].Epoch == 3+changes
		})
		if events > changes/10 {
			t.Errorf("%d events for %d changes", events, changes)
		}
	}
	if looks := f.looked() - before; looks > changes/10 {
		t.Errorf("%d looks for %d changes", looks, changes)
	}
}

func TestTooManyWatch(t *testing.T) {
	address, _ := serve(t, config(newFleet(1, 1)))
	var watchers []*watcher
	for range 32 {
		watchers = append(watchers, watch(t, address))
	}
	status, body, header := request(t, http.MethodGet, "http://"+address+"/events", "")
	if status != http.StatusServiceUnavailable || !strings.Contains(body, "too many watch") || header.Get("Retry-After") == "" {
		t.Errorf("%d %s", status, body)
	}
	// Who leaves makes room; that is noticed soon, not at once.
	watchers[0].cancel()
	for status == http.StatusServiceUnavailable {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/events", nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		status = response.StatusCode
		response.Body.Close()
		runtime.Gosched()
	}
}
