// Package disks keeps a test cluster's volumes: sparse files, loop devices over them, and the file systems in them.
package disks

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// MiB is what sizes are rounded up to.
const MiB = int64(1) << 20

// DefaultSize is a volume's for which nobody said one.
const DefaultSize = 1024 * MiB

var (
	// ErrNotFound says that there is no disk of that name.
	ErrNotFound = errors.New("no such disk")
	// ErrTooLarge says that a copy was asked for that is smaller than what is copied.
	ErrTooLarge = errors.New("the source is larger")
)

// Disk is one volume or snapshot: a sparse file and what is known of it.
type Disk struct {
	ID      string    `json:"id"`
	Size    int64     `json:"size"`             // bytes
	Source  string    `json:"source,omitempty"` // "volume/ID" or "snapshot/ID" that it is a copy of
	Created time.Time `json:"created"`
	path    string
}

// Path of the sparse file.
func (d *Disk) Path() string { return d.path }

// Store is a directory of disks.  Every call names a disk by an ID that came from ID; callers hold Lock for it.
type Store struct {
	root  string
	locks sync.Map
}

// NewStore keeps disks in directory, which is made if it is not there.
func NewStore(directory string) (*Store, error) {
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return nil, err
	}
	leftovers, err := filepath.Glob(filepath.Join(directory, "*.new"))
	if err != nil {
		return nil, err
	}
	for _, leftover := range leftovers {
		if err := os.RemoveAll(leftover); err != nil {
			return nil, err
		}
	}
	return &Store{root: directory}, nil
}

var plainName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$`)

// ID is the same for the same name each time, which makes creating idempotent, and is fit to be a file's name.
func ID(name string) string {
	if plainName.MatchString(name) {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return "x" + hex.EncodeToString(sum[:])
}

// Lock waits for the one use of a disk at a time; the result ends it.
func (s *Store) Lock(id string) (unlock func()) {
	lock, _ := s.locks.LoadOrStore(id, &sync.Mutex{})
	lock.(*sync.Mutex).Lock()
	return lock.(*sync.Mutex).Unlock
}

func (s *Store) directory(id string) string { return filepath.Join(s.root, id) }

// Get finds a disk; ErrNotFound.
func (s *Store) Get(id string) (*Disk, error) {
	if ID(id) != id { // also keeps "..", "/" and the empty name out of paths
		return nil, fmt.Errorf("%w: %q", ErrNotFound, id)
	}
	document, err := os.ReadFile(filepath.Join(s.directory(id), "disk.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %q", ErrNotFound, id)
	}
	if err != nil {
		return nil, err
	}
	disk := &Disk{path: filepath.Join(s.directory(id), "disk")}
	return disk, json.Unmarshal(document, disk)
}

// Create makes a disk of size bytes, rounded up to MiB, that reads as zeros or, with from, as that disk and then zeros.
// Either all of the disk is there afterwards or nothing of it.
func (s *Store) Create(id string, size int64, from *Disk, source string) (*Disk, error) {
	size = RoundUp(size)
	if from != nil && from.Size > size {
		return nil, fmt.Errorf("%w: it has %d bytes, %d were asked for", ErrTooLarge, from.Size, size)
	}
	unfinished := s.directory(id) + ".new"
	if err := os.RemoveAll(unfinished); err != nil {
		return nil, err
	}
	if err := os.Mkdir(unfinished, 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(unfinished)
	disk := &Disk{ID: id, Size: size, Source: source, Created: time.Now(), path: filepath.Join(s.directory(id), "disk")}
	if err := fill(filepath.Join(unfinished, "disk"), size, from); err != nil {
		return nil, err
	}
	if err := describe(unfinished, disk); err != nil {
		return nil, err
	}
	return disk, os.Rename(unfinished, s.directory(id))
}

// Grow makes a disk at least size bytes large; it never shrinks one.
func (s *Store) Grow(disk *Disk, size int64) error {
	if size = RoundUp(size); size <= disk.Size {
		return nil
	}
	if err := os.Truncate(disk.path, size); err != nil {
		return err
	}
	disk.Size = size
	return describe(s.directory(disk.ID), disk)
}

// Delete removes a disk; one that is not there is no error.
func (s *Store) Delete(id string) error {
	if ID(id) != id {
		return nil
	}
	return os.RemoveAll(s.directory(id))
}

// RoundUp gives the size that a disk of size bytes really has.
func RoundUp(size int64) int64 {
	if size <= 0 {
		return DefaultSize
	}
	return (size + MiB - 1) / MiB * MiB
}

func describe(directory string, disk *Disk) error {
	document, err := json.Marshal(disk)
	if err != nil {
		return err
	}
	path := filepath.Join(directory, "disk.json")
	if err := os.WriteFile(path+".new", document, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func fill(path string, size int64, from *Disk) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	if from != nil {
		origin, err := os.Open(from.path)
		if err != nil {
			return err
		}
		defer origin.Close()
		if err := copySparse(origin, file); err != nil {
			return err
		}
	}
	return file.Truncate(size)
}

// copySparse shares the blocks where the file system can, and else copies what is not a hole.
func copySparse(from, to *os.File) error {
	if unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) == nil {
		return nil
	}
	for at := int64(0); ; {
		data, err := from.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // no data from there on
			return nil
		}
		if err != nil {
			return err
		}
		hole, err := from.Seek(data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		// io.Copy between files becomes copy_file_range, which the kernel does without bringing the bytes up here.
		if _, err := from.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := to.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(to, from, hole-data); err != nil {
			return err
		}
		at = hole
	}
}
