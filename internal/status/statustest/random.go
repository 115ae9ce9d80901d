package statustest

import (
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

// Epoch is when the first status of a history is heard; each later one is
// heard a second after the one before.
var Epoch = time.Date(2024, time.March, 1, 12, 0, 0, 0, time.UTC)

// Heard is what upstream hands over for a status heard at this time.
func Heard(s *wsman.WorkspaceStatus, at time.Time) (status.Heard, error) {
	raw, err := proto.Marshal(s)
	if err != nil {
		return status.Heard{}, fmt.Errorf("encode the status of %s: %w", s.GetId(), err)
	}
	h, err := status.Scan(raw)
	h.At = at
	return h, err
}

// Random makes rows and statuses of few different values, so that values
// return, and every rule meets every other.
type Random struct {
	*rand.Rand
	ID status.InstanceID
}

// Status gives a status of the instance without a version.
func (r Random) Status(kind wsman.WorkspaceType) *wsman.WorkspaceStatus {
	s := &wsman.WorkspaceStatus{
		Id: r.ID.String(),
		Metadata: &wsman.WorkspaceMetadata{
			Owner: "owner", MetaId: "workspace",
			Metrics: &wsman.WorkspaceMetadata_Metrics{Image: &wsman.WorkspaceMetadata_ImageInfo{
				TotalSize: r.Int64N(3), WorkspaceImageSize: r.Int64N(3),
			}},
		},
		Spec:  &wsman.WorkspaceSpec{Type: kind, Url: r.text("url"), Timeout: r.text("timeout")},
		Phase: wsman.WorkspacePhase(r.IntN(8)),
		Conditions: &wsman.WorkspaceConditions{
			PullingImages:      wsman.WorkspaceConditionBool(r.IntN(3)),
			Deployed:           wsman.WorkspaceConditionBool(r.IntN(3)),
			StoppedByRequest:   wsman.WorkspaceConditionBool(r.IntN(3)),
			Failed:             r.rarely("failed"),
			Timeout:            r.rarely("timed out"),
			HeadlessTaskFailed: r.rarely("task failed"),
			Snapshot:           r.text("snapshot"),
		},
		Message: r.text("message"),
		Runtime: &wsman.WorkspaceRuntimeInfo{NodeName: r.text("node"), PodName: r.text("pod"), NodeIp: r.text("ip")},
		Auth:    &wsman.WorkspaceAuthentication{OwnerToken: r.text("token")},
	}
	if r.IntN(2) == 0 {
		// What makes a history interesting are stops and returns.
		s.Phase = []wsman.WorkspacePhase{
			wsman.WorkspacePhase_RUNNING, wsman.WorkspacePhase_STOPPING, wsman.WorkspacePhase_STOPPED,
		}[r.IntN(3)]
	}
	if r.IntN(3) == 0 {
		s.Conditions.FirstUserActivity = timestamppb.New(Epoch.Add(time.Duration(r.IntN(3)) * time.Millisecond))
	}
	for range r.IntN(3) {
		s.Spec.ExposedPorts = append(s.Spec.ExposedPorts, &wsman.PortSpec{
			Port: uint32(r.IntN(2)), Url: r.text("port"),
			Visibility: wsman.PortVisibility(r.IntN(2)), Protocol: wsman.PortProtocol(r.IntN(2)),
		})
	}
	if r.IntN(2) == 0 {
		s.InitializerMetrics = &wsman.InitializerMetrics{
			Git: r.metric(), FileDownload: r.metric(), Snapshot: r.metric(),
			Backup: r.metric(), Prebuild: r.metric(), Composite: r.metric(),
		}
	}
	return s
}

// Row gives a row of any state, also of those that no history leads to, at a
// version up to this one.
func (r Random) Row(version uint64) *Row {
	row := &Row{
		ID:       r.ID,
		Created:  Epoch.Add(-time.Hour),
		Version:  r.Uint64N(version + 1),
		Swept:    r.IntN(4) == 0,
		Phase:    []string{"unknown", "preparing", "pending", "running", "interrupted", "stopping", "stopped", "stopped"}[r.IntN(8)],
		Deployed: r.before(), Started: r.before(), Stopping: r.before(), Stopped: r.before(),
		IDEURL: r.text("url"),
		Status: map[string]any{"conditions": map[string]any{"neededImageBuild": r.IntN(2) == 0}, "theirs": "kept"},
		Tokens: []string{r.ID.String() + "-default", "another"},
	}
	if r.IntN(3) == 0 {
		row.Version = 0
	}
	if r.IntN(2) == 0 {
		row.Status["nodeName"] = "their node"
		row.Status["metrics"] = map[string]any{"image": map[string]any{"totalSize": 7}, "theirs": 1}
		object(row.Status, "conditions")["failed"] = "failed before"
		object(row.Status, "conditions")["timeout"] = "timed out before"
		object(row.Status, "conditions")["deployed"] = true
	}
	if r.IntN(2) == 0 {
		row.Metrics = map[string]any{
			"image":              map[string]any{"totalSize": 7},
			"initializerMetrics": map[string]any{"git": map[string]any{"duration": 7}, "theirs": []any{1}},
		}
	}
	if r.IntN(4) > 0 {
		row.Prebuild = r.prebuild(row, version)
	}
	return row
}

// prebuild gives a prebuild that speaks of nobody, the row's instance, an
// older or a newer one.
func (r Random) prebuild(row *Row, version uint64) *Prebuild {
	p := &Prebuild{
		State:    []string{"queued", "building", "aborted", "timeout", "available", "failed"}[r.IntN(6)],
		Error:    r.text("error"),
		Snapshot: r.text("snapshot"),
	}
	if r.IntN(2) == 0 {
		p.Version = r.Uint64N(version + 1)
	}
	other := row.ID
	other[15] ^= 0xff
	switch r.IntN(6) {
	case 0:
	case 1:
		p.Instance, p.InstanceCreated = other, row.Created.Add(-time.Minute)
	case 2:
		p.Instance, p.InstanceCreated = other, row.Created.Add(time.Minute)
	case 3:
		p.Instance, p.InstanceCreated = other, row.Created
	default:
		p.Instance, p.InstanceCreated = row.ID, row.Created
	}
	return p
}

// text gives nothing, one of two texts, or one with what no column takes.
func (r Random) text(prefix string) string {
	return []string{"", prefix, prefix + " 2", prefix + "\x00"}[r.IntN(4)]
}

func (r Random) rarely(text string) string {
	if r.IntN(6) > 0 {
		return ""
	}
	return r.text(text)
}

func (r Random) metric() *wsman.InitializerMetric {
	switch r.IntN(3) {
	case 0:
		return nil
	case 1:
		return &wsman.InitializerMetric{Size: r.Uint64N(3)}
	}
	return &wsman.InitializerMetric{Duration: durationpb.New(time.Duration(r.IntN(3)) * 100 * time.Microsecond), Size: r.Uint64N(3)}
}

// before gives null or a time before the history.
func (r Random) before() time.Time {
	if r.IntN(2) == 0 {
		return time.Time{}
	}
	return Epoch.Add(-time.Duration(1+r.IntN(9)) * time.Minute)
}
