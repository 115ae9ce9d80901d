package table

import (
	"strings"

	"github.com/trestle-bridge/trestle/coordinator/kv"
	"github.com/trestle-bridge/trestle/shard"
)

// Entry is a stored value with its key's revisions; the zero Entry is none.
type Entry[T any] struct {
	Create, Mod int64
	Value       T
}

// Exists says that there is such a key.
func (e Entry[T]) Exists() bool { return e.Mod != 0 }

// Layout names the keys below a prefix.
type Layout struct{ prefix string }

// NewLayout takes the prefix with or without the slash at its end.
func NewLayout(prefix string) Layout { return Layout{strings.TrimRight(prefix, "/") + "/"} }

// The keys.
func (l Layout) Prefix() string                   { return l.prefix }
func (l Layout) Leader() string                   { return l.prefix + "leader" }
func (l Layout) Fleet() string                    { return l.prefix + "fleet" }
func (l Layout) Cluster(name string) string       { return l.prefix + "clusters/" + name }
func (l Layout) Shard(id shard.ID) string         { return l.prefix + "shards/" + id.String() }
func (l Layout) Roster(incarnation string) string { return l.prefix + "roster/" + incarnation }
func (l Layout) Drain(name string) string         { return l.prefix + "drains/" + name }
func (l Layout) Command(id string) string         { return l.prefix + "commands/" + id }
func (l Layout) Member(incarnation string) string { return l.prefix + "members/" + incarnation }
func (l Layout) Load(incarnation string) string   { return l.prefix + "loads/" + incarnation }
func (l Layout) Answer(incarnation string, id shard.ID) string {
	return l.prefix + "answers/" + incarnation + "/" + id.String()
}
func (l Layout) Refusal(incarnation, target string) string {
	return l.prefix + "refusals/" + incarnation + "/" + target
}

// View is the table as one replica has read it. It is not safe for concurrent
// use, and none of its values may be changed in place.
type View struct {
	layout Layout
	me     string
	// Broken is told of each value that does not decode.
	Broken func(key string, err error)

	// Revision is the one up to which the view is complete, 0 before the first
	// Reset.
	Revision int64
	Leader   Entry[Leader]
	Fleet    Entry[Fleet]
	Clusters map[string]Entry[Cluster]
	Shards   map[shard.ID]Entry[Shard]
	Roster   map[string]Entry[Roster]
	Drains   map[string]Entry[Drain]
	Commands map[string]Entry[Command]
	Members  map[string]Entry[Member]
	Loads    map[string]Entry[Load]
	// Answers are by shard, then by incarnation; Refusals by target, then by who
	// was refused.
	Answers  map[shard.ID]map[string]Entry[Answer]
	Refusals map[string]map[string]Entry[Refusal]
	// Mine are the leased keys of this replica as they are stored.
	Mine map[string]kv.Item
}

// NewView makes an empty view for one replica.
func NewView(layout Layout, me string) *View {
	v := &View{layout: layout, me: me}
	v.clear()
	return v
}

func (v *View) clear() {
	v.Leader, v.Fleet = Entry[Leader]{}, Entry[Fleet]{}
	v.Clusters = make(map[string]Entry[Cluster])
	v.Shards = make(map[shard.ID]Entry[Shard])
	v.Roster = make(map[string]Entry[Roster])
	v.Drains = make(map[string]Entry[Drain])
	v.Commands = make(map[string]Entry[Command])
	v.Members = make(map[string]Entry[Member])
	v.Loads = make(map[string]Entry[Load])
	v.Answers = make(map[shard.ID]map[string]Entry[Answer])
	v.Refusals = make(map[string]map[string]Entry[Refusal])
	v.Mine = make(map[string]kv.Item)
}

// Reset replaces the view by what a listing gave.
func (v *View) Reset(items []kv.Item, revision int64) {
	v.clear()
	for _, it := range items {
		v.apply(kv.Event{Item: it})
	}
	v.Revision = revision
}

// Apply takes what a watch gave, and says whether that can matter to what is
// done now: measured loads do not.
func (v *View) Apply(batch kv.Batch) (matters bool) {
	for _, e := range batch.Events {
		v.apply(e)
		matters = matters || !strings.HasPrefix(e.Key, v.layout.prefix+"loads/")
	}
	v.Revision = max(v.Revision, batch.Revision)
	return matters
}

func (v *View) apply(e kv.Event) {
	name, ok := strings.CutPrefix(e.Key, v.layout.prefix)
	if !ok {
		return
	}
	kind, rest, _ := strings.Cut(name, "/")
	switch kind {
	case "leader":
		v.Leader = one[Leader](v, e)
	case "fleet":
		v.Fleet = one[Fleet](v, e)
	case "clusters":
		in(v, v.Clusters, rest, e)
	case "shards":
		if id, err := shard.ParseID(rest); err != nil {
			v.broken(e.Key, err)
		} else {
			in(v, v.Shards, id, e)
		}
	case "roster":
		in(v, v.Roster, rest, e)
	case "drains":
		in(v, v.Drains, rest, e)
	case "commands":
		in(v, v.Commands, rest, e)
	case "members":
		in(v, v.Members, rest, e)
		v.mine(rest, e)
	case "loads":
		in(v, v.Loads, rest, e)
		v.mine(rest, e)
	case "answers":
		who, what, _ := strings.Cut(rest, "/")
		v.mine(who, e)
		if id, err := shard.ParseID(what); err != nil {
			v.broken(e.Key, err)
		} else {
			nested(v, v.Answers, id, who, e)
		}
	case "refusals":
		who, target, _ := strings.Cut(rest, "/")
		v.mine(who, e)
		nested(v, v.Refusals, target, who, e)
	}
}

func (v *View) mine(incarnation string, e kv.Event) {
	if incarnation != v.me {
		return
	}
	if e.Deleted {
		delete(v.Mine, e.Key)
	} else {
		v.Mine[e.Key] = e.Item
	}
}

func (v *View) broken(key string, err error) {
	if v.Broken != nil {
		v.Broken(key, err)
	}
}

func one[T any](v *View, e kv.Event) Entry[T] {
	if e.Deleted {
		return Entry[T]{}
	}
	entry := Entry[T]{Create: e.Create, Mod: e.Mod}
	if err := decode(e.Value, &entry.Value); err != nil {
		v.broken(e.Key, err)
		var empty T
		entry.Value = empty
	}
	return entry
}

func in[K comparable, T any](v *View, m map[K]Entry[T], key K, e kv.Event) {
	if e.Deleted {
		delete(m, key)
		return
	}
	m[key] = one[T](v, e)
}

func nested[K comparable, T any](v *View, m map[K]map[string]Entry[T], key K, who string, e kv.Event) {
	if e.Deleted {
		delete(m[key], who)
		if len(m[key]) == 0 {
			delete(m, key)
		}
		return
	}
	if m[key] == nil {
		m[key] = make(map[string]Entry[T])
	}
	m[key][who] = one[T](v, e)
}

// Dead says that a replica's peer address refuses two living others, and that
// it has not moved to another address since.
func (v *View) Dead(incarnation string) bool {
	member, lives := v.Members[incarnation]
	if !lives {
		return true
	}
	witnesses := 0
	for who, refusal := range v.Refusals[incarnation] {
		if _, lives := v.Members[who]; lives && who != incarnation && refusal.Value.Peer == member.Value.Peer {
			witnesses++
		}
	}
	return witnesses >= 2
}
