package console

import (
	"encoding/json"
	"time"
)

// DocumentVersion is that of the documents. Members are added under the same
// version; one that is removed or means something else makes a new one.
const DocumentVersion = 1

// What follows is what the documents are made of; docs/console.md says what the
// members mean. The types of replicas and shards are comparable, so that those
// that have not changed are found without being encoded.

// ref names a process: the name stays over restarts, and is empty where only the
// incarnation is known.
type ref struct {
	Name        string `json:"name,omitempty"`
	Incarnation string `json:"incarnation"`
}

type answering struct {
	ref
	Installation string `json:"installation"`
	Version      string `json:"version"`
	LogLevel     string `json:"logLevel,omitempty"`
	// Known: the fleet has been read at all. Detached: it may have changed since.
	Known    bool `json:"known"`
	Detached bool `json:"detached"`
}

type fleet struct {
	Leader      ref       `json:"leader,omitzero"`
	LeaderSince time.Time `json:"leaderSince,omitzero"`
	Freeze      *freeze   `json:"freeze,omitempty"`
	Brake       *brake    `json:"brake,omitempty"`
}

type freeze struct {
	Until  time.Time `json:"until,omitzero"`
	Reason string    `json:"reason,omitempty"`
	Author string    `json:"author,omitempty"`
}

type brake struct {
	Since   time.Time `json:"since"`
	Roster  int       `json:"roster"`
	Limited bool      `json:"limited"`
}

type health struct {
	Checked    time.Time  `json:"checked,omitzero"`
	Checks     []check    `json:"checks"`
	Quarantine quarantine `json:"quarantine"`
}

type check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Since is when this process saw it turn.
	Since time.Time `json:"since"`
	Error string    `json:"error,omitempty"`
}

type quarantine struct {
	Changes  int64         `json:"changes"`
	Clusters []quarantined `json:"clusters,omitempty"`
	Error    string        `json:"error,omitempty"`
}

type quarantined struct {
	Cluster string    `json:"cluster"`
	Changes int64     `json:"changes"`
	Last    time.Time `json:"last"`
}

type replica struct {
	ref
	Revision string `json:"revision,omitempty"`
	Address  string `json:"address,omitempty"`
	// State is live, draining or gone.
	State    string    `json:"state"`
	Leads    bool      `json:"leads,omitempty"`
	Load     float64   `json:"load"`
	Cap      float64   `json:"cap,omitempty"`
	Capacity float64   `json:"capacity"`
	Shards   int       `json:"shards"`
	Joined   time.Time `json:"joined,omitzero"`
	Heard    time.Time `json:"heard,omitzero"`
	Gone     time.Time `json:"gone,omitzero"`
	Drain    drain     `json:"drain,omitzero"`
}

type drain struct {
	At     time.Time `json:"at,omitzero"`
	Until  time.Time `json:"until,omitzero"`
	Reason string    `json:"reason,omitempty"`
	Author string    `json:"author,omitempty"`
}

type shardDoc struct {
	ID       string    `json:"id"`
	Cluster  string    `json:"cluster"`
	Owner    ref       `json:"owner,omitzero"`
	Next     ref       `json:"next,omitzero"`
	Former   ref       `json:"former,omitzero"`
	Phase    string    `json:"phase"`
	Epoch    int64     `json:"epoch"`
	Held     int64     `json:"held"`
	Weight   float64   `json:"weight"`
	Reason   string    `json:"reason,omitempty"`
	Text     string    `json:"text,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Pin      pin       `json:"pin,omitzero"`
	Measured measured  `json:"measured,omitzero"`
}

type pin struct {
	Replica string    `json:"replica"`
	Until   time.Time `json:"until,omitzero"`
	Reason  string    `json:"reason,omitempty"`
	Author  string    `json:"author,omitempty"`
}

type measured struct {
	Rate       float64   `json:"rate"`
	Live       int       `json:"live"`
	LagSeconds float64   `json:"lagSeconds"`
	Deaf       bool      `json:"deaf,omitempty"`
	LastEvent  time.Time `json:"lastEvent,omitzero"`
}

type move struct {
	Shard  string    `json:"shard"`
	At     time.Time `json:"at"`
	From   ref       `json:"from,omitzero"`
	To     ref       `json:"to"`
	Epoch  int64     `json:"epoch"`
	Reason string    `json:"reason,omitempty"`
}

type command struct {
	Kind    string    `json:"kind"`
	Shard   string    `json:"shard,omitempty"`
	Replica string    `json:"replica,omitempty"`
	Cluster string    `json:"cluster,omitempty"`
	Slices  int       `json:"slices,omitempty"`
	Reason  string    `json:"reason"`
	Author  string    `json:"author"`
	At      time.Time `json:"at"`
	Until   time.Time `json:"until,omitzero"`
	Done    time.Time `json:"done,omitzero"`
	Refused string    `json:"refused,omitempty"`
}

// document is all there is to show. The members that are raw were encoded when
// they changed last.
type document struct {
	Version   int       `json:"version"`
	At        time.Time `json:"at"`
	Answering raw       `json:"answering,omitempty"`
	Fleet     raw       `json:"fleet,omitempty"`
	Health    raw       `json:"health,omitempty"`
	Moves     raw       `json:"moves,omitempty"`
	Commands  raw       `json:"commands,omitempty"`
	Replicas  []raw     `json:"replicas"`
	Shards    []raw     `json:"shards"`
	// What was told before and is no more; in changes alone.
	RemovedReplicas []string `json:"removedReplicas,omitempty"`
	RemovedShards   []string `json:"removedShards,omitempty"`
}

type raw = json.RawMessage
