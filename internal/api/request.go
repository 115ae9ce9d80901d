package api

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/trestle-bridge/trestle/internal/secret"
	"github.com/trestle-bridge/trestle/internal/store"
	bridge "github.com/trestle-bridge/trestle/proto/workspacemanagerbridge"
)

const (
	stateAvailable = "available"
	stateCordoned  = "cordoned"

	maxScore = 100

	// The indexes of the table hold texts of this length, and some more.
	maxNameBytes = 255
	maxURLBytes  = 2000
)

func regions() []string {
	return []string{"europe", "north-america", "south-america", "africa", "asia"}
}

// registration is the cluster that a request asks for, without its classes.
func (s *clusterService) registration(r *bridge.RegisterRequest) (store.Cluster, error) {
	c := store.Cluster{
		Name: r.GetName(), URL: r.GetUrl(), Region: r.GetRegion(),
		State: stateAvailable, MaxScore: maxScore, Govern: true,
	}
	if err := checkText("name", c.Name, maxNameBytes); err != nil {
		return store.Cluster{}, err
	}
	if err := checkText("url", c.URL, maxURLBytes); err != nil {
		return store.Cluster{}, err
	}
	if c.Region != "" && !slices.Contains(regions(), c.Region) {
		return store.Cluster{}, invalid("region", "%q is none of %s; it may be left out", c.Region, strings.Join(regions(), ", "))
	}
	switch p := r.GetHints().GetPerfereability(); p {
	case bridge.Preferability_Prefer:
		c.Score = 100
	case bridge.Preferability_None:
		c.Score = 50
	case bridge.Preferability_DontSchedule:
		c.Score = 0
	default:
		return store.Cluster{}, invalid("hints.perfereability", "%d is none of None, Prefer, DontSchedule", p)
	}
	if r.GetHints().GetCordoned() {
		c.State = stateCordoned
	}
	var err error
	if c.AdmissionConstraints, err = encodeConstraints(r.GetAdmissionConstraints()); err != nil {
		return store.Cluster{}, err
	}
	t := r.GetTls()
	if t.GetCa() == "" && t.GetCrt() == "" && t.GetKey() == "" {
		if !s.allowPlaintext {
			return store.Cluster{}, invalid("tls", "ca, crt and key are required; clusters without TLS have to be allowed in the configuration (allowPlaintextClusters)")
		}
		return c, nil
	}
	if c.TLS, err = checkTLS(t); err != nil {
		return store.Cluster{}, err
	}
	return c, nil
}

func checkText(field, text string, longest int) error {
	switch {
	case strings.TrimSpace(text) == "":
		return invalid(field, "is required")
	case len(text) > longest:
		return invalid(field, "has %d bytes; at most %d are allowed", len(text), longest)
	case strings.TrimSpace(text) != text || strings.ContainsFunc(text, unicode.IsControl):
		return invalid(field, "begins or ends with a blank, or holds a control character")
	}
	return nil
}

// checkTLS says whether the material is complete and fits together. It is kept
// as it was given. No error quotes it.
func checkTLS(t *bridge.TlsConfig) (*store.ClusterTLS, error) {
	for _, part := range []struct{ field, value string }{{"tls.ca", t.GetCa()}, {"tls.crt", t.GetCrt()}, {"tls.key", t.GetKey()}} {
		if part.value == "" {
			return nil, invalid(part.field, "is required: ca, crt and key go together, each the base64 of a PEM file")
		}
	}
	kept := &store.ClusterTLS{CA: secret.New(t.GetCa()), Certificate: secret.New(t.GetCrt()), Key: secret.New(t.GetKey())}
	pem, err := decodeTLS(kept)
	if err != nil {
		return nil, err
	}
	if !x509.NewCertPool().AppendCertsFromPEM([]byte(pem.CA.Reveal())) {
		return nil, invalid("tls.ca", "holds no certificate in PEM")
	}
	if _, err := tls.X509KeyPair([]byte(pem.Cert.Reveal()), []byte(pem.Key.Reveal())); err != nil {
		return nil, invalid("tls.crt", "and tls.key are no certificate and its key in PEM: %v", err)
	}
	return kept, nil
}

func decodePEM(field, encoded string) (string, error) {
	pem, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		// The cause would tell a part of what it cannot read.
		return "", invalid(field, "is not base64")
	}
	return string(pem), nil
}

// changeOf gives the change that a request asks for, and what the log says of
// it.
func changeOf(r *bridge.UpdateRequest) (change store.ClusterChange, what []any, err error) {
	switch p := r.GetProperty().(type) {
	case *bridge.UpdateRequest_Score:
		change.Score, what = &p.Score, []any{"score", p.Score}
		return change, what, notNegative("score", p.Score)
	case *bridge.UpdateRequest_MaxScore:
		change.MaxScore, what = &p.MaxScore, []any{"max_score", p.MaxScore}
		return change, what, notNegative("max_score", p.MaxScore)
	case *bridge.UpdateRequest_Cordoned:
		change.Cordoned = &p.Cordoned
		return change, []any{"cordoned", p.Cordoned}, nil
	case *bridge.UpdateRequest_AdmissionConstraint:
		encoded, err := encodeConstraint(p.AdmissionConstraint.GetConstraint())
		if err != nil {
			return store.ClusterChange{}, nil, err
		}
		if p.AdmissionConstraint.GetAdd() {
			change.AddConstraint = encoded
		} else {
			change.RemoveConstraint = encoded
		}
		return change, []any{"constraint", string(encoded), "added", p.AdmissionConstraint.GetAdd()}, nil
	case *bridge.UpdateRequest_Tls:
		change.TLS, err = checkTLS(p.Tls)
		return change, []any{"tls", "new material"}, err
	}
	return store.ClusterChange{}, nil, invalid("property", "nothing is to be changed; set one of score, max_score, cordoned, admission_constraint, tls")
}

func notNegative(field string, value int32) error {
	if value < 0 {
		return invalid(field, "%d is below 0", value)
	}
	return nil
}

// constraint is an admission constraint as the row holds it, which others read
// too.
type constraint struct {
	Type       string `json:"type"`
	Permission string `json:"permission,omitempty"`
}

const (
	featurePreview = "has-feature-preview"
	hasPermission  = "has-permission"
)

func encodeConstraint(c *bridge.AdmissionConstraint) (json.RawMessage, error) {
	var out constraint
	switch c := c.GetConstraint().(type) {
	case *bridge.AdmissionConstraint_HasFeaturePreview:
		out.Type = featurePreview
	case *bridge.AdmissionConstraint_HasPermission_:
		out = constraint{hasPermission, c.HasPermission.GetPermission()}
		if err := checkText("admission_constraint.has_permission.permission", out.Permission, maxNameBytes); err != nil {
			return nil, err
		}
	default:
		return nil, invalid("admission_constraint", "is empty, or of a kind that is not known here; set has_feature_preview or has_permission")
	}
	encoded, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("encode an admission constraint: %w", err)
	}
	return encoded, nil
}

// encodeConstraints leaves out what is there before.
func encodeConstraints(constraints []*bridge.AdmissionConstraint) (json.RawMessage, error) {
	all := []json.RawMessage{} // not null
	for _, c := range constraints {
		encoded, err := encodeConstraint(c)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(all, func(other json.RawMessage) bool { return string(other) == string(encoded) }) {
			all = append(all, encoded)
		}
	}
	encoded, err := json.Marshal(all)
	if err != nil {
		return nil, fmt.Errorf("encode the admission constraints: %w", err)
	}
	return encoded, nil
}

// decodeConstraints gives those that have a message, also when there is an
// error, which tells of others.
func decodeConstraints(encoded []byte) ([]*bridge.AdmissionConstraint, error) {
	if len(encoded) == 0 {
		return nil, nil
	}
	var all []constraint
	if err := json.Unmarshal(encoded, &all); err != nil {
		return nil, fmt.Errorf("decode the admission constraints: %w", err)
	}
	var out []*bridge.AdmissionConstraint
	var unknown error
	for _, c := range all {
		switch c.Type {
		case featurePreview:
			out = append(out, &bridge.AdmissionConstraint{Constraint: &bridge.AdmissionConstraint_HasFeaturePreview{
				HasFeaturePreview: &bridge.AdmissionConstraint_FeaturePreview{},
			}})
		case hasPermission:
			out = append(out, &bridge.AdmissionConstraint{Constraint: &bridge.AdmissionConstraint_HasPermission_{
				HasPermission: &bridge.AdmissionConstraint_HasPermission{Permission: c.Permission},
			}})
		default:
			unknown = fmt.Errorf("no message for an admission constraint of type %q", c.Type)
		}
	}
	return out, unknown
}
