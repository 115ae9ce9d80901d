// Package table says what the control plane keeps in the store: which keys
// there are, who writes each, and how its value reads.
//
//	leader                 who leads, under its lease
//	fleet                  brake, freeze, time of the last levelling    (leader)
//	clusters/<cluster>     slices, generation, change of slices        (leader)
//	shards/<shard>         the assignment                              (leader)
//	roster/<incarnation>   who is expected, without a lease            (leader)
//	drains/<replica>       replicas that an operator drains            (leader)
//	commands/<id>          wishes of operators, and what came of them  (any; leader answers)
//	members/<incarnation>            who lives          (that replica, leased)
//	answers/<incarnation>/<shard>    where it stands    (that replica, leased)
//	loads/<incarnation>              what it measures   (that replica, leased)
//	refusals/<incarnation>/<target>  whom it found dead (that replica, leased)
//
// Invariants: values are JSON; a reader skips fields that it does not know, and
// the leader writes them back as it found them, so that versions run side by
// side. What does not decode counts as empty, and is told.
//
// Owner: the coordinator.
package table

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/trestle-bridge/trestle/shard"
)

// Extra are the fields of a stored value that this version does not know.
type Extra map[string]json.RawMessage

// Leader is who leads.
type Leader struct {
	Incarnation string    `json:"incarnation"`
	Name        string    `json:"name"`
	Since       time.Time `json:"since"`
}

// Member is what a living replica says of itself.
type Member struct {
	// Name stays over restarts of the replica.
	Name     string `json:"name"`
	Revision string `json:"revision,omitempty"`
	Peer     string `json:"peer,omitempty"`
	// PeerKey is the fingerprint of the key with which it proves to its peers who
	// it is; versions before there was one have none.
	PeerKey  string  `json:"peerKey,omitempty"`
	Capacity float64 `json:"capacity,omitempty"`
	// Cap is the most weight it may carry, 0 for no limit.
	Cap float64 `json:"cap,omitempty"`
	// Draining replicas are about to stop.
	Draining bool      `json:"draining,omitempty"`
	Started  time.Time `json:"started"`
}

// Roster is what the leader remembers of a replica.
type Roster struct {
	Name     string    `json:"name"`
	Revision string    `json:"revision,omitempty"`
	Joined   time.Time `json:"joined"`
	Gone     time.Time `json:"gone,omitzero"`
	Draining bool      `json:"draining,omitempty"`
	Extra    Extra     `json:"-"`
}

// Shard is one shard's assignment and why it is so.
type Shard struct {
	shard.Record
	// Weight is the measured load: updates per second, and a hundredth for each
	// live instance.
	Weight float64 `json:"weight,omitempty"`
	// Since is when Owner or Phase changed last.
	Since time.Time `json:"since,omitzero"`
	// Text says for people why it is where it is.
	Text string `json:"text,omitempty"`
	// Moves are the last owners it got, newest last.
	Moves []Past `json:"moves,omitempty"`
	Extra Extra  `json:"-"`
}

// Past is one change of owner.
type Past struct {
	At     time.Time    `json:"at"`
	From   string       `json:"from,omitempty"`
	To     string       `json:"to"`
	Epoch  shard.Epoch  `json:"epoch"`
	Reason shard.Reason `json:"reason"`
}

// Cluster is how a cluster is cut.
type Cluster struct {
	Slices int `json:"slices,omitempty"`
	// Generation counts the changes of Slices.
	Generation int64          `json:"generation,omitempty"`
	Reslice    *shard.Reslice `json:"reslice,omitempty"`
	Extra      Extra          `json:"-"`
}

// Fleet is what concerns all.
type Fleet struct {
	Brake    shard.Brake  `json:"brake,omitzero"`
	Freeze   shard.Freeze `json:"freeze,omitzero"`
	Levelled time.Time    `json:"levelled,omitzero"`
	Extra    Extra        `json:"-"`
}

// Drain is an operator's wish that a replica be emptied, by name.
type Drain struct {
	At     time.Time `json:"at"`
	Until  time.Time `json:"until,omitzero"`
	Reason string    `json:"reason,omitempty"`
	Author string    `json:"author,omitempty"`
	Extra  Extra     `json:"-"`
}

// Active says whether the drain counts at this time.
func (d Drain) Active(now time.Time) bool { return d.Until.IsZero() || now.Before(d.Until) }

// AnswerKind says where a replica stands with a shard; the set is bounded.
type AnswerKind string

const (
	// Ready: it has subscribed, has a snapshot and buffers.
	Ready AnswerKind = "READY"
	// Unready: it cannot get ready, or is so no more.
	Unready AnswerKind = "UNREADY"
	// Released: it has stopped its intake and written out what it held.
	Released AnswerKind = "RELEASED"
	// Holds: it writes under the fence of this epoch.
	Holds AnswerKind = "HOLDS"
	// Behind: the database has this epoch, and refused a lower one.
	Behind AnswerKind = "BEHIND"
)

// Answer is where a replica stands with a shard.
type Answer struct {
	Kind AnswerKind `json:"kind"`
	// Attempt is that of the assignment answered, for Ready, Unready, Released.
	Attempt int64 `json:"attempt,omitempty"`
	// Epoch is that of the fence, for Holds, Released and Behind.
	Epoch shard.Epoch `json:"epoch,omitempty"`
	// Holder is who has the fence, for Behind.
	Holder string `json:"holder,omitempty"`
	// Generation is the one that the database has, for Behind.
	Generation int64 `json:"generation,omitempty"`
}

// Load is what one replica measures of all its shards.
type Load struct {
	At     time.Time           `json:"at"`
	Shards map[string]Measured `json:"shards,omitempty"` // by shard.ID as text
}

// Measured is what a replica measures of one shard.
type Measured struct {
	// Rate is in updates per second, Live in instances.
	Rate float64 `json:"rate,omitempty"`
	Live int     `json:"live,omitempty"`
	// Lag is the age of the oldest update that is not committed.
	Lag time.Duration `json:"lag,omitempty"`
	// Deaf says that the cluster cannot be heard.
	Deaf bool `json:"deaf,omitempty"`
	// LastEvent is when the cluster was heard last.
	LastEvent time.Time `json:"lastEvent,omitzero"`
}

// Weight is the load of a shard in the planner's unit, at least 1.
func (m Measured) Weight() float64 { return 1 + m.Rate + float64(m.Live)/100 }

// Refusal says that a replica's peer address refuses connections.
type Refusal struct {
	Peer string    `json:"peer"`
	At   time.Time `json:"at"`
}

// CommandKind is what an operator may wish; the set is bounded.
type CommandKind string

// What an operator may wish.
const (
	Pin          CommandKind = "pin"           // Shard to Replica (a name)
	Unpin        CommandKind = "unpin"         // Shard
	DrainReplica CommandKind = "drain"         // Replica
	Undrain      CommandKind = "undrain"       // Replica
	Freeze       CommandKind = "freeze"        // all
	Unfreeze     CommandKind = "unfreeze"      // all
	Slices       CommandKind = "slices"        // Cluster in Slices
	BrakeRelease CommandKind = "brake-release" // all
)

// Command is an operator's wish, and what came of it.
type Command struct {
	Kind    CommandKind `json:"kind"`
	Shard   string      `json:"shard,omitempty"`
	Replica string      `json:"replica,omitempty"`
	Cluster string      `json:"cluster,omitempty"`
	Slices  int         `json:"slices,omitempty"`
	Reason  string      `json:"reason"`
	Author  string      `json:"author"`
	At      time.Time   `json:"at"`
	// Until is when it lapses, zero for never.
	Until time.Time `json:"until,omitzero"`
	// Done is when the leader acted on it; Refused says why it did not.
	Done    time.Time `json:"done,omitzero"`
	Refused string    `json:"refused,omitempty"`
	Extra   Extra     `json:"-"`
}

// Encode writes a value, and with it the fields that came with it and are not
// known here.
func Encode(value any) []byte {
	known, err := json.Marshal(value)
	if err != nil {
		// Only NaN and the like could be refused, and no value holds them.
		panic(fmt.Sprintf("encode %T: %v", value, err))
	}
	field := reflect.ValueOf(value).FieldByName("Extra")
	if !field.IsValid() || field.Len() == 0 {
		return known
	}
	all := make(map[string]json.RawMessage)
	for name, raw := range field.Interface().(Extra) {
		all[name] = raw
	}
	var own map[string]json.RawMessage
	if err := json.Unmarshal(known, &own); err != nil {
		panic(fmt.Sprintf("decode %T: %v", value, err))
	}
	for name, raw := range own {
		all[name] = raw
	}
	merged, err := json.Marshal(all)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", value, err))
	}
	return merged
}

// decode reads a value into a pointer, and keeps what it does not know.
func decode(raw []byte, into any) error {
	if err := json.Unmarshal(raw, into); err != nil {
		return err
	}
	value := reflect.ValueOf(into).Elem()
	field := value.FieldByName("Extra")
	if !field.IsValid() {
		return nil
	}
	var all Extra
	if err := json.Unmarshal(raw, &all); err != nil {
		return err
	}
	forget(all, value.Type())
	if len(all) > 0 {
		field.Set(reflect.ValueOf(all))
	}
	return nil
}

func forget(all Extra, t reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			forget(all, f.Type)
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		delete(all, name)
	}
}
