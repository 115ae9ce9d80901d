package status

import (
	"strconv"

	"github.com/trestle-bridge/trestle/proto/wsman"
)

// iso8601 is how a JavaScript client writes a time: UTC, milliseconds.
const iso8601 = "2006-01-02T15:04:05.000Z07:00"

// document gives the keys of the status document that an update overwrites,
// whatever they were; phase is not among them, see Effect. It is written by
// hand, as every update of a replica comes through here.
func document(s *wsman.WorkspaceStatus) []byte {
	spec := s.GetSpec()
	size := 128 + len(s.GetMessage()) + len(spec.GetTimeout()) + len(s.GetAuth().GetOwnerToken())
	for _, p := range spec.GetExposedPorts() {
		size += 80 + len(p.GetUrl())
	}
	b := make([]byte, 0, size)
	b = append(b, `{"version":`...)
	b = strconv.AppendUint(b, s.GetStatusVersion(), 10)
	b = append(b, `,"message":`...)
	b = appendText(b, s.GetMessage())
	b = append(b, `,"exposedPorts":[`...)
	for i, p := range spec.GetExposedPorts() {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendPort(b, p)
	}
	b = append(b, `],"timeout":`...)
	b = appendText(b, spec.GetTimeout())
	b = append(b, `,"ownerToken":`...)
	b = appendText(b, s.GetAuth().GetOwnerToken())
	return append(b, '}')
}

func appendPort(b []byte, p *wsman.PortSpec) []byte {
	visibility, protocol := "private", "http"
	if p.GetVisibility() == wsman.PortVisibility_PORT_VISIBILITY_PUBLIC {
		visibility = "public"
	}
	if p.GetProtocol() == wsman.PortProtocol_PORT_PROTOCOL_HTTPS {
		protocol = "https"
	}
	b = append(b, `{"port":`...)
	b = strconv.AppendUint(b, uint64(p.GetPort()), 10)
	b = append(b, `,"visibility":"`...)
	b = append(b, visibility...)
	b = append(b, `","protocol":"`...)
	b = append(b, protocol...)
	b = append(b, `","url":`...)
	b = appendText(b, p.GetUrl())
	return append(b, '}')
}

// conditions gives the conditions that are set, but for failed.
func conditions(c *wsman.WorkspaceConditions) []byte {
	b := make([]byte, 0, 160)
	b = append(b, '{')
	setText := func(name, text string) {
		if text != "" {
			b = appendText(appendKey(b, name), text)
		}
	}
	// EMPTY, and what a newer cluster may invent, leave a condition unset.
	setBool := func(name string, value wsman.WorkspaceConditionBool) {
		switch value {
		case wsman.WorkspaceConditionBool_TRUE:
			b = append(appendKey(b, name), "true"...)
		case wsman.WorkspaceConditionBool_FALSE:
			b = append(appendKey(b, name), "false"...)
		}
	}
	setText("timeout", c.GetTimeout())
	setBool("pullingImages", c.GetPullingImages())
	setBool("deployed", c.GetDeployed())
	if at := c.GetFirstUserActivity(); at.IsValid() { // else a year that no column takes
		b = append(appendKey(b, "firstUserActivity"), '"')
		b = at.AsTime().AppendFormat(b, iso8601)
		b = append(b, '"')
	}
	setText("headlessTaskFailed", c.GetHeadlessTaskFailed())
	setBool("stoppedByRequest", c.GetStoppedByRequest())
	return append(b, '}')
}

// appendKey begins the next member of an object of which b ends with what was
// written so far. The name needs no escapes.
func appendKey(b []byte, name string) []byte {
	if b[len(b)-1] != '{' {
		b = append(b, ',')
	}
	b = append(append(b, '"'), name...)
	return append(b, '"', ':')
}

// appendText appends a text as JSON. The text is valid UTF-8, as every text of
// a decoded message is; its NUL characters are replaced, see clean.
func appendText(b []byte, text string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	from := 0
	for i := range len(text) {
		c := text[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, text[from:i]...)
		from = i + 1
		switch {
		case c == 0:
			b = append(b, "\uFFFD"...)
		case c >= ' ':
			b = append(b, '\\', c)
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
		}
	}
	b = append(b, text[from:]...)
	return append(b, '"')
}
