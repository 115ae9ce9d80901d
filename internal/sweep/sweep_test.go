package sweep

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trestle-bridge/trestle/internal/bubbletest"
	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/internal/publish"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/shard"
)

// begun is when the first round of everything is over.
const begun = 5 * time.Second

func TestTwoLooksStopARow(t *testing.T) {
	bubble(t, func(w *world) {
		w.insert("eu", time.Minute, row(1, 5, status.PhaseRunning), row(2, 5, status.PhaseRunning))
		w.cluster("eu", id(2))
	}, func(w *world, _ *Sweeper, registry *prometheus.Registry) {
		time.Sleep(begun)
		w.wantStopped("after one look")
		time.Sleep(15 * time.Second)
		w.wantStopped("after two", id(1))
		once := w.publishes()[id(1).String()]
		w.with(func() {
			asked := w.clusters["eu"].asked
			if len(asked) != 2 || asked[1].Sub(asked[0]) < 11*time.Second {
				t.Errorf("the cluster was asked at %v", asked)
			}
			if once != 1 || len(w.outbox) != 0 {
				t.Errorf("published %d times, %d rows are left in the outbox", once, len(w.outbox))
			}
			if !slices.Equal(w.forgotten["eu"], []status.InstanceID{id(1)}) {
				t.Errorf("forgotten: %v", w.forgotten)
			}
			if w.lifecycle != 1 || !slices.Equal(w.prebuilds, []string{"aborted"}) {
				t.Errorf("lifecycle %d, prebuilds %v", w.lifecycle, w.prebuilds)
			}
			// By then, what was heard while the cluster answered is written.
			if since := w.askedSince["eu"]; since.Sub(asked[1]) < time.Second {
				t.Errorf("the owner was asked about the time until %s, the cluster at %s", since, asked[1])
			}
		})
		if n := gauge(t, registry, "gitpod_ws_instances_marked_stopped_total")["running"]; n != 1 {
			t.Errorf("%v instances are counted as stopped", n)
		}
		// Then all is quiet, at the usual pace.
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := w.asked("eu"); n < 10 || n > 14 {
			t.Errorf("in ten minutes the cluster was asked %d times", n)
		}
		w.wantStopped("ten minutes later", id(1))
	})
}

// A row that changes, or becomes known, between two looks or while a cluster
// answers is left alone.
func TestARowThatMovesOnIsLeftAlone(t *testing.T) {
	change := map[string]func(*world){
		"version": func(w *world) { w.rows[id(1)].Version++ },
		"phase":   func(w *world) { w.rows[id(1)].Phase = status.PhaseInterrupted },
		"known":   func(w *world) { w.clusters["eu"].known = []status.InstanceID{id(1)} },
		"stopped": func(w *world) { delete(w.rows, id(1)) },
	}
	for name, change := range change {
		t.Run("between the looks: "+name, func(t *testing.T) {
			bubble(t, func(w *world) {
				w.insert("eu", time.Minute, row(1, 5, status.PhaseRunning))
				w.cluster("eu")
			}, func(w *world, _ *Sweeper, _ *prometheus.Registry) {
				time.Sleep(begun)
				w.with(func() { change(w) })
				time.Sleep(13 * time.Second)
				w.wantStopped("after the second look")
			})
		})
		t.Run("during the second look: "+name, func(t *testing.T) {
			bubble(t, func(w *world) {
				w.insert("eu", time.Minute, row(1, 5, status.PhaseRunning))
				c := w.cluster("eu")
				c.during = func() {
					w.with(func() {
						if len(c.asked) == 2 {
							change(w)
						}
					})
				}
			}, func(w *world, _ *Sweeper, _ *prometheus.Registry) {
				time.Sleep(begun + 13*time.Second)
				w.wantStopped("after the second look")
			})
		})
	}
}

// Whoever appears after the rows were read cannot be missing.
func TestRowsAreReadBeforeTheClusterIsAsked(t *testing.T) {
	bubble(t, func(w *world) {
		w.cluster("eu").during = func() {
			w.with(func() { w.insert("eu", time.Minute, row(1, 5, status.PhaseRunning)) })
		}
	}, func(w *world, s *Sweeper, registry *prometheus.Registry) {
		time.Sleep(begun)
		if n := gauge(t, registry, "trestle_sweep_missing_instances")["eu"]; n != 0 {
			t.Errorf("%v instances are missing", n)
		}
	})
}

func TestEveryPhase(t *testing.T) {
	const young, old = 30 * time.Minute, 2 * time.Hour
	for _, test := range []struct {
		phase         status.Phase
		age, stopping time.Duration
		// Whether it is stopped if the cluster does not know it, knows it,
		// or cannot be reached.
		missing, known, unreachable bool
	}{
		{status.PhaseRunning, time.Second, 0, true, false, false},
		{status.PhaseInterrupted, time.Second, 0, true, false, false},
		{status.PhasePending, young, 0, false, false, false},
		{status.PhasePending, old, 0, true, false, false},
		{status.PhaseCreating, young, 0, false, false, false},
		{status.PhaseCreating, old, 0, true, false, false},
		{status.PhaseInitializing, young, 0, false, false, false},
		{status.PhaseInitializing, old, 0, true, false, false},
		{status.PhaseStopping, old, young, false, false, false},
		{status.PhaseStopping, old, old, true, false, false},
		{store.PhasePreparing, young, 0, false, false, false},
		{store.PhasePreparing, old, 0, true, true, true},
		{store.PhaseBuilding, young, 0, false, false, false},
		{store.PhaseBuilding, old, 0, true, true, true},
		{store.PhaseUnknown, 5 * time.Minute, 0, false, false, false},
		{store.PhaseUnknown, young, 0, true, true, true},
	} {
		for answer, want := range map[string]bool{"missing": test.missing, "known": test.known, "unreachable": test.unreachable} {
			t.Run(string(test.phase)+" "+test.age.String()+" "+answer, func(t *testing.T) {
				bubble(t, func(w *world) {
					w.insert("eu", test.age, row(1, 5, test.phase))
					w.rows[id(1)].stopping = time.Now().Add(-test.stopping)
					c := w.cluster("eu")
					switch answer {
					case "known":
						c.known = []status.InstanceID{id(1)}
					case "unreachable":
						c.fail = errAway
					}
				}, func(w *world, _ *Sweeper, _ *prometheus.Registry) {
					time.Sleep(2 * time.Minute)
					synctest.Wait()
					if got := len(w.stopped()) == 1; got != want {
						t.Errorf("stopped: %t, want %t", got, want)
					}
				})
			})
		}
	}
}

func TestNothingIsStoppedWhileTheOwnerIsBehind(t *testing.T) {
	bubble(t, func(w *world) {
		w.insert("eu", 2*time.Hour, row(1, 5, status.PhaseRunning), row(2, 5, store.PhasePreparing))
		w.cluster("eu")
		w.behind["eu"] = true
	}, func(w *world, _ *Sweeper, registry *prometheus.Registry) {
		time.Sleep(time.Hour)
		w.wantStopped("behind")
		if n := gauge(t, registry, "trestle_sweep_rounds_total")[outcomeBehind]; n < 50 {
			t.Errorf("%v rounds are counted as behind", n)
		}
		w.with(func() { w.behind["eu"] = false })
		time.Sleep(2 * time.Minute)
		w.wantStopped("caught up", id(1), id(2))
	})
}

func TestNothingIsDoneDuringAHandOver(t *testing.T) {
	bubble(t, func(w *world) {
		w.insert("eu", 2*time.Hour, row(1, 5, status.PhaseRunning), row(2, 5, store.PhasePreparing))
		w.cluster("eu")
	}, func(w *world, s *Sweeper, _ *prometheus.Registry) {
		time.Sleep(begun)
		w.wantStopped("what has expired", id(2))
		w.with(func() { w.unsettled["eu"] = true })
		asked := w.asked("eu")
		time.Sleep(10 * time.Minute)
		w.wantStopped("moving", id(2))
		if n := w.asked("eu"); n != asked {
			t.Errorf("the cluster was asked %d times during the hand-over", n-asked)
		}
		// The looks begin anew.
		w.with(func() { w.unsettled["eu"] = false })
		if err := s.Request("eu"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(begun)
		w.wantStopped("one look after it", id(2))
		time.Sleep(13 * time.Second)
		w.wantStopped("two looks after it", id(1), id(2))
	})
}

// One that begins between the second look and the stop.
func TestAHandOverThatBeginsDuringALook(t *testing.T) {
	bubble(t, func(w *world) {
		w.insert("eu", time.Hour, row(1, 5, status.PhaseRunning))
		c := w.cluster("eu")
		c.during = func() { w.with(func() { w.unsettled["eu"] = len(c.asked) == 2 }) }
	}, func(w *world, _ *Sweeper, _ *prometheus.Registry) {
		time.Sleep(begun + 13*time.Second)
		w.wantStopped("moving")
	})
}

// One that begins when the old owner has just said that all is written.
func TestAHandOverThatBeginsLast(t *testing.T) {
	bubble(t, func(w *world) {
		w.insert("eu", 2*time.Hour, row(1, 5, status.PhaseRunning), row(2, 5, store.PhasePreparing))
		w.cluster("eu")
		w.movesWhenAsked = true
	}, func(w *world, _ *Sweeper, _ *prometheus.Registry) {
		time.Sleep(begun + 13*time.Second)
		w.wantStopped("moving")
	})
}

func TestAClusterThatCannotBeReached(t *testing.T) {
	for name, fault := range map[string]func(*fakeCluster){
		"an error": func(c *fakeCluster) { c.fail = errAway },
		"a hang":   func(c *fakeCluster) { c.hang = true },
		// What came before the error is no list.
		"half a list": func(c *fakeCluster) { c.fail, c.known = io.ErrUnexpectedEOF, []status.InstanceID{id(2)} },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(w *world) {
				w.insert("eu", time.Hour, row(1, 5, status.PhaseRunning))
				w.insert("us", time.Hour, row(3, 5, status.PhaseRunning))
				fault(w.cluster("eu"))
				w.cluster("us")
			}, func(w *world, _ *Sweeper, registry *prometheus.Registry) {
				time.Sleep(begun + 13*time.Second)
				w.wantStopped("the other cluster's, without delay", id(3))
				time.Sleep(100 * time.Second)
				synctest.Wait()
				if n := w.log.count(slog.LevelWarn); n != 0 {
					t.Errorf("%d warnings after less than 150 s", n)
				}
				time.Sleep(15 * time.Minute)
				w.wantStopped("later", id(3))
				if n := w.log.count(slog.LevelWarn); n < 3 || n > 16 {
					t.Errorf("%d warnings in a quarter of an hour", n)
				}
				silent := gauge(t, registry, "trestle_sweep_disconnected_seconds")
				if silent["eu"] < 600 || silent["us"] != 0 {
					t.Errorf("disconnected: %v", silent)
				}
				w.with(func() { *w.clusters["eu"] = fakeCluster{known: []status.InstanceID{id(1)}} })
				time.Sleep(4 * time.Minute)
				if silent := gauge(t, registry, "trestle_sweep_disconnected_seconds"); silent["eu"] != 0 {
					t.Errorf("disconnected after an answer: %v", silent)
				}
				w.wantStopped("known after all", id(3))
			})
		})
	}
}

func TestAClusterThatMissesManyIsHeldBack(t *testing.T) {
	bubble(t, func(w *world) {
		w.insert("eu", 2*time.Hour, running(0, 100)...)
		w.insert("eu", 2*time.Hour, row(200, 5, store.PhasePreparing))
		c := w.cluster("eu")
		for i := range 50 {
			c.known = append(c.known, id(i))
		}
	}, func(w *world, s *Sweeper, registry *prometheus.Registry) {
		if err := s.Confirm("eu"); err == nil {
			t.Error("a cluster was confirmed that nobody has looked at")
		}
		time.Sleep(14 * time.Minute)
		w.wantStopped("held", id(200)) // that is no question of the cluster's list
		if n := gauge(t, registry, "trestle_sweep_held_instances")["eu"]; n != 50 {
			t.Errorf("%v instances are held", n)
		}
		if n := w.log.count(slog.LevelError); n != 1 {
			t.Errorf("%d alarms", n)
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if n := len(w.stopped()); n != 51 {
			t.Errorf("%d rows are stopped after a quarter of an hour, want 51", n)
		}
		if n := gauge(t, registry, "trestle_sweep_held_instances")["eu"]; n != 0 {
			t.Errorf("%v instances are still held", n)
		}
	})
}

func TestAnOperatorConfirms(t *testing.T) {
	bubble(t, func(w *world) {
		w.insert("eu", 2*time.Hour, running(0, 100)...)
		w.cluster("eu") // an empty list
		w.cluster("us")
	}, func(w *world, s *Sweeper, _ *prometheus.Registry) {
		time.Sleep(time.Minute)
		w.wantStopped("held")
		if err := s.Confirm("us"); !errors.Is(err, ErrNotHeld) {
			t.Errorf("confirm a cluster that is not held: %v", err)
		}
		if err := s.Confirm("nowhere"); !errors.Is(err, ErrUnknownCluster) {
			t.Errorf("confirm a cluster that is not there: %v", err)
		}
		if err := s.Confirm("eu"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(begun)
		synctest.Wait()
		if n := len(w.stopped()); n != 100 {
			t.Errorf("%d rows are stopped after the confirmation, want 100", n)
		}
	})
}

// A cluster that is new need not wait for the next round.
func TestANewCluster(t *testing.T) {
	bubble(t, func(w *world) { w.cluster("eu") }, func(w *world, s *Sweeper, _ *prometheus.Registry) {
		time.Sleep(begun)
		w.with(func() { w.cluster("us") })
		s.ClustersChanged()
		time.Sleep(time.Second) // a round is a minute
		if err := s.Request("us"); err != nil {
			t.Errorf("there are no rounds of a cluster that is new: %v", err)
		}
	})
}

func TestARequest(t *testing.T) {
	bubble(t, func(w *world) { w.cluster("eu") }, func(w *world, s *Sweeper, _ *prometheus.Registry) {
		time.Sleep(begun)
		asked := w.asked("eu")
		w.with(func() { w.insert("eu", time.Hour, row(1, 5, status.PhaseRunning)) })
		if err := s.Request("eu"); err != nil {
			t.Fatal(err)
		}
		if err := s.Request("nowhere"); !errors.Is(err, ErrUnknownCluster) {
			t.Errorf("request of a cluster that is not there: %v", err)
		}
		time.Sleep(2 * time.Second)
		if n := w.asked("eu") - asked; n != 1 {
			t.Errorf("asked %d times", n)
		}
		time.Sleep(13 * time.Second)
		w.wantStopped("two looks after the request", id(1))
	})
}

func TestRowsThatNoClusterAnswersFor(t *testing.T) {
	bubble(t, func(w *world) {
		for i, region := range []string{"local", "", "elsewhere", "recent", "gone", "static"} {
			w.insert(region, 2*time.Hour, row(10*i+1, 5, store.PhasePreparing), row(10*i+2, 5, store.PhaseBuilding),
				row(10*i+3, 5, store.PhaseUnknown), row(10*i+4, 5, status.PhaseRunning), row(10*i+5, 0, status.PhaseStopping))
		}
		w.gone = []store.Deregistered{{Name: "gone", Due: true}, {Name: "recent"}, {Name: "static", Due: true}}
		w.cluster("static", id(54), id(55))
		w.behind["static"] = true
	}, func(w *world, _ *Sweeper, _ *prometheus.Registry) {
		recent := []status.InstanceID{id(31), id(32), id(33)}
		gone := []status.InstanceID{id(41), id(42), id(43), id(44), id(45)}
		time.Sleep(2 * time.Minute)
		w.wantStopped("while a cluster may hold what is to be written", slices.Concat(recent, gone)...)
		w.with(func() { w.behind["static"] = false })
		time.Sleep(2 * time.Minute)
		local, empty, static := []status.InstanceID{id(1), id(2), id(3)}, []status.InstanceID{id(11), id(12), id(13)}, []status.InstanceID{id(51), id(52), id(53)}
		w.wantStopped("all", slices.Concat(local, empty, recent, gone, static)...)
		if !slices.Contains(w.forgotten["static"], id(1)) || !slices.Contains(w.forgotten["gone"], id(44)) {
			t.Errorf("forgotten: %v", w.forgotten)
		}
	})
}

// A cluster that is called as the installation is has rounds of its own.
func TestAClusterWithTheNameOfTheInstallation(t *testing.T) {
	bubble(t, func(w *world) {
		w.insert("local", 2*time.Hour, row(1, 5, store.PhasePreparing), row(2, 5, status.PhaseRunning))
		w.cluster("local")
	}, func(w *world, _ *Sweeper, _ *prometheus.Registry) {
		time.Sleep(2 * time.Minute)
		w.wantStopped("both", id(1), id(2))
	})
}

func TestClustersComeAndGo(t *testing.T) {
	bubble(t, func(w *world) { w.listFail = errAway }, func(w *world, s *Sweeper, registry *prometheus.Registry) {
		time.Sleep(begun)
		w.with(func() {
			w.listFail = nil
			w.cluster("eu", id(1))
			w.insert("eu", time.Hour, row(1, 5, status.PhaseRunning))
		})
		time.Sleep(10 * time.Second)
		if err := s.Request("eu"); err != nil {
			t.Errorf("a cluster has no rounds although it could be read: %v", err)
		}
		time.Sleep(begun)
		if w.asked("eu") == 0 {
			t.Error("the cluster was not asked")
		}
		old := w.clusters["eu"]
		w.with(func() { w.cluster("eu", id(1)) }) // its address has changed
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		asked := 0
		w.with(func() { asked = len(old.asked) })
		if w.asked("eu") == 0 {
			t.Error("a cluster is not asked where it is now")
		}
		w.with(func() { delete(w.clusters, "eu") })
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if len(old.asked) != asked || len(gauge(t, registry, "trestle_sweep_missing_instances")) != 0 {
			t.Error("a cluster that is gone still has rounds, or shows")
		}
		if err := s.Request("eu"); !errors.Is(err, ErrUnknownCluster) {
			t.Errorf("request of a cluster that is gone: %v", err)
		}
	})
}

// A look at another address is no look at this cluster.
func TestAClusterThatMoves(t *testing.T) {
	bubble(t, func(w *world) {
		w.insert("eu", time.Hour, row(1, 5, status.PhaseRunning), row(2, 5, status.PhaseRunning))
		w.cluster("eu") // empty: it is about to be switched off
	}, func(w *world, s *Sweeper, _ *prometheus.Registry) {
		time.Sleep(begun)
		w.with(func() {
			w.clusters["eu"].fail = errAway
			w.cluster("eu", id(2)).address = "elsewhere"
		})
		for range 180 {
			time.Sleep(time.Second)
			synctest.Wait()
			if stopped, asked := w.stopped(), w.asked("eu"); len(stopped) > 0 && asked < 2 {
				t.Fatalf("%d rows are stopped after %d looks at the new address", len(stopped), asked)
			}
		}
		w.wantStopped("after looks at the new address", id(1))
	})
}

func TestManyClustersTakeTurns(t *testing.T) {
	bubble(t, func(w *world) {
		for i := range 50 {
			name := string(rune('A' + i))
			w.cluster(name)
			w.insert(name, time.Hour, row(i, 1, status.PhaseRunning))
		}
	}, func(w *world, _ *Sweeper, _ *prometheus.Registry) {
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(w.stopped()) != 50 || w.most > 2 {
			t.Errorf("%d rows are stopped; %d statements were under way at once", len(w.stopped()), w.most)
		}
	})
}

func TestBatches(t *testing.T) {
	bubble(t, func(w *world) {
		w.insert("local", 2*time.Hour)
		for i := range 1201 {
			w.insert("local", 2*time.Hour, row(i, 1, store.PhasePreparing))
		}
		w.stopFail = func(order store.Stop) error {
			if len(order.Instances) > store.StopLimit {
				t.Errorf("%d rows at once", len(order.Instances))
			}
			if slices.ContainsFunc(order.Instances, func(r store.OpenInstance) bool { return r.ID == id(7) || r.ID == id(700) }) {
				return refused()
			}
			return nil
		}
	}, func(w *world, _ *Sweeper, _ *prometheus.Registry) {
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if n := len(w.stopped()); n != 1199 {
			t.Errorf("%d rows are stopped, want all but the two that the database refuses", n)
		}
		for instance, n := range w.publishes() {
			if n != 1 {
				t.Errorf("%s was published %d times", instance, n)
			}
		}
	})
}

// The statement has committed, and the answer is lost.
func TestAStopWhoseOutcomeIsNotKnown(t *testing.T) {
	bubble(t, func(w *world) {
		w.insert("local", 2*time.Hour, row(1, 1, store.PhasePreparing))
		w.cluster("eu")
		w.stopFail = func(order store.Stop) error {
			w.rows[id(1)].stopped = time.Now()
			w.outbox = append(w.outbox, store.OutboxRow{Ref: store.OutboxRef{Seq: order.Seq}, CreatedAt: time.Now(),
				Events: event.Set{Instances: []event.Instance{{InstanceID: id(1).String()}}}})
			return errAway
		}
	}, func(w *world, _ *Sweeper, _ *prometheus.Registry) {
		time.Sleep(begun)
		synctest.Wait()
		w.with(func() {
			if len(w.forgotten["eu"]) == 0 {
				t.Error("the owner was not told to forget what may have been stopped")
			}
		})
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if n := w.publishes()[id(1).String()]; n != 1 {
			t.Errorf("published %d times", n)
		}
	})
}

func TestAPublishThatFails(t *testing.T) {
	bubble(t, func(w *world) {
		w.insert("local", 2*time.Hour, row(1, 1, store.PhasePreparing))
		w.publishFail = errAway
	}, func(w *world, _ *Sweeper, _ *prometheus.Registry) {
		time.Sleep(10 * time.Minute)
		w.wantStopped("not published", id(1))
		w.with(func() {
			if len(w.outbox) != 1 {
				t.Errorf("the outbox holds %d rows", len(w.outbox))
			}
			w.publishFail = nil
		})
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if n := w.publishes()[id(1).String()]; n != 1 || len(w.outbox) != 0 {
			t.Errorf("published %d times, %d rows are left", n, len(w.outbox))
		}
	})
}

// TestPhantomPublishesNoMore: a leader is held between a commit and its publish, and
// replaced meanwhile. What is left of its outbox is the next leader's to tell.
func TestPhantomPublishesNoMore(t *testing.T) {
	bubbletest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.cluster("eu")
		w.insert("eu", 2*time.Hour, row(1, 1, store.PhasePreparing))
		w.forgets = func() {
			time.Sleep(publish.Trust + time.Millisecond)
			w.lead()
		}
		s, _ := w.sweeper()
		if err := s.Run(t.Context(), w.lead()); !errors.Is(err, store.ErrNotLeader) {
			t.Errorf("the term ended with %v", err)
		}
		w.wantStopped("by the phantom", id(1))
		if n := w.publishes()[id(1).String()]; n != 0 || len(w.outbox) != 1 {
			t.Errorf("published %d times by who leads no more, %d rows are left", n, len(w.outbox))
		}
	})
}

// TestOrphansThatFindAnOwner: they are left to one that is found while they are read.
func TestOrphansThatFindAnOwner(t *testing.T) {
	orphan := shard.Whole("gone")
	bubble(t, func(w *world) {
		w.outbox = append(w.outbox, store.OutboxRow{Ref: store.OutboxRef{Shard: orphan}, CreatedAt: time.Now(),
			Events: event.Set{Instances: []event.Instance{{InstanceID: id(1).String()}}}})
		w.read = func() { w.owned[orphan] = true }
	}, func(w *world, _ *Sweeper, _ *prometheus.Registry) {
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := len(w.publishes()); n != 0 || len(w.outbox) != 1 {
			t.Errorf("%d were published, %d rows are left", n, len(w.outbox))
		}
	})
}

func TestOrphans(t *testing.T) {
	owned, orphan, slice := shard.Whole("eu"), shard.Whole("gone"), shard.Slice("eu", 0, 2)
	bubble(t, func(w *world) {
		w.owned[owned] = true
		for i, shardID := range []shard.ID{owned, orphan, slice, {}} {
			for n := range 450 { // more than are taken at once
				w.outbox = append(w.outbox, store.OutboxRow{Ref: store.OutboxRef{Shard: shardID, Seq: int64(n)}, CreatedAt: time.Now(),
					Events: event.Set{Instances: []event.Instance{{InstanceID: id(1000*i + n).String()}}}})
			}
		}
	}, func(w *world, _ *Sweeper, registry *prometheus.Registry) {
		time.Sleep(50 * time.Second)
		synctest.Wait()
		if n := len(w.publishes()); n != 0 {
			t.Errorf("%d were published although they are younger than a minute", n)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if n := len(w.publishes()); n != 3*450 || len(w.outbox) != 450 {
			t.Errorf("%d were published, %d are left; want those that have no owner", n, len(w.outbox))
		}
		for _, row := range w.outbox {
			if row.Ref.Shard != owned {
				t.Fatalf("left: %+v", row.Ref)
			}
		}
	})
}

func TestATermEndsWhenAnotherBegins(t *testing.T) {
	bubbletest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.cluster("eu")
		s, registry := w.sweeper()
		fence := w.lead()
		done := make(chan error, 1) // the test may have failed before it reads
		go func() { done <- s.Run(t.Context(), fence) }()
		time.Sleep(begun)
		if err := s.Run(t.Context(), fence); err == nil {
			t.Error("two terms at once were begun")
		}
		w.lead()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		select {
		case err := <-done:
			if !errors.Is(err, store.ErrNotLeader) {
				t.Errorf("Run: %v", err)
			}
		default:
			t.Fatal("the term goes on")
		}
		if n := len(gauge(t, registry, "trestle_sweep_missing_instances")); n != 0 {
			t.Errorf("%d clusters still show", n)
		}
		// The same sweeper can lead again.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := s.Run(ctx, w.lead()); err != nil {
			t.Errorf("the next term: %v", err)
		}
	})
}

// The database is away for a while.
func TestReadsThatFail(t *testing.T) {
	bubble(t, func(w *world) {
		w.insert("eu", time.Hour, row(1, 5, status.PhaseRunning))
		w.cluster("eu")
		w.readFail = errAway
	}, func(w *world, _ *Sweeper, registry *prometheus.Registry) {
		time.Sleep(5 * time.Minute)
		if w.asked("eu") != 0 {
			t.Error("the cluster was asked although its rows are not known")
		}
		w.with(func() { w.readFail = nil })
		time.Sleep(2 * time.Minute)
		w.wantStopped("back", id(1))
	})
}

func TestConfig(t *testing.T) {
	w := newWorld(t)
	good := Config{
		Installation: "local", Limits: limits(), Store: w, Outbox: w, Publisher: w, Owners: w, Clusters: w.list,
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"no store":                func(c *Config) { c.Store = nil },
		"no outbox":               func(c *Config) { c.Outbox = nil },
		"no publisher":            func(c *Config) { c.Publisher = nil },
		"no owners":               func(c *Config) { c.Owners = nil },
		"no clusters":             func(c *Config) { c.Clusters = nil },
		"no installation":         func(c *Config) { c.Installation = "" },
		"no limit":                func(c *Config) { c.Limits.Unknown = 0 },
		"a negative time":         func(c *Config) { c.Timing.Hold = -1 },
		"the same metrics, twice": func(*Config) {},
	} {
		bad := good
		spoil(&bad)
		if _, err := New(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
