package script

import (
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/trestle-bridge/trestle/proto/wsman"
)

// writer writes one script: now is the state of the instance as its cluster
// knows it, and each call of say sends it.
type writer struct {
	rng   *rand.Rand
	of    Type
	now   *wsman.WorkspaceStatus
	steps []Step
	delta uint64
	err   error // the first one; later calls do nothing
}

func newWriter(rng *rand.Rand, of Type) *writer {
	instance, ws := FormatUUID(placeholder.Instance), placeholder.Workspace
	hexes := func(n int) string {
		const digits = "0123456789abcdef"
		b := make([]byte, n)
		for i := range b {
			b[i] = digits[rng.IntN(len(digits))]
		}
		return string(b)
	}
	w := &writer{rng: rng, of: of}
	w.now = &wsman.WorkspaceStatus{
		Id: instance,
		Metadata: &wsman.WorkspaceMetadata{
			Owner:       placeholder.Owner,
			MetaId:      ws,
			StartedAt:   timestamppb.New(epoch.Add(time.Duration(rng.IntN(1e6)) * time.Millisecond)),
			Annotations: map[string]string{"context": "git.example.dev/acme/" + hexes(8)},
			Team:        proto.String("5d6f3a52-1d9c-4f0e-9a53-" + hexes(12)),
			Project:     proto.String("71c4f1c2-65b9-4a8f-bb0d-" + hexes(12)),
		},
		Spec: &wsman.WorkspaceSpec{
			WorkspaceImage: "registry.eu.example.dev/workspace-images:" + hexes(40),
			Url:            "https://" + ws + ".ws-eu.example.dev",
			Timeout:        "30m",
			IdeImage: &wsman.IDEImage{
				WebRef:        "registry.eu.example.dev/ide/code:commit-" + hexes(20),
				SupervisorRef: "registry.eu.example.dev/supervisor:commit-" + hexes(20),
			},
			Class:          "g1-standard",
			IdeImageLayers: []string{"registry.eu.example.dev/ide/desktop:commit-" + hexes(20)},
			ClosedTimeout:  "5m",
		},
		Conditions: &wsman.WorkspaceConditions{
			PullingImages:       wsman.WorkspaceConditionBool_EMPTY,
			FinalBackupComplete: wsman.WorkspaceConditionBool_EMPTY,
			Deployed:            wsman.WorkspaceConditionBool_EMPTY,
			StoppedByRequest:    wsman.WorkspaceConditionBool_EMPTY,
			Aborted:             wsman.WorkspaceConditionBool_EMPTY,
		},
		Auth: &wsman.WorkspaceAuthentication{OwnerToken: "tk-" + hexes(32)},
	}
	switch of {
	case Prebuild:
		w.now.Spec.Type, w.now.Spec.Headless = wsman.WorkspaceType_PREBUILD, true
	case ImageBuild:
		w.now.Spec.Type, w.now.Spec.Headless = wsman.WorkspaceType_IMAGEBUILD, true
	}
	return w
}

func (w *writer) script(name string, role Role) *Script {
	return &Script{Name: name, Type: w.of, Role: role, Steps: w.steps}
}

// add appends a step with the next version; versions leave gaps, as the real
// ones do.
func (w *writer) add(status *wsman.WorkspaceStatus, kind Kind) {
	f, err := NewFrame(status)
	if err != nil {
		if w.err == nil {
			w.err = err
		}
		return
	}
	w.delta += 1 + uint64(w.rng.IntN(40))
	w.steps = append(w.steps, Step{Frame: f, Kind: kind, Delta: w.delta, Stopped: status.Phase == wsman.WorkspacePhase_STOPPED})
}

// say sends the state after changing it.
func (w *writer) say(change func(*wsman.WorkspaceStatus)) {
	change(w.now)
	w.add(w.now, Change)
}

// repeat sends the last message again under new versions.
func (w *writer) repeat(times int) {
	for range times {
		last := w.steps[len(w.steps)-1]
		w.delta += 1 + uint64(w.rng.IntN(40))
		last.Kind, last.Delta = Repeat, w.delta
		w.steps = append(w.steps, last)
	}
}

// stale sends the step of a number once more, version and all.
func (w *writer) stale(number int) {
	old := w.steps[number]
	old.Kind = Stale
	w.steps = append(w.steps, old)
}

// oneOff sends something that is not the state: a copy, changed.
func (w *writer) oneOff(kind Kind, change func(*wsman.WorkspaceStatus)) {
	s := proto.CloneOf(w.now)
	change(s)
	w.add(s, kind)
}

// The pieces of a lifecycle. After each, now is what the cluster holds.

func (w *writer) pending() {
	w.say(func(s *wsman.WorkspaceStatus) {
		s.Phase = wsman.WorkspacePhase_PENDING
		s.Message = "pod is pending: 0/12 nodes are available, the cluster is being scaled up"
	})
}

func (w *writer) pulling() {
	w.say(func(s *wsman.WorkspaceStatus) {
		s.Phase = wsman.WorkspacePhase_CREATING
		s.Conditions.PullingImages = wsman.WorkspaceConditionBool_TRUE
		s.Message = "containers are being created"
		s.Runtime = &wsman.WorkspaceRuntimeInfo{
			NodeName: fmt.Sprintf("workspace-ws-eu-pool-%04x", w.rng.IntN(1<<16)),
			PodName:  "ws-" + s.Id,
			NodeIp:   fmt.Sprintf("10.%d.%d.%d", w.rng.IntN(256), w.rng.IntN(256), 1+w.rng.IntN(254)),
		}
	})
}

func (w *writer) deployed() {
	w.say(func(s *wsman.WorkspaceStatus) {
		s.Conditions.PullingImages = wsman.WorkspaceConditionBool_FALSE
		s.Conditions.Deployed = wsman.WorkspaceConditionBool_TRUE
		s.Message = "containers are being created: images are there"
		s.Metadata.Metrics = &wsman.WorkspaceMetadata_Metrics{Image: &wsman.WorkspaceMetadata_ImageInfo{
			TotalSize:          2_000_000_000 + w.rng.Int64N(1e9),
			WorkspaceImageSize: 1_000_000_000 + w.rng.Int64N(1e9),
		}}
	})
}

func (w *writer) initializing() {
	w.say(func(s *wsman.WorkspaceStatus) {
		s.Phase = wsman.WorkspacePhase_INITIALIZING
		s.Message = "workspace is being initialized"
	})
}

func (w *writer) running() {
	w.say(func(s *wsman.WorkspaceStatus) {
		s.Phase = wsman.WorkspacePhase_RUNNING
		s.Message = ""
	})
}

func (w *writer) ports() {
	w.say(func(s *wsman.WorkspaceStatus) {
		for _, port := range []uint32{3000, 8080} {
			spec := &wsman.PortSpec{Port: port, Url: fmt.Sprintf("https://%d-%s.ws-eu.example.dev", port, s.Metadata.MetaId)}
			if port == 8080 {
				spec.Visibility = wsman.PortVisibility_PORT_VISIBILITY_PUBLIC
				spec.Protocol = wsman.PortProtocol_PORT_PROTOCOL_HTTPS
			}
			s.Spec.ExposedPorts = append(s.Spec.ExposedPorts, spec)
		}
		s.Conditions.FirstUserActivity = timestamppb.New(s.Metadata.StartedAt.AsTime().Add(time.Duration(10_000+w.rng.IntN(60_000)) * time.Millisecond))
	})
}

func (w *writer) stopping(change func(*wsman.WorkspaceStatus)) {
	w.say(func(s *wsman.WorkspaceStatus) {
		s.Phase = wsman.WorkspacePhase_STOPPING
		s.Message = "workspace is being stopped"
		s.Conditions.FinalBackupComplete = wsman.WorkspaceConditionBool_FALSE
		if change != nil {
			change(s)
		}
	})
}

func (w *writer) stopped() {
	w.say(func(s *wsman.WorkspaceStatus) {
		s.Phase = wsman.WorkspacePhase_STOPPED
		s.Conditions.FinalBackupComplete = wsman.WorkspaceConditionBool_TRUE
		s.Spec.ExposedPorts = nil
		s.Message = "workspace has stopped"
	})
}

// start is the way to RUNNING in five updates.
func (w *writer) start() {
	w.pending()
	w.pulling()
	w.deployed()
	w.initializing()
	w.running()
}

// lifecycle is the one of eight updates.
func (w *writer) lifecycle() {
	w.start()
	w.ports()
	w.stopping(byRequest)
	w.stopped()
}

func (w *writer) short() {
	w.pending()
	w.running()
	w.stopped()
}

func byRequest(s *wsman.WorkspaceStatus) {
	s.Conditions.StoppedByRequest = wsman.WorkspaceConditionBool_TRUE
}

func (w *writer) measure() {
	w.say(func(s *wsman.WorkspaceStatus) {
		ms := func(n int) *durationpb.Duration { return durationpb.New(time.Duration(n) * time.Millisecond) }
		s.InitializerMetrics = &wsman.InitializerMetrics{
			Git:       &wsman.InitializerMetric{Duration: ms(1 + w.rng.IntN(60_000)), Size: 1 + w.rng.Uint64N(1e9)},
			Backup:    &wsman.InitializerMetric{Duration: ms(1 + w.rng.IntN(60_000))},
			Composite: &wsman.InitializerMetric{Duration: ms(1 + w.rng.IntN(90_000)), Size: 1 + w.rng.Uint64N(1e9)},
		}
	})
}
