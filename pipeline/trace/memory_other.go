//go:build !unix

package trace

import "unsafe"

// reserve gives memory of zeros, aligned for pages.
func reserve(_ *Book, bytes int) ([]byte, error) {
	words := make([]uint64, (bytes+7)/8)
	return unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), bytes), nil
}
