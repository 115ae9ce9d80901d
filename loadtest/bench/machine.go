package bench

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// machine is what the figures were measured on.
type machine struct {
	At        time.Time         `json:"at"`
	Quick     bool              `json:"quick"`
	Cores     int               `json:"cores"`
	CPU       string            `json:"cpu"`
	MemoryMiB int64             `json:"memory_mib"`
	Kernel    string            `json:"kernel"`
	Go        string            `json:"go"`
	Postgres  string            `json:"postgres"`
	Redis     string            `json:"redis"`
	Settings  map[string]string `json:"postgres_settings"`
	// Stolen is the share of the machine's time that its host has given to
	// others, and Load the average number of processes that wanted to run, both
	// of the whole run. Load before the run says whether others were at work.
	Stolen     float64 `json:"stolen"`
	LoadBefore float64 `json:"load_before"`
	Minutes    float64 `json:"minutes"`
}

func (m *machine) String() string {
	s := fmt.Sprintf("%d cores (%s), %s, %s, %s; %.1f%% stolen", m.Cores, m.CPU, m.Go, m.Postgres, m.Redis, 100*m.Stolen)
	if busy := m.LoadBefore / float64(m.Cores); busy > 0.5 {
		s += fmt.Sprintf("; others were at work (load %.1f)", m.LoadBefore)
	}
	if m.Quick {
		s += "; a quick run: the figures are rough"
	}
	return s
}

// durable are the settings without which nothing is measured: a figure of a
// database that may forget is worth nothing.
func durable() map[string]string {
	return map[string]string{"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "autovacuum": "on"}
}

// machine reads the facts, and refuses a database that is not durable.
func (b *bench) machine(ctx context.Context) (*machine, error) {
	m := &machine{
		At: time.Now().UTC().Truncate(time.Second), Quick: b.cfg.Quick, Cores: runtime.NumCPU(), Go: runtime.Version(),
		CPU:    lineOf("/proc/cpuinfo", "model name"),
		Kernel: strings.TrimSpace(read("/proc/sys/kernel/osrelease")),
		Redis:  short(b.stack.Redis.Kind()), Postgres: short(b.stack.Postgres.Kind()),
		Settings: make(map[string]string),
	}
	kilobytes, _ := strconv.ParseInt(strings.TrimSuffix(lineOf("/proc/meminfo", "MemTotal"), " kB"), 10, 64)
	m.MemoryMiB = kilobytes >> 10
	if fields := strings.Fields(read("/proc/loadavg")); len(fields) > 0 {
		m.LoadBefore, _ = strconv.ParseFloat(fields[0], 64)
	}
	conn, err := pgx.Connect(ctx, b.stack.Postgres.URL())
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, name := range []string{"fsync", "synchronous_commit", "full_page_writes", "autovacuum", "shared_buffers", "min_wal_size", "max_wal_size", "wal_sync_method", "wal_compression"} {
		var value string
		if err := conn.QueryRow(ctx, "SELECT current_setting($1)", name).Scan(&value); err != nil {
			return nil, fmt.Errorf("read the setting %s: %w", name, err)
		}
		m.Settings[name] = value
		if want := durable()[name]; want != "" && value != want {
			return nil, fmt.Errorf("PostgreSQL runs with %s = %s: nothing is measured on a database that may forget", name, value)
		}
	}
	return m, nil
}

// short leaves out where a server lies.
func short(kind string) string {
	kind, _, _ = strings.Cut(kind, " at ")
	return kind
}

func read(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return "" // other systems do not have it
	}
	return string(content)
}

// lineOf gives what stands behind the colon of a line.
func lineOf(path, name string) string {
	for line := range strings.Lines(read(path)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// system is how the machine has spent its time since it was started.
type system struct {
	at            time.Time
	stolen, total float64 // ticks
}

func readSystem() system {
	s := system{at: time.Now()}
	first, _, _ := strings.Cut(read("/proc/stat"), "\n")
	for i, field := range strings.Fields(first) {
		// cpu user nice system idle iowait irq softirq steal …; guest times are
		// a part of user and nice.
		if ticks, err := strconv.ParseFloat(field, 64); err == nil && i <= 8 {
			s.total += ticks
			if i == 8 {
				s.stolen = ticks
			}
		}
	}
	return s
}

// since notes what the machine did during the run.
func (m *machine) since(before system) {
	now := readSystem()
	m.Minutes = now.at.Sub(before.at).Minutes()
	if total := now.total - before.total; total > 0 {
		m.Stolen = (now.stolen - before.stolen) / total
	}
}
