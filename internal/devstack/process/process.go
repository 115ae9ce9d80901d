// Package process runs servers as child processes that die with their caller,
// under an account without privileges where the caller is root.
//
// Invariants: a Process has exactly one goroutine, which ends when the child has
// been reaped; Kill leaves none of its descendants. All methods may be called by
// several goroutines at once. Owner: devstack; the benchmark runs the service under
// test by it.
package process

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

// Process is a child that dies with us.
type Process struct {
	// PID is the id of the child.
	PID    int
	done   chan struct{} // closed when the child has been reaped
	err    error         // how it ended; read after done
	state  *os.ProcessState
	handle *os.Process
}

// Start starts cmd in a process group of its own, so that ^C in a terminal
// reaches us and not the servers that we are still draining into. If we die, the
// child gets onOurDeath (on Linux). It runs as the account, or as ourselves if
// that is nil. SysProcAttr of cmd is overwritten.
//
// The kernel sends that signal when the thread that created the child ends, not
// when the process does. So a goroutine stays with its thread until the child
// is gone.
func Start(cmd *exec.Cmd, onOurDeath syscall.Signal, as *Account) (*Process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if as != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: as.uid, Gid: as.gid}
	}
	setDeathSignal(cmd.SysProcAttr, onOurDeath)

	p := &Process{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			p.handle, p.PID = cmd.Process, cmd.Process.Pid
		}
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			p.state = cmd.ProcessState
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("run %s: %w", cmd.Path, err)
	}
	return p, nil
}

// Ended tells whether the child is gone.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Done is closed when the child has been reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// State says how the child has ended; nil before Done is closed, and if it could
// not be waited for.
func (p *Process) State() *os.ProcessState {
	select {
	case <-p.done:
		return p.state
	default:
		return nil
	}
}

// Signal sends a signal; to a child that has ended it does nothing.
func (p *Process) Signal(s syscall.Signal) error {
	if err := p.handle.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

// Stop asks for an end and waits for it, or for ctx. A process that had ended
// before, or that ends in another way than asked, is an error with the end of
// its log, which logPath names.
func (p *Process) Stop(ctx context.Context, ask syscall.Signal, logPath string) error {
	before := p.Ended() || hasEnded(p.PID)
	if err := p.Signal(ask); err != nil {
		return err
	}
	select {
	case <-p.done:
		if before || p.err != nil {
			return fmt.Errorf("the server had ended by itself (%v), its log ends with:\n%s", p.err, LogTail(logPath))
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("process %d did not end in time: %w", p.PID, context.Cause(ctx))
	}
}

// Run runs a short-lived command and returns what it printed in its error.
func Run(ctx context.Context, cmd *exec.Cmd, as *Account) error {
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	p, err := Start(cmd, syscall.SIGKILL, as)
	if err != nil {
		return err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return errors.Join(context.Cause(ctx), p.Kill())
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd.Path, p.err, bytes.TrimSpace(output.Bytes()))
	}
	return nil
}

// Account is an unprivileged account that root runs servers as.
type Account struct {
	Name     string
	uid, gid uint32
}

// Unprivileged returns the first of the accounts "postgres" and "nobody" that
// exists. It returns nil if we are not root: children run as ourselves then.
func Unprivileged() (*Account, error) {
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
		return &Account{Name: name, uid: uint32(uid), gid: uint32(gid)}, nil
	}
	return nil, errors.New("PostgreSQL refuses to run as root, and there is no account \"postgres\" or \"nobody\" to run it as")
}

// Own makes path, which exists, the account's. Without an account it stays ours.
func (a *Account) Own(path string) error {
	if a == nil {
		return nil
	}
	return os.Lchown(path, int(a.uid), int(a.gid))
}

// CanEnter says which folder on the way to path keeps the account out.
func (a *Account) CanEnter(path string) error {
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
			return fmt.Errorf("the account %s, which servers run as because PostgreSQL refuses to run as root, cannot enter %s: choose another folder (TMPDIR)", a.Name, dir)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// Env is the whole environment of the servers: nothing of the caller's may
// change how they behave (PGDATA, PGPORT, LC_ALL and their like).
func Env(home string) []string {
	return []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + home, "LC_ALL=C", "TZ=UTC"}
}

// PollInterval is the pause between two looks at a server that is starting.
const PollInterval = 20 * time.Millisecond

// AwaitReady calls ready until it returns nil. It gives up when the process
// ends or ctx does; the error holds the end of the server's log then.
func (p *Process) AwaitReady(ctx context.Context, logPath string, ready func(context.Context) error) error {
	tick := time.NewTicker(PollInterval)
	defer tick.Stop()
	last := errors.New("not asked yet")
	for {
		select {
		case <-p.done:
			return fmt.Errorf("the server ended while starting (%v), its log ends with:\n%s", p.err, LogTail(logPath))
		case <-ctx.Done():
			return fmt.Errorf("%w while the server was starting (%w), its log ends with:\n%s", context.Cause(ctx), last, LogTail(logPath))
		case <-tick.C:
			if last = ready(ctx); last == nil {
				return nil
			}
		}
	}
}

// LogTail returns the end of a log, or why it cannot be read.
func LogTail(path string) string {
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

// OpenLog opens a server's log, which all its runs share, for appending.
func OpenLog(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the server's log: %w", err)
	}
	return file, nil
}

// PIDs returns the process and its descendants, itself first (on other systems
// than Linux itself alone); none after its end, or of a nil Process.
func (p *Process) PIDs() ([]int, error) {
	if p == nil || p.Ended() {
		return nil, nil
	}
	return treePIDs(p.PID)
}

// CPU returns the processor time that the process and its descendants, dead ones
// included, have used, in units of 10 ms; 0 after its end, or of a nil Process.
// It is an error on other systems than Linux.
func (p *Process) CPU() (time.Duration, error) {
	if p == nil || p.Ended() {
		return 0, nil
	}
	return treeCPU(p.PID)
}
