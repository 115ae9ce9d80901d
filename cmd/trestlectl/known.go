package main

import (
	"context"

	"github.com/spf13/cobra"

	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
	bridge "github.com/trestle-bridge/trestle/proto/workspacemanagerbridge"
)

// What there is, for the completion of a command line.

func (p *program) knownShards(ctx context.Context) (names []string, err error) {
	err = p.ask(ctx, func(ctx context.Context, r *replica) error {
		all, err := allShards(ctx, r, "", "")
		for _, s := range all.GetShards() {
			names = append(names, s.GetId())
		}
		return err
	})
	return names, err
}

func (p *program) knownClusters(ctx context.Context) (names []string, err error) {
	err = p.ask(ctx, func(ctx context.Context, r *replica) error {
		all, err := allShards(ctx, r, "", "")
		for _, s := range all.GetShards() {
			if s.GetSlice() == 0 {
				names = append(names, s.GetCluster())
			}
		}
		return err
	})
	return names, err
}

func (p *program) knownReplicas(ctx context.Context) (names []string, err error) {
	err = p.ask(ctx, func(ctx context.Context, r *replica) error {
		answer, err := r.shards().ListReplicas(ctx, &trestlev1.ListReplicasRequest{})
		for _, r := range answer.GetReplicas() {
			names = append(names, r.GetName())
		}
		return err
	})
	return names, err
}

func (p *program) knownDrains(ctx context.Context) (names []string, err error) {
	err = p.ask(ctx, func(ctx context.Context, r *replica) error {
		answer, err := r.shards().ListReplicas(ctx, &trestlev1.ListReplicasRequest{})
		for _, r := range answer.GetReplicas() {
			if r.GetDrain() != nil {
				names = append(names, r.GetName())
			}
		}
		for _, d := range answer.GetOtherDrains() {
			names = append(names, d.GetReplica())
		}
		return err
	})
	return names, err
}

func (p *program) registeredClusters(ctx context.Context) (names []string, err error) {
	err = p.ask(ctx, func(ctx context.Context, r *replica) error {
		answer, err := r.clusters().List(ctx, &bridge.ListRequest{})
		for _, c := range answer.GetStatus() {
			if !c.GetStatic() {
				names = append(names, c.GetName())
			}
		}
		return err
	})
	return names, err
}

// completeFlag completes the values of a flag of this command, so that there is
// no error.
func (p *program) completeFlag(c *cobra.Command, flag string, known func(context.Context) ([]string, error)) {
	_ = c.RegisterFlagCompletionFunc(flag, func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return p.complete(c.Context(), known)
	})
}

// complete asks the service, for no longer than whoever presses the key waits.
func (p *program) complete(ctx context.Context, known func(context.Context) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	if known == nil || p.check() != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	p.timeout = min(p.timeout, completionTimeout)
	names, err := known(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
