package process

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"syscall"
	"time"
)

func setDeathSignal(attr *syscall.SysProcAttr, s syscall.Signal) { attr.Pdeathsig = s }

// procStat is what /proc/<pid>/stat says of a process.
type procStat struct {
	pid, parent int
	state       byte
	born        uint64        // clock ticks since boot: with pid it names a process for good
	cpu         time.Duration // its own and that of the children it has reaped
}

// clockTick is the unit of times in /proc: the kernel shows 100 a second to
// programs whatever its own rate.
const clockTick = time.Second / 100

func readStat(pid int) (procStat, error) {
	content, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, err
	}
	// The name, in parentheses, may hold anything, parentheses too.
	_, rest, found := bytes.Cut(content[max(bytes.LastIndexByte(content, ')'), 0):], []byte(") "))
	fields := bytes.Fields(rest)
	if !found || len(fields) < 20 {
		return procStat{}, fmt.Errorf("/proc/%d/stat has an unknown form", pid)
	}
	number := func(field int) uint64 {
		var n uint64
		if n, err = strconv.ParseUint(string(fields[field-3]), 10, 64); err != nil {
			err = fmt.Errorf("/proc/%d/stat, field %d: %w", pid, field, err)
		}
		return n
	}
	// Fields as numbered in proc(5); the first after the name is 3.
	stat := procStat{pid: pid, state: fields[0][0]}
	stat.parent = int(number(4))
	if err != nil {
		return procStat{}, err
	}
	var ticks uint64
	for field := 14; field <= 17; field++ {
		n := number(field)
		if err != nil {
			return procStat{}, err
		}
		ticks += n
	}
	stat.cpu = time.Duration(ticks) * clockTick
	stat.born = number(22)
	return stat, err
}

// gone tells whether a process that was read as s has ended. A zombie has: it
// holds nothing any more and only waits to be counted.
func (s procStat) gone() bool {
	now, err := readStat(s.pid)
	return err != nil || now.born != s.born || now.state == 'Z' || now.state == 'X'
}

// hasEnded tells whether a child of ours has ended, also if that was not
// noticed yet.
func hasEnded(child int) bool {
	now, err := readStat(child)
	return err != nil || now.state == 'Z' || now.state == 'X'
}

// processTree returns root and all its descendants, root first. Processes that
// end meanwhile are left out.
func processTree(root int) ([]procStat, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	children := make(map[int][]procStat)
	var tree []procStat
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue // not a process
		}
		stat, err := readStat(pid)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read a process: %w", err)
		}
		if pid == root {
			tree = append(tree, stat)
		}
		children[stat.parent] = append(children[stat.parent], stat)
	}
	for i := 0; i < len(tree); i++ {
		tree = append(tree, children[tree[i].pid]...)
	}
	return tree, nil
}

// Kill kills the process and all its descendants and waits until they are gone.
// PostgreSQL's processes lead sessions of their own, so that a signal to the
// group would miss them. The root is halted first: a halted one bears no more.
func (p *Process) Kill() error {
	if p.Ended() {
		return nil
	}
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	await(p, func() bool {
		stat, err := readStat(p.PID)
		return err != nil || stat.state == 'T' || stat.state == 'Z'
	})
	tree, err := processTree(p.PID)
	if err != nil {
		return errors.Join(err, p.Signal(syscall.SIGKILL))
	}
	var errs []error
	for i := len(tree) - 1; i >= 1; i-- {
		if err := syscall.Kill(tree[i].pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, fmt.Errorf("kill process %d: %w", tree[i].pid, err))
		}
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return errors.Join(append(errs, err)...)
	}
	<-p.done
	for _, stat := range tree {
		if !await(nil, stat.gone) {
			errs = append(errs, fmt.Errorf("process %d does not die", stat.pid))
		}
	}
	return errors.Join(errs...)
}

// await polls, for what the kernel offers no event for. It gives up when p,
// unless it is nil, has ended, or after ten seconds.
func await(p *Process, holds func() bool) bool {
	const pause = 2 * time.Millisecond
	for range 10 * time.Second / pause {
		if holds() {
			return true
		}
		if p != nil && p.Ended() {
			return false
		}
		time.Sleep(pause)
	}
	return false
}

// treePIDs returns the process and its descendants.
func treePIDs(root int) ([]int, error) {
	tree, err := processTree(root)
	pids := make([]int, len(tree))
	for i, stat := range tree {
		pids[i] = stat.pid
	}
	return pids, err
}

// treeCPU returns the processor time that the process and its descendants have
// used since they began, those that ended included.
func treeCPU(root int) (time.Duration, error) {
	tree, err := processTree(root)
	var sum time.Duration
	for _, stat := range tree {
		sum += stat.cpu
	}
	return sum, err
}
