package upstream

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/trestle-bridge/trestle/proto/wsman"
)

// ErrSnapshotTooLarge is the error of a snapshot beyond MaxSnapshotBytes.
var ErrSnapshotTooLarge = errors.New("the snapshot is larger than allowed")

var (
	errMalformedSnapshot = errors.New("the snapshot is no protobuf message")
	errStalled           = errors.New("nothing came for too long")
)

const (
	// snapshotWindow is how much the server may send ahead of us, in bytes.
	// It is what a snapshot holds of memory; at a round trip of 100 ms it
	// lets 20 MB/s through.
	snapshotWindow = 2 << 20
	// snapshotBuffer is how much is read at once. Entries up to this size,
	// which is all but a few, are offered where they lie.
	snapshotBuffer = 64 << 10
	// maxGroups bounds how deep groups, which nobody sends, may nest, as
	// protobuf does.
	maxGroups = 10_000
)

// Budget bounds the memory that the snapshots of a replica hold at once. It is
// safe for concurrent use.
type Budget struct {
	bytes *semaphore.Weighted
	size  int64
}

// NewBudget makes a budget of so many bytes. One snapshot holds about 2 MiB
// and the limit of one update; a smaller budget lets one through at a time.
func NewBudget(size int64) *Budget {
	return &Budget{bytes: semaphore.NewWeighted(size), size: size}
}

// take waits for a share of the budget, and returns what gives it back.
func (b *Budget) take(ctx context.Context, size int64) (func(), error) {
	if b == nil {
		return func() {}, nil
	}
	size = min(size, b.size)
	if err := b.bytes.Acquire(ctx, size); err != nil {
		return nil, fmt.Errorf("wait for the budget of snapshots: %w", err)
	}
	return func() { b.bytes.Release(size) }, nil
}

// reading tells how much of a snapshot was read.
type reading struct {
	bytes   int64
	entries int
}

// getWorkspaces calls GetWorkspaces and gives each entry of the answer to
// each, while the answer comes in. An entry is valid only during the call; it
// is nil, and its size above the limit, if it is larger than an update may be.
// That each takes its time holds up the server and nobody else.
//
// It speaks gRPC over HTTP/2 by itself, because a gRPC client holds a whole
// response before it hands over any of it: some 90 MB for 100,000 instances.
func (c *Client) getWorkspaces(ctx context.Context, each func(entry []byte, size int64) error) (reading, error) {
	giveBack, err := c.cfg.Budget.take(ctx, snapshotWindow+snapshotBuffer+int64(c.cfg.MaxUpdateBytes))
	if err != nil {
		return reading{}, err
	}
	defer giveBack()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(c.cfg.Timing.Stall, func() { cancel(errStalled) })
	defer stall.Stop()

	transport := c.snapshotTransport()
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(c.snapshotRequest(ctx))
	if err != nil {
		return reading{}, because(ctx, err)
	}
	defer response.Body.Close()
	if err := checkHeader(response); err != nil {
		return reading{}, err
	}
	body := &watched{Reader: response.Body, stall: stall, limit: c.cfg.Timing.Stall}
	read, err := readSnapshot(body, c.cfg.MaxSnapshotBytes, c.cfg.MaxUpdateBytes, each)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		// It ended early; the server may say why.
		if why := grpcError(response.Trailer); why != nil {
			return read, why
		}
	}
	if err != nil {
		return read, because(ctx, err)
	}
	switch n, err := io.Copy(io.Discard, io.LimitReader(body, 1)); {
	case err != nil:
		return read, because(ctx, err)
	case n != 0:
		return read, errors.New("the server sent more than one answer")
	}
	if response.Trailer.Get(headerStatus) == "" {
		return read, errors.New("the server ended its answer without a status")
	}
	return read, grpcError(response.Trailer)
}

// because prefers the reason why ctx ended to what its end led to.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// snapshotTransport gives a transport for one call and its one connection.
func (c *Client) snapshotTransport() *http.Transport {
	protocols := new(http.Protocols)
	if c.tls != nil {
		protocols.SetHTTP2(true)
	} else {
		protocols.SetUnencryptedHTTP2(true)
	}
	transport := &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return c.target.dial(ctx) },
		TLSHandshakeTimeout: dialTimeout,
		DisableKeepAlives:   true,
		DisableCompression:  true,
		Protocols:           protocols,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerConnection: snapshotWindow,
			MaxReceiveBufferPerStream:     snapshotWindow,
		},
	}
	if c.tls != nil {
		transport.TLSClientConfig = c.tls.Clone()
	}
	return transport
}

func (c *Client) snapshotRequest(ctx context.Context) *http.Request {
	scheme := "http"
	if c.tls != nil {
		scheme = "https"
	}
	// An empty message is all that a request without a filter is.
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, scheme+"://cluster", bytes.NewReader(make([]byte, prefixLength)))
	if err != nil {
		panic(err) // a constant URL and method
	}
	request.URL.Path = wsman.WorkspaceManager_GetWorkspaces_FullMethodName
	request.URL.Host = c.target.authority(c.tls != nil)
	request.Header = http.Header{
		"Content-Type": {"application/grpc"},
		"Te":           {"trailers"},
		"User-Agent":   {"trestle"},
	}
	return request
}

const (
	headerStatus  = "Grpc-Status"
	headerMessage = "Grpc-Message"
	// prefixLength is that of a message's prefix: one byte that says whether
	// it is compressed, four for its length.
	prefixLength = 5
)

func checkHeader(response *http.Response) error {
	if err := grpcError(response.Header); err != nil {
		return err // an answer that consists of its trailer
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the server answers with HTTP status %s", response.Status)
	}
	if kind := response.Header.Get("Content-Type"); !strings.HasPrefix(kind, "application/grpc") {
		return fmt.Errorf("the server answers with content of type %.60q, which is not gRPC", kind)
	}
	return nil
}

// grpcError gives the error that a header or trailer speaks of, nil if none.
func grpcError(header http.Header) error {
	text := header.Get(headerStatus)
	if text == "" || text == "0" {
		return nil
	}
	code, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return fmt.Errorf("the server answers with gRPC status %.60q", text)
	}
	message := header.Get(headerMessage)
	if plain, err := url.PathUnescape(message); err == nil {
		message = plain
	}
	return grpcstatus.Error(codes.Code(code), message)
}

// watched lets go of the call when a read takes too long. Time between reads
// is ours and does not count.
type watched struct {
	io.Reader
	stall *time.Timer
	limit time.Duration
}

func (w *watched) Read(p []byte) (int, error) {
	w.stall.Reset(w.limit)
	defer w.stall.Stop()
	return w.Reader.Read(p)
}

// readSnapshot reads one GetWorkspacesResponse with its prefix.
func readSnapshot(body io.Reader, limit int64, entryLimit int, each func(entry []byte, size int64) error) (reading, error) {
	var prefix [prefixLength]byte
	if _, err := io.ReadFull(body, prefix[:]); err != nil {
		return reading{}, fmt.Errorf("read the snapshot's length: %w", err)
	}
	if prefix[0] != 0 {
		return reading{}, errors.New("the snapshot is compressed, which was not asked for")
	}
	size := int64(binary.BigEndian.Uint32(prefix[1:]))
	read := reading{bytes: size}
	if size > limit {
		return read, fmt.Errorf("%w: %d bytes, the limit is %d", ErrSnapshotTooLarge, size, limit)
	}
	limited := &io.LimitedReader{R: body, N: size}
	r := &entryReader{limited: limited, buffered: bufio.NewReaderSize(limited, snapshotBuffer), entryLimit: int64(entryLimit)}
	for {
		entry, size, err := r.next()
		if err == io.EOF {
			return read, nil
		}
		if err != nil {
			return read, fmt.Errorf("read entry %d of the snapshot: %w", read.entries, err)
		}
		read.entries++
		if err := each(entry, size); err != nil {
			return read, err
		}
	}
}

// entryReader takes an encoded GetWorkspacesResponse apart as it comes in.
type entryReader struct {
	limited    *io.LimitedReader // ends with the message
	buffered   *bufio.Reader     // on limited
	entryLimit int64
	scratch    []byte // for entries larger than the buffer
	pending    int    // bytes of the last entry that still lie in the buffer
}

func (r *entryReader) left() int64 { return r.limited.N + int64(r.buffered.Buffered()) }

// next gives the next entry and its size; the entry is valid until the next
// call, and nil if it is too large. After the last one the error is io.EOF.
func (r *entryReader) next() ([]byte, int64, error) {
	if err := r.skip(int64(r.pending)); err != nil {
		return nil, 0, err
	}
	r.pending = 0
	for r.left() > 0 {
		number, kind, err := r.tag()
		if err != nil {
			return nil, 0, err
		}
		if number != 1 || kind != protowire.BytesType {
			if err := r.skipField(number, kind, 0); err != nil {
				return nil, 0, err
			}
			continue
		}
		size, err := r.length()
		switch {
		case err != nil:
			return nil, 0, err
		case size > r.entryLimit:
			return nil, size, r.skip(size)
		case size > snapshotBuffer:
			if int64(cap(r.scratch)) < size {
				r.scratch = make([]byte, size)
			}
			entry := r.scratch[:size]
			_, err := io.ReadFull(r.buffered, entry)
			return entry, size, early(err)
		}
		entry, err := r.buffered.Peek(int(size))
		r.pending = int(size)
		return entry, size, early(err)
	}
	return nil, 0, io.EOF
}

// early is the error of an end where there should be more.
func early(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (r *entryReader) tag() (protowire.Number, protowire.Type, error) {
	tag, err := r.varint()
	if err != nil {
		return 0, 0, err
	}
	if tag>>3 < uint64(protowire.MinValidNumber) || tag>>3 > uint64(protowire.MaxValidNumber) {
		return 0, 0, errMalformedSnapshot
	}
	return protowire.Number(tag >> 3), protowire.Type(tag & 7), nil
}

func (r *entryReader) varint() (uint64, error) {
	var value uint64
	for shift := 0; shift < 70; shift += 7 {
		if r.left() == 0 {
			return 0, errMalformedSnapshot
		}
		b, err := r.buffered.ReadByte()
		if err != nil {
			return 0, early(err)
		}
		if shift == 63 && b > 1 {
			break
		}
		value |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return value, nil
		}
	}
	return 0, errMalformedSnapshot
}

func (r *entryReader) length() (int64, error) {
	size, err := r.varint()
	if err != nil {
		return 0, err
	}
	if size > uint64(r.left()) {
		return 0, errMalformedSnapshot
	}
	return int64(size), nil
}

func (r *entryReader) skip(n int64) error {
	if n > r.left() {
		return errMalformedSnapshot
	}
	_, err := r.buffered.Discard(int(n))
	return early(err)
}

// skipField skips the value of a field that we do not know.
func (r *entryReader) skipField(number protowire.Number, kind protowire.Type, depth int) error {
	switch kind {
	case protowire.VarintType:
		_, err := r.varint()
		return err
	case protowire.Fixed32Type:
		return r.skip(4)
	case protowire.Fixed64Type:
		return r.skip(8)
	case protowire.BytesType:
		size, err := r.length()
		if err != nil {
			return err
		}
		return r.skip(size)
	case protowire.StartGroupType:
		for depth < maxGroups {
			inner, kind, err := r.tag()
			if err != nil {
				return err
			}
			if kind == protowire.EndGroupType {
				if inner != number {
					return errMalformedSnapshot
				}
				return nil
			}
			if err := r.skipField(inner, kind, depth+1); err != nil {
				return err
			}
		}
	}
	return errMalformedSnapshot
}
