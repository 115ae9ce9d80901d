package pipeline

import (
	"fmt"
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/shard"
)

// What waits, and what is in flight, is not written; what was heard later does
// not count.
func TestCaughtUp(t *testing.T) {
	db := newFakeStore()
	db.gate, db.entered = make(chan struct{}), make(chan struct{})
	db.insert(instance(1), instance(2))
	b := newBench(t, db, &fakePublisher{}, Config{Lanes: 1})
	in, err := b.Open(shard.Whole("eu"))
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	expect := func(when string, since time.Time, want bool) {
		t.Helper()
		if got := in.CaughtUp(since); got != want {
			t.Errorf("%s: caught up is %t", when, got)
		}
	}
	expect("taking over", begin, false)
	if err := in.Own(db.raise(in.Shard(), b.Pipeline.Owner())); err != nil {
		t.Fatal(err)
	}
	if !in.Owns() {
		t.Error("the shard is owned now")
	}
	expect("nothing heard", begin, true)

	at := func(version uint64, after time.Duration) {
		h := heard(t, instance(1), version, fmt.Sprint("text ", version))
		h.At = begin.Add(after)
		offer(t, in, h)
	}
	at(1, time.Second)
	<-db.entered
	expect("in flight, heard later", begin.Add(time.Second), true)
	expect("in flight", begin.Add(2*time.Second), false)
	at(2, 3*time.Second)
	other := heard(t, instance(2), 1, "text")
	other.At = begin.Add(4 * time.Second)
	offer(t, in, other)
	db.gate <- struct{}{}
	<-db.entered
	// Instance 2 went first, and 1 joined it with what is older.
	expect("waiting, heard later", begin.Add(3*time.Second), true)
	expect("waiting behind a younger one", begin.Add(3500*time.Millisecond), false)
	db.gate <- struct{}{}
	drain(t, in)
	expect("after its end", begin, false)
	if in.Owns() {
		t.Error("the shard is not owned any more")
	}
}
