package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	listenMinBackoff = 100 * time.Millisecond
	listenMaxBackoff = 5 * time.Second
)

// ListenClusters calls changed whenever the registry of clusters may have
// changed: after each commit that changed it, and each time it begins to
// listen, since what was told before then is lost. It holds a connection of
// its own beside the pool. It returns when ctx ends. changed must not block.
func (s *Store) ListenClusters(ctx context.Context, changed func()) {
	backoff := listenMinBackoff
	for ctx.Err() == nil {
		listening, err := s.listenClusters(ctx, changed)
		if ctx.Err() != nil {
			return
		}
		if listening {
			backoff = listenMinBackoff
		}
		s.log.Warn("changes of the registry of clusters are not heard; listening again", "error", err, "in", backoff.String())
		select {
		case <-time.After(backoff*3/4 + rand.N(backoff/2)):
		case <-ctx.Done():
			return
		}
		backoff = min(2*backoff, listenMaxBackoff)
	}
}

// listenClusters listens until the connection breaks or ctx ends, and says
// whether it came to that.
func (s *Store) listenClusters(ctx context.Context, changed func()) (listening bool, err error) {
	conn, err := pgx.ConnectConfig(ctx, s.pool.Config().ConnConfig)
	if err != nil {
		return false, fmt.Errorf("connect to listen for changes of clusters: %w", err)
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
		defer cancel()
		// Nothing is lost with a connection that only listens.
		_ = conn.Close(closing)
	}()
	starting, cancel := context.WithTimeout(ctx, connectTimeout)
	_, err = conn.Exec(starting, `LISTEN trestle_clusters`)
	cancel()
	if err != nil {
		return false, fmt.Errorf("listen for changes of clusters: %w", err)
	}
	changed()
	for {
		if _, err := conn.WaitForNotification(ctx); err != nil {
			return true, fmt.Errorf("wait for changes of clusters: %w", err)
		}
		changed()
	}
}
