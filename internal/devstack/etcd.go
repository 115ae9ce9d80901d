package devstack

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"syscall"

	"go.etcd.io/etcd/api/v3/version"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"

	"github.com/trestle-bridge/trestle/internal/devstack/process"
)

// EtcdConfig sets a private etcd.
type EtcdConfig struct {
	// UnsafeNoFsync leaves writes to the operating system. They survive a Stop,
	// not a crash of the machine.
	UnsafeNoFsync bool
}

// Etcd is a private etcd of one member inside the calling process.
type Etcd struct {
	config  EtcdConfig
	data    string
	logPath string
	client  *portReservation // nil after Close
	peer    *portReservation // nobody connects to it, but etcd wants one
	address string           // the client address, host:port, known for life

	server *runningEtcd // nil while stopped
}

// runningEtcd is one run of the server.
type runningEtcd struct {
	etcd *embed.Etcd
	grpc *grpc.Server
	log  *os.File
}

func startEtcd(ctx context.Context, cfg EtcdConfig, base base, dir *privateDir) (_ *Etcd, err error) {
	e := &Etcd{
		config:  cfg,
		data:    filepath.Join(dir.path, "etcd"),
		logPath: filepath.Join(dir.path, "etcd.log"),
	}
	for range bindAttempts {
		if e.client, err = base.reservePort(); err != nil {
			return nil, err
		}
		if e.peer, err = base.reservePort(); err != nil {
			return nil, errors.Join(err, e.client.release())
		}
		e.address = e.client.addr()
		if err = e.Start(ctx); err == nil {
			return e, nil
		}
		taken := errors.Is(err, syscall.EADDRINUSE)
		err = errors.Join(err, e.client.release(), e.peer.release())
		if !taken {
			break
		}
	}
	return nil, err
}

// Start starts a stopped server again, on the same port with the same data, and
// returns when it answers. It does nothing if the server runs.
func (e *Etcd) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if e.client == nil {
		return errors.New("start etcd: it is closed")
	}
	if e.server != nil {
		return nil
	}
	log, err := process.OpenLog(e.logPath)
	if err != nil {
		return err
	}
	run := &runningEtcd{log: log}
	served := make(chan *grpc.Server, 1) // etcd hands it over once and must not wait for us
	if run.etcd, err = embed.StartEtcd(e.embedConfig(log, served)); err != nil {
		return errors.Join(fmt.Errorf("start etcd: %w", err), log.Close())
	}
	// The gRPC server is made when the member has its leader; connections that
	// come before it serves wait in the listener.
	select {
	case run.grpc = <-served:
		e.server = run
		return nil
	case err = <-run.etcd.Err():
		err = fmt.Errorf("the server ended while starting: %w", err)
	case <-run.etcd.Server.StopNotify():
		err = errors.New("the server ended while starting")
	case <-ctx.Done():
		err = fmt.Errorf("wait for the server: %w", context.Cause(ctx))
	}
	run.etcd.Close()
	return errors.Join(fmt.Errorf("%w, its log ends with:\n%s", err, process.LogTail(e.logPath)), log.Close())
}

func (e *Etcd) embedConfig(log *os.File, served chan<- *grpc.Server) *embed.Config {
	client := []url.URL{{Scheme: "http", Host: e.client.addr()}}
	peer := []url.URL{{Scheme: "http", Host: e.peer.addr()}}
	cfg := embed.NewConfig()
	cfg.Dir = e.data
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = client, client
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = peer, peer
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.EnableGRPCGateway = false
	cfg.UnsafeNoFsync = e.config.UnsafeNoFsync
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(zapcore.NewCore(
		zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.Lock(log), zapcore.WarnLevel)))
	cfg.ServiceRegister = func(s *grpc.Server) { served <- s }
	return cfg
}

// Stop stops the server and cuts its connections. It does nothing if the server
// does not run.
func (e *Etcd) Stop() error {
	if e.server == nil {
		return nil
	}
	run := e.server
	e.server = nil
	// Left to itself etcd first waits seconds for watches and keepalives to end,
	// which they never do, and serves them meanwhile: no outage for a test.
	run.grpc.Stop()
	run.etcd.Close()
	if err := run.log.Close(); err != nil {
		return fmt.Errorf("close etcd's log: %w", err)
	}
	return nil
}

// Wipe stops the server, removes its data and starts it again, empty and on the
// same port, as after the loss of a whole etcd cluster.
func (e *Etcd) Wipe(ctx context.Context) error {
	if err := e.Stop(); err != nil {
		return err
	}
	if err := os.RemoveAll(e.data); err != nil {
		return fmt.Errorf("remove etcd's data: %w", err)
	}
	return e.Start(ctx)
}

// Close stops the server and removes its data. A nil or closed one is fine.
func (e *Etcd) Close() error {
	if e == nil || e.client == nil {
		return nil
	}
	err := e.Stop()
	if removeErr := os.RemoveAll(e.data); removeErr != nil {
		err = errors.Join(err, fmt.Errorf("remove etcd's data: %w", removeErr))
	}
	err = errors.Join(err, e.client.release(), e.peer.release())
	e.client = nil
	return err
}

// Kind says what runs, as in "etcd 3.7.3, embedded".
func (e *Etcd) Kind() string { return "etcd " + version.Version + ", embedded" }

// Addr returns host:port for clients, the same for life.
func (e *Etcd) Addr() string { return e.address }

// Endpoints returns what a client takes as its endpoints, the same for life.
func (e *Etcd) Endpoints() []string { return []string{"http://" + e.address} }
