package limits

import (
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/trestle-bridge/trestle/internal/devstack"
	"github.com/trestle-bridge/trestle/internal/secret"
	"github.com/trestle-bridge/trestle/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestRows writes every row that it counts.
func TestRows(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a PostgreSQL")
	}
	stack, err := devstack.Start(t.Context(), devstack.Config{Postgres: &devstack.PostgresConfig{}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stack.Close(); err != nil {
			t.Error(err)
		}
	}()
	postgres := stack.Postgres.URL()
	if err := store.Migrate(t.Context(), secret.NewURL(postgres), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	rows, err := NewRows(t.Context(), postgres, 1, 1200)
	if err != nil {
		t.Fatal(err)
	}
	// A batch that does not write all of its rows is an error.
	if rate, err := rows.Batches(t.Context(), 2, 2*time.Second); err != nil || rate <= 0 {
		t.Errorf("%g rows a second: %v", rate, err)
	}
	// As fast as it can: long enough for one on any machine.
	for rate, during := range map[float64]time.Duration{0: 2 * time.Second, 500: 100 * time.Millisecond} {
		got, latency, err := rows.Singles(t.Context(), 2, rate, during)
		if err != nil || got <= 0 || latency.Count() == 0 || rate > 0 && latency.Count() != 50 {
			t.Errorf("at %g rows a second: %g, %d of them, %v", rate, got, latency.Count(), err)
		}
	}
}

func TestStream(t *testing.T) {
	for _, decode := range []bool{false, true} {
		var reading Reading
		var g errgroup.Group
		err := Flood(t.Context(), 3000, 10, func(address string) {
			g.Go(func() (err error) {
				reading, err = Read(t.Context(), address, 3000, decode)
				return err
			})
		})
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		if err != nil || reading.Messages != 3000 || reading.Rate() <= 0 {
			t.Errorf("decoding %v: %+v, %v", decode, reading, err)
		}
	}
}

func TestScan(t *testing.T) {
	if took, err := Scan(2000); err != nil || took <= 0 {
		t.Errorf("%s a message, %v", took, err)
	}
}
