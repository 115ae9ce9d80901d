package app

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
)

// What an operator asks for while the leader goes is acted on by the next one,
// or the operator is told that it was not: nothing is lost without a word.
func TestChangesOverAChangeOfLeaders(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{instances: 2})
	byName := map[string]*service{}
	for range 3 {
		s := w.serve(calm)
		byName[s.config.Replica.ID] = s
	}
	last := byName["replica-3"]
	o := w.operator(last)
	led := func() (leader string) {
		response, err := o.ListReplicas(w.ctx, &trestlev1.ListReplicasRequest{})
		if err != nil || len(response.GetReplicas()) < len(byName) {
			return ""
		}
		return response.GetFleet().GetLeader().GetName()
	}
	var leader string
	w.until("somebody leads", func() bool { leader = led(); return leader != "" && o.settled(1) })
	if leader == "replica-3" {
		last = byName["replica-2"]
		o = w.operator(last)
	}

	type wish struct {
		reason string
		err    error
	}
	const wishes = 6
	began, ended := make(chan struct{}), make(chan wish, wishes) // as many as there are
	go func() {
		for n := range wishes {
			reason := fmt.Sprint("wish ", n)
			_, err := o.Freeze(w.ctx, &trestlev1.FreezeRequest{Reason: reason, Author: "ann"})
			ended <- wish{reason, err}
			if n == 0 {
				close(began)
			}
		}
	}()
	<-began
	if err := byName[leader].end(); err != nil {
		t.Errorf("the leader ends with %v", err)
	}
	delete(byName, leader)
	stands := map[string]bool{}
	for range wishes {
		got := <-ended
		switch text := status.Convert(got.err).Message(); status.Code(got.err) {
		case codes.OK:
			stands[got.reason] = true
		case codes.DeadlineExceeded:
			stands[got.reason] = true
			if !strings.Contains(text, "it stands") {
				t.Errorf("%s: %v", got.reason, got.err)
			}
		case codes.Unavailable:
			if !strings.Contains(text, "not known") && !strings.Contains(text, "has not read yet") {
				t.Errorf("%s: %v", got.reason, got.err)
			}
		default:
			t.Errorf("%s: %v", got.reason, got.err)
		}
	}
	var commands *trestlev1.ListCommandsResponse
	w.until("what stands is done by another leader", func() bool {
		var err error
		if commands, err = o.ListCommands(w.ctx, &trestlev1.ListCommandsRequest{}); err != nil {
			return false
		}
		done := 0
		for _, c := range commands.GetCommands() {
			if stands[c.GetReason()] && c.GetState() == trestlev1.CommandState_COMMAND_STATE_DONE {
				done++
			}
		}
		now := led()
		return done == len(stands) && now != "" && now != leader
	})
	if len(stands) == 0 {
		t.Error("nothing stands")
	}
	response, err := o.ListReplicas(w.ctx, &trestlev1.ListReplicasRequest{})
	if err != nil || !strings.HasPrefix(response.GetFleet().GetFreeze().GetReason(), "wish ") {
		t.Errorf("the fleet is %v, %v", response.GetFleet(), err)
	}
	// The next one acts on what comes after, too.
	o.did(o.Unfreeze(w.ctx, &trestlev1.UnfreezeRequest{Reason: "a test", Author: "ann"}))
	w.until("nothing is frozen", func() bool {
		response, err := o.ListReplicas(w.ctx, &trestlev1.ListReplicasRequest{})
		return err == nil && response.GetFleet().GetFreeze() == nil
	})
}
