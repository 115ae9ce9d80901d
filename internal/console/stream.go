package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"
)

const (
	// maxWatching bounds those who watch.
	maxWatching = 32
	// heartbeat is the longest that a client hears nothing; the page counts on
	// it to find out that the replica is gone.
	heartbeat = 10 * time.Second
	// sendTimeout is how long a client may take to read what it is told.
	sendTimeout = 20 * time.Second
)

// errStopping ends the streams of a server that ends.
var errStopping = errors.New("the replica is stopping")

// events tells one client all there is, and then what changes, as server-sent
// events. It looks anew only when what it has to tell is on its way, so a slow
// client gets what is newest when its turn comes.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	select {
	case s.watching <- struct{}{}:
		defer func() { <-s.watching }()
	default:
		w.Header().Set("Retry-After", "10")
		refuse(w, r, http.StatusServiceUnavailable, "too many watch this replica: close another page, or open the console of another replica")
		return
	}
	stream := &stream{w: w, controller: http.NewResponseController(w)}
	// The server's limits are for requests that end.
	if err := stream.controller.SetReadDeadline(time.Time{}); err != nil {
		refuse(w, r, http.StatusInternalServerError, "this connection cannot be kept open: "+err.Error())
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // a proxy that gathers would hold back what is live
	w.WriteHeader(http.StatusOK)

	// However it ends, the client is told no more: there is nobody to tell why.
	var told *look
	for {
		seen := s.looks.now()
		if err := stream.tell(told, seen); err != nil {
			return
		}
		told = seen
		if err := s.pause(r.Context(), seen, lookAgain); err != nil {
			return
		}
		if err := s.pause(r.Context(), nil, coalesce); err != nil {
			return
		}
	}
}

// pause waits for so long, or until there is more to see than this look.
func (s *Server) pause(ctx context.Context, seen *look, d time.Duration) error {
	over := time.NewTimer(d)
	defer over.Stop()
	var changed, checked <-chan struct{}
	if seen != nil {
		changed, checked = seen.changed, seen.checked
	}
	select {
	case <-changed:
	case <-checked:
	case <-over.C:
	case <-s.stopping:
		return errStopping
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// stream is one client.
type stream struct {
	w          http.ResponseWriter
	controller *http.ResponseController
	buffer     bytes.Buffer
	sent       time.Time
}

// tell sends what the client does not know yet, or a sign of life.
func (s *stream) tell(told, seen *look) error {
	if told == seen && time.Since(s.sent) < heartbeat {
		return nil
	}
	name := "change"
	d, news := seen.since(told)
	switch {
	case told == nil:
		name = "all"
	case !news && time.Since(s.sent) < heartbeat:
		return nil
	case !news:
		name = "alive"
	}
	s.buffer.Reset()
	s.buffer.WriteString("event: " + name + "\ndata: ")
	// JSON of the encoder has no line breaks but the one at its end.
	if err := json.NewEncoder(&s.buffer).Encode(d); err != nil {
		return err
	}
	s.buffer.WriteString("\n")
	if err := s.controller.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	if _, err := s.w.Write(s.buffer.Bytes()); err != nil {
		return err
	}
	s.sent = time.Now()
	return s.controller.Flush()
}
