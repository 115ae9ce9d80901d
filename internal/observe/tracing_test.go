package observe_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	spans "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"

	"github.com/trestle-bridge/trestle/internal/observe"
)

const (
	traceID = "0af7651916cd43dd8448eb211c80319c"
	spanID  = "b7ad6b7169203331"
)

func tracing(t *testing.T, config observe.TracingConfig) *observe.Tracing {
	t.Helper()
	config.Log = quiet()
	tr, err := observe.NewTracing(config)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestContinue(t *testing.T) {
	tr := tracing(t, observe.TracingConfig{Endpoint: "127.0.0.1:1"})
	for _, c := range []struct {
		name    string
		header  map[string]string
		trace   string // empty = not continued
		sampled bool
	}{
		{"none", nil, "", false},
		{"empty", map[string]string{}, "", false},
		{"other", map[string]string{"x-request-id": "1"}, "", false},
		{"w3c", map[string]string{"traceparent": "00-" + traceID + "-" + spanID + "-01"}, traceID, true},
		{"w3c, not sampled", map[string]string{"traceparent": "00-" + traceID + "-" + spanID + "-00"}, traceID, false},
		{"w3c, other case", map[string]string{"Traceparent": "00-" + traceID + "-" + spanID + "-01"}, traceID, true},
		{"w3c, malformed", map[string]string{"traceparent": "00-xyz-01"}, "", false},
		{"jaeger", map[string]string{"uber-trace-id": traceID + ":" + spanID + ":0:1"}, traceID, true},
		{"jaeger, debug", map[string]string{"uber-trace-id": traceID + ":" + spanID + ":0:3"}, traceID, true},
		{"jaeger, not sampled", map[string]string{"uber-trace-id": traceID + ":" + spanID + ":0:0"}, traceID, false},
		{"jaeger, escaped", map[string]string{"Uber-Trace-Id": traceID + "%3A" + spanID + "%3A0%3A1"}, traceID, true},
		{"jaeger, 64 bits", map[string]string{"uber-trace-id": "8448eb211c80319c:" + spanID + ":0:1"}, "00000000000000008448eb211c80319c", true},
		{"jaeger, malformed", map[string]string{"uber-trace-id": "1:2"}, "", false},
		{"w3c malformed, jaeger right", map[string]string{"traceparent": "x", "uber-trace-id": traceID + ":" + spanID + ":0:1"}, traceID, true},
		{"too long", map[string]string{"traceparent": "00-" + traceID + "-" + spanID + "-01" + string(make([]byte, 1<<20))}, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			sc := trace.SpanContextFromContext(tr.Continue(context.Background(), c.header))
			if c.trace == "" {
				if sc.IsValid() {
					t.Errorf("continues %s", sc.TraceID())
				}
				return
			}
			if sc.TraceID().String() != c.trace || sc.SpanID().String() != spanID || sc.IsSampled() != c.sampled || !sc.IsRemote() {
				t.Errorf("continues %+v", sc)
			}
		})
	}
}

func TestTracingOff(t *testing.T) {
	tr := tracing(t, observe.TracingConfig{})
	ctx := context.Background()
	if tr.On() || tr.Continue(ctx, map[string]string{"traceparent": "00-" + traceID + "-" + spanID + "-01"}) != ctx {
		t.Error("tracing that is off does something")
	}
	if _, span := tr.Provider().Tracer("test").Start(ctx, "x"); span.IsRecording() {
		t.Error("tracing that is off records")
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := tr.Run(ended); err != nil {
		t.Error(err)
	}
}

func TestTracingConfig(t *testing.T) {
	for _, c := range []observe.TracingConfig{
		{Endpoint: "h:1"}, // no log
		{Endpoint: "h:1", SampleRatio: 1.5, Log: quiet()},
		{Endpoint: "ftp://h:1", Log: quiet()},
		{Endpoint: "http://", Log: quiet()},
	} {
		if _, err := observe.NewTracing(c); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}

// sink is a collector that keeps what it gets.
type sink struct {
	collector.UnimplementedTraceServiceServer
	arrived chan struct{} // size 1: there is something

	mu  sync.Mutex // guards got
	got []*spans.Span
}

func (s *sink) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.arrived <- struct{}{}:
	default:
	}
	for _, resource := range r.ResourceSpans {
		for _, scope := range resource.ScopeSpans {
			s.got = append(s.got, scope.Spans...)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func TestSpansReachTheCollector(t *testing.T) {
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "20") // milliseconds, instead of 5 s
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, kept := grpc.NewServer(), &sink{arrived: make(chan struct{}, 1)}
	collector.RegisterTraceServiceServer(server, kept)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		server.Stop()
		<-served
	}()

	// Of the traces begun here none is recorded; the one that is continued is.
	tr := tracing(t, observe.TracingConfig{Endpoint: listener.Addr().String()})
	run, end := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- tr.Run(run) }()

	tracer := tr.Provider().Tracer("test")
	continued := tr.Continue(context.Background(), map[string]string{"uber-trace-id": traceID + ":" + spanID + ":0:1"})
	// Spans that end before Run has begun are lost, and whether it has cannot
	// be asked: some are made until one arrives.
	for arrived := false; !arrived; {
		_, own := tracer.Start(context.Background(), "own")
		own.End()
		_, span := tracer.Start(continued, "continued")
		span.End()
		select {
		case <-kept.arrived:
			arrived = true
		case <-time.After(5 * time.Millisecond):
		}
	}
	_, last := tracer.Start(continued, "last")
	last.End()
	end()
	if err := <-ran; err != nil {
		t.Fatal(err)
	}
	kept.mu.Lock()
	defer kept.mu.Unlock()
	if len(kept.got) == 0 || kept.got[len(kept.got)-1].Name != "last" {
		t.Fatalf("%d spans arrived", len(kept.got))
	}
	for _, s := range kept.got {
		if s.Name == "own" || trace.TraceID(s.TraceId).String() != traceID || trace.SpanID(s.ParentSpanId).String() != spanID {
			t.Errorf("span %s of trace %x under %x", s.Name, s.TraceId, s.ParentSpanId)
		}
	}
}
