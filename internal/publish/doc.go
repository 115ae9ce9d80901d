// Package publish tells the rest of the platform what has been committed: it
// publishes the messages of internal/event on Redis, and hands lifecycle events
// to a sink for analytics.
//
// Invariants:
//   - The messages of one call of Publish reach Redis in order: each round trip
//     is answered before the next one is sent.
//   - A nil error means that Redis took every message. An error means that an
//     unknown part was taken; nothing is sent again behind the caller's back,
//     so that the caller, who holds the outbox, alone decides what is repeated.
//   - After an error nothing of the failed call arrives any more once a later
//     call has begun to publish: repeats end with the newest. See session.
//   - A lifecycle event leaves its queue after the sink has taken it or has
//     refused it as malformed, never before.
//   - No address, password or write key reaches a log or an error.
//
// It writes nothing to the database; the queue of lifecycle events is the
// caller's. Owner: whoever owns the way of an update.
package publish
