package statustest

import (
	"strings"
	"time"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

// InTurn writes one status, heard at this time, the way the rules are told:
// rule after rule on the row as it stands. It reports whether the status
// counted; one that does not is stale and changes nothing.
func InTurn(row *Row, s *wsman.WorkspaceStatus, at time.Time, rules status.Rules) bool {
	version := s.GetStatusVersion()
	switch {
	case version > row.Version:
	case version == 0 && row.Version == 0:
	case version == row.Version && row.Swept:
	default:
		return false
	}
	row.Version, row.Swept = version, false

	inTurnPhase(row, s.GetPhase(), at)
	inTurnDocument(row, s)
	inTurnMetrics(row, s)
	if s.GetConditions().GetDeployed() == wsman.WorkspaceConditionBool_TRUE && row.Deployed.IsZero() {
		row.Deployed = at
	}
	if s.GetSpec().GetType() == wsman.WorkspaceType_PREBUILD && row.Prebuild != nil {
		inTurnPrebuild(row, s, rules)
	}
	return true
}

func inTurnPhase(row *Row, phase wsman.WorkspacePhase, at time.Time) {
	switch phase {
	case wsman.WorkspacePhase_PENDING, wsman.WorkspacePhase_CREATING, wsman.WorkspacePhase_INITIALIZING,
		wsman.WorkspacePhase_RUNNING, wsman.WorkspacePhase_INTERRUPTED:
		row.Phase = strings.ToLower(phase.String())
		row.Stopping, row.Stopped = time.Time{}, time.Time{}
	case wsman.WorkspacePhase_STOPPING:
		if row.Phase != "stopped" {
			row.Phase = "stopping"
			if row.Stopping.IsZero() {
				row.Stopping = at
			}
		}
	case wsman.WorkspacePhase_STOPPED:
		row.Phase = "stopped"
		if row.Stopping.IsZero() {
			row.Stopping = at
		}
		if row.Stopped.IsZero() {
			row.Stopped = at
			row.stop(at)
		}
	}
	if phase == wsman.WorkspacePhase_RUNNING && row.Started.IsZero() {
		row.Started = at
		row.tell("wsrun", at)
	}
}

func inTurnDocument(row *Row, s *wsman.WorkspaceStatus) {
	row.IDEURL = text(s.GetSpec().GetUrl())

	document := row.Status
	document["version"] = row.Version
	document["phase"] = row.Phase
	document["message"] = text(s.GetMessage())
	document["timeout"] = text(s.GetSpec().GetTimeout())
	document["ownerToken"] = text(s.GetAuth().GetOwnerToken())
	ports := []any{}
	for _, p := range s.GetSpec().GetExposedPorts() {
		port := map[string]any{"port": p.GetPort(), "visibility": "private", "protocol": "http", "url": text(p.GetUrl())}
		if p.GetVisibility() == wsman.PortVisibility_PORT_VISIBILITY_PUBLIC {
			port["visibility"] = "public"
		}
		if p.GetProtocol() == wsman.PortProtocol_PORT_PROTOCOL_HTTPS {
			port["protocol"] = "https"
		}
		ports = append(ports, port)
	}
	document["exposedPorts"] = ports

	keepFirst(document, "nodeName", text(s.GetRuntime().GetNodeName()))
	keepFirst(document, "podName", text(s.GetRuntime().GetPodName()))
	keepFirst(document, "nodeIp", text(s.GetRuntime().GetNodeIp()))
	image := s.GetMetadata().GetMetrics().GetImage()
	if image.GetTotalSize() != 0 || image.GetWorkspaceImageSize() != 0 {
		kept := object(object(document, "metrics"), "image")
		keepFirst(kept, "totalSize", image.GetTotalSize())
		keepFirst(kept, "workspaceImageSize", image.GetWorkspaceImageSize())
	}

	set := object(document, "conditions")
	c := s.GetConditions()
	overwrite(set, "timeout", text(c.GetTimeout()))
	overwrite(set, "headlessTaskFailed", text(c.GetHeadlessTaskFailed()))
	overwrite(set, "pullingImages", boolean(c.GetPullingImages()))
	overwrite(set, "deployed", boolean(c.GetDeployed()))
	overwrite(set, "stoppedByRequest", boolean(c.GetStoppedByRequest()))
	if activity := c.GetFirstUserActivity(); activity.IsValid() {
		overwrite(set, "firstUserActivity", activity.AsTime().Format("2006-01-02T15:04:05.000Z"))
	} else {
		delete(set, "firstUserActivity")
	}
	if c.GetFailed() != "" {
		set["failed"] = text(c.GetFailed())
	}
}

func inTurnMetrics(row *Row, s *wsman.WorkspaceStatus) {
	set := func(value any, path ...string) {
		if row.Metrics == nil {
			row.Metrics = map[string]any{}
		}
		at := row.Metrics
		for _, key := range path[:len(path)-1] {
			at = object(at, key)
		}
		at[path[len(path)-1]] = value
	}
	if size := s.GetMetadata().GetMetrics().GetImage().GetTotalSize(); size != 0 {
		set(size, "image", "totalSize")
	}
	if size := s.GetMetadata().GetMetrics().GetImage().GetWorkspaceImageSize(); size != 0 {
		set(size, "image", "workspaceImageSize")
	}
	m := s.GetInitializerMetrics()
	for key, metric := range map[string]*wsman.InitializerMetric{
		"git": m.GetGit(), "fileDownload": m.GetFileDownload(), "snapshot": m.GetSnapshot(),
		"backup": m.GetBackup(), "prebuild": m.GetPrebuild(), "composite": m.GetComposite(),
	} {
		if metric.GetDuration() != nil {
			set(float64(metric.GetDuration().AsDuration())/1e6, "initializerMetrics", key, "duration")
		}
		if metric.GetSize() != 0 {
			set(metric.GetSize(), "initializerMetrics", key, "size")
		}
	}
}

func inTurnPrebuild(row *Row, s *wsman.WorkspaceStatus, rules status.Rules) {
	c := s.GetConditions()
	decisive := s.GetPhase() == wsman.WorkspacePhase_STOPPING
	if rules.DecidedWhenStopped {
		decisive = s.GetPhase() == wsman.WorkspacePhase_STOPPED
	}
	next := *row.Prebuild
	switch {
	case decisive && c.GetTimeout() != "":
		next.State, next.Error = "timeout", text(c.GetTimeout())
	case decisive && c.GetFailed() != "":
		next.State, next.Error = "failed", text(c.GetFailed())
	case decisive && c.GetStoppedByRequest() == wsman.WorkspaceConditionBool_TRUE:
		next.State, next.Error = "aborted", "Cancelled"
	case decisive && c.GetHeadlessTaskFailed() != "":
		next.State, next.Error, next.Snapshot = "available", text(c.GetHeadlessTaskFailed()), text(c.GetSnapshot())
	case decisive && c.GetSnapshot() != "":
		next.State, next.Error, next.Snapshot = "available", "", text(c.GetSnapshot())
	case decisive, s.GetPhase() == wsman.WorkspacePhase_STOPPED:
		return
	case s.GetPhase() == wsman.WorkspacePhase_RUNNING, s.GetPhase() == wsman.WorkspacePhase_STOPPING:
		next.State = "building"
	default:
		next.State = "queued"
	}

	switch {
	case row.newerSpeaks():
		return
	case row.olderSpeaks():
	case row.Prebuild.Version != 0 && s.GetStatusVersion() <= row.Prebuild.Version:
		return
	case terminal(row.Prebuild.State) && next.State != row.Prebuild.State:
		next = *row.Prebuild // it stays as it is, but has heard this version
	}
	next.Version, next.Instance, next.InstanceCreated = s.GetStatusVersion(), row.ID, row.Created
	*row.Prebuild = next
}

func keepFirst(document map[string]any, key string, value any) {
	if blank(document[key]) && !blank(value) {
		document[key] = value
	}
}

// overwrite sets a key, or unsets it if there is no value.
func overwrite(document map[string]any, key string, value any) {
	if blank(value) {
		delete(document, key)
		return
	}
	document[key] = value
}

// boolean gives nil for a condition that is unset.
func boolean(condition wsman.WorkspaceConditionBool) any {
	switch condition {
	case wsman.WorkspaceConditionBool_TRUE:
		return true
	case wsman.WorkspaceConditionBool_FALSE:
		return false
	}
	return nil
}

func text(s string) string { return strings.ReplaceAll(s, "\x00", "\uFFFD") }
