package console

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/coordinator"
	"github.com/trestle-bridge/trestle/shard"
)

const (
	// coalesce is how long changes gather before they are told.
	coalesce = 300 * time.Millisecond
	// lookAgain is how often those who watch look unasked: nothing tells that a
	// pin has lapsed, or that this replica was cut off.
	lookAgain = time.Second
	// maxMoves and maxCommands are how many of the last ones are shown.
	maxMoves    = 100
	maxCommands = 50
)

// look is the fleet as it was at one time. It is not changed any more: it is
// told to many at once.
type look struct {
	at       time.Time
	changed  <-chan struct{} // closed when there is more of the fleet to see
	checked  <-chan struct{} // closed when health was looked at again
	members  [members]raw
	replicas set[replica]
	shards   set[shardDoc]
}

// The members of a document beside replicas and shards.
const (
	memberAnswering = iota
	memberFleet
	memberHealth
	memberMoves
	memberCommands
	members
)

// set holds what has a key, in order. An entry that has not changed from one look
// to the next is the same one in both.
type set[T comparable] struct {
	list  []*entry[T]
	byKey map[string]*entry[T]
}

type entry[T comparable] struct {
	key     string
	value   T
	encoded raw
}

func newSet[T comparable](size int) set[T] {
	return set[T]{list: make([]*entry[T], 0, size), byKey: make(map[string]*entry[T], size)}
}

func (s *set[T]) add(before set[T], key string, value T) {
	e := before.byKey[key]
	if e == nil || e.value != value {
		e = &entry[T]{key: key, value: value, encoded: encode(value)}
	}
	s.list = append(s.list, e)
	s.byKey[key] = e
}

// since gives what is new or different, and what is no more.
func (s *set[T]) since(before set[T]) (fresh []raw, removed []string) {
	fresh = []raw{} // an empty list in JSON, not null
	for _, e := range s.list {
		if before.byKey[e.key] != e {
			fresh = append(fresh, e.encoded)
		}
	}
	for _, e := range before.list {
		if s.byKey[e.key] == nil {
			removed = append(removed, e.key)
		}
	}
	return fresh, removed
}

// since is what to tell those who know an earlier look, or, with nil, nothing
// yet; false if there is nothing to tell.
func (l *look) since(before *look) (document, bool) {
	d := document{Version: DocumentVersion, At: l.at}
	if before == nil {
		before = &look{}
	}
	for i, to := range []*raw{&d.Answering, &d.Fleet, &d.Health, &d.Moves, &d.Commands} {
		if !bytes.Equal(l.members[i], before.members[i]) {
			*to = l.members[i]
		}
	}
	d.Replicas, d.RemovedReplicas = l.replicas.since(before.replicas)
	d.Shards, d.RemovedShards = l.shards.since(before.shards)
	news := d.Answering != nil || d.Fleet != nil || d.Health != nil || d.Moves != nil || d.Commands != nil ||
		len(d.Replicas)+len(d.Shards)+len(d.RemovedReplicas)+len(d.RemovedShards) > 0
	return d, news
}

// looks gives the look of the moment to all who ask, so that a change costs one
// look and not one for each of them.
type looks struct {
	fleet  Fleet
	checks *checks
	me     answering // but for what changes
	level  func() string
	// mu guards last. Under it the state is read and converted, which waits for
	// nobody.
	mu   sync.Mutex
	last *look
}

// now gives the last look if that is fresh, or if nothing has changed and it is
// not old. Whoever gets one that has been overtaken finds a channel of it closed.
func (l *looks) now() *look {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last != nil {
		fresh := coalesce / 2
		if !closed(l.last.changed) && !closed(l.last.checked) {
			fresh = lookAgain / 2
		}
		if time.Since(l.last.at) < fresh {
			return l.last
		}
	}
	before := l.last
	if before == nil {
		before = &look{}
	}
	health, checked := l.checks.last()
	state, changed := l.fleet.State()
	next := &look{at: time.Now().UTC(), changed: changed, checked: checked}
	c := newConverter(state, next.at)

	me := l.me
	me.Known, me.Detached, me.LogLevel = state.Known, state.Detached, l.level()
	me.Name = c.ref(me.Incarnation).Name
	next.members = [members]raw{
		memberAnswering: encode(me),
		memberFleet:     encode(c.fleet()),
		memberHealth:    encode(health),
		memberMoves:     encode(c.moves()),
		memberCommands:  encode(c.commands()),
	}
	next.replicas = newSet[replica](len(state.Replicas))
	for i := range state.Replicas {
		next.replicas.add(before.replicas, state.Replicas[i].Incarnation, c.replica(&state.Replicas[i]))
	}
	next.shards = newSet[shardDoc](len(state.Shards))
	for i := range state.Shards {
		sh := c.shard(&state.Shards[i])
		next.shards.add(before.shards, sh.ID, sh)
	}
	l.last = next
	return next
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// encode is for the types of this package, which can be.
func encode(value any) raw {
	encoded, err := json.Marshal(value)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", value, err))
	}
	return encoded
}

// converter tells of one state, as of one time.
type converter struct {
	state coordinator.State
	now   time.Time
	names map[string]string // of replicas, by incarnation
}

func newConverter(state coordinator.State, now time.Time) *converter {
	c := &converter{state: state, now: now, names: make(map[string]string, len(state.Replicas))}
	for _, r := range state.Replicas {
		c.names[r.Incarnation] = r.Member.Name
	}
	return c
}

// ref names a process; the zero ref for none.
func (c *converter) ref(incarnation string) ref {
	if incarnation == "" {
		return ref{}
	}
	return ref{Name: c.names[incarnation], Incarnation: incarnation}
}

// lapsed says whether something is over that holds until then.
func (c *converter) lapsed(until time.Time) bool { return !until.IsZero() && !c.now.Before(until) }

func (c *converter) fleet() fleet {
	leader := c.state.Leader
	f := fleet{Leader: ref{Name: leader.Name, Incarnation: leader.Incarnation}, LeaderSince: leader.Since}
	if fr := c.state.Freeze; fr.On && !c.lapsed(fr.Until) {
		f.Freeze = &freeze{Until: fr.Until, Reason: fr.Reason, Author: fr.Author}
	}
	if b := c.state.Brake; !b.Since.IsZero() {
		f.Brake = &brake{Since: b.Since, Roster: b.Roster, Limited: b.Limited}
	}
	return f
}

func (c *converter) replica(r *coordinator.ReplicaState) replica {
	out := replica{
		ref:      ref{Name: r.Member.Name, Incarnation: r.Incarnation},
		Revision: r.Member.Revision, Address: r.Member.Peer,
		State: "live", Leads: r.Incarnation == c.state.Leader.Incarnation,
		Load: rounded(r.Load), Cap: r.Member.Cap, Capacity: r.Member.Capacity, Shards: r.Shards,
		Joined: r.Joined, Heard: r.Heard, Gone: r.Gone,
	}
	if out.Capacity <= 0 {
		out.Capacity = 1 // what it counts as
	}
	switch {
	case !r.Gone.IsZero():
		out.State = "gone"
	case r.Draining:
		out.State = "draining"
	}
	if d, drained := c.state.Drains[r.Member.Name]; drained && d.Active(c.now) {
		out.Drain = drain{At: d.At, Until: d.Until, Reason: d.Reason, Author: d.Author}
	}
	return out
}

func (c *converter) shard(s *coordinator.ShardState) shardDoc {
	stored := &s.Stored
	out := shardDoc{
		ID: s.ID.String(), Cluster: s.ID.Cluster,
		Owner: c.ref(stored.Owner), Next: c.ref(stored.Next), Former: c.ref(stored.Former),
		Phase: string(stored.Phase), Epoch: int64(stored.Epoch), Held: int64(s.Observed),
		Weight: rounded(stored.Weight), Reason: string(stored.Reason), Text: stored.Text, Since: stored.Since,
	}
	if m := s.Measured; m != (coordinator.Measured{}) {
		out.Measured = measured{
			Rate: rounded(m.Rate), Live: m.Live, LagSeconds: rounded(m.Lag.Seconds()), Deaf: m.Deaf,
			// To the second: who is heard all the time changes no more often than
			// that in what is told.
			LastEvent: m.LastEvent.Truncate(time.Second),
		}
	}
	if p := stored.Pin; p.Replica != "" && !c.lapsed(p.Until) {
		out.Pin = pin{Replica: p.Replica, Until: p.Until, Reason: p.Reason, Author: p.Author}
	}
	return out
}

// moves are the last changes of owners in the fleet, newest first.
func (c *converter) moves() []move {
	newest := []move{}
	settle := func() {
		slices.SortStableFunc(newest, func(a, b move) int {
			return cmp.Or(b.At.Compare(a.At), cmp.Compare(a.Shard, b.Shard))
		})
		newest = newest[:min(len(newest), maxMoves)]
	}
	for i := range c.state.Shards {
		newest = append(newest, c.past(&c.state.Shards[i])...)
		if len(newest) > 20*maxMoves {
			settle()
		}
	}
	settle()
	return newest
}

// past are the last changes of a shard's owner, oldest first.
func (c *converter) past(s *coordinator.ShardState) []move {
	list := make([]move, len(s.Stored.Moves))
	for i, m := range s.Stored.Moves {
		list[i] = move{
			Shard: s.ID.String(), At: m.At, From: c.ref(m.From), To: c.ref(m.To),
			Epoch: int64(m.Epoch), Reason: string(m.Reason),
		}
	}
	return list
}

// commands are the last wishes of operators, newest first.
func (c *converter) commands() []command {
	list := []command{}
	for _, cmd := range slices.Backward(c.state.Commands) {
		if len(list) == maxCommands {
			break
		}
		list = append(list, convertCommand(cmd))
	}
	return list
}

func convertCommand(c coordinator.Command) command {
	return command{
		Kind: string(c.Kind), Shard: c.Shard, Replica: c.Replica, Cluster: c.Cluster, Slices: c.Slices,
		Reason: c.Reason, Author: c.Author, At: c.At, Until: c.Until, Done: c.Done, Refused: c.Refused,
	}
}

// ofCluster says whether a command concerns a cluster.
func ofCluster(c coordinator.Command, cluster string) bool {
	if c.Cluster == cluster {
		return true
	}
	id, err := shard.ParseID(c.Shard)
	return err == nil && id.Cluster == cluster
}

// rounded keeps three digits or so: more would be told with every measurement,
// and read by nobody. What is no number is 0.
func rounded(x float64) float64 {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return 0
	}
	scale := math.Pow(10, 2-math.Floor(math.Log10(max(math.Abs(x), 1))))
	return math.Round(x*scale) / scale
}
