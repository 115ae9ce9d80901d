// Package limits measures what lies underneath the bridge, with nothing of the
// bridge in between: how fast this PostgreSQL updates such rows, how fast this
// gRPC reads such messages, what decoding them costs. A figure of the bridge
// says little without the limit of the same machine in the same minute.
//
// It holds no state; each function measures once. Owner: package bench.
package limits
