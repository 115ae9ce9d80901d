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
//   - Every method has a rule that says who may call it, in door.go; what has
//     none is an operator's.
//   - Every change, and every caller who was refused, is in the audit log: who,
//     what, why, and what came of it. Errors become gRPC codes in one place,
//     codes.go.
//   - No caller can take all of it: requests, calls and connections are bounded,
//     for each and in all.
//
// On an address that others reach it is served only with TLS and to callers with
// a name, unless the configuration says otherwise.
//
// Owner: the service's wiring, which runs one Server a process.
package api
