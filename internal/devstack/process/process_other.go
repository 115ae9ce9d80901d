//go:build unix && !linux

package process

import (
	"errors"
	"syscall"
	"time"
)

// Without a death signal, children outlive a caller that is killed: PostgreSQL
// until it notices that its folder is gone, Redis until somebody ends it.
func setDeathSignal(*syscall.SysProcAttr, syscall.Signal) {}

// Kill lets PostgreSQL end its own children, which it does at once and
// without writing anything; other servers end at the same signal.
func (p *Process) Kill() error {
	if err := p.Signal(syscall.SIGQUIT); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(10 * time.Second):
		err := p.Signal(syscall.SIGKILL)
		if err == nil {
			<-p.done
		}
		return err
	}
}

// hasEnded cannot tell: the end shows when it is noticed.
func hasEnded(int) bool { return false }

func treePIDs(root int) ([]int, error) { return []int{root}, nil }

func treeCPU(int) (time.Duration, error) {
	return 0, errors.New("processor time of other processes is read on Linux alone")
}
