package devstack

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/trestle-bridge/trestle/internal/devstack/process"
)

// postgresBinaries is an installation of the server.
type postgresBinaries struct {
	dir     string
	version string // as in "15.18"
}

// packageDirs is where packages put the server binaries, which they keep out of
// PATH because several versions stand side by side.
func packageDirs() []string {
	return []string{
		"/usr/lib/postgresql/*/bin",          // Debian, Ubuntu
		"/usr/pgsql-*/bin",                   // RPMs of the PostgreSQL project
		"/usr/local/pgsql/bin",               // built from source
		"/usr/local/opt/postgresql@*/bin",    // Homebrew
		"/opt/homebrew/opt/postgresql@*/bin", // Homebrew
	}
}

// findPostgres looks in PG_BIN alone if it is set, else in PATH, else where
// packages put the binaries, newest first. scripts/setup.sh looks the same way.
func findPostgres(ctx context.Context) (postgresBinaries, error) {
	if dir := os.Getenv("PG_BIN"); dir != "" {
		if !holdsServer(dir) {
			return postgresBinaries{}, fmt.Errorf("PG_BIN=%s holds no initdb and postgres: correct or unset it", dir)
		}
		return inspectPostgres(ctx, dir)
	}
	if initdb, err := exec.LookPath("initdb"); err == nil {
		if initdb, err = filepath.EvalSymlinks(initdb); err == nil && holdsServer(filepath.Dir(initdb)) {
			return inspectPostgres(ctx, filepath.Dir(initdb))
		}
	}
	var best postgresBinaries
	var broken []error
	for _, pattern := range packageDirs() {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return postgresBinaries{}, fmt.Errorf("look in %s: %w", pattern, err)
		}
		for _, dir := range dirs {
			if !holdsServer(dir) {
				continue
			}
			found, err := inspectPostgres(ctx, dir)
			if err != nil {
				broken = append(broken, err)
				continue
			}
			if best.dir == "" || compareVersions(found.version, best.version) > 0 {
				best = found
			}
		}
	}
	if best.dir != "" {
		return best, nil
	}
	return postgresBinaries{}, errors.Join(append([]error{fmt.Errorf(
		"PostgreSQL's server binaries were not found (looked in PATH, %s): install them (Debian: apt-get install postgresql) or set PG_BIN to their folder",
		strings.Join(packageDirs(), ", "))}, broken...)...)
}

func holdsServer(dir string) bool {
	for _, name := range []string{"initdb", "postgres"} {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}

func inspectPostgres(ctx context.Context, dir string) (postgresBinaries, error) {
	output, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return postgresBinaries{}, fmt.Errorf("ask %s/postgres for its version: %w", dir, err)
	}
	// "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"
	fields := strings.Fields(string(output))
	if len(fields) < 3 {
		return postgresBinaries{}, fmt.Errorf("%s/postgres calls itself %q", dir, output)
	}
	return postgresBinaries{dir: dir, version: fields[2]}, nil
}

// compareVersions compares dotted versions by their numbers; what follows the
// number in a part ("18beta1") does not count.
func compareVersions(a, b string) int {
	numbers := func(version string) []int {
		var parts []int
		for part := range strings.SplitSeq(version, ".") {
			digits := strings.IndexFunc(part+"x", func(r rune) bool { return r < '0' || r > '9' })
			n, err := strconv.Atoi(part[:digits])
			if err != nil {
				break
			}
			parts = append(parts, n)
		}
		return parts
	}
	return slices.Compare(numbers(a), numbers(b))
}

// initdbArgs sets what a data folder is born with. The C locale makes order and
// speed independent of the machine; nothing is synced, for a template that a
// crash of the machine spoils is made again.
func initdbArgs(data string) []string {
	return []string{
		"--pgdata=" + data, "--username=postgres", "--auth=trust",
		"--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions",
	}
}

// makeData makes a fresh data folder below home, which the account can enter.
// Creating one takes seconds, so the first is kept in base as a template, of
// which all later ones are copies.
func makeData(ctx context.Context, bin postgresBinaries, as *process.Account, base base, home string) (string, error) {
	data := filepath.Join(home, "data")
	key := sha256.Sum256([]byte(strings.Join(append(initdbArgs(""), bin.dir), "\x00")))
	template := filepath.Join(base.path, "template-"+bin.version+"-"+hex.EncodeToString(key[:4]))

	// Whoever has the lock makes the template; who comes while it is being made
	// waits. Complete templates are never changed, copying them needs no lock.
	for !exists(template) {
		lock, err := tryLock(template + lockSuffix)
		if errors.Is(err, errLocked) {
			select {
			case <-ctx.Done():
				return "", fmt.Errorf("wait for another process to run initdb: %w", context.Cause(ctx))
			case <-time.After(process.PollInterval):
			}
			continue
		}
		if err != nil {
			return "", fmt.Errorf("lock the template of the data folder: %w", err)
		}
		err = makeTemplate(ctx, bin, as, home, template)
		if err := errors.Join(err, lock.release()); err != nil {
			return "", err
		}
	}
	if err := copyTree(ctx, template, data, as); err != nil {
		return "", fmt.Errorf("copy the template of the data folder: %w", err)
	}
	return data, nil
}

// makeTemplate is called with the template's lock. initdb works below home,
// since the account may not write in base, and the result is moved when it is
// complete.
func makeTemplate(ctx context.Context, bin postgresBinaries, as *process.Account, home, template string) error {
	if exists(template) { // another had the lock between our look and our lock
		return nil
	}
	fresh := filepath.Join(home, "template")
	cmd := exec.Command(filepath.Join(bin.dir, "initdb"), initdbArgs(fresh)...)
	cmd.Dir, cmd.Env = home, process.Env(home)
	if err := process.Run(ctx, cmd, as); err != nil {
		return fmt.Errorf("create a data folder: %w", err)
	}
	if err := os.Rename(fresh, template); err != nil {
		return fmt.Errorf("keep the template of the data folder: %w", err)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// copyTree copies folders and regular files with their permissions and gives
// them to the account.
func copyTree(ctx context.Context, from, to string, as *process.Account) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		target := filepath.Join(to, strings.TrimPrefix(path, from))
		switch {
		case entry.IsDir():
			err = os.Mkdir(target, info.Mode().Perm())
		case entry.Type().IsRegular():
			err = copyFile(path, target, info.Mode().Perm())
		default:
			err = fmt.Errorf("%s is neither a folder nor a regular file", path)
		}
		if err != nil {
			return err
		}
		return as.Own(target)
	})
}

func copyFile(from, to string, mode fs.FileMode) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }() // only read
	target, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}
