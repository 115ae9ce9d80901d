// Command trestlectl shows operators which replica carries which workspace
// cluster, and why, and moves them: it asks ShardService and ClusterService of
// any replica.
//
// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 what was named does not exist,
// 4 refused, 5 no replica could be reached, or it could not do its work.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], streams{out: os.Stdout, err: os.Stderr}, os.LookupEnv))
}
