package publish

import (
	"encoding/json"

	"github.com/trestle-bridge/trestle/internal/event"
)

// The encoders append what encoding/json makes of the same value, byte for
// byte, without its reflection: they run once for every changed row.

func appendInstance(b []byte, m *event.Instance) []byte {
	b = appendString(append(b, `{"ownerID":`...), m.OwnerID)
	b = appendString(append(b, `,"instanceID":`...), m.InstanceID)
	b = appendString(append(b, `,"workspaceID":`...), m.WorkspaceID)
	return append(b, '}')
}

func appendPrebuild(b []byte, m *event.Prebuild) []byte {
	b = appendString(append(b, `{"status":`...), m.Status)
	b = appendString(append(b, `,"prebuildID":`...), m.PrebuildID)
	b = appendString(append(b, `,"workspaceID":`...), m.WorkspaceID)
	b = appendString(append(b, `,"projectID":`...), m.ProjectID)
	if m.OrganizationID != "" {
		b = appendString(append(b, `,"organizationID":`...), m.OrganizationID)
	}
	return append(b, '}')
}

func appendHeadless(b []byte, m *event.Headless) []byte {
	b = appendString(append(b, `{"type":`...), m.Type)
	b = appendString(append(b, `,"workspaceID":`...), m.WorkspaceID)
	return append(b, '}')
}

func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		c := s[i]
		if c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			return appendEscaped(b, s)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// appendEscaped is for texts that no id of ours looks like.
func appendEscaped(b []byte, s string) []byte {
	quoted, err := json.Marshal(s)
	if err != nil {
		panic("publish: a string has no JSON form: " + err.Error())
	}
	return append(b, quoted...)
}
