package shard

import "time"

// State is all that a plan is made from. The planner reads it and keeps
// nothing of it.
type State struct {
	// Replicas is the roster: those that live, and those that have gone and
	// were not forgotten yet (see Plan.Forget).
	Replicas []Replica
	// Shards is every shard that is to have an owner, each once.
	Shards []Shard
	Freeze Freeze
	// Brake is the last plan's Brake.
	Brake Brake
	// Levelled is the time of the last plan that had Levelled set.
	Levelled time.Time
	Settings Settings
}

// Settings of the planner; the zero value is what production uses.
type Settings struct {
	// Lease is how long a replica may be silent; 0 means 10 s. More than half
	// of the roster lost within it applies the brake.
	Lease time.Duration
	// LevelEvery is the least time between two levellings; 0 means a minute.
	LevelEvery time.Duration
	// Settle is how long a fleet of several revisions is taken to be in the
	// middle of an upgrade after the last join; 0 means ten minutes. During an
	// upgrade nothing is levelled, as each shard would move twice.
	Settle time.Duration
	// BrakeFor is how long the brake holds by itself; 0 means a minute.
	BrakeFor time.Duration
}

func (s Settings) withDefaults() Settings {
	fill := func(d *time.Duration, otherwise time.Duration) {
		if *d <= 0 {
			*d = otherwise
		}
	}
	fill(&s.Lease, 10*time.Second)
	fill(&s.LevelEvery, time.Minute)
	fill(&s.Settle, 10*time.Minute)
	fill(&s.BrakeFor, time.Minute)
	return s
}

// Replica is one process of the roster.
type Replica struct {
	// ID is the incarnation, new at every start of the process.
	ID string
	// Name stays over restarts; preferences and pins go by it. Empty means ID.
	Name string
	// Revision of the program and its configuration.
	Revision string
	// Joined is when this incarnation came.
	Joined time.Time
	// Gone is when its lease ended, zero while it lives. A replica that left in
	// order is not on the roster any more.
	Gone time.Time
	// Draining replicas give away all they have and take nothing.
	Draining bool
	// Capacity is its strength relative to the others; 0 means 1.
	Capacity float64
	// Cap is the most weight it may carry, in the unit of Shard.Weight; 0 means
	// no limit. It is exceeded only by a pin, by what nobody else can take, and
	// by weights that grow where they are.
	Cap float64
}

// Shard is one shard as the planner sees it.
type Shard struct {
	ID ID
	// Weight is the measured load (as of updates per second and live
	// instances), at least 1 is assumed.
	Weight float64
	// Owner is the incarnation that the assignment names, "" for none.
	Owner string
	// Next is the incarnation a hand-over is under way to, or waits to begin
	// to; "" for none. A move of an earlier plan that has not begun yet stands
	// here too, or it is forgotten.
	Next string
	// Former is who had a shard without an owner last; "" for nobody.
	Former string
	Pin    Pin
	// Busy means that a hand-over is past the point where it can be redirected:
	// a move would be refused, unless the owner is gone.
	Busy bool
	// Hold is the time before which a shard with a live owner is not to be
	// moved, because its last hand-over failed.
	Hold time.Time
	// Cut means that nobody has had it yet because its cluster was cut anew.
	Cut bool
	// Avoid is the incarnation that failed to take the shard last; others are
	// chosen as long as there are any.
	Avoid string
}

// Pin ties a shard to a replica, as an operator wished. It is obeyed as long
// as that replica lives and does not drain.
type Pin struct {
	// Replica is a replica's name; "" is no pin.
	Replica string `json:"replica,omitempty"`
	// Until is when it lapses, zero for never.
	Until  time.Time `json:"until,omitzero"`
	Reason string    `json:"reason,omitempty"`
	Author string    `json:"author,omitempty"`
}

func (p Pin) active(now time.Time) bool {
	return p.Replica != "" && (p.Until.IsZero() || now.Before(p.Until))
}

// Freeze lets nothing move but shards without an owner.
type Freeze struct {
	On bool `json:"on,omitempty"`
	// Until is when it lapses, zero for never.
	Until  time.Time `json:"until,omitzero"`
	Reason string    `json:"reason,omitempty"`
	Author string    `json:"author,omitempty"`
}

func (f Freeze) active(now time.Time) bool {
	return f.On && (f.Until.IsZero() || now.Before(f.Until))
}

// Reason says why a shard moves; the set is bounded, so it can label a metric.
type Reason string

const (
	// ReasonNew places a shard that has had no owner yet.
	ReasonNew Reason = "new"
	// ReasonOrphan places a shard whose owner is gone.
	ReasonOrphan Reason = "orphan"
	// ReasonPin obeys a pin.
	ReasonPin Reason = "pin"
	// ReasonDrain empties a draining replica.
	ReasonDrain Reason = "drain"
	// ReasonUpgrade empties a draining replica towards another revision.
	ReasonUpgrade Reason = "upgrade"
	// ReasonJoin fills a replica that has little or nothing.
	ReasonJoin Reason = "join"
	// ReasonLevel relieves a replica that has too much.
	ReasonLevel Reason = "level"
	// ReasonResumed is a shard kept by the owner that proved to hold its fence;
	// never planned.
	ReasonResumed Reason = "resumed"
	// ReasonReturn is a shard that its owner keeps, or gets back, as a hand-over
	// was given up; never planned.
	ReasonReturn Reason = "return"
	// ReasonReslice releases a shard for another number of slices; never
	// planned.
	ReasonReslice Reason = "reslice"
)

// Reasons lists every Reason.
func Reasons() []Reason {
	return []Reason{
		ReasonNew, ReasonOrphan, ReasonPin, ReasonDrain, ReasonUpgrade, ReasonJoin,
		ReasonLevel, ReasonResumed, ReasonReturn, ReasonReslice,
	}
}

// Plan is what is to be done. Replicas appear by ID.
type Plan struct {
	// Moves to make, most urgent first: orphans, pins, drains, then levelling.
	// All of them belong together; those that cannot begin at once are to be
	// kept as Shard.Next.
	Moves []Move
	// Cancel lists hand-overs to give up, leaving the shard where it is, as
	// its next owner has begun to drain.
	Cancel []ID
	// Unplaced lists shards that stay without an owner.
	Unplaced []Unplaced
	// Brake is to be stored and handed to the next plan.
	Brake Brake
	// Levelled is set when the plan evens out loads, by levelling or by the way
	// an upgrade goes; its time is to be stored.
	Levelled bool
	// Overloaded lists replicas that carry more than their Cap if the plan is
	// carried out.
	Overloaded []string
	// Proposals for an operator to decide about.
	Proposals []Proposal
	// Forget lists replicas that the roster need not name any more.
	Forget []string
	// Before and After say how even the load is without the plan and with it.
	Before, After Imbalance
	// Wake is when the same state may give another plan; zero for never.
	Wake time.Time
}

// Move takes one shard to another owner.
type Move struct {
	Shard ID
	// From is the owner that lives, or "".
	From   string
	To     string
	Reason Reason
	// Text says the same for people.
	Text string
}

// Unplaced is a shard that stays without an owner.
type Unplaced struct {
	Shard ID
	Why   Why
}

// Why says why a shard stays without an owner; the set is bounded.
type Why string

const (
	// WhyBrake means that the brake holds.
	WhyBrake Why = "brake"
	// WhyNobody means that no replica takes shards.
	WhyNobody Why = "nobody"
	// WhyCap means that, after a loss of many, all others are full.
	WhyCap Why = "cap"
)

// Proposal is to cut a cluster into more slices.
type Proposal struct {
	Cluster string
	Slices  int
	Text    string
}

// Imbalance describes the load of the replicas that take shards, each divided
// by its Capacity relative to the others'.
type Imbalance struct {
	// Max is the load of the most loaded one.
	Max float64
	// Mean is the load each would have if loads were even, unplaced shards
	// included.
	Mean float64
	// Heaviest is the weight of the heaviest shard.
	Heaviest float64
}

// Ratio is Max over Mean, 0 when there is nothing to compare.
func (i Imbalance) Ratio() float64 {
	if i.Mean <= 0 {
		return 0
	}
	return i.Max / i.Mean
}
