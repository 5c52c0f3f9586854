package disks

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Loops attaches disks to loop devices.  Tag is written into each device, so that whoever takes the cluster down finds
// them all, whatever has become of the files behind them.
type Loops struct {
	Tag string
}

// Find gives the loop device over a disk, or "" where there is none.
func (Loops) Find(disk *Disk) (string, error) {
	var file unix.Stat_t
	if err := unix.Stat(disk.path, &file); err != nil {
		return "", fmt.Errorf("%s: %w", disk.path, err)
	}
	attached, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return "", err
	}
	for _, entry := range attached {
		device := "/dev/" + filepath.Base(filepath.Dir(entry))
		info, err := status(device)
		if err == nil && info.Device == file.Dev && info.Inode == file.Ino {
			return device, nil
		}
	}
	return "", nil
}

func status(device string) (*unix.LoopInfo64, error) {
	file, err := os.Open(device)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return unix.IoctlLoopGetStatus64(int(file.Fd()))
}

// Attach gives the loop device over a disk, a new one where there is none.
func (l Loops) Attach(disk *Disk) (string, error) {
	if device, err := l.Find(disk); device != "" || err != nil {
		return device, err
	}
	backing, err := os.OpenFile(disk.path, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer control.Close()
	for attempt := 0; attempt < 100; attempt++ {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", fmt.Errorf("no free loop device: %w", err)
		}
		device := fmt.Sprintf("/dev/loop%d", number)
		err = l.configure(device, backing, unix.LO_FLAGS_DIRECT_IO)
		if errors.Is(err, unix.EINVAL) { // the file system below cannot do direct I/O
			err = l.configure(device, backing, 0)
		}
		if err == nil {
			return device, nil
		}
		// Someone else took that one, or its node is not made yet.
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOENT) {
			return "", fmt.Errorf("%s: %w", device, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return "", errors.New("every free loop device was taken by someone else, a hundred times over")
}

func (l Loops) configure(device string, backing *os.File, flags uint32) error {
	file, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	config := &unix.LoopConfig{Fd: uint32(backing.Fd())}
	config.Info.Flags = flags
	copy(config.Info.File_name[:len(config.Info.File_name)-1], l.Tag)
	return unix.IoctlLoopConfigure(int(file.Fd()), config)
}

// Detach ends the loop device over a disk; a disk without one is no error.
func (l Loops) Detach(disk *Disk) error {
	device, err := l.Find(disk)
	if device == "" || err != nil {
		return err
	}
	file, err := os.Open(device)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.IoctlSetInt(int(file.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("%s: %w", device, err)
	}
	return nil
}

// Resize tells a loop device that the file behind it has grown.
func Resize(device string) error {
	file, err := os.Open(device)
	if err != nil {
		return err
	}
	defer file.Close()
	return unix.IoctlSetInt(int(file.Fd()), unix.LOOP_SET_CAPACITY, 0)
}

// Flush writes what programs wrote to the device through to the file behind it.
func Flush(device string) error {
	file, err := os.Open(device)
	if err != nil {
		return err
	}
	defer file.Close()
	return file.Sync()
}
