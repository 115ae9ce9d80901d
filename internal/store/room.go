package store

import (
	"errors"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// roomBeside is for what goes with the parameters of a statement.
	roomBeside = 1 << 10
	// mostRoom is what a connection may keep, and what the arrays of a batch may be
	// to be used again; larger ones are rare.
	mostRoom = 4 << 20
	roomKey  = "trestle.room"
)

// room is the buffer in which a connection puts a batch together before it is
// sent. The driver drops what has grown beyond a kilobyte after each statement, and
// would grow another one piece by piece for the next: three times the size of the
// batch in garbage, and most of it copied more than once.
//
// It is a message that says nothing; the driver encodes the next ones behind it.
type room struct{ buf []byte }

// makeRoom gives the connection, which must be idle, a buffer for a statement with
// these parameters. Each connection has its own, which it may keep.
func makeRoom(conn *pgconn.PgConn, params [][]byte) {
	need := roomBeside
	for _, p := range params {
		need += 4 + len(p)
	}
	if need > mostRoom {
		return
	}
	r, ok := conn.CustomData()[roomKey].(*room)
	if !ok {
		r = new(room)
		conn.CustomData()[roomKey] = r
	}
	if cap(r.buf) < need {
		r.buf = make([]byte, 0, min(need+need/4, mostRoom))
	}
	conn.Frontend().Send(r)
}

// Frontend marks it as a message of ours.
func (*room) Frontend() {}

// Encode gives the buffer, with what waits to be sent.
func (r *room) Encode(waiting []byte) ([]byte, error) { return append(r.buf[:0], waiting...), nil }

// Decode fails: nobody sends it.
func (*room) Decode([]byte) error { return errors.New("store: room is never received") }
