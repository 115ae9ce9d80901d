package table

import (
	"reflect"
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/coordinator/kv"
	"github.com/trestle-bridge/trestle/shard"
)

func item(key string, value []byte, mod int64) kv.Item {
	return kv.Item{Key: key, Value: value, Create: 1, Mod: mod}
}

func TestViewReadsWhatIsWritten(t *testing.T) {
	l := NewLayout("/x/")
	v := NewView(l, "me")
	id := shard.Slice("odd#name/with slash", 1, 3)
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	stored := Shard{
		Record: shard.Record{Epoch: 3, Owner: "me", Phase: shard.PhaseOwned, Reason: shard.ReasonNew, Pin: shard.Pin{Replica: "r", Until: at}},
		Weight: 1.5, Since: at, Text: "why", Moves: []Past{{At: at, To: "me", Epoch: 3, Reason: shard.ReasonNew}},
	}
	v.Reset([]kv.Item{
		item(l.Leader(), Encode(Leader{Incarnation: "me", Name: "n", Since: at}), 2),
		item(l.Shard(id), Encode(stored), 3),
		item(l.Answer("me", id), Encode(Answer{Kind: Holds, Epoch: 3}), 4),
		item(l.Answer("other", id), Encode(Answer{Kind: Ready, Attempt: 1}), 5),
		item(l.Member("me"), Encode(Member{Name: "n", Peer: "p", Started: at}), 6),
		item(l.Member("other"), Encode(Member{Name: "o", Peer: "q"}), 6),
		item(l.Member("third"), Encode(Member{Name: "t"}), 6),
		item(l.Refusal("me", "other"), Encode(Refusal{Peer: "q"}), 7),
		item("/xyz/leader", []byte("{}"), 8),
	}, 9)
	if got := v.Shards[id]; got.Mod != 3 || !reflect.DeepEqual(got.Value, stored) {
		t.Errorf("shard %+v", got)
	}
	if got := v.Answers[id]["me"].Value; got != (Answer{Kind: Holds, Epoch: 3}) {
		t.Errorf("answer %+v", got)
	}
	if len(v.Mine) != 3 || v.Leader.Value.Name != "n" || v.Revision != 9 {
		t.Errorf("%d keys are mine, leader %+v, revision %d", len(v.Mine), v.Leader, v.Revision)
	}
	if v.Dead("me") || v.Dead("other") || !v.Dead("nobody") {
		t.Error("one witness was enough, or none needed")
	}
	if !v.Apply(kv.Batch{Events: []kv.Event{{Item: item(l.Refusal("third", "other"), Encode(Refusal{Peer: "q"}), 10)}}, Revision: 10}) {
		t.Error("a refusal matters")
	}
	if !v.Dead("other") {
		t.Error("two witnesses were not enough")
	}
	v.Apply(kv.Batch{Events: []kv.Event{{Item: item(l.Member("other"), Encode(Member{Name: "o", Peer: "elsewhere"}), 11)}}, Revision: 11})
	if v.Dead("other") {
		t.Error("dead at an address that it has left")
	}
	if v.Apply(kv.Batch{Events: []kv.Event{{Item: item(l.Load("me"), Encode(Load{}), 12)}}, Revision: 12}) {
		t.Error("a load matters to nobody at once")
	}
	gone := func(key string) kv.Event { return kv.Event{Item: kv.Item{Key: key, Mod: 13}, Deleted: true} }
	v.Apply(kv.Batch{Events: []kv.Event{gone(l.Answer("me", id)), gone(l.Answer("other", id)), gone(l.Shard(id)), gone(l.Leader())}, Revision: 13})
	if len(v.Answers) > 0 || len(v.Shards) > 0 || v.Leader.Exists() || len(v.Mine) != 3 {
		t.Errorf("%+v", v)
	}
}

func TestUnknownFieldsStay(t *testing.T) {
	var s Shard
	if err := decode([]byte(`{"epoch":3,"phase":"OWNED","later":[1,2],"weight":2}`), &s); err != nil {
		t.Fatal(err)
	}
	s.Weight, s.Epoch = 7, 4
	var again Shard
	raw := Encode(s)
	if err := decode(raw, &again); err != nil || string(again.Extra["later"]) != "[1,2]" || again.Weight != 7 || again.Epoch != 4 {
		t.Errorf("%s is read as %+v, %v", raw, again, err)
	}
	if len(again.Extra) != 1 {
		t.Errorf("extra %v", again.Extra)
	}
}

func TestBrokenCountsAsEmpty(t *testing.T) {
	l := NewLayout("/x")
	v := NewView(l, "me")
	broken := map[string]bool{}
	v.Broken = func(key string, err error) { broken[key] = err != nil }
	v.Reset([]kv.Item{
		item(l.Shard(shard.Whole("c")), []byte(`{"epoch":"three"}`), 3),
		item("/x/shards/a#b", []byte(`{}`), 3),
		item("/x/answers/me/a#b", []byte(`{}`), 3),
		item("/x/of/a/later/version", nil, 3),
	}, 3)
	if got := v.Shards[shard.Whole("c")]; got.Mod != 3 || got.Value.Epoch != 0 {
		t.Errorf("%+v", got)
	}
	if len(broken) != 3 {
		t.Errorf("told of %v", broken)
	}
}

// FuzzView reads whatever stands in etcd, under keys that are ours. What cannot
// be read is told, and is empty.
func FuzzView(f *testing.F) {
	id := shard.Slice("eu01", 0, 2)
	l := NewLayout("/x")
	for _, it := range []kv.Item{
		item("shards/eu01#0/2", Encode(Shard{Record: shard.Record{Epoch: 1, Owner: "me", Phase: shard.PhaseOwned}}), 1),
		item("members/me", Encode(Member{Name: "n", Peer: "p:1", PeerKey: "k"}), 1),
		item("commands/1", Encode(Command{Kind: Pin, Shard: id.String(), Reason: "r"}), 1),
		item("answers/me/eu01#0/2", Encode(Answer{Kind: Holds, Epoch: 3}), 1),
		item("loads/me", Encode(Load{Shards: map[string]Measured{"eu01": {Rate: 1}}}), 1),
		item("refusals/me/other", Encode(Refusal{Peer: "p"}), 1),
		item("fleet", []byte(`{"brake":{"since":"2026-01-01T00:00:00Z"},"later":[1]}`), 1),
		item("clusters/eu01", []byte(`{"slices":-1}`), 1),
		item("leader", []byte(`[]`), 1), item("roster/x", []byte("\xff"), 1), item("drains/", []byte("null"), 1),
	} {
		f.Add(it.Key, it.Value)
	}
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		v := NewView(l, "me")
		broken := 0
		v.Broken = func(string, error) { broken++ }
		v.Reset([]kv.Item{item(l.Prefix()+key, value, 2)}, 2)
		v.Dead("me")
		for _, s := range v.Shards {
			again := decoded[Shard](t, Encode(s.Value))
			if !reflect.DeepEqual(Encode(again), Encode(s.Value)) {
				t.Errorf("%s is read again as %s", Encode(s.Value), Encode(again))
			}
		}
		for _, c := range v.Commands {
			decoded[Command](t, Encode(c.Value))
		}
		for _, m := range v.Members {
			if broken > 0 && !reflect.DeepEqual(m.Value, Member{}) {
				t.Errorf("a member that could not be read is %+v", m.Value)
			}
		}
		v.Apply(kv.Batch{Events: []kv.Event{{Item: item(l.Prefix()+key, nil, 3), Deleted: true}}, Revision: 3})
		if len(v.Shards)+len(v.Members)+len(v.Commands)+len(v.Mine)+len(v.Answers)+len(v.Refusals) > 0 {
			t.Error("what was deleted is there")
		}
	})
}

func decoded[T any](t *testing.T, raw []byte) (value T) {
	t.Helper()
	if err := decode(raw, &value); err != nil {
		t.Errorf("%s was written and cannot be read: %v", raw, err)
	}
	return value
}
