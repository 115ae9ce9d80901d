package observe_test

import (
	"context"
	"errors"
	"math"
	"net"
	"strings"
	"sync"
	"testing"

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

func tracing(t *testing.T, endpoint string) *observe.Tracing {
	t.Helper()
	tr, err := observe.NewTracing(context.Background(), observe.TracingConfig{Endpoint: endpoint, Version: "v1", Replica: "r", Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestExtract(t *testing.T) {
	tr := tracing(t, "127.0.0.1:1")
	defer tr.Close(context.Background())
	for _, c := range []struct {
		name, header string
		trace        string // empty = not continued
		sampled      bool
	}{
		{"none", "", "", false},
		{"w3c", "00-" + traceID + "-" + spanID + "-01", traceID, true},
		{"w3c, not sampled", "00-" + traceID + "-" + spanID + "-00", traceID, false},
		{"w3c, malformed", "00-xyz-01", "", false},
		{"jaeger", traceID + ":" + spanID + ":0:1", traceID, true},
		{"jaeger, debug", traceID + ":" + spanID + ":0:3", traceID, true},
		{"jaeger, not sampled", traceID + ":" + spanID + ":0:0", traceID, false},
		{"jaeger, escaped", traceID + "%3A" + spanID + "%3A0%3A1", traceID, true},
		{"jaeger, 64 bits", "8448eb211c80319c:" + spanID + ":0:1", "00000000000000008448eb211c80319c", true},
		{"jaeger, malformed", "1:2", "", false},
		{"a stray percent sign", "%zz", "", false},
		{"too long", "00-" + traceID + "-" + spanID + "-01" + strings.Repeat(" ", 1<<20), "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			sc := trace.SpanContextFromContext(tr.Extract(context.Background(), c.header))
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
	tr := tracing(t, "")
	ctx := context.Background()
	if tr.On() || tr.Extract(ctx, "00-"+traceID+"-"+spanID+"-01") != ctx {
		t.Error("tracing that is off does something")
	}
	if _, span := tr.Tracer().Start(ctx, "x"); span.IsRecording() {
		t.Error("tracing that is off records")
	}
	if err := tr.Close(ctx); err != nil {
		t.Error(err)
	}
}

func TestTracingConfig(t *testing.T) {
	for _, c := range []observe.TracingConfig{
		{Endpoint: "h:1", SampleRatio: 1.5},
		{Endpoint: "h:1", SampleRatio: math.NaN()},
		{Endpoint: "ftp://h:1"},
		{Endpoint: "http://"},
	} {
		if _, err := observe.NewTracing(context.Background(), c); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}

func TestCollectorAwayHoldsUpNothing(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, endpoint := range []string{"127.0.0.1:1", silent.Addr().String()} {
		tr := tracing(t, endpoint)
		_, span := tr.Tracer().Start(tr.Extract(context.Background(), "00-"+traceID+"-"+spanID+"-01"), "x")
		span.End()
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		if err := tr.Close(ended); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: closing gives %v", endpoint, err)
		}
	}
}

// sink is a collector that keeps what it gets.
type sink struct {
	collector.UnimplementedTraceServiceServer

	mu  sync.Mutex // guards got
	got []*spans.Span
}

func (s *sink) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, resource := range r.ResourceSpans {
		for _, scope := range resource.ScopeSpans {
			s.got = append(s.got, scope.Spans...)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func TestSpansReachTheCollector(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, kept := grpc.NewServer(), &sink{}
	collector.RegisterTraceServiceServer(server, kept)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		server.Stop()
		<-served
	}()

	// Of the traces begun here none is recorded; the one that is continued is.
	tr := tracing(t, listener.Addr().String())
	_, own := tr.Tracer().Start(context.Background(), "own")
	own.End()
	_, span := tr.Tracer().Start(tr.Extract(context.Background(), traceID+":"+spanID+":0:1"), "continued")
	span.End()
	if err := tr.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	kept.mu.Lock()
	defer kept.mu.Unlock()
	if len(kept.got) != 1 {
		t.Fatalf("%d spans arrived", len(kept.got))
	}
	for _, s := range kept.got {
		if s.Name != "continued" || trace.TraceID(s.TraceId).String() != traceID || trace.SpanID(s.ParentSpanId).String() != spanID {
			t.Errorf("span %s of trace %x under %x", s.Name, s.TraceId, s.ParentSpanId)
		}
	}
}
