package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
)

// watching is what a watch has shown so far.
type watching struct {
	p        *program
	shown    map[string]string // the steady columns of each shard
	begun    bool
	widths   []int
	detached bool
}

// watchShards shows all shards, and then those that change, until ctx ends,
// which is no error. When the replica stops, it goes on with another.
func (p *program) watchShards(ctx context.Context, cluster string) error {
	w := watching{p: p, shown: make(map[string]string), widths: make([]int, len(shardColumns()))}
	w.widths[phaseColumn] = len("REMOVED") // as long as any
	var tried []string
	for at := 0; ; {
		r, found, err := p.reachable(ctx, time.Now().Add(p.timeout), at, &tried)
		if err == nil {
			var answered bool
			answered, err = w.follow(ctx, r, cluster)
			_ = r.conn.Close() // it is over in any case
			if status.Code(err) == codes.Unavailable {
				tried = append(tried, r.address+": "+message(err))
				at = found + 1
				if answered {
					// Begin again with the first: it may be back.
					p.warn("%s: %s", r.address, message(err))
					at, tried = 0, nil
				}
				continue
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
}

// follow watches one replica, and says whether that has answered at all.
func (w *watching) follow(ctx context.Context, r *replica, cluster string) (answered bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	overdue := time.AfterFunc(w.p.timeout, func() {
		cancel(status.Error(codes.Unavailable, fmt.Sprintf("no answer within %s", w.p.timeout)))
	})
	defer overdue.Stop()
	stream, err := r.shards().WatchShards(ctx, &trestlev1.WatchShardsRequest{Cluster: cluster})
	for err == nil {
		var m *trestlev1.WatchShardsResponse
		if m, err = stream.Recv(); err != nil {
			break
		}
		overdue.Stop()
		answered = true
		if m.GetDetached() != w.detached {
			w.detached = m.GetDetached()
			w.p.warnDetached(w.detached)
		}
		if err := w.show(stream, m); err != nil {
			return answered, err
		}
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return answered, err
}

// show takes in one state, which may come in several messages.
func (w *watching) show(stream interface {
	Recv() (*trestlev1.WatchShardsResponse, error)
}, m *trestlev1.WatchShardsResponse) error {
	if !w.p.forPeople() {
		return w.emit(m)
	}
	shards, removed, initial := m.GetShards(), m.GetRemoved(), m.GetInitial()
	for m.GetMore() {
		var err error
		if m, err = stream.Recv(); err != nil {
			return err
		}
		shards, removed = append(shards, m.GetShards()...), append(removed, m.GetRemoved()...)
	}
	if initial {
		// What an earlier replica has told and this one does not know is gone.
		for id := range w.shown {
			if !slices.ContainsFunc(shards, func(s *trestlev1.Shard) bool { return s.GetId() == id }) {
				removed = append(removed, id)
			}
		}
	}
	g := w.p.page()
	g.goesOn, g.widths = w.begun, w.widths
	var rows [][]string
	for _, s := range shards {
		row := shardRow(g, s)
		if key := strings.Join(row[:steady], "\x00"); w.shown[s.GetId()] != key {
			w.shown[s.GetId()] = key
			rows = append(rows, row)
		}
	}
	slices.Sort(removed)
	for _, id := range removed {
		delete(w.shown, id)
		row := make([]string, len(shardColumns()))
		for i := range row {
			row[i] = "-"
		}
		row[0], row[phaseColumn] = id, "REMOVED"
		rows = append(rows, row)
	}
	if len(rows) == 0 && w.begun {
		return nil
	}
	for _, row := range rows {
		// Whoever has a shard may be the next of another.
		g.widths[nextColumn] = max(g.widths[nextColumn], len(row[ownerColumn]))
	}
	g.table(shardColumns(), rows)
	w.begun, w.widths = true, g.widths
	_, err := w.p.streams.out.Write(g.Bytes())
	return err
}

// emit writes a message for machines: JSON on one line, YAML as a document.
func (w *watching) emit(m *trestlev1.WatchShardsResponse) error {
	raw, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return err
	}
	return w.p.emit(raw)
}
