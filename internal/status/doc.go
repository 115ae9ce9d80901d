// Package status turns what a workspace cluster says of an instance into a
// change of our rows. It is pure: no I/O, no goroutines, no clock of its own.
//
// Scan reads the identity of an encoded status in one pass; Rules.Change
// decodes one and makes a Change of it; Change.Fold joins a later Change to
// an earlier one. A Change does not know the row it will meet. What it does
// to a row depends on the version that the row has reached by then, so it
// carries, for every update that was folded into it, the Effect of that
// update: the store picks those above the stored version.
//
// The invariant of the package: applying a folded Change to any row leaves
// what applying its parts in turn would have left.
package status
