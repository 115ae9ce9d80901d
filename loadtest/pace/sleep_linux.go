package pace

import (
	"time"

	"golang.org/x/sys/unix"
)

// sleep is the kernel's own. A signal may end it early.
func sleep(d time.Duration) {
	t := unix.NsecToTimespec(d.Nanoseconds())
	_ = unix.Nanosleep(&t, nil)
}
