package disks_test

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"cdi.test/cluster/csi/disks"
)

func create(t *testing.T, store *disks.Store, id string, size int64, from *disks.Disk) *disks.Disk {
	t.Helper()
	disk, err := store.Create(id, size, from, "")
	if err != nil {
		t.Fatal(err)
	}
	return disk
}

func TestACopyHasTheDataAndTheHolesOfItsSource(t *testing.T) {
	store, err := disks.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	origin := create(t, store, "origin", 64*disks.MiB, nil)
	file, err := os.OpenFile(origin.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, at := range []int64{0, 5*disks.MiB + 3, 64*disks.MiB - 7} {
		if _, err := file.WriteAt([]byte("written"), at); err != nil {
			t.Fatal(err)
		}
	}
	duplicate := create(t, store, "duplicate", 65*disks.MiB, origin)
	want, _ := os.ReadFile(origin.Path())
	got, _ := os.ReadFile(duplicate.Path())
	if !bytes.Equal(got, append(want, make([]byte, disks.MiB)...)) {
		t.Fatal("the copy reads differently")
	}
	var info, sparse = stat(t, duplicate.Path())
	if info != 65*disks.MiB || sparse > disks.MiB {
		t.Fatalf("the copy has %d bytes and takes %d", info, sparse)
	}
}

func TestASmallerCopyIsRefusedAndLeavesNothing(t *testing.T) {
	directory := t.TempDir()
	store, err := disks.NewStore(directory)
	if err != nil {
		t.Fatal(err)
	}
	origin := create(t, store, "origin", 2*disks.MiB, nil)
	if _, err := store.Create("small", disks.MiB, origin, ""); !errors.Is(err, disks.ErrTooLarge) {
		t.Fatalf("got %v", err)
	}
	if entries, _ := os.ReadDir(directory); len(entries) != 1 {
		t.Fatalf("left behind: %v", entries)
	}
}

func TestNamesStayInsideTheStore(t *testing.T) {
	directory := t.TempDir()
	store, err := disks.NewStore(directory + "/store")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(directory+"/other", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", ".", "..", "../other", "a/b", "ü", "x.new"} {
		if err := store.Delete(name); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Get(name); !errors.Is(err, disks.ErrNotFound) {
			t.Fatalf("%q: %v", name, err)
		}
		id := disks.ID(name)
		if disks.ID(id) != id {
			t.Fatalf("%q has the id %q, which is not an id", name, id)
		}
	}
	if _, err := os.Stat(directory + "/other"); err != nil {
		t.Fatal(err)
	}
}
