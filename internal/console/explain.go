package console

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/trestle-bridge/trestle/shard"
)

const (
	// maxNameBytes is that of a cluster's name, as ClusterService takes it.
	maxNameBytes = 256
	// maxRanked is for how many shards of a cluster the order of preference is
	// told: each asks for a look at all replicas and shards.
	maxRanked = 16
	// maxPreferences is how many replicas of that order are told.
	maxPreferences = 20
	// explainTimeout bounds the wait for a turn, and for the database.
	explainTimeout = 5 * time.Second
)

// explanation is all there is to say of a cluster.
type explanation struct {
	Version    int         `json:"version"`
	At         time.Time   `json:"at"`
	Detached   bool        `json:"detached"`
	Cluster    string      `json:"cluster"`
	Slices     int         `json:"slices"`
	Reslice    *reslice    `json:"reslice,omitempty"`
	Shards     []explained `json:"shards"`
	Proposals  []string    `json:"proposals"`
	Commands   []command   `json:"commands"`
	Quarantine refused     `json:"quarantine"`
}

type reslice struct {
	From   int    `json:"from"`
	To     int    `json:"to"`
	Phase  string `json:"phase"`
	Reason string `json:"reason,omitempty"`
	Author string `json:"author,omitempty"`
}

type explained struct {
	shardDoc
	Preferences []preference `json:"preferences"`
	// Unplaced is brake, nobody or cap.
	Unplaced string   `json:"unplaced,omitempty"`
	Planned  *planned `json:"planned,omitempty"`
	Moves    []move   `json:"moves"` // newest first
}

type preference struct {
	Replica  ref     `json:"replica"`
	Score    float64 `json:"score"`
	Load     float64 `json:"load"`
	Fair     float64 `json:"fair"`
	Cap      float64 `json:"cap,omitempty"`
	Draining bool    `json:"draining,omitempty"`
}

type planned struct {
	To     ref    `json:"to"`
	Reason string `json:"reason"`
	Text   string `json:"text"`
}

// refused are the last changes in the quarantine, the last refused first.
type refused struct {
	Changes []poison `json:"changes"`
	Error   string   `json:"error,omitempty"`
}

type poison struct {
	Instance string    `json:"instance"`
	Kind     string    `json:"kind"`
	Version  uint64    `json:"statusVersion"`
	SQLState string    `json:"sqlstate"`
	Reason   string    `json:"reason"`
	Last     time.Time `json:"last"`
	Times    int64     `json:"times"`
}

// explain serves the explanation of one cluster.
func (s *Server) explain(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("name")
	if name == "" || len(name) > maxNameBytes {
		refuse(w, r, http.StatusBadRequest, fmt.Sprintf("name a cluster of 1 to %d bytes: /cluster?name=eu01", maxNameBytes))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), explainTimeout)
	defer cancel()
	select {
	case s.explaining <- struct{}{}:
		defer func() { <-s.explaining }()
	case <-ctx.Done():
		refuse(w, r, http.StatusServiceUnavailable, "too many explanations are asked for at once: try again")
		return
	}
	state, _ := s.looks.fleet.State()
	if !state.Known {
		refuse(w, r, http.StatusServiceUnavailable, "this replica has not read the fleet from etcd yet: try again, or ask another one")
		return
	}
	c := newConverter(state, time.Now().UTC())
	cut := state.Clusters[name]
	out := explanation{
		Version: DocumentVersion, At: c.now, Detached: state.Detached, Cluster: name, Slices: max(cut.Slices, 1),
		Shards: []explained{}, Proposals: []string{}, Commands: []command{}, Quarantine: refused{Changes: []poison{}},
	}
	var ids []shard.ID
	for i := range state.Shards {
		if sh := &state.Shards[i]; sh.ID.Cluster == name {
			past := c.past(sh)
			slices.Reverse(past)
			ids = append(ids, sh.ID)
			out.Shards = append(out.Shards, explained{shardDoc: c.shard(sh), Preferences: []preference{}, Moves: past})
		}
	}
	if len(ids) == 0 {
		refuse(w, r, http.StatusNotFound, fmt.Sprintf("there is no shard of a cluster %q, as far as this replica has read", name))
		return
	}
	if re := cut.Reslice; re != nil {
		out.Reslice = &reslice{From: re.From, To: re.To, Phase: string(re.Phase), Reason: re.Reason, Author: re.Author}
	}
	s.addPlan(&out, c, ids)
	for _, cmd := range slices.Backward(state.Commands) {
		if ofCluster(cmd, name) && len(out.Commands) < maxCommands {
			out.Commands = append(out.Commands, convertCommand(cmd))
		}
	}
	poisons, err := s.looks.checks.quarantine.LastQuarantined(ctx, name, maxQuarantined)
	if err != nil {
		out.Quarantine.Error = oneLine(err)
	}
	for _, p := range poisons {
		out.Quarantine.Changes = append(out.Quarantine.Changes, poison{
			Instance: p.Instance.String(), Kind: string(p.Kind), Version: p.Version,
			SQLState: p.SQLState, Reason: p.Reason, Last: p.At, Times: p.Times,
		})
	}
	answer(w, http.StatusOK, out)
}

// addPlan adds what the planner thinks of the shards.
func (s *Server) addPlan(out *explanation, c *converter, ids []shard.ID) {
	plan := s.looks.fleet.Plan()
	ranks := s.looks.fleet.Ranks(ids[:min(len(ids), maxRanked)])
	for i, id := range ids {
		of := &out.Shards[i]
		if i < len(ranks) {
			ranked := ranks[i]
			for _, r := range ranked[:min(len(ranked), maxPreferences)] {
				of.Preferences = append(of.Preferences, preference{
					Replica: c.ref(r.Replica), Score: rounded(r.Score), Load: rounded(r.Load), Fair: rounded(r.Fair),
					Cap: r.Cap, Draining: r.Draining,
				})
			}
		}
		for _, u := range plan.Unplaced {
			if u.Shard == id {
				of.Unplaced = string(u.Why)
			}
		}
		for _, m := range plan.Moves {
			if m.Shard == id {
				of.Planned = &planned{To: c.ref(m.To), Reason: string(m.Reason), Text: m.Text}
			}
		}
	}
	for _, p := range plan.Proposals {
		if p.Cluster == out.Cluster {
			out.Proposals = append(out.Proposals, p.Text)
		}
	}
}
