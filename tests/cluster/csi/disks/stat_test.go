package disks_test

import (
	"testing"

	"golang.org/x/sys/unix"
)

// stat gives a file's size and what it takes on disk, in bytes.
func stat(t *testing.T, path string) (size, taken int64) {
	t.Helper()
	var info unix.Stat_t
	if err := unix.Stat(path, &info); err != nil {
		t.Fatal(err)
	}
	return info.Size, info.Blocks * 512
}
