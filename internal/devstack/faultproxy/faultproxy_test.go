package faultproxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo answers every line with itself, and counts them.
type echo struct {
	net.Listener
	lines chan string
}

func start(t *testing.T) (*Proxy, *echo) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// Room for all lines of a test: the server never waits for it.
	server := &echo{Listener: listener, lines: make(chan string, 100)}
	proxy, err := New(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	parts.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			parts.Go(func() {
				defer conn.Close()
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					server.lines <- lines.Text()
					if _, err := conn.Write([]byte(lines.Text() + "\n")); err != nil {
						return
					}
				}
			})
		}
	})
	parts.Go(func() {
		if err := proxy.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = listener.Close()
		parts.Wait()
	})
	return proxy, server
}

type client struct {
	t *testing.T
	net.Conn
	answers *bufio.Reader
}

func dial(t *testing.T, p *Proxy) *client {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &client{t, conn, bufio.NewReader(conn)}
}

// refuses is for a proxy that takes no connection: it ends before it begins, or
// soon after.
func refuses(t *testing.T, p *Proxy) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", p.Addr(), 30*time.Second)
	if err != nil {
		return
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	(&client{t, conn, bufio.NewReader(conn)}).isCut()
}

// say sends a line; what becomes of it shows elsewhere.
func (c *client) say(line string) { _, _ = c.Write([]byte(line + "\n")) }

func (c *client) hears(want string) {
	c.t.Helper()
	line, err := c.answers.ReadString('\n')
	if err != nil || line != want+"\n" {
		c.t.Fatalf("heard %q, %v; want %q", line, err, want)
	}
}

// isCut waits for the end of the connection.
func (c *client) isCut() {
	c.t.Helper()
	rest, err := io.ReadAll(c.answers)
	if errors.Is(err, os.ErrDeadlineExceeded) || len(rest) > 0 {
		c.t.Fatalf("heard %q, %v; want the connection to be cut", rest, err)
	}
}

func TestPassesAndRefuses(t *testing.T) {
	proxy, _ := start(t)
	c := dial(t, proxy)
	c.say("one")
	c.hears("one")
	proxy.Down()
	c.isCut()
	refuses(t, proxy)
	proxy.Up()
	c = dial(t, proxy)
	c.say("two")
	c.hears("two")
	proxy.Cut()
	c.isCut()
	c = dial(t, proxy)
	c.say("three")
	c.hears("three")
	if n := proxy.Connections(); n != 1 {
		t.Errorf("%d connections stand, want 1", n)
	}
}

func TestSwallowsAnswers(t *testing.T) {
	proxy, server := start(t)
	c := dial(t, proxy)
	c.say("before")
	c.hears("before")
	<-server.lines
	proxy.Swallow()
	c.say("done")
	if got := <-server.lines; got != "done" {
		t.Fatalf("the server got %q", got)
	}
	if err := proxy.Swallowed(t.Context(), int64(len("done\n"))); err != nil {
		t.Fatal(err)
	}
	proxy.Up()
	c.isCut()
}

func TestFreezes(t *testing.T) {
	proxy, server := start(t)
	c := dial(t, proxy)
	c.say("before")
	c.hears("before")
	<-server.lines
	proxy.Freeze()
	c.say("lost")
	proxy.Up()
	c.isCut()
	c = dial(t, proxy)
	c.say("after")
	c.hears("after")
	if got := <-server.lines; got != "after" {
		t.Errorf("the server got %q", got)
	}
}

func TestServerAway(t *testing.T) {
	proxy, server := start(t)
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	refuses(t, proxy)
}

func TestDelayMakesLateAndKeepsOrder(t *testing.T) {
	proxy, server := start(t)
	c := dial(t, proxy)
	const late = 40 * time.Millisecond
	proxy.Delay(late)
	begun := time.Now()
	lines := []string{"one", "two", "three"}
	for _, line := range lines {
		if _, err := c.Write([]byte(line + "\n")); err != nil {
			t.Fatal(err)
		}
	}
	for _, line := range lines {
		if got, err := c.answers.ReadString('\n'); err != nil || got != line+"\n" {
			t.Fatalf("got %q, %v; want %q", got, err, line)
		}
		if got := <-server.lines; got != line {
			t.Errorf("the server got %q, want %q", got, line)
		}
	}
	// There and back again: no sooner, however busy the machine is.
	if took := time.Since(begun); took < 2*late {
		t.Errorf("an answer came after %v, with a delay of %v each way", took, late)
	}
	// What is on its way is lost when the connection is cut.
	proxy.Delay(time.Hour)
	if _, err := c.Write([]byte("never\n")); err != nil {
		t.Fatal(err)
	}
	proxy.Cut()
	if _, err := c.answers.ReadString('\n'); err == nil {
		t.Error("a cut connection answers")
	}
	proxy.Up()
	again := dial(t, proxy)
	if _, err := again.Write([]byte("four\n")); err != nil {
		t.Fatal(err)
	}
	if got, err := again.answers.ReadString('\n'); err != nil || got != "four\n" {
		t.Errorf("after Up: %q, %v", got, err)
	}
}
