package script

import (
	"strings"

	"github.com/trestle-bridge/trestle/proto/wsman"
)

// scenarios are the odd scripts.
var scenarios = []struct {
	name  string
	of    Type
	role  Role
	write func(*writer)
}{
	{"repeats", Regular, Known, func(w *writer) {
		w.pending()
		w.repeat(3)
		w.pulling()
		w.deployed()
		w.repeat(2)
		w.initializing()
		w.running()
		w.ports()
		w.repeat(5)
		w.stopping(byRequest)
		w.stopped()
		w.repeat(4)
	}},
	{"stale", Regular, Known, func(w *writer) {
		w.start()
		w.stale(0)
		w.stale(3)
		w.ports()
		w.stale(4)
		w.stopping(byRequest)
		w.stopped()
		w.stale(5)
		w.stale(6)
	}},
	{"interrupted", Regular, Known, func(w *writer) {
		w.start()
		w.ports()
		w.say(func(s *wsman.WorkspaceStatus) {
			s.Phase = wsman.WorkspacePhase_INTERRUPTED
			s.Message = "the node does not answer"
		})
		w.say(func(s *wsman.WorkspaceStatus) {
			s.Phase = wsman.WorkspacePhase_RUNNING
			s.Message = ""
		})
		w.stopping(nil)
		w.stopped()
	}},
	{"back", Regular, Known, func(w *writer) {
		w.lifecycle()
		w.say(func(s *wsman.WorkspaceStatus) {
			s.Phase = wsman.WorkspacePhase_RUNNING
			s.Conditions.StoppedByRequest = wsman.WorkspaceConditionBool_EMPTY
			s.Message = "the pod is running again"
		})
		w.stopping(byRequest)
		w.stopped()
	}},
	{"back-to-stay", Regular, Known, func(w *writer) {
		w.lifecycle()
		w.say(func(s *wsman.WorkspaceStatus) {
			s.Phase = wsman.WorkspacePhase_INTERRUPTED
			s.Message = "the node answers again"
		})
	}},
	{"unknown-phase", Regular, Known, func(w *writer) {
		w.start()
		w.say(func(s *wsman.WorkspaceStatus) {
			s.Phase = wsman.WorkspacePhase_UNKNOWN
			s.Message = "the pod cannot be read"
		})
		w.ports()
		w.stopping(byRequest)
		w.stopped()
		w.say(func(s *wsman.WorkspaceStatus) { s.Phase = wsman.WorkspacePhase_UNKNOWN })
	}},
	{"late-stopping", Regular, Known, func(w *writer) {
		w.lifecycle()
		w.stopping(func(s *wsman.WorkspaceStatus) { s.Message = "the backup is being written again" })
	}},
	{"skips-stopping", Regular, Known, func(w *writer) {
		w.start()
		w.stopped()
	}},
	{"failed", Regular, Known, func(w *writer) {
		w.pending()
		w.pulling()
		w.say(func(s *wsman.WorkspaceStatus) {
			s.Conditions.Failed = "cannot pull image: manifest unknown"
		})
		w.say(func(s *wsman.WorkspaceStatus) { s.Message = "giving up" })
		w.stopping(func(s *wsman.WorkspaceStatus) { s.Conditions.Failed = "" })
		w.stopped()
	}},
	{"timeout", Regular, Known, func(w *writer) {
		w.start()
		w.ports()
		w.stopping(func(s *wsman.WorkspaceStatus) {
			s.Conditions.Timeout = "workspace timed out after inactivity of 30m0s"
		})
		w.stopped()
	}},
	{"metrics", Regular, Known, func(w *writer) {
		w.start()
		w.measure()
		w.ports()
		w.say(func(s *wsman.WorkspaceStatus) {
			s.Metadata.Metrics.Image.TotalSize += 77
			s.InitializerMetrics = &wsman.InitializerMetrics{Prebuild: &wsman.InitializerMetric{Size: 4096}}
		})
		w.say(func(s *wsman.WorkspaceStatus) {
			s.Metadata.Metrics, s.InitializerMetrics = nil, nil
		})
		w.stopping(byRequest)
		w.stopped()
	}},
	{"moved", Regular, Known, func(w *writer) {
		w.start()
		w.say(func(s *wsman.WorkspaceStatus) {
			s.Runtime = &wsman.WorkspaceRuntimeInfo{NodeName: "another-node", PodName: "another-pod", NodeIp: "10.0.0.1"}
			s.Auth.OwnerToken = "tk-renewed"
			s.Spec.Timeout = "180m"
		})
		w.say(func(s *wsman.WorkspaceStatus) {
			s.Runtime, s.Auth, s.Spec.Url, s.Spec.Timeout = nil, nil, "", ""
		})
		w.stopping(byRequest)
		w.stopped()
	}},
	{"unversioned", Regular, Known, func(w *writer) {
		w.start()
		for i := range w.steps {
			w.steps[i].Unversioned = true
		}
		w.stopping(byRequest)
		w.stopped()
		w.stale(1) // version 0 after a versioned one
	}},
	{"nul", Regular, Known, func(w *writer) {
		w.start()
		w.say(func(s *wsman.WorkspaceStatus) {
			s.Message = "before\x00after"
			s.Conditions.Timeout = "\x00"
		})
	}},
	{"large-text", Regular, Known, func(w *writer) {
		w.start()
		w.say(func(s *wsman.WorkspaceStatus) {
			s.Message = strings.Repeat("log line with \"quotes\", \\backslashes and ünïcödé\n", 200)
		})
		w.stopping(byRequest)
		w.stopped()
	}},
	{"invalid", Regular, Known, func(w *writer) {
		w.start()
		w.oneOff(Invalid, func(s *wsman.WorkspaceStatus) { s.Id = "" })
		w.oneOff(Invalid, func(s *wsman.WorkspaceStatus) { s.Id = "not-a-uuid" })
		w.oneOff(Invalid, func(s *wsman.WorkspaceStatus) { s.Metadata = nil })
		w.oneOff(Invalid, func(s *wsman.WorkspaceStatus) { s.Spec = nil })
		w.oneOff(Invalid, func(s *wsman.WorkspaceStatus) { s.Conditions = nil })
		w.oneOff(Invalid, func(s *wsman.WorkspaceStatus) { s.Message = "a version out of range" })
		w.steps[len(w.steps)-1].Overflow = true
		// Field 1 as a length of 100 bytes with one byte behind it, and a
		// response without a status.
		w.steps = append(w.steps,
			Step{Frame: Garbage([]byte{0x0a, 0x64, 0xff}), Kind: Invalid},
			Step{Frame: Garbage(nil), Kind: Invalid})
		w.ports()
		w.stopping(byRequest)
		w.stopped()
	}},
	{"unknown-instance", Regular, Unknown, func(w *writer) { w.lifecycle() }},
	{"foreign-instance", Regular, Foreign, func(w *writer) { w.lifecycle() }},
	{"imagebuild", ImageBuild, Known, func(w *writer) {
		w.start()
		w.stopping(nil)
		w.stopped()
	}},

	{"prebuild", Prebuild, Known, func(w *writer) {
		w.start()
		w.stopping(nil)
		w.stopping(snapshot)
		w.stopped()
	}},
	{"prebuild-late-snapshot", Prebuild, Known, func(w *writer) {
		w.start()
		w.stopping(nil)
		w.stopped()
		w.stopping(snapshot)
	}},
	{"prebuild-interrupted", Prebuild, Known, func(w *writer) {
		w.start()
		w.say(func(s *wsman.WorkspaceStatus) { s.Phase = wsman.WorkspacePhase_INTERRUPTED })
		w.say(func(s *wsman.WorkspaceStatus) { s.Phase = wsman.WorkspacePhase_RUNNING })
		w.stopping(snapshot)
		w.stopped()
	}},
	{"prebuild-failed", Prebuild, Known, func(w *writer) {
		w.pending()
		w.pulling()
		w.stopping(func(s *wsman.WorkspaceStatus) { s.Conditions.Failed = "cannot pull image: manifest unknown" })
		// A terminal state stays, whatever comes after it.
		w.stopping(func(s *wsman.WorkspaceStatus) { s.Conditions.Failed = ""; snapshot(s) })
		w.stopped()
	}},
	{"prebuild-timeout", Prebuild, Known, func(w *writer) {
		w.start()
		w.stopping(func(s *wsman.WorkspaceStatus) {
			s.Conditions.Timeout = "headless workspace timed out after 1h0m0s"
			s.Conditions.Failed = "killed"
		})
		w.stopped()
	}},
	{"prebuild-aborted", Prebuild, Known, func(w *writer) {
		w.start()
		w.stopping(func(s *wsman.WorkspaceStatus) { byRequest(s); snapshot(s) })
		w.stopped()
	}},
	{"prebuild-task-failed", Prebuild, Known, func(w *writer) {
		w.start()
		w.stopping(func(s *wsman.WorkspaceStatus) {
			s.Conditions.HeadlessTaskFailed = "task 2 exited with code 1"
			snapshot(s)
		})
		w.stopped()
		w.repeat(2)
	}},
	{"prebuild-undecided", Prebuild, Known, func(w *writer) {
		w.start()
		w.stopping(nil)
		w.stopped()
	}},
}

func snapshot(s *wsman.WorkspaceStatus) {
	s.Conditions.Snapshot = "workspaces/" + s.Metadata.MetaId + "/snapshot-1761234567890.tar@gs://backups-eu"
}
