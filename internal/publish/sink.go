package publish

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/internal/secret"
)

// sink takes events, several at once.
type sink interface {
	// send returns errMalformed if the event can never be taken. After any
	// other error it is sent again.
	send(ctx context.Context, e *event.Lifecycle) error
	// close ends what is kept between calls.
	close()
}

// errMalformed is the sink's last word on an event.
var errMalformed = errors.New("the event is malformed")

// retryAfterError is a refusal that says when to come again.
type retryAfterError struct {
	wait time.Duration
	err  error
}

func (e *retryAfterError) Error() string { return e.err.Error() }
func (e *retryAfterError) Unwrap() error { return e.err }

type logSink struct{ log *slog.Logger }

func (s logSink) send(ctx context.Context, e *event.Lifecycle) error {
	s.log.InfoContext(ctx, "lifecycle event", "event", e.Event, "message_id", e.MessageID,
		"user_id", e.UserID, "timestamp", e.Timestamp, "properties", e.Properties)
	return nil
}

func (logSink) close() {}

// httpSink posts each event as a track call of Segment's HTTP API.
type httpSink struct {
	client         http.Client
	target         string        // without user and password
	auth           bool          // the address had a user
	user, password secret.String // a write key stands in the place of the user
}

func newHTTPSink(target string, timeout time.Duration) (*httpSink, error) {
	u, err := url.Parse(target)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		// The address holds the write key, so it is not repeated.
		return nil, errors.New("the sink of lifecycle events must be none, log, or a URL such as https://WRITE_KEY:@host/v1/track")
	}
	s := &httpSink{}
	if u.User != nil {
		password, _ := u.User.Password()
		s.auth, s.user, s.password = true, secret.New(u.User.Username()), secret.New(password)
		u.User = nil
	}
	u.Fragment = ""
	s.target = u.String()

	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = concurrency
	s.client = http.Client{
		Transport: transport,
		Timeout:   timeout,
		// A redirect could carry the key to another host, and turns a POST into
		// a GET.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return s, nil
}

// trackCall is the body of a track call.
type trackCall struct {
	Type       string         `json:"type"`
	Event      string         `json:"event"`
	MessageID  string         `json:"messageId"`
	UserID     string         `json:"userId"`
	Timestamp  string         `json:"timestamp"`
	Properties map[string]any `json:"properties"`
	Context    trackContext   `json:"context"`
}

type trackContext struct {
	Library trackLibrary `json:"library"`
}

type trackLibrary struct {
	Name string `json:"name"`
}

func (s *httpSink) send(ctx context.Context, e *event.Lifecycle) error {
	properties := e.Properties
	if properties == nil {
		properties = map[string]any{}
	}
	body, err := json.Marshal(trackCall{
		Type:       "track",
		Event:      e.Event,
		MessageID:  e.MessageID,
		UserID:     e.UserID,
		Timestamp:  e.Timestamp.UTC().Format("2006-01-02T15:04:05.000Z"),
		Properties: properties,
		Context:    trackContext{trackLibrary{"trestle"}},
	})
	if err != nil {
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.target, bytes.NewReader(body))
	if err != nil {
		return withoutURL(err)
	}
	request.Header.Set("Content-Type", "application/json")
	if s.auth {
		request.SetBasicAuth(s.user.Reveal(), s.password.Reveal())
	}
	response, err := s.client.Do(request)
	if err != nil {
		return withoutURL(err)
	}
	// A body that has been read lets the connection be used again. What it says
	// is not ours to log, and that reading it fails changes nothing.
	_, _ = io.CopyN(io.Discard, response.Body, 64<<10)
	_ = response.Body.Close()
	return judgeStatus(response)
}

func (s *httpSink) close() { s.client.CloseIdleConnections() }

func judgeStatus(response *http.Response) error {
	refusal := fmt.Errorf("the sink answers %d %s", response.StatusCode, http.StatusText(response.StatusCode))
	switch code := response.StatusCode; code {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return fmt.Errorf("%w: %w", errMalformed, refusal)
	default:
		if code >= 200 && code < 300 {
			return nil
		}
	}
	// Everything else an operator or time can mend: a wrong key or address, too
	// many requests, a fault of the sink.
	if seconds, err := strconv.Atoi(response.Header.Get("Retry-After")); err == nil && seconds > 0 {
		return &retryAfterError{wait: time.Duration(min(seconds, 24*60*60)) * time.Second, err: refusal}
	}
	return refusal
}

// withoutURL strips the address, whose query may hold a key, from what net/http
// reports.
func withoutURL(err error) error {
	var at *url.Error
	if errors.As(err, &at) {
		return fmt.Errorf("reach the sink: %w", at.Err)
	}
	return fmt.Errorf("reach the sink: %w", err)
}
