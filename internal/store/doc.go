// Package store is the system of record: the schema in PostgreSQL and every SQL
// statement that the bridge sends to it.
//
// Its invariants, each kept by the database and not by the caller's care:
//
//   - A row of an instance changes only if the change is newer than the row and
//     its writer holds the shard's fence, both judged in the commit that
//     changes it. Two owners at once can waste work, but take nothing back.
//   - What is to be published is recorded in the commit that makes it true.
//   - Whatever is written of a row is computed from the row as it was locked,
//     so that others may write the same row at any time.
//   - Locks are taken in one order: fences, instances, prebuilds, tokens, each
//     by key. Two batches at once cannot deadlock.
//
// A batch costs one round trip and one commit. Every write may be repeated: one
// whose outcome is unknown comes again and finds itself stale.
//
// The connections keep prepared statements and settings of their own. Behind
// a pooler they need a session each; a pooler that hands out transactions does
// not work.
//
// All methods of Store may be called at once. Owner: whoever keeps the tables;
// the names of tables and columns are a contract with other components.
package store
