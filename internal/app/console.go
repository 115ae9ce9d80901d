package app

import (
	"context"

	"github.com/trestle-bridge/trestle/internal/console"
	"github.com/trestle-bridge/trestle/internal/store"
)

// optionalConsole is the console, or that there is none.
type optionalConsole struct{ server *console.Server }

func newConsole(o Options, health health, db *store.Store, replicas *fleet) (optionalConsole, error) {
	cfg := o.Config
	if cfg.Console.Address == "" {
		return optionalConsole{}, nil
	}
	server, err := console.New(console.Config{
		Address:      cfg.Console.Address,
		Exposed:      cfg.Console.Exposed,
		Hosts:        cfg.Console.Hosts,
		Installation: cfg.Installation,
		Version:      o.Version,
		Incarnation:  replicas.me,
		Fleet:        replicas.coordinator,
		Checks:       health.ready,
		Quarantine:   db,
		Level:        o.LogLevel,
		Logger:       o.Logger.With("component", "console"),
	})
	if err == nil && o.Console != nil {
		o.Console(server.Addr())
	}
	return optionalConsole{server}, err
}

// Run serves the console until ctx ends.
func (c optionalConsole) Run(ctx context.Context) error {
	if c.server == nil {
		return nil
	}
	return c.server.Run(ctx)
}

// Close gives back the address of a console that never ran.
func (c optionalConsole) Close() error {
	if c.server == nil {
		return nil
	}
	return c.server.Close()
}

func (c optionalConsole) address() string {
	if c.server == nil {
		return ""
	}
	return c.server.Addr().String()
}
