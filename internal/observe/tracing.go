package observe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"go.opentelemetry.io/contrib/propagators/jaeger"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// TracingConfig is what a Tracing needs. Without an endpoint tracing is off.
type TracingConfig struct {
	// Endpoint is a collector that speaks OTLP over gRPC: host:port or
	// http://host:port for plain text, https://host:port for TLS.
	Endpoint string
	// SampleRatio is the part of the traces begun here that is recorded, 0 to
	// 1. A trace that comes from elsewhere is recorded if it is there.
	SampleRatio float64
	Version     string
	Replica     string       // empty = not said
	Logger      *slog.Logger // nil = errors of sending are not logged
}

// Tracing makes spans and sends them away in the background, until Close. It
// may be used by several goroutines at once. Spans that the collector does
// not take in time are lost: tracing never holds up the work.
type Tracing struct {
	tracer   trace.Tracer
	sdk      *sdktrace.TracerProvider // nil = off
	exporter sdktrace.SpanExporter
}

const (
	exportTimeout = 10 * time.Second
	// Below the longest header that any tracer writes, above what one needs.
	maxTraceHeader = 512
	// How often a collector that is away is mentioned in the log.
	exportErrorInterval = time.Minute
	tracerName          = "github.com/trestle-bridge/trestle"
)

// NewTracing starts tracing. Whether the collector can be reached shows later,
// in the log; an error says that the settings make no sense. ctx bounds the
// start alone.
func NewTracing(ctx context.Context, config TracingConfig) (*Tracing, error) {
	if config.Endpoint == "" {
		return &Tracing{tracer: noop.NewTracerProvider().Tracer(tracerName)}, nil
	}
	if !(config.SampleRatio >= 0 && config.SampleRatio <= 1) {
		return nil, fmt.Errorf("sample ratio %v of traces is not within 0 and 1", config.SampleRatio)
	}
	endpoint := config.Endpoint
	if !strings.Contains(endpoint, "://") {
		endpoint = "http://" + endpoint
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("the endpoint of traces is neither host:port nor an HTTP URL")
	}
	// The scheme says whether there is TLS.
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(endpoint), otlptracegrpc.WithTimeout(exportTimeout))
	if err != nil {
		return nil, fmt.Errorf("send traces to %s: %w", config.Endpoint, err)
	}
	log := config.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	of := []attribute.KeyValue{attribute.String("service.name", "trestle"), attribute.String("service.version", config.Version)}
	if config.Replica != "" {
		of = append(of, attribute.String("service.instance.id", config.Replica))
	}
	sdk := sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(config.SampleRatio))),
		sdktrace.WithResource(resource.NewSchemaless(of...)),
		sdktrace.WithBatcher(&quietExporter{SpanExporter: exporter, log: log}, sdktrace.WithExportTimeout(exportTimeout)),
	)
	return &Tracing{tracer: sdk.Tracer(tracerName), sdk: sdk, exporter: exporter}, nil
}

// On says whether spans go anywhere.
func (t *Tracing) On() bool { return t.sdk != nil }

// Tracer makes spans. It is never nil.
func (t *Tracing) Tracer() trace.Tracer { return t.tracer }

// Close sends what is left and ends what NewTracing began. If ctx ends first,
// the rest is given up, and the error is that of ctx.
func (t *Tracing) Close(ctx context.Context) error {
	if !t.On() {
		return nil
	}
	// Shutdown with a context that ends would leave its goroutines behind.
	done := make(chan error, 1) // so that it can end before it is asked
	go func() { done <- t.sdk.Shutdown(context.WithoutCancel(ctx)) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		err := t.exporter.Shutdown(ctx) // breaks off the attempt under way
		<-done
		return errors.Join(ctx.Err(), err)
	}
}

// Extract returns ctx with the span that a header of an update speaks of as
// the parent of spans to come: the value of W3C's traceparent, or of Jaeger's
// uber-trace-id. A value that is neither leaves ctx as it is.
func (t *Tracing) Extract(ctx context.Context, header string) context.Context {
	if !t.On() || header == "" || len(header) > maxTraceHeader {
		return ctx
	}
	// Jaeger's clients escape the colons where they write HTTP headers.
	if plain, err := url.PathUnescape(header); err == nil {
		header = plain
	}
	// The colons tell the one from the other.
	var extracted context.Context
	if strings.Contains(header, ":") {
		extracted = jaeger.Jaeger{}.Extract(ctx, propagation.MapCarrier{"uber-trace-id": header})
	} else {
		extracted = propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": header})
	}
	if sc := trace.SpanContextFromContext(extracted); !sc.IsValid() || !sc.IsRemote() {
		return ctx
	}
	return extracted
}

// quietExporter says in our log what goes wrong, and not at every attempt; the
// library would tell a global handler, which prints it.
type quietExporter struct {
	sdktrace.SpanExporter
	log *slog.Logger

	// The processor calls from one goroutine at a time: no lock.
	mentioned time.Time
	lost      int
}

func (e *quietExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	if err == nil {
		return nil
	}
	e.lost += len(spans)
	if time.Since(e.mentioned) > exportErrorInterval {
		e.log.Warn("traces are not taken by the collector", "lost", e.lost, "error", err)
		e.mentioned, e.lost = time.Now(), 0
	}
	return nil
}
