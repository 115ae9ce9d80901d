package status_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/status/statustest"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

const (
	isTrue  = wsman.WorkspaceConditionBool_TRUE
	isFalse = wsman.WorkspaceConditionBool_FALSE
	isEmpty = wsman.WorkspaceConditionBool_EMPTY
)

// creating is the status that every test begins with, and creatingRow the row
// that it has left.
func creating() *wsman.WorkspaceStatus {
	return &wsman.WorkspaceStatus{
		Id:            testID.String(),
		Metadata:      &wsman.WorkspaceMetadata{Owner: "owner", MetaId: "workspace"},
		Spec:          &wsman.WorkspaceSpec{},
		Phase:         wsman.WorkspacePhase_CREATING,
		Conditions:    &wsman.WorkspaceConditions{PullingImages: isEmpty, Deployed: isEmpty, StoppedByRequest: isEmpty},
		StatusVersion: 10,
	}
}

func creatingRow() *statustest.Row {
	return &statustest.Row{
		ID:      testID,
		Created: statustest.Epoch.Add(-time.Minute),
		Version: 10,
		Phase:   "creating",
		Status: map[string]any{
			"version": 10, "phase": "creating", "message": "", "timeout": "", "ownerToken": "",
			"exposedPorts": []any{}, "conditions": map[string]any{},
		},
		Tokens: []string{testID.String() + "-default", testID.String() + "-ide", testID.String() + "x", "another"},
	}
}

// A rule says what becomes of the row when statuses are heard, the first at
// second 0. Each says what creating says but for what is changed here, at
// versions 11, 12 and so on. The row is expected to take the last version and
// to stay as it was but for what want changes.
type rule struct {
	name  string
	row   func(*statustest.Row)
	hear  []func(*wsman.WorkspaceStatus)
	want  func(*statustest.Row)
	stale bool // the row must not even take the version
}

// says is a history of one status.
func says(change func(*wsman.WorkspaceStatus)) []func(*wsman.WorkspaceStatus) {
	return []func(*wsman.WorkspaceStatus){change}
}

// phases is a history of statuses that differ in their phase.
func phases(phases ...wsman.WorkspacePhase) (hear []func(*wsman.WorkspaceStatus)) {
	for _, phase := range phases {
		hear = append(hear, func(s *wsman.WorkspaceStatus) { s.Phase = phase })
	}
	return hear
}

func conditions(row *statustest.Row) map[string]any {
	return row.Status["conditions"].(map[string]any)
}

func event(name string, second int) statustest.Event {
	return statustest.Event{MessageID: name + testID.String(), At: heardAt(second)}
}

// run holds the model, the changes one by one and the folded change against
// what is wanted.
func (r rule) run(t *testing.T) {
	row := creatingRow()
	if r.row != nil {
		r.row(row)
	}
	var h history
	for i, change := range r.hear {
		s := creating()
		s.StatusVersion += uint64(i + 1)
		change(s)
		h = append(h, s)
	}
	want := row.Clone()
	if !r.stale {
		want.Version, want.Swept = h[len(h)-1].StatusVersion, false
		want.Status["version"] = want.Version
	}
	if r.want != nil {
		r.want(want)
	}
	want.Status["phase"] = want.Phase

	model, single, folded := row.Clone(), row.Clone(), row.Clone()
	h.inTurn(model, status.Rules{})
	for i := range h {
		statustest.Apply(single, h.change(t, status.Rules{}, i))
	}
	applied := statustest.Apply(folded, h.fold(t, status.Rules{}, 0, len(h), func(n int) int { return n - 1 }))
	if applied == r.stale {
		t.Errorf("applied is %t", applied)
	}
	for how, got := range map[string]*statustest.Row{"model": model, "one by one": single, "folded": folded} {
		if diff := statustest.Diff(got, want); diff != "" {
			t.Errorf("%s:\n%s", how, diff)
		}
	}
}

func runAll(t *testing.T, rules []rule) {
	t.Helper()
	for _, r := range rules {
		t.Run(r.name, r.run)
	}
}

func TestVersion(t *testing.T) {
	version := func(v uint64) []func(*wsman.WorkspaceStatus) {
		return says(func(s *wsman.WorkspaceStatus) { s.StatusVersion, s.Message = v, "heard" })
	}
	heard := func(r *statustest.Row) { r.Status["message"] = "heard" }
	unversioned := func(r *statustest.Row) { r.Version, r.Status["version"] = 0, 0 }
	swept := func(r *statustest.Row) { r.Swept = true }

	runAll(t, []rule{
		{name: "above the stored one applies", hear: version(11), want: heard},
		{name: "the stored one is stale", hear: version(10), stale: true},
		{name: "below the stored one is stale", hear: version(9), stale: true},
		{name: "beyond what a float can tell apart", hear: version(1<<63 - 1), want: heard},
		{name: "unversioned applies to an unversioned row", row: unversioned, hear: version(0), want: heard},
		{name: "unversioned is stale once the row has a version", hear: version(0), stale: true},
		{name: "a version applies to an unversioned row", row: unversioned, hear: version(1), want: heard},
		{name: "the stored one applies to a swept row", row: swept, hear: version(10), want: heard},
		{name: "below the stored one is stale for a swept row", row: swept, hear: version(9), stale: true},
		{name: "unversioned is stale for a swept row with a version", row: swept, hear: version(0), stale: true},
		{
			name: "the stored one revives a swept row only once", row: swept,
			hear: append(version(10), func(s *wsman.WorkspaceStatus) { s.StatusVersion, s.Message = 10, "again" }),
			want: heard,
		},
	})
}

func TestDocument(t *testing.T) {
	filled := func(r *statustest.Row) {
		r.IDEURL = "https://old"
		r.Status["timeout"], r.Status["message"], r.Status["ownerToken"] = "30m", "old", "old"
		r.Status["exposedPorts"] = []any{map[string]any{"port": 1}}
	}
	runAll(t, []rule{
		{
			name: "exposed ports are mapped",
			hear: says(func(s *wsman.WorkspaceStatus) {
				s.Spec.ExposedPorts = []*wsman.PortSpec{
					{Port: 3000, Url: "https://3000"},
					{Port: 3001, Url: "https://3001", Visibility: wsman.PortVisibility_PORT_VISIBILITY_PUBLIC, Protocol: wsman.PortProtocol_PORT_PROTOCOL_HTTPS},
					{Port: 3002, Visibility: 99, Protocol: 99},
				}
			}),
			want: func(r *statustest.Row) {
				r.Status["exposedPorts"] = []any{
					map[string]any{"port": 3000, "url": "https://3000", "visibility": "private", "protocol": "http"},
					map[string]any{"port": 3001, "url": "https://3001", "visibility": "public", "protocol": "https"},
					map[string]any{"port": 3002, "url": "", "visibility": "private", "protocol": "http"},
				}
			},
		},
		{
			name: "texts overwrite",
			row:  filled,
			hear: says(func(s *wsman.WorkspaceStatus) {
				s.Spec.Url, s.Spec.Timeout, s.Message = "https://new", "60m", "new"
				s.Auth = &wsman.WorkspaceAuthentication{OwnerToken: "token"}
				s.Spec.ExposedPorts = []*wsman.PortSpec{{Port: 2}}
			}),
			want: func(r *statustest.Row) {
				r.IDEURL = "https://new"
				r.Status["timeout"], r.Status["message"], r.Status["ownerToken"] = "60m", "new", "token"
				r.Status["exposedPorts"] = []any{map[string]any{"port": 2, "url": "", "visibility": "private", "protocol": "http"}}
			},
		},
		{
			name: "empty texts and lists overwrite",
			row:  filled,
			hear: says(func(*wsman.WorkspaceStatus) {}),
			want: func(r *statustest.Row) {
				r.IDEURL = ""
				r.Status["timeout"], r.Status["message"], r.Status["ownerToken"] = "", "", ""
				r.Status["exposedPorts"] = []any{}
			},
		},
		{
			name: "keys that no update speaks of survive",
			row: func(r *statustest.Row) {
				r.Status["theirs"] = map[string]any{"a": 1}
				conditions(r)["neededImageBuild"] = true
				conditions(r)["theirs"] = "b"
			},
			hear: says(func(*wsman.WorkspaceStatus) {}),
		},
		{
			name: "an empty document is filled in",
			row:  func(r *statustest.Row) { r.Status = map[string]any{} },
			hear: says(func(*wsman.WorkspaceStatus) {}),
			want: func(r *statustest.Row) {
				r.Status = creatingRow().Status
				r.Status["version"] = 11
			},
		},
		{
			name: "NUL characters are replaced",
			hear: says(func(s *wsman.WorkspaceStatus) {
				s.Spec.Url, s.Spec.Timeout, s.Message = "a\x00b", "\x00", "\x00\x00"
				s.Auth = &wsman.WorkspaceAuthentication{OwnerToken: "\x00"}
				s.Spec.ExposedPorts = []*wsman.PortSpec{{Url: "\x00"}}
				s.Runtime = &wsman.WorkspaceRuntimeInfo{NodeName: "\x00", PodName: "\x00", NodeIp: "\x00"}
				s.Conditions.Failed, s.Conditions.Timeout, s.Conditions.HeadlessTaskFailed = "\x00", "\x00", "\x00"
			}),
			want: func(r *statustest.Row) {
				r.IDEURL = "a\uFFFDb"
				r.Status["timeout"], r.Status["message"], r.Status["ownerToken"] = "\uFFFD", "\uFFFD\uFFFD", "\uFFFD"
				r.Status["exposedPorts"] = []any{map[string]any{"port": 0, "url": "\uFFFD", "visibility": "private", "protocol": "http"}}
				r.Status["nodeName"], r.Status["podName"], r.Status["nodeIp"] = "\uFFFD", "\uFFFD", "\uFFFD"
				r.Status["conditions"] = map[string]any{"failed": "\uFFFD", "timeout": "\uFFFD", "headlessTaskFailed": "\uFFFD"}
			},
		},
	})
}

func TestConditions(t *testing.T) {
	set := func(r *statustest.Row) {
		r.Status["conditions"] = map[string]any{
			"timeout": "old", "pullingImages": true, "deployed": true,
			"firstUserActivity": "2024-03-01T11:00:00.000Z", "headlessTaskFailed": "old", "stoppedByRequest": true,
		}
	}
	failed := func(r *statustest.Row) { conditions(r)["failed"] = "old" }
	booleans := func(b wsman.WorkspaceConditionBool) []func(*wsman.WorkspaceStatus) {
		return says(func(s *wsman.WorkspaceStatus) {
			s.Conditions = &wsman.WorkspaceConditions{
				PullingImages: b, Deployed: b, StoppedByRequest: b,
				FinalBackupComplete: b, NetworkNotReady: b, Aborted: b,
			}
		})
	}
	activity := func(at *timestamppb.Timestamp) []func(*wsman.WorkspaceStatus) {
		return says(func(s *wsman.WorkspaceStatus) { s.Conditions.FirstUserActivity = at })
	}
	only := func(values map[string]any) func(*statustest.Row) {
		return func(r *statustest.Row) { r.Status["conditions"] = values }
	}
	runAll(t, []rule{
		{
			name: "texts set their keys",
			hear: says(func(s *wsman.WorkspaceStatus) {
				s.Conditions.Failed, s.Conditions.Timeout, s.Conditions.HeadlessTaskFailed = "f", "t", "h"
				s.Conditions.Snapshot = "is the prebuild's alone"
			}),
			want: only(map[string]any{"failed": "f", "timeout": "t", "headlessTaskFailed": "h"}),
		},
		{name: "empty texts, EMPTY booleans and no activity unset their keys", row: set, hear: says(func(*wsman.WorkspaceStatus) {}), want: only(map[string]any{})},
		{
			name: "TRUE sets the key", hear: booleans(isTrue),
			want: func(r *statustest.Row) {
				r.Status["conditions"] = map[string]any{"pullingImages": true, "deployed": true, "stoppedByRequest": true}
				r.Deployed = heardAt(0)
			},
		},
		{
			name: "FALSE, which is also what is left out, sets the key", row: set, hear: booleans(isFalse),
			want: only(map[string]any{"pullingImages": false, "deployed": false, "stoppedByRequest": false}),
		},
		{name: "a boolean that we do not know unsets the key", row: set, hear: booleans(99), want: only(map[string]any{})},
		{
			name: "the first activity is an ISO time",
			hear: activity(&timestamppb.Timestamp{Seconds: statustest.Epoch.Unix(), Nanos: 1_999_999}),
			want: only(map[string]any{"firstUserActivity": "2024-03-01T12:00:00.001Z"}),
		},
		{name: "an activity in no year is none", row: set, hear: activity(&timestamppb.Timestamp{Seconds: 1 << 62}), want: only(map[string]any{})},
		{name: "failed is never cleared", row: failed, hear: says(func(*wsman.WorkspaceStatus) {})},
		{
			name: "failed may change", row: failed,
			hear: says(func(s *wsman.WorkspaceStatus) { s.Conditions.Failed = "new" }),
			want: only(map[string]any{"failed": "new"}),
		},
		{
			name: "failed stays when folded away",
			hear: []func(*wsman.WorkspaceStatus){
				func(s *wsman.WorkspaceStatus) { s.Conditions.Failed, s.Conditions.Timeout = "f", "t" },
				func(*wsman.WorkspaceStatus) {},
			},
			want: only(map[string]any{"failed": "f"}),
		},
	})
}

func TestFirstValuesAreKept(t *testing.T) {
	runtime := func(node, pod, ip string) func(*wsman.WorkspaceStatus) {
		return func(s *wsman.WorkspaceStatus) {
			s.Runtime = &wsman.WorkspaceRuntimeInfo{NodeName: node, PodName: pod, NodeIp: ip}
		}
	}
	image := func(total, workspace int64) func(*wsman.WorkspaceStatus) {
		return func(s *wsman.WorkspaceStatus) { s.Metadata.Metrics = imageMetrics(total, workspace) }
	}
	runAll(t, []rule{
		{
			name: "of the runtime",
			hear: []func(*wsman.WorkspaceStatus){runtime("n", "", ""), runtime("other", "p", ""), runtime("", "other", "i")},
			want: func(r *statustest.Row) {
				r.Status["nodeName"], r.Status["podName"], r.Status["nodeIp"] = "n", "p", "i"
			},
		},
		{
			name: "of the runtime on the row",
			row:  func(r *statustest.Row) { r.Status["nodeName"] = "n" },
			hear: says(runtime("other", "p", "")),
			want: func(r *statustest.Row) { r.Status["podName"] = "p" },
		},
		{
			name: "of the image sizes, each by itself; the metrics take the last",
			hear: []func(*wsman.WorkspaceStatus){image(1, 0), image(2, 3), image(0, 4)},
			want: func(r *statustest.Row) {
				r.Status["metrics"] = map[string]any{"image": map[string]any{"totalSize": 1, "workspaceImageSize": 3}}
				r.Metrics = map[string]any{"image": map[string]any{"totalSize": 2, "workspaceImageSize": 4}}
			},
		},
		{
			name: "of the image sizes on the row",
			row: func(r *statustest.Row) {
				r.Status["metrics"] = map[string]any{"image": map[string]any{"totalSize": 1}, "theirs": 1}
			},
			hear: says(image(2, 3)),
			want: func(r *statustest.Row) {
				r.Status["metrics"] = map[string]any{"image": map[string]any{"totalSize": 1, "workspaceImageSize": 3}, "theirs": 1}
				r.Metrics = map[string]any{"image": map[string]any{"totalSize": 2, "workspaceImageSize": 3}}
			},
		},
	})
}

func imageMetrics(total, workspace int64) *wsman.WorkspaceMetadata_Metrics {
	return &wsman.WorkspaceMetadata_Metrics{Image: &wsman.WorkspaceMetadata_ImageInfo{TotalSize: total, WorkspaceImageSize: workspace}}
}

func TestInitializerMetrics(t *testing.T) {
	took := func(d time.Duration, size uint64) *wsman.InitializerMetric {
		return &wsman.InitializerMetric{Duration: durationpb.New(d), Size: size}
	}
	runAll(t, []rule{
		{
			name: "durations are milliseconds",
			hear: says(func(s *wsman.WorkspaceStatus) {
				s.InitializerMetrics = &wsman.InitializerMetrics{
					Git: took(1500*time.Millisecond, 1), FileDownload: took(1500*time.Microsecond, 2), Snapshot: took(0, 3),
					Backup: took(time.Hour, 0), Prebuild: &wsman.InitializerMetric{},
				}
			}),
			want: func(r *statustest.Row) {
				r.Metrics = map[string]any{"initializerMetrics": map[string]any{
					"git": map[string]any{"duration": 1500, "size": 1}, "fileDownload": map[string]any{"duration": 1.5, "size": 2},
					"snapshot": map[string]any{"duration": 0, "size": 3}, "backup": map[string]any{"duration": 3600000},
				}}
			},
		},
		{
			name: "what is absent overwrites nothing",
			row: func(r *statustest.Row) {
				r.Metrics = map[string]any{
					"image":              map[string]any{"totalSize": 1, "workspaceImageSize": 2},
					"initializerMetrics": map[string]any{"git": map[string]any{"duration": 1, "size": 1}, "list": []any{1, 2}},
				}
			},
			hear: []func(*wsman.WorkspaceStatus){
				func(s *wsman.WorkspaceStatus) {
					s.InitializerMetrics = &wsman.InitializerMetrics{Git: took(time.Second, 0), Composite: took(0, 5)}
				},
				func(s *wsman.WorkspaceStatus) {
					s.InitializerMetrics = &wsman.InitializerMetrics{Composite: &wsman.InitializerMetric{Size: 6}}
				},
				func(*wsman.WorkspaceStatus) {},
			},
			want: func(r *statustest.Row) {
				r.Metrics["initializerMetrics"] = map[string]any{
					"git": map[string]any{"duration": 1000, "size": 1}, "list": []any{1, 2},
					"composite": map[string]any{"duration": 0, "size": 6},
				}
			},
		},
		{
			name: "nothing said makes no row",
			hear: says(func(s *wsman.WorkspaceStatus) {
				s.InitializerMetrics = &wsman.InitializerMetrics{Git: &wsman.InitializerMetric{}}
				s.Metadata.Metrics = imageMetrics(0, 0)
			}),
		},
	})
}

func TestDeployedTime(t *testing.T) {
	deployed := func(b wsman.WorkspaceConditionBool) func(*wsman.WorkspaceStatus) {
		return func(s *wsman.WorkspaceStatus) { s.Conditions.Deployed = b }
	}
	runAll(t, []rule{
		{
			name: "is when it is first seen true", hear: []func(*wsman.WorkspaceStatus){deployed(isFalse), deployed(isTrue), deployed(isTrue)},
			want: func(r *statustest.Row) { r.Deployed, conditions(r)["deployed"] = heardAt(1), true },
		},
		{
			name: "stays", row: func(r *statustest.Row) { r.Deployed = heardAt(-9) },
			hear: says(deployed(isTrue)),
			want: func(r *statustest.Row) { conditions(r)["deployed"] = true },
		},
		{
			name: "is not set by FALSE", hear: says(deployed(isFalse)),
			want: func(r *statustest.Row) { conditions(r)["deployed"] = false },
		},
	})
}

// A prototype of a status must be left alone by what reads it.
func TestChangeDoesNotTouchTheStatus(t *testing.T) {
	s := creating()
	before := proto.CloneOf(s)
	history{s}.change(t, status.Rules{}, 0)
	if !proto.Equal(s, before) {
		t.Fatalf("%v became %v", before, s)
	}
}
