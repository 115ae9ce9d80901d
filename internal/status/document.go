package status

import (
	"github.com/trestle-bridge/trestle/proto/wsman"
)

// iso8601 is how a JavaScript client writes a time: UTC, milliseconds.
const iso8601 = "2006-01-02T15:04:05.000Z07:00"

type port struct {
	Port       uint32 `json:"port"`
	Visibility string `json:"visibility"`
	Protocol   string `json:"protocol"`
	URL        string `json:"url"`
}

// document gives the keys of the status document that an update overwrites,
// whatever they were; phase is not among them, see Effect.
func document(s *wsman.WorkspaceStatus) []byte {
	spec := s.GetSpec()
	ports := make([]port, 0, len(spec.GetExposedPorts()))
	for _, p := range spec.GetExposedPorts() {
		visibility, protocol := "private", "http"
		if p.GetVisibility() == wsman.PortVisibility_PORT_VISIBILITY_PUBLIC {
			visibility = "public"
		}
		if p.GetProtocol() == wsman.PortProtocol_PORT_PROTOCOL_HTTPS {
			protocol = "https"
		}
		ports = append(ports, port{Port: p.GetPort(), Visibility: visibility, Protocol: protocol, URL: clean(p.GetUrl())})
	}
	return mustMarshal(struct {
		Version      uint64 `json:"version"`
		Message      string `json:"message"`
		ExposedPorts []port `json:"exposedPorts"`
		Timeout      string `json:"timeout"`
		OwnerToken   string `json:"ownerToken"`
	}{
		Version:      s.GetStatusVersion(),
		Message:      clean(s.GetMessage()),
		ExposedPorts: ports,
		Timeout:      clean(spec.GetTimeout()),
		OwnerToken:   clean(s.GetAuth().GetOwnerToken()),
	})
}

// conditions gives the conditions that are set, but for failed.
func conditions(c *wsman.WorkspaceConditions) []byte {
	var activity string
	if at := c.GetFirstUserActivity(); at.IsValid() { // else a year that no column takes
		activity = at.AsTime().Format(iso8601)
	}
	return mustMarshal(struct {
		Timeout            string `json:"timeout,omitempty"`
		PullingImages      *bool  `json:"pullingImages,omitempty"`
		Deployed           *bool  `json:"deployed,omitempty"`
		FirstUserActivity  string `json:"firstUserActivity,omitempty"`
		HeadlessTaskFailed string `json:"headlessTaskFailed,omitempty"`
		StoppedByRequest   *bool  `json:"stoppedByRequest,omitempty"`
	}{
		Timeout:            clean(c.GetTimeout()),
		PullingImages:      conditionBool(c.GetPullingImages()),
		Deployed:           conditionBool(c.GetDeployed()),
		FirstUserActivity:  activity,
		HeadlessTaskFailed: clean(c.GetHeadlessTaskFailed()),
		StoppedByRequest:   conditionBool(c.GetStoppedByRequest()),
	})
}

// conditionBool gives nil for EMPTY, and for what a newer cluster may invent:
// the condition is unset.
func conditionBool(c wsman.WorkspaceConditionBool) *bool {
	switch c {
	case wsman.WorkspaceConditionBool_TRUE:
		return new(true)
	case wsman.WorkspaceConditionBool_FALSE:
		return new(false)
	}
	return nil
}
