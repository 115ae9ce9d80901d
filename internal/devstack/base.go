package devstack

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// base is the folder in which the stacks of one user meet: private folders,
// reserved ports and templates of data folders. What belongs to a process
// stands beside a lock file that the process holds; the kernel lets go of it
// when the process dies, however it dies, so that a free lock marks a leftover.
type base struct{ path string }

const (
	dirPrefix  = "s-"
	portPrefix = "port-"
	lockSuffix = ".lock"
)

func openBase(path string) (base, error) {
	if path == "" {
		path = filepath.Join(os.TempDir(), "trestle-devstack-"+strconv.Itoa(os.Geteuid()))
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return base{}, fmt.Errorf("find the folder for private servers: %w", err)
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return base{}, fmt.Errorf("make the folder for private servers: %w", err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return base{}, fmt.Errorf("look at the folder for private servers: %w", err)
	}
	// In a folder that others may write, they could exchange a data folder or
	// plant a template.
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || !ok || int(owner.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return base{}, fmt.Errorf("%s must be a folder that only its owner, the calling user, can write", path)
	}
	return base{path}, nil
}

// privateDir is a folder that is removed with its owner.
type privateDir struct {
	path string
	lock *fileLock
}

func (b base) privateDir() (*privateDir, error) {
	var path string
	var lock *fileLock
	for lock == nil {
		path = filepath.Join(b.path, dirPrefix+strings.ToLower(rand.Text()[:10]))
		var err error
		// A sweep that sees the file before it is locked takes it for a dead
		// one's, and removes it.
		if lock, err = tryLock(path + lockSuffix); err != nil && !errors.Is(err, errLocked) {
			return nil, fmt.Errorf("lock a private folder: %w", err)
		}
	}
	// Others may pass but not list: the account that PostgreSQL runs under has
	// to reach its own folder.
	if err := os.Mkdir(path, 0o711); err != nil {
		return nil, errors.Join(fmt.Errorf("make a private folder: %w", err), lock.release())
	}
	return &privateDir{path: path, lock: lock}, nil
}

func (d *privateDir) remove() error {
	if d.lock == nil {
		return nil
	}
	if err := os.RemoveAll(d.path); err != nil {
		return fmt.Errorf("remove the private folder: %w", err)
	}
	lock := d.lock
	d.lock = nil
	return lock.release()
}

// sweep removes the folders and reservations of processes that are gone.
func (b base) sweep() error {
	entries, err := os.ReadDir(b.path)
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		name, isLock := strings.CutSuffix(entry.Name(), lockSuffix)
		isDir := strings.HasPrefix(name, dirPrefix)
		if !isLock || !isDir && !strings.HasPrefix(name, portPrefix) {
			continue
		}
		lock, err := tryLock(filepath.Join(b.path, entry.Name()))
		if errors.Is(err, errLocked) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if isDir {
			if err := os.RemoveAll(filepath.Join(b.path, name)); err != nil {
				// Without the lock file nobody would try again.
				errs = append(errs, err, lock.file.Close())
				continue
			}
		}
		errs = append(errs, lock.release())
	}
	return errors.Join(errs...)
}

// Ports are drawn from below the ranges that Linux (from 32768) and the BSDs
// (from 49152) use for outgoing connections, one of which could otherwise take
// the port of a stopped server.
const (
	firstPort = 15000
	lastPort  = 31999
)

// portReservation keeps other stacks off a port while its server is stopped.
type portReservation struct {
	port int
	lock *fileLock
}

func (r *portReservation) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.port)) }

func (r *portReservation) release() error {
	if r == nil || r.lock == nil {
		return nil
	}
	lock := r.lock
	r.lock = nil
	return lock.release()
}

// reservePort finds a port of 127.0.0.1 that no stack has and nobody listens
// on. A stranger can still take it before the server binds it: starters try
// again with another one.
func (b base) reservePort() (*portReservation, error) {
	var last error
	for range 100 {
		port := firstPort + mathrand.IntN(lastPort-firstPort+1)
		lock, err := tryLock(filepath.Join(b.path, portPrefix+strconv.Itoa(port)+lockSuffix))
		if err != nil {
			last = err
			continue
		}
		r := &portReservation{port: port, lock: lock}
		listener, err := net.Listen("tcp", r.addr())
		if err == nil {
			err = listener.Close()
		}
		if err != nil {
			last = errors.Join(err, r.release())
			continue
		}
		return r, nil
	}
	return nil, fmt.Errorf("find a free port from %d to %d: %w", firstPort, lastPort, last)
}

var errLocked = errors.New("locked by another process")

// fileLock is held until release or the death of the process. The file exists
// exactly as long as somebody holds it or died holding it.
type fileLock struct{ file *os.File }

// tryLock does not wait: it returns errLocked if another holder lives.
func tryLock(path string) (*fileLock, error) {
	for {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			_ = file.Close() // nothing was written
			if errors.Is(err, syscall.EWOULDBLOCK) {
				return nil, errLocked
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		// The former holder may have removed the file between our opening and
		// locking it. Then the lock is on a file that nobody else will find.
		held, err := file.Stat()
		if err != nil {
			_ = file.Close() // nothing was written
			return nil, err
		}
		named, err := os.Stat(path)
		if err == nil && os.SameFile(held, named) {
			return &fileLock{file}, nil
		}
		_ = file.Close() // nothing was written
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

// release removes the file while the lock is still held: see tryLock.
func (l *fileLock) release() error {
	return errors.Join(os.Remove(l.file.Name()), l.file.Close())
}
