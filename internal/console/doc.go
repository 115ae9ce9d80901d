// Package console serves the page on which operators see the fleet live, the
// same as JSON, and what else only operators of one process need: profiles and
// the level of the log.
//
// Its invariants:
//
//   - It shows and explains; the level of this process's log is all that it
//     changes. Any replica shows the whole fleet, as it has read it.
//   - A change costs one look at the fleet, however many watch. Who watches is
//     told what is newest when its turn comes: nothing is queued for anybody, and
//     who does not read is sent away.
//   - There is no login. It listens on loopback unless told otherwise, answers to
//     names that it knows and no others, and not to other sites' pages.
//   - Names, reasons and addresses come from others and may be anything. They
//     travel as JSON and are shown as text; the page has no script but its own.
//
// Owner: the service's wiring, which runs one Server a process.
package console
