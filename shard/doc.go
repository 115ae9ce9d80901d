// Package shard holds what is decided about shards, and nothing that acts on
// it: names and epochs, the order in which replicas are preferred, the planner
// and the hand-over from one owner to the next.
//
// Everything here is a pure function or a value with a Step method: state,
// event and time come in, decisions come out. There is no I/O, no goroutine,
// no clock and no randomness, so a decision can be replayed from its inputs
// and two leaders with the same inputs decide alike.
//
// Invariants:
//   - An instance falls into exactly one slice of its cluster, and always into
//     the same lane.
//   - An epoch of a shard never goes back, and names one owner only.
//   - A hand-over that waits always says when to wake it.
//   - A plan does not depend on the order of its input.
//
// None of this is what keeps rows right; the fence in the database is. A wrong
// decision here wastes work, it cannot take a row back.
//
// The coordinator owns the state and carries the decisions out; other packages
// use the names only.
package shard
