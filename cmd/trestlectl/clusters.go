package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	bridge "github.com/trestle-bridge/trestle/proto/workspacemanagerbridge"
)

func (p *program) clusters() *cobra.Command {
	c := group(&cobra.Command{Use: "clusters", Short: "Register, change and remove workspace clusters"})
	c.AddCommand(p.clustersList(), p.clustersRegister(), p.clustersUpdate(),
		p.clustersCordon("cordon", "Have nothing new started on a cluster; it is heard on", true),
		p.clustersCordon("uncordon", "Let workspaces start on a cluster again", false),
		p.clustersDeregister())
	return c
}

func (p *program) clustersList() *cobra.Command {
	return p.reading(&cobra.Command{
		Use:   "list",
		Short: "List the registered clusters, then the static ones of the configuration",
	}, nil, func(c *cobra.Command, _ []string) error {
		var answer *bridge.ListResponse
		err := p.ask(c.Context(), func(ctx context.Context, r *replica) (err error) {
			answer, err = r.clusters().List(ctx, &bridge.ListRequest{})
			return err
		})
		if err != nil {
			return err
		}
		return p.print(answer, func(g *page) { showClusters(g, answer.GetStatus()) })
	})
}

func showClusters(g *page, clusters []*bridge.ClusterStatus) {
	if len(clusters) == 0 {
		g.line("There are no clusters; trestlectl clusters register adds one.")
		return
	}
	rows := make([][]string, len(clusters))
	for i, c := range clusters {
		from := "registry"
		if c.GetStatic() {
			from = "configuration"
		}
		rows[i] = []string{
			c.GetName(), c.GetState().String(), c.GetUrl(), orNone(c.GetRegion()), fmt.Sprint(c.GetScore()), fmt.Sprint(c.GetMaxScore()), from,
			yesNo(c.GetGoverned()), orNone(constraintsText(c.GetAdmissionConstraint())),
		}
	}
	g.table([]column{
		{title: "CLUSTER"}, {title: "STATE"}, {title: "URL"}, {title: "REGION"}, {title: "SCORE", right: true}, {title: "MAX", right: true}, {title: "FROM"},
		{title: "HEARD", wide: true}, {title: "ADMITS", wide: true},
	}, rows)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func constraintsText(constraints []*bridge.AdmissionConstraint) string {
	var texts []string
	for _, c := range constraints {
		if permission := c.GetHasPermission(); permission != nil {
			texts = append(texts, "permission "+permission.GetPermission())
		} else if c.GetHasFeaturePreview() != nil {
			texts = append(texts, "feature preview")
		}
	}
	return strings.Join(texts, ", ")
}

// registering completes a command that changes the registry.
func (p *program) registering(c *cobra.Command, args []argument, do func(context.Context, *replica, []string) (proto.Message, string, error)) *cobra.Command {
	p.takes(c, args)
	var reason string
	c.Flags().StringVar(&reason, "reason", "", "why, for the audit log of the replica")
	c.RunE = func(c *cobra.Command, args []string) error {
		p.started, p.trace = true, "trestlectl clusters list"
		return p.change(c.Context(), func(ctx context.Context, r *replica) error {
			if reason != "" {
				// The requests have no room for it.
				ctx = metadata.AppendToOutgoingContext(ctx, "trestle-reason-bin", reason)
			}
			answer, said, err := do(ctx, r, args)
			if err != nil {
				return err
			}
			return p.print(answer, func(g *page) { g.line("%s", said) })
		})
	}
	return c
}

// material is where the three PEM files of mutual TLS are.
type material struct{ ca, crt, key string }

func (m *material) addFlags(c *cobra.Command) {
	c.Flags().StringVar(&m.ca, "ca", "", "PEM `file` of the authority that signs the cluster's certificate")
	c.Flags().StringVar(&m.crt, "crt", "", "PEM `file` of our certificate")
	c.Flags().StringVar(&m.key, "key", "", "PEM `file` of its key")
	c.MarkFlagsRequiredTogether("ca", "crt", "key")
}

// read gives nil when no files are given.
func (m *material) read() (*bridge.TlsConfig, error) {
	if m.ca == "" {
		return nil, nil
	}
	out := &bridge.TlsConfig{}
	for _, part := range []struct {
		flag, path string
		to         *string
	}{{"ca", m.ca, &out.Ca}, {"crt", m.crt, &out.Crt}, {"key", m.key, &out.Key}} {
		content, err := os.ReadFile(part.path)
		if err != nil {
			return nil, usage("--%s: %v", part.flag, err)
		}
		*part.to = base64.StdEncoding.EncodeToString(content)
	}
	return out, nil
}

func preferences() []string { return []string{"none", "prefer", "dont-schedule"} }

func preferability(name string) (bridge.Preferability, error) {
	switch name {
	case "", "none":
		return bridge.Preferability_None, nil
	case "prefer":
		return bridge.Preferability_Prefer, nil
	case "dont-schedule":
		return bridge.Preferability_DontSchedule, nil
	}
	return 0, usage("--preference %q: give one of %s", name, strings.Join(preferences(), ", "))
}

func featurePreview() *bridge.AdmissionConstraint {
	return &bridge.AdmissionConstraint{Constraint: &bridge.AdmissionConstraint_HasFeaturePreview{HasFeaturePreview: &bridge.AdmissionConstraint_FeaturePreview{}}}
}

func permission(name string) *bridge.AdmissionConstraint {
	return &bridge.AdmissionConstraint{Constraint: &bridge.AdmissionConstraint_HasPermission_{
		HasPermission: &bridge.AdmissionConstraint_HasPermission{Permission: name},
	}}
}

func (p *program) clustersRegister() *cobra.Command {
	var files material
	var region, preference string
	var cordoned, preview bool
	var permissions []string
	c := p.registering(&cobra.Command{
		Use:   "register",
		Short: "Add a cluster; it is called first, with that certificate",
	}, []argument{{"NAME", nil}, {"URL", nil}}, func(ctx context.Context, r *replica, args []string) (proto.Message, string, error) {
		prefer, err := preferability(preference)
		if err != nil {
			return nil, "", err
		}
		tls, err := files.read()
		if err != nil {
			return nil, "", err
		}
		request := &bridge.RegisterRequest{
			Name: args[0], Url: args[1], Region: region, Tls: tls, Hints: &bridge.RegistrationHints{Perfereability: prefer, Cordoned: cordoned},
		}
		if preview {
			request.AdmissionConstraints = append(request.AdmissionConstraints, featurePreview())
		}
		for _, name := range permissions {
			request.AdmissionConstraints = append(request.AdmissionConstraints, permission(name))
		}
		answer, err := r.clusters().Register(ctx, request)
		return answer, fmt.Sprintf("%s is registered, and is heard within a second.", args[0]), err
	})
	files.addFlags(c)
	c.Flags().StringVar(&region, "region", "", "europe, north-america, south-america, africa or asia")
	c.Flags().StringVar(&preference, "preference", "none", strings.Join(preferences(), ", "))
	c.Flags().BoolVar(&cordoned, "cordoned", false, "hear it, but start nothing there yet")
	c.Flags().BoolVar(&preview, "feature-preview", false, "admit only who has the feature preview")
	c.Flags().StringSliceVar(&permissions, "permission", nil, "admit only who has this permission; may be repeated")
	complete(c, "region", "europe", "north-america", "south-america", "africa", "asia")
	complete(c, "preference", preferences()...)
	return c
}

func (p *program) clustersUpdate() *cobra.Command {
	var files material
	var score, maxScore int32
	var add, remove string
	var addPreview, removePreview bool
	var c *cobra.Command
	c = p.registering(&cobra.Command{
		Use:   "update",
		Short: "Change one property of a registered cluster",
		Long:  "Change one property of a registered cluster. New TLS material is tried before it is stored.",
	}, []argument{{"NAME", p.registeredClusters}}, func(ctx context.Context, r *replica, args []string) (proto.Message, string, error) {
		request := &bridge.UpdateRequest{Name: args[0]}
		constrain := func(added bool, constraint *bridge.AdmissionConstraint) {
			request.Property = &bridge.UpdateRequest_AdmissionConstraint{
				AdmissionConstraint: &bridge.ModifyAdmissionConstraint{Add: added, Constraint: constraint},
			}
		}
		switch changed := c.Flags().Changed; {
		case changed("score"):
			request.Property = &bridge.UpdateRequest_Score{Score: score}
		case changed("max-score"):
			request.Property = &bridge.UpdateRequest_MaxScore{MaxScore: maxScore}
		case changed("add-permission"):
			constrain(true, permission(add))
		case changed("remove-permission"):
			constrain(false, permission(remove))
		case changed("add-feature-preview"):
			constrain(true, featurePreview())
		case changed("remove-feature-preview"):
			constrain(false, featurePreview())
		default:
			tls, err := files.read()
			if err != nil {
				return nil, "", err
			}
			request.Property = &bridge.UpdateRequest_Tls{Tls: tls}
		}
		answer, err := r.clusters().Update(ctx, request)
		return answer, fmt.Sprintf("%s is changed.", args[0]), err
	})
	files.addFlags(c)
	c.Flags().Int32Var(&score, "score", 0, "how much it is preferred, from 0 on")
	c.Flags().Int32Var(&maxScore, "max-score", 0, "the most that the score may become")
	c.Flags().StringVar(&add, "add-permission", "", "admit only who has this permission")
	c.Flags().StringVar(&remove, "remove-permission", "", "admit also who does not have this permission")
	c.Flags().BoolVar(&addPreview, "add-feature-preview", false, "admit only who has the feature preview")
	c.Flags().BoolVar(&removePreview, "remove-feature-preview", false, "admit also who does not have the feature preview")
	one := []string{"score", "max-score", "add-permission", "remove-permission", "add-feature-preview", "remove-feature-preview", "ca"}
	c.MarkFlagsOneRequired(one...)
	c.MarkFlagsMutuallyExclusive(one...)
	return c
}

func (p *program) clustersCordon(name, short string, cordoned bool) *cobra.Command {
	return p.registering(&cobra.Command{Use: name, Short: short}, []argument{{"NAME", p.registeredClusters}},
		func(ctx context.Context, r *replica, args []string) (proto.Message, string, error) {
			answer, err := r.clusters().Update(ctx, &bridge.UpdateRequest{Name: args[0], Property: &bridge.UpdateRequest_Cordoned{Cordoned: cordoned}})
			return answer, fmt.Sprintf("%s is %sed.", args[0], name), err
		})
}

func (p *program) clustersDeregister() *cobra.Command {
	var force bool
	c := p.registering(&cobra.Command{
		Use:   "deregister",
		Short: "Remove a cluster whose instances have all stopped",
	}, []argument{{"NAME", p.registeredClusters}}, func(ctx context.Context, r *replica, args []string) (proto.Message, string, error) {
		answer, err := r.clusters().Deregister(ctx, &bridge.DeregisterRequest{Name: args[0], Force: force})
		return answer, fmt.Sprintf("%s is deregistered.", args[0]), err
	})
	c.Flags().BoolVar(&force, "force", false, "also if instances there have not stopped; their rows are stopped later")
	return c
}
