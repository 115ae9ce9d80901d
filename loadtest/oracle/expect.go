package oracle

import (
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/trestle-bridge/trestle/loadtest/script"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

// Rules are the settings that the outcome depends on.
type Rules struct {
	// Cluster is whose updates these are, Installation the name of the
	// installation.
	Cluster, Installation string
	// DecisiveStopped: prebuilds are decided by STOPPED, not by STOPPING.
	DecisiveStopped bool
}

// Sent is one update as it was sent. A nil Status is one that cannot be
// decoded.
type Sent struct {
	At     time.Time
	Status *wsman.WorkspaceStatus
}

// Start is how an instance stood before the first update.
type Start struct {
	// Row is nil if the instance is unknown.
	Row      *Row
	Metrics  *Metrics
	Prebuild *PrebuildRow
}

// Outcome is what must have come of a list of updates. The times in Row are the
// earliest that are right: when the update was sent that set them.
type Outcome struct {
	Row      *Row
	Metrics  Metrics
	Prebuild *PrebuildRow
	// Prebuilds and Headless are what the channels must have said of the
	// prebuild, in order, if every update was written on its own.
	Prebuilds, Headless []string
	// Applied says of each update whether it took effect.
	Applied []bool
	// StoppedOnce: the instance has been stopped, so its tokens are gone.
	StoppedOnce bool
	// LowestVersion is that of the first update with the final content:
	// repeats need not raise it further, but may.
	LowestVersion, HighestVersion uint64
}

// Expect plays updates one by one.
func Expect(rules Rules, start Start, sent []Sent) Outcome {
	out := Outcome{Applied: make([]bool, len(sent))}
	if start.Row != nil {
		row := *start.Row
		out.Row = &row
		out.LowestVersion, out.HighestVersion = row.Version, row.Version
	}
	if start.Metrics != nil {
		out.Metrics = *start.Metrics
	}
	if start.Prebuild != nil {
		p := *start.Prebuild
		out.Prebuild = &p
	}
	// last is the update that was heard last and not refused.
	var last *wsman.WorkspaceStatus
	for i, u := range sent {
		s := u.Status
		if !valid(s) || out.Row == nil || !ours(rules, out.Row.Region) {
			continue
		}
		if last != nil && sameButVersion(last, s) {
			if s.StatusVersion > out.HighestVersion {
				out.HighestVersion = s.StatusVersion
			}
			continue
		}
		if s.StatusVersion == 0 && out.Row.Version != 0 || s.StatusVersion != 0 && s.StatusVersion <= out.Row.Version {
			continue
		}
		last = s
		s = withoutNUL(s)
		out.Applied[i] = true
		out.LowestVersion, out.HighestVersion = s.StatusVersion, s.StatusVersion
		out.apply(u.At, s)
		if s.Spec.Type == wsman.WorkspaceType_PREBUILD && out.Prebuild != nil {
			out.applyPrebuild(rules, s)
		}
	}
	return out
}

func valid(s *wsman.WorkspaceStatus) bool {
	if s == nil || s.Metadata == nil || s.Spec == nil || s.Conditions == nil || s.StatusVersion > math.MaxInt64 {
		return false
	}
	_, ok := script.ParseUUID(s.Id)
	return ok
}

func ours(rules Rules, region string) bool {
	return region == "" || region == rules.Cluster || region == rules.Installation
}

func sameButVersion(a, b *wsman.WorkspaceStatus) bool {
	if a.Phase != b.Phase || a.Message != b.Message {
		return false // most often; the rest is slow
	}
	c := proto.CloneOf(b)
	c.StatusVersion = a.StatusVersion
	return proto.Equal(a, c)
}

// withoutNUL gives the status as Postgres can hold it.
func withoutNUL(s *wsman.WorkspaceStatus) *wsman.WorkspaceStatus {
	dirty := false
	for _, t := range texts(s) {
		dirty = dirty || strings.Contains(*t, "\x00")
	}
	if !dirty {
		return s
	}
	s = proto.CloneOf(s)
	for _, t := range texts(s) {
		*t = strings.ReplaceAll(*t, "\x00", "\uFFFD")
	}
	return s
}

// texts are the texts of a status that reach the tables.
func texts(s *wsman.WorkspaceStatus) []*string {
	c := s.Conditions
	all := []*string{&s.Message, &s.Spec.Url, &s.Spec.Timeout, &c.Failed, &c.Timeout, &c.Snapshot, &c.HeadlessTaskFailed}
	for _, p := range s.Spec.ExposedPorts {
		all = append(all, &p.Url)
	}
	if r := s.Runtime; r != nil {
		all = append(all, &r.NodeName, &r.PodName, &r.NodeIp)
	}
	if a := s.Auth; a != nil {
		all = append(all, &a.OwnerToken)
	}
	return all
}

// apply does one update to the instance's row and metrics.
func (o *Outcome) apply(at time.Time, s *wsman.WorkspaceStatus) {
	row, doc := o.Row, &o.Row.Status

	row.Version, doc.Version = s.StatusVersion, s.StatusVersion
	row.IDEURL = s.Spec.Url
	doc.Timeout = s.Spec.Timeout
	doc.Message = s.Message
	doc.OwnerToken = s.Auth.GetOwnerToken()
	setFirst(&doc.NodeName, s.Runtime.GetNodeName())
	setFirst(&doc.PodName, s.Runtime.GetPodName())
	setFirst(&doc.NodeIP, s.Runtime.GetNodeIp())

	doc.ExposedPorts = []Port{}
	for _, p := range s.Spec.ExposedPorts {
		port := Port{Port: p.Port, Visibility: "private", Protocol: "http", URL: p.Url}
		if p.Visibility == wsman.PortVisibility_PORT_VISIBILITY_PUBLIC {
			port.Visibility = "public"
		}
		if p.Protocol == wsman.PortProtocol_PORT_PROTOCOL_HTTPS {
			port.Protocol = "https"
		}
		doc.ExposedPorts = append(doc.ExposedPorts, port)
	}

	c := s.Conditions
	if c.Failed != "" {
		doc.Conditions.Failed = c.Failed
	}
	doc.Conditions.Timeout = c.Timeout
	doc.Conditions.PullingImages = conditionBool(c.PullingImages)
	doc.Conditions.Deployed = conditionBool(c.Deployed)
	doc.Conditions.StoppedByRequest = conditionBool(c.StoppedByRequest)
	doc.Conditions.HeadlessTaskFailed = c.HeadlessTaskFailed
	doc.Conditions.FirstUserActivity = ""
	if c.FirstUserActivity != nil {
		doc.Conditions.FirstUserActivity = c.FirstUserActivity.AsTime().Format("2006-01-02T15:04:05.000Z")
	}
	if c.Deployed == wsman.WorkspaceConditionBool_TRUE {
		setTime(&row.Deployed, at)
	}

	image := s.Metadata.GetMetrics().GetImage()
	if doc.Metrics.Image.TotalSize == 0 {
		doc.Metrics.Image.TotalSize = image.GetTotalSize()
	}
	if doc.Metrics.Image.WorkspaceImageSize == 0 {
		doc.Metrics.Image.WorkspaceImageSize = image.GetWorkspaceImageSize()
	}
	setNonZero(&o.Metrics.Image.TotalSize, image.GetTotalSize())
	setNonZero(&o.Metrics.Image.WorkspaceImageSize, image.GetWorkspaceImageSize())
	into, from := &o.Metrics.InitializerMetrics, s.InitializerMetrics
	setMetric(&into.Git, from.GetGit())
	setMetric(&into.FileDownload, from.GetFileDownload())
	setMetric(&into.Snapshot, from.GetSnapshot())
	setMetric(&into.Backup, from.GetBackup())
	setMetric(&into.Prebuild, from.GetPrebuild())
	setMetric(&into.Composite, from.GetComposite())

	switch s.Phase {
	case wsman.WorkspacePhase_PENDING, wsman.WorkspacePhase_CREATING, wsman.WorkspacePhase_INITIALIZING,
		wsman.WorkspacePhase_RUNNING, wsman.WorkspacePhase_INTERRUPTED:
		row.Phase = strings.ToLower(s.Phase.String())
		row.Stopping, row.Stopped = time.Time{}, time.Time{}
		if s.Phase == wsman.WorkspacePhase_RUNNING {
			setTime(&row.Started, at)
		}
	case wsman.WorkspacePhase_STOPPING:
		if row.Phase != "stopped" {
			row.Phase = "stopping"
			setTime(&row.Stopping, at)
		}
	case wsman.WorkspacePhase_STOPPED:
		row.Phase = "stopped"
		setTime(&row.Stopping, at)
		setTime(&row.Stopped, at)
		o.StoppedOnce = true
	}
	doc.Phase = row.Phase
}

// applyPrebuild does one update to the prebuild's row.
func (o *Outcome) applyPrebuild(rules Rules, s *wsman.WorkspaceStatus) {
	switch o.Prebuild.State {
	case "available", "timeout", "aborted", "failed":
		return
	}
	decisive, building := wsman.WorkspacePhase_STOPPING, false
	if rules.DecisiveStopped {
		decisive, building = wsman.WorkspacePhase_STOPPED, s.Phase == wsman.WorkspacePhase_STOPPING
	}
	c := s.Conditions
	next, headless := *o.Prebuild, ""
	switch {
	case s.Phase == decisive:
		switch {
		case c.Timeout != "":
			next, headless = PrebuildRow{"timeout", c.Timeout, next.Snapshot}, "aborted-timeout"
		case c.Failed != "":
			next, headless = PrebuildRow{"failed", c.Failed, next.Snapshot}, "failed"
		case c.StoppedByRequest == wsman.WorkspaceConditionBool_TRUE:
			next, headless = PrebuildRow{"aborted", "Cancelled", next.Snapshot}, "aborted"
		case c.HeadlessTaskFailed != "":
			next, headless = PrebuildRow{"available", c.HeadlessTaskFailed, c.Snapshot}, "finish-fail"
		case c.Snapshot != "":
			next, headless = PrebuildRow{"available", "", c.Snapshot}, "finish-success"
		}
	case s.Phase == wsman.WorkspacePhase_RUNNING || building:
		next, headless = PrebuildRow{"building", "", next.Snapshot}, "started"
	case s.Phase == wsman.WorkspacePhase_STOPPING || s.Phase == wsman.WorkspacePhase_STOPPED:
	default:
		next, headless = PrebuildRow{"queued", "", next.Snapshot}, "started"
	}
	if next != *o.Prebuild {
		*o.Prebuild = next
		o.Prebuilds = append(o.Prebuilds, next.State)
		o.Headless = append(o.Headless, headless)
	}
}

func conditionBool(b wsman.WorkspaceConditionBool) *bool {
	switch b {
	case wsman.WorkspaceConditionBool_TRUE:
		return new(true)
	case wsman.WorkspaceConditionBool_FALSE:
		return new(false)
	default:
		return nil
	}
}

func setFirst(into *string, value string) {
	if *into == "" {
		*into = value
	}
}

func setTime(into *time.Time, at time.Time) {
	if into.IsZero() {
		*into = at
	}
}

func setNonZero[T int64 | uint64](into *T, value T) {
	if value != 0 {
		*into = value
	}
}

func setMetric(into *InitializerMetric, from *wsman.InitializerMetric) {
	if from == nil {
		return
	}
	setNonZero(&into.Duration, from.Duration.AsDuration().Milliseconds())
	setNonZero(&into.Size, from.Size)
}
