package store

import (
	"time"

	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/shard"
)

// Entry is one change of a batch.
type Entry struct {
	// Fence is the index into Batch.Fences of the shard that heard it.
	Fence  int
	Change *status.Change
}

// Batch is what one commit writes.
type Batch struct {
	// Fences are what the writer claims to hold, each at most once.
	Fences []shard.Fence
	// Entries are in any order, each instance at most once.
	Entries []Entry
	// Lane and Seq name, with the owner, the outbox rows of this batch. Seq
	// grows from batch to batch of an instance; a batch that is tried again, or
	// in parts, needs new ones.
	Lane int
	Seq  int64
	// Published are outbox rows that go in the same commit.
	Published []OutboxRef
}

// Commit is what has become of a batch.
type Commit struct {
	// Results are in the order of Batch.Entries.
	Results []Result
	// Outbox are the rows that were written, one for each shard that has
	// something to tell, in the order of Batch.Fences.
	Outbox []OutboxRow
	// Lifecycle counts the events for analytics that were recorded.
	Lifecycle int
}

// Outcome is what became of a change.
type Outcome uint8

// The outcomes; apply.sql knows their numbers.
const (
	// Applied: the row has changed.
	Applied Outcome = iota + 1
	// Unchanged: the change has no version and says what the row says, or is
	// the first that was heard, and a repeat of what the row was told last.
	Unchanged
	// Stale: the row is at that version or beyond it.
	Stale
	// Unknown: there is no such row.
	Unknown
	// Foreign: the row belongs to another cluster.
	Foreign
	// Refused: the writer does not hold the shard's fence.
	Refused
)

// String gives a word for logs and labels.
func (o Outcome) String() string {
	return word(int(o), "", "applied", "unchanged", "stale", "unknown", "foreign", "refused")
}

// Result says what became of one change.
type Result struct {
	Outcome Outcome
	// Stored is the version that the row now has. A change that comes again
	// after its outcome was lost is Stale with Stored at its own version.
	Stored uint64
	// OwnerID, WorkspaceID and Region are the row's; empty without a row.
	OwnerID, WorkspaceID, Region string

	// The rest is false or zero unless the outcome is Applied.

	// Started: the instance runs for the first time, since StartedAt.
	Started bool
	// Stopped: the stop actions were taken.
	Stopped bool
	// Revived: the instance was stopping or stopped, and is back.
	Revived bool
	// FailedKept: the change has no failure where the row has one; it stays.
	FailedKept bool
	// StoppingIgnored: it is stopping, said of a row that is stopped.
	StoppingIgnored bool
	// FirstActivity: the first activity of the user, at FirstActivityAt, was
	// not known before.
	FirstActivity bool
	// NeededImageBuild: the image was built for this instance.
	NeededImageBuild bool
	// CreatedAt is when the row was made; StartedAt when the instance first
	// ran, zero if it did not yet.
	CreatedAt, StartedAt, FirstActivityAt time.Time

	// Prebuild is what became of the prebuild; nil if the change was not
	// written or speaks of none.
	Prebuild *PrebuildResult
}

// PrebuildOutcome is what became of what a change says of its prebuild.
type PrebuildOutcome uint8

// The outcomes; apply.sql knows their numbers.
const (
	// PrebuildChanged: its state, error or snapshot is another one.
	PrebuildChanged PrebuildOutcome = iota + 1
	// PrebuildUnchanged: it says what it said, or has ended.
	PrebuildUnchanged
	// PrebuildStale: the prebuild is at that version or beyond it.
	PrebuildStale
	// PrebuildMissing: the workspace has no prebuild.
	PrebuildMissing
	// PrebuildOlder: a newer instance of the workspace has the word.
	PrebuildOlder
)

// String gives a word for logs and labels.
func (o PrebuildOutcome) String() string {
	return word(int(o), "", "changed", "unchanged", "stale", "missing", "older")
}

// PrebuildResult says what became of a prebuild.
type PrebuildResult struct {
	Outcome PrebuildOutcome
	// Prebuild is what is published if the outcome is PrebuildChanged.
	event.Prebuild
	// Headless is the type of the headless event that goes with it.
	Headless string
	// Completed: its state became one that ends it.
	Completed bool
}

// told gives the rows that the statement has written to the outbox.
func (b Batch) told(results []Result) (rows []OutboxRow) {
	sets := make([]event.Set, len(b.Fences))
	for i, result := range results {
		entry := b.Entries[i]
		set := &sets[entry.Fence]
		if result.Outcome == Applied {
			set.Instances = append(set.Instances, event.Instance{
				OwnerID: result.OwnerID, InstanceID: entry.Change.ID.String(), WorkspaceID: result.WorkspaceID,
			})
		}
		if prebuild := result.Prebuild; prebuild != nil && prebuild.Outcome == PrebuildChanged {
			set.Prebuilds = append(set.Prebuilds, prebuild.Prebuild)
			set.Headless = append(set.Headless, event.Headless{Type: prebuild.Headless, WorkspaceID: prebuild.WorkspaceID})
		}
	}
	for i, set := range sets {
		if set.Len() > 0 {
			fence := b.Fences[i]
			rows = append(rows, OutboxRow{
				Ref:    OutboxRef{Shard: fence.Shard, Epoch: fence.Epoch, Owner: fence.Owner, Lane: b.Lane, Seq: b.Seq},
				Events: set,
			})
		}
	}
	return rows
}

func word(i int, words ...string) string {
	if i < len(words) {
		return words[i]
	}
	return ""
}
