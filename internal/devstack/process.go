package devstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// process is a child that dies with us.
type process struct {
	pid    int
	done   chan struct{} // closed when the child has been reaped
	err    error         // how it ended; read after done
	handle *os.Process
}

// startProcess starts cmd in a process group of its own, so that ^C in a
// terminal reaches us and not the servers that we are still draining into. If
// we die, the child gets onOurDeath (on Linux).
//
// The kernel sends that signal when the thread that created the child ends, not
// when the process does. So a goroutine stays with its thread until the child
// is gone.
func startProcess(cmd *exec.Cmd, onOurDeath syscall.Signal, as *account) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if as != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: as.uid, Gid: as.gid}
	}
	setDeathSignal(cmd.SysProcAttr, onOurDeath)

	p := &process{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			p.handle, p.pid = cmd.Process, cmd.Process.Pid
		}
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("run %s: %w", cmd.Path, err)
	}
	return p, nil
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *process) signal(s syscall.Signal) error {
	if err := p.handle.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal process %d: %w", p.pid, err)
	}
	return nil
}

// stop asks for an end and waits for it, or for ctx. A process that had ended
// before, or that ends in another way than asked, is an error with the end of
// its log.
func (p *process) stop(ctx context.Context, ask syscall.Signal, logPath string) error {
	before := p.ended()
	if err := p.signal(ask); err != nil {
		return err
	}
	select {
	case <-p.done:
		if before || p.err != nil {
			return fmt.Errorf("the server had ended by itself (%v), its log ends with:\n%s", p.err, logTail(logPath))
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("process %d did not end in time: %w", p.pid, context.Cause(ctx))
	}
}

// runToEnd runs a short-lived command and returns what it printed in its error.
func runToEnd(ctx context.Context, cmd *exec.Cmd, as *account) error {
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	p, err := startProcess(cmd, syscall.SIGKILL, as)
	if err != nil {
		return err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return errors.Join(context.Cause(ctx), killTree(p))
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd.Path, p.err, bytes.TrimSpace(output.Bytes()))
	}
	return nil
}

// account is an unprivileged account that root runs servers as.
type account struct {
	name     string
	uid, gid uint32
}

// unprivileged returns nil if we are not root: children run as ourselves then.
func unprivileged() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("look up the account %s: %w", name, err)
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("look up the account %s: %w", name, err)
		}
		return &account{name: name, uid: uint32(uid), gid: uint32(gid)}, nil
	}
	return nil, errors.New("PostgreSQL refuses to run as root, and there is no account \"postgres\" or \"nobody\" to run it as")
}

// own makes path, which exists, the account's. Without an account it stays ours.
func (a *account) own(path string) error {
	if a == nil {
		return nil
	}
	return os.Lchown(path, int(a.uid), int(a.gid))
}

// canEnter says which folder on the way to path keeps the account out.
func (a *account) canEnter(path string) error {
	if a == nil {
		return nil
	}
	for dir := path; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		owner, ok := info.Sys().(*syscall.Stat_t)
		mayEnter := info.Mode().Perm()&0o001 != 0 || ok && owner.Uid == a.uid && info.Mode().Perm()&0o100 != 0
		if !mayEnter {
			return fmt.Errorf("the account %s, which PostgreSQL runs as because it refuses to run as root, cannot enter %s: choose another folder (TMPDIR)", a.name, dir)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// childEnv is the whole environment of the servers: nothing of the caller's may
// change how they behave (PGDATA, PGPORT, LC_ALL and their like).
func childEnv(home string) []string {
	return []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + home, "LC_ALL=C", "TZ=UTC"}
}

// pollInterval is the pause between two looks at a server that is starting.
const pollInterval = 20 * time.Millisecond

// awaitReady calls ready until it returns nil. It gives up when the process
// ends or ctx does; the error holds the end of the server's log then.
func awaitReady(ctx context.Context, p *process, logPath string, ready func(context.Context) error) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	last := errors.New("not asked yet")
	for {
		select {
		case <-p.done:
			return fmt.Errorf("the server ended while starting (%v), its log ends with:\n%s", p.err, logTail(logPath))
		case <-ctx.Done():
			return fmt.Errorf("%w while the server was starting (%w), its log ends with:\n%s", context.Cause(ctx), last, logTail(logPath))
		case <-tick.C:
			if last = ready(ctx); last == nil {
				return nil
			}
		}
	}
}

// logTail returns the end of a log, or why it cannot be read.
func logTail(path string) string {
	file, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = file.Close() }() // only read
	const size = 2000
	if info, err := file.Stat(); err == nil && info.Size() > size {
		if _, err := file.Seek(-size, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	content, err := io.ReadAll(io.LimitReader(file, size))
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(content))
}

// openLog opens a server's log, which all its runs share, for appending.
func openLog(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the server's log: %w", err)
	}
	return file, nil
}

func (p *process) pids() ([]int, error) {
	if p == nil || p.ended() {
		return nil, nil
	}
	return treePIDs(p.pid)
}

func (p *process) cpu() (time.Duration, error) {
	if p == nil || p.ended() {
		return 0, nil
	}
	return treeCPU(p.pid)
}
