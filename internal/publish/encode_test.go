package publish

import (
	"encoding/json"
	"testing"

	"github.com/trestle-bridge/trestle/internal/event"
)

// FuzzEncoding compares with encoding/json, which reads the tags of the contract.
func FuzzEncoding(f *testing.F) {
	f.Add("o", "i", "w", "p", "")
	f.Add("\"\\/\b\f\n\r\t\x00\x1f", "<>&", "é\u2028\u2029\ufffd", "\xff\xc3", "\x7f")
	f.Fuzz(func(t *testing.T, a, b, c, d, e string) {
		check := func(got []byte, of any) {
			want, err := json.Marshal(of)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("got %s, want %s", got, want)
			}
		}
		i := event.Instance{OwnerID: a, InstanceID: b, WorkspaceID: c}
		check(appendInstance(nil, &i), i)
		p := event.Prebuild{Status: a, PrebuildID: b, WorkspaceID: c, ProjectID: d, OrganizationID: e}
		check(appendPrebuild(nil, &p), p)
		h := event.Headless{Type: d, WorkspaceID: e}
		check(appendHeadless(nil, &h), h)
	})
}
