package api

import (
	"context"
	"fmt"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionalphapb "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"

	"github.com/trestle-bridge/trestle/coordinator"
	"github.com/trestle-bridge/trestle/internal/access"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
	bridge "github.com/trestle-bridge/trestle/proto/workspacemanagerbridge"
)

// rule says who may call a method. Open methods are for everybody, whoever they
// say they are.
type rule struct {
	role access.Role
	open bool
	// change names what the method changes, for the audit log; empty for those
	// that only look.
	change string
}

// rules are those of every method that is served; a test holds that. What is
// not here is an operator's, so a method that was forgotten is refused to others.
func rules() map[string]rule {
	view := rule{role: access.Viewer}
	change := func(what string) rule { return rule{role: access.Operator, change: what} }
	return map[string]rule{
		bridge.ClusterService_Register_FullMethodName:   change("register"),
		bridge.ClusterService_Update_FullMethodName:     change("update"),
		bridge.ClusterService_Deregister_FullMethodName: change("deregister"),
		bridge.ClusterService_List_FullMethodName:       view,

		trestlev1.ShardService_ListShards_FullMethodName:     view,
		trestlev1.ShardService_WatchShards_FullMethodName:    view,
		trestlev1.ShardService_ListReplicas_FullMethodName:   view,
		trestlev1.ShardService_ExplainCluster_FullMethodName: view,
		trestlev1.ShardService_PlanRebalance_FullMethodName:  view,
		trestlev1.ShardService_ListCommands_FullMethodName:   view,
		trestlev1.ShardService_ListSlices_FullMethodName:     view,

		trestlev1.ShardService_Pin_FullMethodName:            change(string(coordinator.CommandPin)),
		trestlev1.ShardService_Unpin_FullMethodName:          change(string(coordinator.CommandUnpin)),
		trestlev1.ShardService_DrainReplica_FullMethodName:   change(string(coordinator.CommandDrain)),
		trestlev1.ShardService_UndrainReplica_FullMethodName: change(string(coordinator.CommandUndrain)),
		trestlev1.ShardService_Freeze_FullMethodName:         change(string(coordinator.CommandFreeze)),
		trestlev1.ShardService_Unfreeze_FullMethodName:       change(string(coordinator.CommandUnfreeze)),
		trestlev1.ShardService_SetSlices_FullMethodName:      change(string(coordinator.CommandSlices)),
		trestlev1.ShardService_ReleaseBrake_FullMethodName:   change(string(coordinator.CommandBrakeRelease)),
		trestlev1.ShardService_RequestSweep_FullMethodName:   change("sweep-request"),
		trestlev1.ShardService_ConfirmSweep_FullMethodName:   change("sweep-confirm"),

		trestlev1.InstanceService_TraceInstance_FullMethodName:      view,
		trestlev1.QuarantineService_ListQuarantine_FullMethodName:   view,
		trestlev1.QuarantineService_RetryQuarantined_FullMethodName: change("quarantine-retry"),
		trestlev1.QuarantineService_DropQuarantined_FullMethodName:  change("quarantine-drop"),

		// Probes have no names, and learn nothing but that it serves.
		healthpb.Health_Check_FullMethodName: {open: true},
		healthpb.Health_List_FullMethodName:  {open: true},
		healthpb.Health_Watch_FullMethodName: {open: true},

		reflectionpb.ServerReflection_ServerReflectionInfo_FullMethodName:      view,
		reflectionalphapb.ServerReflection_ServerReflectionInfo_FullMethodName: view,
	}
}

const (
	// Calls under way in all: of callers that are known, and of those that need
	// not be, who so cannot take the places of the others.
	maxCallsInAll = 256
	maxOpenInAll  = 64
	// A prober asks now and then; a watch of health is one call.
	openPerSecond = 20
	openAtOnce    = 16
)

// door lets calls in, or not.
type door struct {
	rules map[string]rule
	who   *access.Authenticator
	// known holds those to their limits who have a name or need none, open
	// those whose name was not asked for or not proved.
	known, open *access.Limiter
}

func newDoor(who *access.Authenticator, limits access.Limits) (*door, error) {
	known, err := access.NewLimiter(limits)
	if err != nil {
		return nil, err
	}
	open, err := access.NewLimiter(access.Limits{PerSecond: openPerSecond, AtOnce: openAtOnce, InAll: maxOpenInAll})
	if err != nil {
		return nil, err
	}
	return &door{rules: rules(), who: who, known: known, open: open}, nil
}

// forbiddenError is a caller who is known, and may not.
type forbiddenError struct {
	who    access.Identity
	method string
}

func (e *forbiddenError) Error() string {
	return fmt.Sprintf("%s is a %s, and may not call %s; it takes an operator", e.who.Name, e.who.Role, e.method)
}

func (d *door) rule(method string) rule {
	if r, listed := d.rules[method]; listed {
		return r
	}
	return rule{role: access.Operator}
}

// enter lets a call in; leave, which is called once, ends it. What is known of
// the caller is given with an error too.
func (d *door) enter(ctx context.Context, method string) (who access.Identity, leave func(), err error) {
	r := d.rule(method)
	origin := access.Origin(ctx)
	if r.open {
		leave, err = d.open.Enter(origin)
		return access.Identity{}, leave, err
	}
	who, err = d.who.Identify(ctx)
	if err != nil {
		// Guessing is slowed down, and so is what it leaves in the log.
		leave, tooMany := d.open.Enter(origin)
		if tooMany != nil {
			return who, nil, tooMany
		}
		leave()
		return who, nil, err
	}
	name := "at " + origin
	if who.Name != "" {
		name = who.Proof + " " + who.Name
	}
	if leave, err = d.known.Enter(name); err != nil {
		return who, nil, err
	}
	if who.Role < r.role {
		leave()
		return who, nil, &forbiddenError{who, method}
	}
	return who, leave, nil
}
