// Command trestle is the service: it hears workspace clusters, writes what
// they say to PostgreSQL, and tells the platform through Redis.
//
// Exit codes: 0 after a clean stop, 1 on failure, 2 on wrong usage or
// configuration, 3 when stopped before everything heard was written and
// handed over.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	// The first signal ends ctx; from then on signals do what they do by
	// default, so that the second one ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], streams{out: os.Stdout, err: os.Stderr}, os.LookupEnv))
}
