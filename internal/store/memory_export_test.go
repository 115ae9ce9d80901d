package store

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Faults executes a statement so many times on a connection for batches, and gives
// how many pages the process behind it took from the system for that.
func (s *Store) Faults(ctx context.Context, sql string, times int) (int64, error) {
	conn, err := s.writers.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Release()
	before, err := minorFaults(conn.Conn().PgConn().PID())
	if err != nil {
		return 0, err
	}
	for range times {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return 0, err
		}
	}
	after, err := minorFaults(conn.Conn().PgConn().PID())
	return after - before, err
}

func minorFaults(pid uint32) (int64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may hold anything; minflt is the tenth field.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	return strconv.ParseInt(fields[7], 10, 64)
}
