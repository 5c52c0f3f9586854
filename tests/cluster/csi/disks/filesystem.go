package disks

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Format puts a file system of that kind (ext4 or xfs; "" is ext4) on a device that holds none, and gives the kind that
// is there.
func Format(device, kind string) (string, error) {
	there, err := kindOf(device)
	if there != "" || err != nil {
		return there, err
	}
	switch kind {
	case "", "ext4":
		// The device reads as zeros already: no discard, no table to write.
		return "ext4", run("mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", device)
	case "xfs":
		return "xfs", run("mkfs.xfs", "-q", "-K", device)
	default:
		return "", fmt.Errorf("file system %q: only ext4 and xfs are made here", kind)
	}
}

// Check repairs what a file system can have without a fault of ours (a copy of one in use), and grows ext4 to the
// device's size.  It has to be done before it is mounted: to grow a mounted one takes CAP_SYS_RESOURCE, which a virtual
// machine's root may lack.
func Check(device, kind string) error {
	if kind != "ext4" {
		return nil
	}
	if full, err := fillsDevice(device); full || err != nil {
		return err
	}
	var exit *exec.ExitError
	// 1 is "errors corrected".
	if err := run("e2fsck", "-f", "-p", device); err != nil && (!errors.As(err, &exit) || exit.ExitCode() > 1) {
		return err
	}
	return run("resize2fs", device)
}

// GrowMounted grows the file system on device, which is mounted at path.
func GrowMounted(device, path string) error {
	kind, err := kindOf(device)
	if err != nil {
		return err
	}
	switch kind {
	case "xfs":
		return run("xfs_growfs", path)
	case "ext4":
		if full, err := fillsDevice(device); full || err != nil {
			return err
		}
		return run("resize2fs", device)
	default:
		return fmt.Errorf("%s: %q file systems cannot be grown", device, kind)
	}
}

// MountDevice mounts the file system on device at path.
func MountDevice(device, path, kind string, options []string) error {
	if kind == "xfs" {
		options = append(options, "nouuid") // a copy has the UUID of what it was copied from
	}
	arguments := []string{"-t", kind}
	if len(options) > 0 {
		arguments = append(arguments, "-o", strings.Join(options, ","))
	}
	return run("mount", append(arguments, device, path)...)
}

// Bind shows source, a directory or a device, at path as well.
func Bind(source, path string, readOnly bool) error {
	if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s at %s: %w", source, path, err)
	}
	if !readOnly {
		return nil
	}
	if err := unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return errors.Join(fmt.Errorf("make %s read-only: %w", path, err), unix.Unmount(path, 0))
	}
	return nil
}

// Unmount takes away everything that is mounted at path; nothing there is no error.
func Unmount(path string) error {
	for {
		mounted, err := Mounted(path)
		if !mounted || err != nil {
			return err
		}
		if err := unix.Unmount(path, 0); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// Mounted says whether something is mounted at path.
func Mounted(path string) (bool, error) {
	found := false
	err := eachMount(func(fields []string) { found = found || fields[4] == path })
	return found, err
}

// Quiesced runs work while nothing changes on the device: the file system mounted from it is frozen, or, where none is,
// what was written so far is flushed.
func Quiesced(device string, work func() error) (err error) {
	if device == "" {
		return work()
	}
	var info unix.Stat_t
	if err := unix.Stat(device, &info); err != nil {
		return err
	}
	number := fmt.Sprintf("%d:%d", unix.Major(info.Rdev), unix.Minor(info.Rdev))
	mount := ""
	if err := eachMount(func(fields []string) {
		if fields[2] == number {
			mount = fields[4]
		}
	}); err != nil {
		return err
	}
	if mount != "" {
		directory, err := os.Open(mount)
		if err != nil {
			return err
		}
		defer directory.Close()
		if err := unix.IoctlSetInt(int(directory.Fd()), fiFreeze, 0); err != nil {
			return fmt.Errorf("freeze %s: %w", mount, err)
		}
		defer func() { err = errors.Join(err, unix.IoctlSetInt(int(directory.Fd()), fiThaw, 0)) }()
	}
	if err := Flush(device); err != nil {
		return err
	}
	return work()
}

// FIFREEZE and FITHAW of linux/fs.h.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// eachMount gives the fields of /proc/self/mountinfo, a mount at a time: 2 is the device's number, 4 where it is.
func eachMount(see func(fields []string)) error {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 {
			see(fields)
		}
	}
	return lines.Err()
}

// kindOf names the file system on a device, "" where blkid sees none.
func kindOf(device string) (string, error) {
	out, err := exec.Command("blkid", "-p", "-s", "TYPE", "-o", "value", device).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 2 {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("blkid %s: %w", device, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// fillsDevice says whether the ext4 file system on device is as large as the device, from its superblock.
func fillsDevice(device string) (bool, error) {
	file, err := os.Open(device)
	if err != nil {
		return false, err
	}
	defer file.Close()
	size, err := file.Seek(0, 2)
	if err != nil {
		return false, err
	}
	superblock := make([]byte, 1024)
	if _, err := file.ReadAt(superblock, 1024); err != nil {
		return false, err
	}
	if binary.LittleEndian.Uint16(superblock[0x38:]) != 0xef53 {
		return false, fmt.Errorf("%s: no ext4 superblock", device)
	}
	block := int64(1024) << binary.LittleEndian.Uint32(superblock[0x18:])
	blocks := int64(binary.LittleEndian.Uint32(superblock[0x4:]))
	if binary.LittleEndian.Uint32(superblock[0x60:])&0x80 != 0 { // INCOMPAT_64BIT
		blocks |= int64(binary.LittleEndian.Uint32(superblock[0x150:])) << 32
	}
	// A last group that is too small for its own tables is left out by resize2fs.
	return size-blocks*block < 2*MiB, nil
}

func run(program string, arguments ...string) error {
	out, err := exec.Command(program, arguments...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(program), err, strings.TrimSpace(string(out)))
	}
	return nil
}
