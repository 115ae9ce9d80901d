// Package api serves ClusterService, through which operators and their command
// line manage the workspace clusters of an installation, ShardService, through
// which they look at who carries which cluster and move it, and the standard
// services of gRPC for health and reflection.
//
// Its invariants:
//
//   - Every replica serves it, at any time, leader or not. The database, or the
//     leader, decides between two calls at once; what is checked here before is
//     only for a better answer.
//   - What is told of the shards is what this replica has read; one that is cut
//     off says so. Who watches and does not listen holds up nobody.
//   - A cluster, or new TLS material of one, is stored after it was reached
//     with just that.
//   - TLS material comes in and never leaves, in an answer, an error or a log.
//   - Every change is logged, with who made it. Errors become gRPC codes in one
//     place, codes.go.
//
// There is no authentication: who reaches the address may change everything.
// It is meant for a loopback address, behind a port-forward.
//
// Owner: the service's wiring, which runs one Server a process.
package api
