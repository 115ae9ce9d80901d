package limits

import (
	"syscall"
	"time"
)

// OwnCPU is the processor time, user and system, that this process has used.
func OwnCPU() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0 // not on a system that we know
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
