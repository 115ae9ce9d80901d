//go:build unix

package trace

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// reserve gives memory of zeros outside of the heap, for as long as b is
// reachable.
func reserve(b *Book, bytes int) ([]byte, error) {
	memory, err := unix.Mmap(-1, 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, err
	}
	runtime.AddCleanup(b, func(memory []byte) {
		// It is a whole mapping that was never unmapped: this cannot fail.
		_ = unix.Munmap(memory)
	}, memory)
	return memory, nil
}
