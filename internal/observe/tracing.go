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
	Replica     string
	Log         *slog.Logger // needed only with an endpoint
}

// Tracing makes spans and sends them away. It may be used by several
// goroutines at once. Spans that end while Run does not run are lost, as are
// those that the collector does not take in time: tracing never holds up the
// work.
type Tracing struct {
	config   TracingConfig
	provider trace.TracerProvider
	sdk      *sdktrace.TracerProvider // nil = off
	newSink  func(context.Context) (sdktrace.SpanExporter, error)
}

const (
	exportTimeout = 10 * time.Second
	// Below the longest header that any tracer writes, above what one needs.
	maxTraceHeader = 512
	// How often a collector that is away is mentioned in the log.
	exportErrorInterval = time.Minute
)

// NewTracing prepares tracing; it connects to nothing yet.
func NewTracing(config TracingConfig) (*Tracing, error) {
	t := &Tracing{config: config}
	if config.Endpoint == "" {
		t.provider = noop.NewTracerProvider()
		return t, nil
	}
	if config.Log == nil {
		return nil, errors.New("tracing needs a log")
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
	t.newSink = func(ctx context.Context) (sdktrace.SpanExporter, error) {
		// The scheme says whether there is TLS.
		return otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(endpoint), otlptracegrpc.WithTimeout(exportTimeout))
	}
	t.sdk = sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(config.SampleRatio))),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "trestle"),
			attribute.String("service.version", config.Version),
			attribute.String("service.instance.id", config.Replica),
		)),
	)
	t.provider = t.sdk
	return t, nil
}

// On says whether spans go anywhere.
func (t *Tracing) On() bool { return t.sdk != nil }

// Provider makes tracers.
func (t *Tracing) Provider() trace.TracerProvider { return t.provider }

// Run sends spans until ctx ends, then what is left, within a few seconds. Let
// ctx end after that of the work, so that the last spans are not lost. It is
// called once.
func (t *Tracing) Run(ctx context.Context) error {
	if !t.On() {
		<-ctx.Done()
		return nil
	}
	finishing := context.WithoutCancel(ctx)
	sink, err := t.newSink(finishing)
	if err != nil {
		return fmt.Errorf("send traces to %s: %w", t.config.Endpoint, err)
	}
	t.sdk.RegisterSpanProcessor(sdktrace.NewBatchSpanProcessor(
		&quietExporter{SpanExporter: sink, log: t.config.Log},
		sdktrace.WithExportTimeout(exportTimeout),
	))
	<-ctx.Done()
	grace, cancel := context.WithTimeout(finishing, shutdownTimeout)
	defer cancel()
	if err := t.sdk.Shutdown(grace); err != nil {
		t.config.Log.Warn("the last traces were not sent", "error", err)
	}
	return nil
}

// Continue returns ctx with the span that header speaks of as the parent of
// spans to come: traceparent of W3C, else uber-trace-id of Jaeger. A header
// without either, or with one that is malformed, leaves ctx as it is.
func (t *Tracing) Continue(ctx context.Context, header map[string]string) context.Context {
	if !t.On() || len(header) == 0 {
		return ctx
	}
	for _, p := range []propagation.TextMapPropagator{propagation.TraceContext{}, jaeger.Jaeger{}} {
		continued := p.Extract(ctx, carrier(header))
		if sc := trace.SpanContextFromContext(continued); sc.IsValid() && sc.IsRemote() {
			return continued
		}
	}
	return ctx
}

// carrier finds headers whatever their case.
type carrier map[string]string

func (c carrier) Get(key string) string {
	for k, v := range c {
		if !strings.EqualFold(k, key) || len(v) > maxTraceHeader {
			continue
		}
		// Jaeger's clients escape the colons where they write HTTP headers.
		if plain, err := url.PathUnescape(v); err == nil {
			return plain
		}
		return v
	}
	return ""
}

func (c carrier) Set(string, string) {}

func (c carrier) Keys() []string {
	keys := make([]string, 0, len(c))
	for k := range c {
		keys = append(keys, k)
	}
	return keys
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
