// Package devstack runs a private PostgreSQL, Redis and etcd on loopback for
// `trestle dev`, the demo, tests and load tests.
//
// PostgreSQL and Redis are child processes, made from the binaries found on
// the machine; etcd, and Redis where no server is installed, run inside the
// calling process. Nothing here is meant for production: whoever can reach
// loopback on the machine is superuser in all of them.
//
// Invariants:
//   - A port and a folder belong to one server from Start to Close, also while
//     it is stopped: it comes back on the same address with the same data.
//   - Close leaves no process, folder, shared memory or goroutine behind. If
//     the calling process dies without it, its children die too (on Linux), and
//     the next Start on the machine removes its folders.
//   - PostgreSQL is durable as in production (fsync and synchronous_commit on);
//     Redis keeps nothing over a restart.
//   - PostgreSQL does not run as root. Called by root, its processes belong to
//     an unprivileged account.
//
// Each server's methods that change whether it runs (Start, Stop, Kill, Wipe,
// Close) are called by one goroutine at a time; all others by any, at any time.
//
// Owner: whoever owns `trestle dev` and the test suites.
package devstack
