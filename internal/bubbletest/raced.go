//go:build race

package bubbletest

const raced = true
