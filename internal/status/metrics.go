package status

import (
	"strconv"
	"time"

	"github.com/trestle-bridge/trestle/proto/wsman"
)

// ImageSizes are the sizes of an instance's image in bytes; 0 is unknown.
type ImageSizes struct {
	Total     int64
	Workspace int64
}

// appendTo appends the member that holds the sizes.
func (s ImageSizes) appendTo(b []byte) []byte {
	b = append(appendKey(b, "image"), '{')
	if s.Total != 0 {
		b = strconv.AppendInt(appendKey(b, "totalSize"), s.Total, 10)
	}
	if s.Workspace != 0 {
		b = strconv.AppendInt(appendKey(b, "workspaceImageSize"), s.Workspace, 10)
	}
	return append(b, '}')
}

func (s ImageSizes) or(other ImageSizes) ImageSizes {
	if s.Total == 0 {
		s.Total = other.Total
	}
	if s.Workspace == 0 {
		s.Workspace = other.Workspace
	}
	return s
}

// Metrics are what an update says of image sizes and of the initializer.
// Their values are immutable once made, so Metrics may share them.
type Metrics struct {
	Image       ImageSizes
	Initializer *Initializer
}

// Initializer holds what each way to fill a workspace took.
type Initializer struct {
	Git          *InitializerMetric
	FileDownload *InitializerMetric
	Snapshot     *InitializerMetric
	Backup       *InitializerMetric
	Prebuild     *InitializerMetric
	Composite    *InitializerMetric
}

// InitializerMetric is one of them: milliseconds and bytes.
type InitializerMetric struct {
	Duration *float64
	Size     uint64
}

// appendTo appends the member that holds the metric, unless there is none.
func (m *InitializerMetric) appendTo(b []byte, name string) []byte {
	if m == nil {
		return b
	}
	b = append(appendKey(b, name), '{')
	if m.Duration != nil {
		b = strconv.AppendFloat(appendKey(b, "duration"), *m.Duration, 'f', -1, 64)
	}
	if m.Size != 0 {
		b = strconv.AppendUint(appendKey(b, "size"), m.Size, 10)
	}
	return append(b, '}')
}

// JSON gives the metrics as the metrics table keeps them; nil if there are
// none.
func (m Metrics) JSON() []byte {
	if m == (Metrics{}) {
		return nil
	}
	b := append(make([]byte, 0, 192), '{')
	if m.Image != (ImageSizes{}) {
		b = m.Image.appendTo(b)
	}
	if i := m.Initializer; i != nil {
		b = append(appendKey(b, "initializerMetrics"), '{')
		b = i.Git.appendTo(b, "git")
		b = i.FileDownload.appendTo(b, "fileDownload")
		b = i.Snapshot.appendTo(b, "snapshot")
		b = i.Backup.appendTo(b, "backup")
		b = i.Prebuild.appendTo(b, "prebuild")
		b = i.Composite.appendTo(b, "composite")
		b = append(b, '}')
	}
	return append(b, '}')
}

// overlaid gives m with every value that next has on top.
func (m Metrics) overlaid(next Metrics) Metrics {
	return Metrics{Image: next.Image.or(m.Image), Initializer: m.Initializer.overlaid(next.Initializer)}
}

func (i *Initializer) overlaid(next *Initializer) *Initializer {
	switch {
	case next == nil:
		return i
	case i == nil:
		return next
	}
	return &Initializer{
		Git:          i.Git.overlaid(next.Git),
		FileDownload: i.FileDownload.overlaid(next.FileDownload),
		Snapshot:     i.Snapshot.overlaid(next.Snapshot),
		Backup:       i.Backup.overlaid(next.Backup),
		Prebuild:     i.Prebuild.overlaid(next.Prebuild),
		Composite:    i.Composite.overlaid(next.Composite),
	}
}

func (m *InitializerMetric) overlaid(next *InitializerMetric) *InitializerMetric {
	switch {
	case next == nil:
		return m
	case m == nil:
		return next
	}
	out := *next
	if out.Duration == nil {
		out.Duration = m.Duration
	}
	if out.Size == 0 {
		out.Size = m.Size
	}
	return &out
}

func imageSizes(metrics *wsman.WorkspaceMetadata_Metrics) ImageSizes {
	return ImageSizes{
		Total:     metrics.GetImage().GetTotalSize(),
		Workspace: metrics.GetImage().GetWorkspaceImageSize(),
	}
}

// initializer gives nil where nothing is said, so that an empty message and
// an absent one are alike.
func initializer(m *wsman.InitializerMetrics) *Initializer {
	if m == nil {
		return nil
	}
	out := Initializer{
		Git:          initializerMetric(m.GetGit()),
		FileDownload: initializerMetric(m.GetFileDownload()),
		Snapshot:     initializerMetric(m.GetSnapshot()),
		Backup:       initializerMetric(m.GetBackup()),
		Prebuild:     initializerMetric(m.GetPrebuild()),
		Composite:    initializerMetric(m.GetComposite()),
	}
	if out == (Initializer{}) {
		return nil
	}
	return &out
}

func initializerMetric(m *wsman.InitializerMetric) *InitializerMetric {
	if m.GetDuration() == nil && m.GetSize() == 0 {
		return nil
	}
	out := InitializerMetric{Size: m.GetSize()}
	if d := m.GetDuration(); d != nil {
		ms := float64(d.AsDuration()) / float64(time.Millisecond)
		out.Duration = &ms
	}
	return &out
}
