// Package oracle says what the tables and the Redis channels must hold, given
// what simulated clusters have sent, and finds where they do not.
//
// It is deliberately dumb: one update after the other, in the order of sending,
// each decoded from the bytes that were sent, with no thought for batches or
// speed. It shares no code with the product, so that a mistake would have to be
// made twice to go unnoticed.
//
// The package is pure. The ledger feeds it and reports what it finds.
package oracle

import "time"

// Row is one row of workspace_instance. A zero time is null.
type Row struct {
	Region                               string
	Phase                                string
	Version                              uint64
	Deployed, Started, Stopping, Stopped time.Time
	IDEURL                               string
	Status                               Status
}

// Status is the document in workspace_instance.status. An absent text and an
// empty one are the same here, as are an absent number and 0.
type Status struct {
	Version      uint64     `json:"version"`
	Phase        string     `json:"phase"`
	Conditions   Conditions `json:"conditions"`
	Message      string     `json:"message"`
	ExposedPorts []Port     `json:"exposedPorts"`
	Timeout      string     `json:"timeout"`
	NodeName     string     `json:"nodeName"`
	PodName      string     `json:"podName"`
	NodeIP       string     `json:"nodeIp"`
	OwnerToken   string     `json:"ownerToken"`
	Metrics      struct {
		Image Image `json:"image"`
	} `json:"metrics"`
}

// Conditions are status.conditions; nil is no key.
type Conditions struct {
	Failed             string `json:"failed"`
	Timeout            string `json:"timeout"`
	PullingImages      *bool  `json:"pullingImages"`
	Deployed           *bool  `json:"deployed"`
	NeededImageBuild   *bool  `json:"neededImageBuild"`
	FirstUserActivity  string `json:"firstUserActivity"`
	HeadlessTaskFailed string `json:"headlessTaskFailed"`
	StoppedByRequest   *bool  `json:"stoppedByRequest"`
}

// Port is one of status.exposedPorts.
type Port struct {
	Port       uint32 `json:"port"`
	Visibility string `json:"visibility"`
	Protocol   string `json:"protocol"`
	URL        string `json:"url"`
}

// Image holds sizes in bytes.
type Image struct {
	TotalSize          int64 `json:"totalSize"`
	WorkspaceImageSize int64 `json:"workspaceImageSize"`
}

// Metrics is the document in workspace_instance_metrics.
type Metrics struct {
	Image              Image              `json:"image"`
	InitializerMetrics InitializerMetrics `json:"initializerMetrics"`
}

// InitializerMetrics are the parts of Metrics that the initializers report.
type InitializerMetrics struct {
	Git          InitializerMetric `json:"git"`
	FileDownload InitializerMetric `json:"fileDownload"`
	Snapshot     InitializerMetric `json:"snapshot"`
	Backup       InitializerMetric `json:"backup"`
	Prebuild     InitializerMetric `json:"prebuild"`
	Composite    InitializerMetric `json:"composite"`
}

// InitializerMetric is a duration in milliseconds and a size in bytes.
type InitializerMetric struct {
	Duration int64  `json:"duration"`
	Size     uint64 `json:"size"`
}

// PrebuildRow is what matters of a row of prebuilt_workspace.
type PrebuildRow struct{ State, Error, Snapshot string }

// Actual is all that the tables say of one instance. Missing rows are nil.
type Actual struct {
	Row      *Row
	Metrics  *Metrics
	Prebuild *PrebuildRow
	// Tokens are the names of the tokens that are left of those to be deleted
	// with the instance, Survivors the number left of those that must stay.
	Tokens    []string
	Survivors int
}
