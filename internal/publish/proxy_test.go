package publish

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
)

// proxy stands between a Publisher and Redis and breaks what it is told to.
type proxy struct {
	listener net.Listener
	wg       sync.WaitGroup

	mu      sync.Mutex // guards the rest
	conns   []net.Conn
	budget  int      // bytes to pass to the server before every connection is cut; -1: no end
	holding bool     // bytes to the server are kept
	held    []func() // deliver what is kept
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x := &proxy{listener: listener, budget: -1}
	x.wg.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				_ = client.Close()
				continue
			}
			x.mu.Lock()
			x.conns = append(x.conns, client, server)
			x.mu.Unlock()
			x.wg.Go(func() {
				_, _ = io.Copy(client, server)
				_ = client.Close()
			})
			x.wg.Go(func() { x.forward(client, server) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		x.cut()
		x.wg.Wait()
	})
	return x
}

func (x *proxy) addr() string { return x.listener.Addr().String() }

// forward passes bytes to the server. The connection to the server stays open
// when the client's ends, as long as bytes are held: so does a network that
// delivers late.
func (x *proxy) forward(client, server net.Conn) {
	kept := false
	buffer := make([]byte, 4096)
	for {
		n, err := client.Read(buffer)
		if n > 0 {
			data := bytes.Clone(buffer[:n])
			x.mu.Lock()
			cut := false
			if x.budget >= 0 {
				if n >= x.budget {
					data, cut = data[:x.budget], true
				}
				x.budget -= len(data)
			}
			if x.holding {
				kept = true
				x.held = append(x.held, func() { _, _ = server.Write(data) })
				x.mu.Unlock()
				continue
			}
			x.mu.Unlock()
			if _, err := server.Write(data); err != nil || cut {
				// Half, so that the server answers what it has got.
				_ = server.(*net.TCPConn).CloseWrite()
				_ = client.Close()
				return
			}
		}
		if err != nil {
			if !kept {
				_ = server.Close()
			}
			return
		}
	}
}

func (x *proxy) set(do func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	do()
}

func (x *proxy) cut() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, c := range x.conns {
		_ = c.Close()
	}
}
