// Package event holds what the rest of the platform is told: the messages of
// the Redis channels and the lifecycle events for analytics. It is pure; the
// field names are part of the contract.
package event

import "time"

// The Redis channels.
const (
	ChannelInstances = "chan:workspace-instances"
	ChannelPrebuilds = "chan:prebuilds"
	ChannelHeadless  = "chan:headless"
)

// Set is what one commit has to tell of one shard. The messages of an
// instance's prebuild follow the one of the instance.
type Set struct {
	Instances []Instance `json:"instances,omitempty"`
	Prebuilds []Prebuild `json:"prebuilds,omitempty"`
	Headless  []Headless `json:"headless,omitempty"`
}

// Len gives the number of messages.
func (s Set) Len() int { return len(s.Instances) + len(s.Prebuilds) + len(s.Headless) }

// Instance says that the row of an instance has changed.
type Instance struct {
	OwnerID     string `json:"ownerID"`
	InstanceID  string `json:"instanceID"`
	WorkspaceID string `json:"workspaceID"`
}

// Prebuild says what a prebuild has come to.
type Prebuild struct {
	Status         string `json:"status"`
	PrebuildID     string `json:"prebuildID"`
	WorkspaceID    string `json:"workspaceID"`
	ProjectID      string `json:"projectID"`
	OrganizationID string `json:"organizationID,omitempty"`
}

// Headless says how the workspace of a prebuild fares.
type Headless struct {
	Type        string `json:"type"`
	WorkspaceID string `json:"workspaceID"`
}

// The names of lifecycle events.
const (
	WorkspaceRunning = "workspace_running"
	WorkspaceStopped = "workspace_stopped"
)

// Lifecycle is one event for analytics. Receivers drop repeats by MessageID.
type Lifecycle struct {
	Event      string         `json:"event"`
	MessageID  string         `json:"messageId"`
	UserID     string         `json:"userId"`
	Timestamp  time.Time      `json:"timestamp"`
	Properties map[string]any `json:"properties"`
}
