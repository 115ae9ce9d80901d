// Package upstream is the client of one workspace cluster. It hears every
// status that the cluster sends and hands it on, still encoded; it decodes,
// judges and keeps nothing.
//
// A Client has two loops. One keeps a subscription open and reads it: it
// reads, scans and offers, and waits for nothing else, because the server
// drops whoever falls 250 messages behind. The other takes snapshots: when a
// subscription has begun, once more a few seconds later, because the server
// gives no sign of when it began to listen to us, then now and then, and when
// the stream is quiet. What is heard twice is told apart by its version, which
// is the sink's work.
//
// The invariants:
//
//   - A subscription is open before the snapshot that belongs to it is asked
//     for, so that no change falls between the two.
//   - Memory does not depend on the size of the cluster: a snapshot is read as
//     it comes in, never held (on a quiet stream, one version for each
//     instance is).
//   - Nothing here waits for a database. A sink that is full ends the stream;
//     a snapshot waits for it where it stands.
//   - Snapshots have a connection of their own, so that a slow one does not
//     stall the stream.
//
// Each Client belongs to whoever calls its Run; all goroutines end with it.
package upstream
