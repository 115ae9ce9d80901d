package upstream

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// proxy passes bytes on until it is frozen: then what is connected stays
// connected, and nothing comes through any more. New connections are served.
type proxy struct {
	net.Listener
	to string
	wg sync.WaitGroup

	mu     sync.Mutex
	frozen chan struct{} // closed when what is connected now is frozen
	conns  []net.Conn
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Listener: listener, to: to, frozen: make(chan struct{})}
	p.wg.Go(p.serve)
	t.Cleanup(func() {
		listener.Close()
		p.freeze()
		p.mu.Lock()
		for _, c := range p.conns {
			c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) serve() {
	for {
		in, err := p.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", p.to)
		if err != nil {
			in.Close()
			continue
		}
		p.mu.Lock()
		frozen := p.frozen
		p.conns = append(p.conns, in, out)
		p.mu.Unlock()
		p.wg.Go(func() { pass(in, out, frozen) })
		p.wg.Go(func() { pass(out, in, frozen) })
	}
}

// pass swallows what comes once it is frozen: the peer's kernel still
// acknowledges, as for a process that hangs.
func pass(from, to net.Conn, frozen <-chan struct{}) {
	buffer := make([]byte, 16<<10)
	for {
		n, err := from.Read(buffer)
		select {
		case <-frozen:
			_, _ = io.Copy(io.Discard, from)
			return
		default:
		}
		if n > 0 {
			_, _ = to.Write(buffer[:n])
		}
		if err != nil {
			to.Close()
			return
		}
	}
}

func (p *proxy) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.frozen)
	p.frozen = make(chan struct{})
}

// A server that hangs with its connection open is found out by a ping, and
// what it would have said comes on a new connection.
func TestHangingServer(t *testing.T) {
	if testing.Short() {
		t.Skip("gRPC pings no sooner than after 10 s")
	}
	t.Parallel()
	f := newFake(t)
	f.start(t, nil)
	p := newProxy(t, f.address)
	c := run(t, f, func(cfg *Config) {
		cfg.Cluster.URL = p.Addr().String()
		cfg.Timing.Keepalive = 10 * time.Second
		cfg.Timing.SecondLook = time.Hour
	})
	awaitSynced(t, c.Client)
	p.freeze()
	f.set(at(1, 1))
	c.await(t, "the end of the subscription", func() bool { return c.State().Reconnects > 0 })
	c.sink.awaitVersion(t, id(1), 1)
	if got := count(t, c.registry, "reconnects_total", "unavailable"); got != 1 {
		t.Errorf("%v broken connections counted", got)
	}
}
