// Package faultproxy stands between a client and a server, and breaks their
// connections in the ways that a network and a dying server do: refused, cut,
// cut after the server has done its work but before the client hears of it,
// silent, or slow.
//
// Invariant: a connection is never mended. What was cut, or has lost a byte,
// ends; new connections do as the proxy does at the time.
//
// It is for tests and demonstrations. Whoever makes a Proxy runs it.
package faultproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

// Proxy forwards connections to a server. Its methods are safe for concurrent
// use; Run is called once.
type Proxy struct {
	target   string
	listener net.Listener

	// mu guards what follows. No I/O but closing under it.
	mu    sync.Mutex
	conns map[net.Conn]struct{}
	// down refuses; deaf throws away what the server answers; frozen lets
	// nothing pass either way.
	down, deaf, frozen bool
	// delay is how late everything passes, each way.
	delay time.Duration
	// swallowed counts the bytes of answers that were thrown away.
	swallowed int64
	// changed is closed and replaced when something above has changed.
	changed chan struct{}
}

// New makes a proxy for a server at host:port, and listens on a free port of
// the loopback interface.
func New(target string) (*Proxy, error) { return Listen("127.0.0.1:0", target) }

// Listen makes a proxy for a server at host:port that listens on an address.
func Listen(address, target string) (*Proxy, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s for connections to %s: %w", address, target, err)
	}
	return &Proxy{target: target, listener: listener, conns: make(map[net.Conn]struct{}), changed: make(chan struct{})}, nil
}

// Addr is where it listens, as host:port.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Run forwards until ctx ends, and returns nil when every connection is gone.
func (p *Proxy) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	defer parts.Wait()
	defer p.Down()
	stop := context.AfterFunc(ctx, func() {
		// Closing is what makes Accept return.
		_ = p.listener.Close()
	})
	defer stop()
	for {
		client, err := p.listener.Accept()
		if ctx.Err() != nil {
			if err == nil {
				reset(client)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept connections to %s: %w", p.target, err)
		}
		parts.Go(func() { p.forward(ctx, client) })
	}
}

// Down cuts every connection and refuses new ones, until Up.
func (p *Proxy) Down() { p.change(func() { p.down = true; p.cut() }) }

// Up lets everything pass again. Connections that have lost something are cut.
func (p *Proxy) Up() {
	p.change(func() {
		if p.deaf || p.frozen {
			p.cut()
		}
		p.down, p.deaf, p.frozen, p.delay = false, false, false, 0
	})
}

// Cut cuts every connection; new ones may come.
func (p *Proxy) Cut() { p.change(p.cut) }

// Swallow throws away all that the server answers from now on, until Up: it
// does its work, and nobody hears of it.
func (p *Proxy) Swallow() { p.change(func() { p.deaf, p.swallowed = true, 0 }) }

// Swallowed waits until an answer of at least so many bytes was thrown away
// since Swallow, or ctx ends.
func (p *Proxy) Swallowed(ctx context.Context, bytes int64) error {
	return p.await(ctx, func() bool { return p.swallowed >= bytes })
}

// Freeze lets nothing pass any more, and ends nothing, until Up: a network
// that drops packets.
func (p *Proxy) Freeze() { p.change(func() { p.frozen = true }) }

// Delay makes all that passes late, each way by so much, until Up: a slow
// network, not a narrow one.
func (p *Proxy) Delay(by time.Duration) { p.change(func() { p.delay = by }) }

// Connections is the number of connections that stand.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns) / 2
}

func (p *Proxy) change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	close(p.changed)
	p.changed = make(chan struct{})
}

// cut is called under mu.
func (p *Proxy) cut() {
	for conn := range p.conns {
		reset(conn)
	}
	clear(p.conns)
}

// await waits until ok, which is called under mu, says so.
func (p *Proxy) await(ctx context.Context, ok func() bool) error {
	for {
		p.mu.Lock()
		is, changed := ok(), p.changed
		p.mu.Unlock()
		if is {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for the proxy of %s: %w", p.target, ctx.Err())
		}
	}
}

// forward serves one connection of a client.
func (p *Proxy) forward(ctx context.Context, client net.Conn) {
	server, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.target)
	if err != nil {
		reset(client)
		return
	}
	p.mu.Lock()
	if p.down {
		p.mu.Unlock()
		reset(client)
		reset(server)
		return
	}
	p.conns[client], p.conns[server] = struct{}{}, struct{}{}
	p.mu.Unlock()

	var ways sync.WaitGroup
	ways.Go(func() { p.copy(ctx, server, client, false) })
	ways.Go(func() { p.copy(ctx, client, server, true) })
	ways.Wait()
	p.mu.Lock()
	delete(p.conns, client)
	delete(p.conns, server)
	p.mu.Unlock()
	reset(client)
	reset(server)
}

// chunk is what was read at once, and when it is to go on.
type chunk struct {
	bytes []byte
	due   time.Time
}

// copy carries bytes one way until either end is closed; answer says that they
// come from the server.
func (p *Proxy) copy(ctx context.Context, to, from net.Conn, answer bool) {
	// Of some size, so that reading goes on while chunks are late.
	chunks := make(chan chunk, 128)
	broken := make(chan struct{})
	var reading sync.WaitGroup
	defer reading.Wait()
	defer close(broken)
	reading.Go(func() {
		defer close(chunks)
		p.read(from, chunks, broken)
	})
	for c := range chunks {
		pass, err := p.pass(ctx, from, c, answer)
		if err == nil && pass {
			_, err = to.Write(c.bytes)
		}
		if err != nil {
			reset(to)
			reset(from) // which ends the reading
			return
		}
	}
	// An orderly end is passed on as one.
	if half, ok := to.(*net.TCPConn); !ok || half.CloseWrite() != nil {
		reset(to)
	}
}

// read reads until the end, whatever kind of end that is.
func (p *Proxy) read(from net.Conn, chunks chan<- chunk, broken <-chan struct{}) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			p.mu.Lock()
			delay := p.delay
			p.mu.Unlock()
			select {
			case chunks <- chunk{slices.Clone(buffer[:n]), time.Now().Add(delay)}:
			case <-broken:
				return
			}
		}
		if err != nil {
			return
		}
	}
}

var errCut = errors.New("the connection was cut")

// pass says whether bytes that have been read go on, when they are due. While
// the proxy is frozen it waits; then the connection is cut.
func (p *Proxy) pass(ctx context.Context, from net.Conn, c chunk, answer bool) (bool, error) {
	if wait := time.Until(c.due); wait > 0 {
		late, cancel := context.WithTimeout(ctx, wait)
		// A cut ends the waiting, too.
		_ = p.await(late, func() bool { return !p.stands(from) })
		cancel()
	}
	if err := p.await(ctx, func() bool { return !p.frozen || !p.stands(from) }); err != nil {
		return false, err
	}
	p.mu.Lock()
	stands, swallow := p.stands(from), p.deaf && answer
	p.mu.Unlock()
	if !stands {
		return false, errCut
	}
	if swallow {
		p.change(func() { p.swallowed += int64(len(c.bytes)) })
	}
	return !swallow, nil
}

// stands is called under mu.
func (p *Proxy) stands(conn net.Conn) bool {
	_, stands := p.conns[conn]
	return stands
}

// reset closes a connection without a farewell, as a crash does. It may have
// been closed before.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}
