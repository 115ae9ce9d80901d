package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
	bridge "github.com/trestle-bridge/trestle/proto/workspacemanagerbridge"
)

func done() map[string]proto.Message {
	return map[string]proto.Message{
		"Pin": &trestlev1.PinResponse{}, "Unpin": &trestlev1.UnpinResponse{}, "DrainReplica": &trestlev1.DrainReplicaResponse{},
		"UndrainReplica": &trestlev1.UndrainReplicaResponse{}, "Freeze": &trestlev1.FreezeResponse{}, "Unfreeze": &trestlev1.UnfreezeResponse{},
		"SetSlices": &trestlev1.SetSlicesResponse{}, "ReleaseBrake": &trestlev1.ReleaseBrakeResponse{},
		"RequestSweep": &trestlev1.RequestSweepResponse{}, "ConfirmSweep": &trestlev1.ConfirmSweepResponse{},
		"Register": &bridge.RegisterResponse{}, "Update": &bridge.UpdateResponse{}, "Deregister": &bridge.DeregisterResponse{},
	}
}

func TestChanges(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("pem of "+name), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tls := []string{"--ca", file("ca"), "--crt", file("crt"), "--key", file("key")}
	const encoded = `"tls": {"ca": "cGVtIG9mIGNh", "crt": "cGVtIG9mIGNydA==", "key": "cGVtIG9mIGtleQ=="}`
	for _, c := range []struct {
		args   []string
		asks   proto.Message
		with   string
		prints string
	}{
		{[]string{"pin", "eu01#0/2", "b", "--reason", "closer", "--author", "ann", "--for", "90m"}, &trestlev1.PinRequest{},
			`{"shard": "eu01#0/2", "replica": "b", "reason": "closer", "author": "ann", "validFor": "5400s"}`, "eu01#0/2 is pinned to b, and moves there soon if it is elsewhere. It lapses in 1h30m0s."},
		{[]string{"pin", "eu01", "b", "--reason", "closer", "--author", "ann"}, &trestlev1.PinRequest{},
			`{"shard": "eu01", "replica": "b", "reason": "closer", "author": "ann"}`, "eu01 is pinned to b, and moves there soon if it is elsewhere."},
		{[]string{"unpin", "eu01", "--reason", "r", "--author", "ann", "--for", "1m"}, &trestlev1.UnpinRequest{},
			`{"shard": "eu01", "reason": "r", "author": "ann", "validFor": "60s"}`, "eu01 is not pinned any more."},
		{[]string{"drain", "a", "--reason", "r", "--author", "ann", "--for", "1h"}, &trestlev1.DrainReplicaRequest{},
			`{"replica": "a", "reason": "r", "author": "ann", "validFor": "3600s"}`, "a is being emptied; watch it with trestlectl shards --watch. It lapses in 1h0m0s."},
		{[]string{"undrain", "a", "--reason", "r", "--author", "ann"}, &trestlev1.UndrainReplicaRequest{},
			`{"replica": "a", "reason": "r", "author": "ann"}`, "a takes shards again."},
		{[]string{"freeze", "--reason", "r", "--author", "ann", "--for", "1h"}, &trestlev1.FreezeRequest{},
			`{"reason": "r", "author": "ann", "validFor": "3600s"}`, "Frozen: only shards without an owner move. trestlectl unfreeze ends it. It lapses in 1h0m0s."},
		{[]string{"unfreeze", "--reason", "r", "--author", "ann"}, &trestlev1.UnfreezeRequest{}, `{"reason": "r", "author": "ann"}`, "Shards move again."},
		{[]string{"slices", "eu01", "4", "--reason", "hot", "--author", "ann"}, &trestlev1.SetSlicesRequest{},
			`{"cluster": "eu01", "slices": 4, "reason": "hot", "author": "ann"}`, "eu01 is being cut into 4; see trestlectl explain eu01."},
		{[]string{"brake", "release", "--reason", "r", "--author", "ann"}, &trestlev1.ReleaseBrakeRequest{},
			`{"reason": "r", "author": "ann"}`, "The brake is off: shards without an owner are given one."},
		{[]string{"sweep", "request", "eu01", "--reason", "r", "--author", "ann"}, &trestlev1.RequestSweepRequest{},
			`{"cluster": "eu01", "reason": "r", "author": "ann"}`, "The leader looks at eu01 now; the log of the leader says what it finds."},
		{[]string{"sweep", "confirm", "eu01", "--reason", "r", "--author", "ann"}, &trestlev1.ConfirmSweepRequest{},
			`{"cluster": "eu01", "reason": "r", "author": "ann"}`, "What eu01 misses is confirmed to be gone, and is stopped at the next look."},

		{[]string{"clusters", "register", "eu70", "eu70:443"}, &bridge.RegisterRequest{}, `{"name": "eu70", "url": "eu70:443", "hints": {}}`,
			"eu70 is registered, and is heard within a second."},
		{append([]string{"clusters", "register", "eu70", "eu70:443", "--region", "europe", "--preference", "prefer", "--cordoned", "--feature-preview", "--permission", "a,b"}, tls...),
			&bridge.RegisterRequest{}, `{"name": "eu70", "url": "eu70:443", "region": "europe", "hints": {"perfereability": "Prefer", "cordoned": true}, ` + encoded + `,
				"admissionConstraints": [{"hasFeaturePreview": {}}, {"hasPermission": {"permission": "a"}}, {"hasPermission": {"permission": "b"}}]}`,
			"eu70 is registered, and is heard within a second."},
		{[]string{"clusters", "register", "eu70", "eu70:443", "--preference", "dont-schedule"}, &bridge.RegisterRequest{},
			`{"name": "eu70", "url": "eu70:443", "hints": {"perfereability": "DontSchedule"}}`, "eu70 is registered, and is heard within a second."},
		{[]string{"clusters", "update", "eu70", "--score", "0"}, &bridge.UpdateRequest{}, `{"name": "eu70", "score": 0}`, "eu70 is changed."},
		{[]string{"clusters", "update", "eu70", "--max-score", "70"}, &bridge.UpdateRequest{}, `{"name": "eu70", "maxScore": 70}`, "eu70 is changed."},
		{[]string{"clusters", "update", "eu70", "--add-permission", "a"}, &bridge.UpdateRequest{},
			`{"name": "eu70", "admissionConstraint": {"add": true, "constraint": {"hasPermission": {"permission": "a"}}}}`, "eu70 is changed."},
		{[]string{"clusters", "update", "eu70", "--remove-permission", "a"}, &bridge.UpdateRequest{},
			`{"name": "eu70", "admissionConstraint": {"constraint": {"hasPermission": {"permission": "a"}}}}`, "eu70 is changed."},
		{[]string{"clusters", "update", "eu70", "--add-feature-preview"}, &bridge.UpdateRequest{},
			`{"name": "eu70", "admissionConstraint": {"add": true, "constraint": {"hasFeaturePreview": {}}}}`, "eu70 is changed."},
		{[]string{"clusters", "update", "eu70", "--remove-feature-preview"}, &bridge.UpdateRequest{},
			`{"name": "eu70", "admissionConstraint": {"constraint": {"hasFeaturePreview": {}}}}`, "eu70 is changed."},
		{append([]string{"clusters", "update", "eu70"}, tls...), &bridge.UpdateRequest{}, `{"name": "eu70", ` + encoded + `}`, "eu70 is changed."},
		{[]string{"clusters", "cordon", "eu70"}, &bridge.UpdateRequest{}, `{"name": "eu70", "cordoned": true}`, "eu70 is cordoned."},
		{[]string{"clusters", "uncordon", "eu70"}, &bridge.UpdateRequest{}, `{"name": "eu70", "cordoned": false}`, "eu70 is uncordoned."},
		{[]string{"clusters", "deregister", "eu70"}, &bridge.DeregisterRequest{}, `{"name": "eu70"}`, "eu70 is deregistered."},
		{[]string{"clusters", "deregister", "eu70", "--force"}, &bridge.DeregisterRequest{}, `{"name": "eu70", "force": true}`, "eu70 is deregistered."},
	} {
		f := newFake(t, done())
		what := strings.Join(c.args, " ")
		call(t, f.addr, c.args...).reads(t, what, c.prints)
		want := parse(t, c.with, c.asks)
		if asked := f.requests(); len(asked) != 1 || !proto.Equal(asked[0], want) {
			t.Errorf("%s: asked for %v, want %s", what, asked, protojson.Format(want))
		}
		asJSON, asYAML := "{}", "{}"
		if c.args[0] == "slices" {
			asJSON, asYAML = "{\n  \"unpinned\": []\n}", "unpinned: []"
		}
		call(t, f.addr, append(c.args, "-o", "json")...).reads(t, what+" as JSON", asJSON)
		call(t, f.addr, append(c.args, "-o", "yaml")...).reads(t, what+" as YAML", asYAML)
	}
	f := newFake(t, done())
	call(t, f.addr, "freeze", "--reason=r")
	if asked := f.requests()[0].(*trestlev1.FreezeRequest); asked.GetAuthor() != author() {
		t.Errorf("the author is %q", asked.GetAuthor())
	}
	call(t, f.addr, "clusters", "register", "eu70", "eu70:1", "--preference", "often").says(t, "an unknown preference", exitUsage, `"often"`, "dont-schedule")
	call(t, f.addr, "clusters", "register", "eu70", "eu70:1", "--ca=/none", "--crt=/none", "--key=/none").says(t, "no such file", exitUsage, "--ca", "/none")
}

func TestClustersAreListed(t *testing.T) {
	t.Parallel()
	answer := parse(t, `{"status": [
		{"name": "eu70", "url": "dns:///eu70:443", "state": "AVAILABLE", "score": 100, "maxScore": 100, "governed": true, "region": "europe",
			"admissionConstraint": [{"hasFeaturePreview": {}}, {"hasPermission": {"permission": "admin"}}]},
		{"name": "us70", "url": "us70:443", "state": "CORDONED", "static": true}]}`, &bridge.ListResponse{})
	f := newFake(t, map[string]proto.Message{"List": answer})
	call(t, f.addr, "clusters", "list").reads(t, "the list", `
CLUSTER  STATE      URL              REGION  SCORE  MAX  FROM
eu70     AVAILABLE  dns:///eu70:443  europe    100  100  registry
us70     CORDONED   us70:443         -           0    0  configuration`)
	call(t, f.addr, "clusters", "list", "-o", "wide").reads(t, "the wide list", `
CLUSTER  STATE      URL              REGION  SCORE  MAX  FROM           HEARD  ADMITS
eu70     AVAILABLE  dns:///eu70:443  europe    100  100  registry       yes    feature preview, permission admin
us70     CORDONED   us70:443         -           0    0  configuration  no     -`)
	asJSON := call(t, f.addr, "clusters", "list", "-o", "json")
	got := &bridge.ListResponse{}
	if err := protojson.Unmarshal([]byte(asJSON.out), got); err != nil || !proto.Equal(got, answer) {
		t.Errorf("as JSON (%v): %+v", err, asJSON)
	}
	empty := newFake(t, map[string]proto.Message{"List": &bridge.ListResponse{}})
	call(t, empty.addr, "clusters", "list").reads(t, "nothing", "There are no clusters; trestlectl clusters register adds one.")
}
