"""Raw disk image in a directory: a sparse file that gets its final name after verification."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from cdi.api.errors import InternalError, TargetBusy, TargetError, TargetUnsuitable
from cdi.api.job import FileTargetSpec
from cdi.image.sizes import MEBI
from cdi.target import linux
from cdi.target.base import ALIGNMENT
from cdi.target.buffer import aligned_buffer, is_zero
from cdi.target.direct_io import BOUNCE, DirectWriter
from cdi.target.errors import UNSUPPORTED, error_from_errno, map_os_errors, occupied

MODE = 0o660
"""Permissions of a disk: its owner and group, such as QEMU's, may read and write it."""
FILESYSTEM_RESERVE = 1 << 20
"""Bytes of the file system reserved for the journal and the block map of a fully allocated disk."""
_MAX_OVERHEAD = 1000
"""Largest overhead in thousandths (see `cdi.api.overhead`)."""


def partial_name(name: str) -> str:
    """Return the name of a disk before `commit`: hidden, and not mistaken for a disk."""
    return f".{name}.partial"


def kind_of_file(mode: int) -> str:
    """Return the file type of a mode with its article, for messages, such as ``a FIFO``."""
    return _KINDS.get(stat.S_IFMT(mode), "of an unknown kind")


_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


class DiskFile:
    """Implementation of `cdi.target.base.Target` for a file in a directory.

    The file is created, or opened if an earlier attempt left it, and locked with ``flock(2)``: a second writer gets
    `TargetBusy`. Ranges never written are holes and read as zeros. An older disk with the final name is not modified
    before `commit`.
    """

    capacity: int | None = None

    def __init__(self, spec: FileTargetSpec) -> None:
        """Open and lock the unfinished disk.

        Raises:
            TargetBusy: Another process writes this disk.
            TargetPermission: The directory or file is not writable.
            TargetUnsuitable: The directory does not exist, or the path is not a regular file.
            TargetFull: There is no space for the file.
        """
        self.path = spec.path
        self.reads_zero = True
        self.size = 0
        """Current size of the disk in bytes."""
        directory, self._final = os.path.split(spec.path)
        if self._final in ("", ".", ".."):
            raise TargetUnsuitable("the path has no file name", where=spec.path)
        self._name = partial_name(self._final)
        self._volume = spec.volume
        self._allocated = False
        self._directory = -1
        self._io: DirectWriter | None = None
        with map_os_errors(spec.path):
            self._directory = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._refuse_other_kinds()
                cached = self._open_locked()
            except BaseException:
                os.close(self._directory)
                self._directory = -1
                raise
            self._io = DirectWriter(cached, self._open_direct(cached))
            self.size = os.fstat(cached).st_size

    @property
    def written(self) -> int:
        return self._descriptors.written

    @property
    def allocated(self) -> int:
        """Bytes of storage allocated to the disk."""
        with map_os_errors(self.path):
            return os.fstat(self._descriptors.cached).st_blocks * 512

    @property
    def room(self) -> int:
        """Bytes of the file system that are available to the disk, including those it occupies."""
        with map_os_errors(self.path):
            found = os.fstatvfs(self._descriptors.cached)
        return found.f_bavail * found.f_frsize + self.allocated

    def resize(self, size: int) -> None:
        with map_os_errors(self.path):
            os.ftruncate(self._descriptors.cached, size)
        if size > self.size:
            self._allocated = False
        self.size = size

    def write(self, view: memoryview, offset: int) -> None:
        if view.format != "B" or view.ndim != 1:
            view = view.cast("B")
        self._check(offset, len(view))
        try:
            self._descriptors.write(view, offset)
        except OSError as error:
            raise self._failure(error) from error

    def zero(self, offset: int, length: int) -> None:
        """Punch a hole; after `preallocate`, keep the blocks and mark them as zeros."""
        self._check(offset, length)
        try:
            self._zero(offset, length)
        except OSError as error:
            raise self._failure(error) from error

    def preallocate(self) -> None:
        """Allocate all blocks with ``fallocate(2)``, or write zeros into the holes if that is not supported.

        Not safe while another thread writes.

        Raises:
            TargetFull: There is no space for the whole disk.
        """
        if self._allocated or not self.size:
            return
        try:
            try:
                linux.fallocate(self._descriptors.cached, 0, 0, self.size)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                self._fill_holes()
        except OSError as error:
            raise self._failure(error, preallocating=True) from error
        self._allocated = True

    def flush(self) -> None:
        # One fsync is sufficient, because both descriptors refer to the same inode.
        with map_os_errors(self.path):
            os.fsync(self._descriptors.cached)

    def reset(self) -> None:
        size, fd = self.size, self._descriptors.cached
        with map_os_errors(self.path):
            os.ftruncate(fd, 0)
            os.ftruncate(fd, size)
        self._allocated = False

    def commit(self) -> None:
        """Flush the disk, rename it to the final name (replacing an older disk), and flush the directory.

        A second call only flushes.
        """
        self.flush()
        with map_os_errors(self.path):
            if self._name != self._final:
                os.rename(self._name, self._final, src_dir_fd=self._directory, dst_dir_fd=self._directory)
                self._name = self._final
            os.fsync(self._directory)

    def wipe(self) -> None:
        """Remove the file under its current name; an older committed disk remains."""
        with map_os_errors(self.path):
            try:
                os.unlink(self._name, dir_fd=self._directory)
            except FileNotFoundError:
                return
            os.fsync(self._directory)

    def close(self) -> None:
        if self._io is not None:
            io, self._io = self._io, None
            with map_os_errors(self.path):
                io.close()
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    # --- opening ------------------------------------------------------------------------------------------------

    @property
    def _descriptors(self) -> DirectWriter:
        if self._io is None:
            raise InternalError("the disk is closed", where=self.path)
        return self._io

    def _refuse_other_kinds(self) -> None:
        for name in (self._final, self._name):
            try:
                mode = os.stat(name, dir_fd=self._directory, follow_symlinks=False).st_mode
            except FileNotFoundError:
                continue
            if not stat.S_ISREG(mode):
                raise occupied(f"{name} is {kind_of_file(mode)}, not a regular file", self.path)

    def _open_locked(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        for _ in range(16):
            fd = os.open(self._name, flags, MODE, dir_fd=self._directory)
            try:
                self._lock(fd)
                # O_NOFOLLOW rejects a symbolic link in its place; other file types are rejected here.
                if stat.S_ISREG(os.fstat(fd).st_mode) and self._is_named(fd):
                    # Ignore the umask: QEMU's group must be able to open the disk.
                    if stat.S_IMODE(os.fstat(fd).st_mode) != MODE:
                        os.fchmod(fd, MODE)
                    return fd
            except BaseException:
                os.close(fd)
                raise
            # Between open and lock, the previous owner renamed or removed the file, so this descriptor belongs to
            # another file.
            os.close(fd)
        raise TargetBusy("another worker keeps replacing the unfinished disk", where=self.path)

    def _lock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some network file systems do not support locks; there the volume's access mode has to prevent a second
            # writer.
            if error.errno not in UNSUPPORTED and error.errno != errno.ENOLCK:
                raise

    def _is_named(self, fd: int) -> bool:
        try:
            named = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(fd))

    def _open_direct(self, cached: int) -> int | None:
        flags = os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(self._name, flags, dir_fd=self._directory)
        except OSError:
            return None
        if os.path.samestat(os.fstat(fd), os.fstat(cached)):
            return fd
        os.close(fd)
        return None

    # --- zeros --------------------------------------------------------------------------------------------------

    def _zero(self, offset: int, length: int) -> None:
        start = -(-offset // ALIGNMENT) * ALIGNMENT
        stop = offset + length
        if stop != self.size:
            stop = stop // ALIGNMENT * ALIGNMENT
        if start >= stop:
            self._descriptors.write_zeros(offset, length)
            return
        self._descriptors.write_zeros(offset, start - offset)
        if not self._zero_blocks(start, stop - start):
            self._descriptors.write_zeros(start, stop - start)
        self._descriptors.write_zeros(stop, offset + length - stop)

    def _zero_blocks(self, offset: int, length: int) -> bool:
        # Punching a hole would release preallocated blocks.
        modes = (linux.ZERO_RANGE,) if self._allocated else (linux.PUNCH_HOLE, linux.ZERO_RANGE)
        for mode in modes:
            try:
                linux.fallocate(self._descriptors.cached, mode | linux.KEEP_SIZE, offset, length)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
            else:
                return True
        return False

    def _fill_holes(self) -> None:
        fd, at = self._descriptors.cached, 0
        # SEEK_HOLE would miss blocks that are only in the page cache.
        os.fsync(fd)
        while at < self.size:
            hole = os.lseek(fd, at, os.SEEK_HOLE)
            # A file system without hole detection reports everything as data: zeros are then rewritten over zeros.
            for start in range(at, min(hole, self.size), BOUNCE):
                self._rewrite_zeros(start, min(BOUNCE, min(hole, self.size) - start))
            if hole >= self.size:
                return
            try:
                at = os.lseek(fd, hole, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                at = self.size
            self._descriptors.write_zeros(hole, min(at, self.size) - hole)

    def _rewrite_zeros(self, offset: int, length: int) -> None:
        piece = aligned_buffer(length)
        length = os.preadv(self._descriptors.cached, [piece], offset)
        for at in range(0, length, ALIGNMENT):
            block = piece[at : min(at + ALIGNMENT, length)]
            if is_zero(block):
                self._descriptors.write(block, offset + at)

    # --- checks -------------------------------------------------------------------------------------------------

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise InternalError(
                f"{length} bytes at {offset} do not lie within the disk of {self.size} bytes", where=self.path
            )

    def _failure(self, error: OSError, *, preallocating: bool = False) -> TargetError:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or self._io is None:
            return error_from_errno(error, self.path)
        found = os.fstatvfs(self._io.cached)
        taken = os.fstat(self._io.cached).st_blocks * 512
        free = found.f_bavail * found.f_frsize
        room = f"the disk has {self.size} bytes, {taken} of them are stored, {free} bytes are available"
        whole, used = found.f_blocks * found.f_frsize, (found.f_blocks - found.f_bfree) * found.f_frsize
        # The journal and file system metadata are small; more used space belongs to other files.
        alone = self._volume is not None and whole <= self._volume and used - taken <= whole // 8
        remedy = self._remedy(self._volume, free + taken) if self._volume is not None and alone else None
        if remedy is not None and preallocating:
            remedy += "; or disable preallocation"
        return error_from_errno(error, self.path, room, remedy)

    def _remedy(self, volume: int, room: int) -> str | None:
        """Return a remedy if the file system reserves more of the disk's own volume than expected, otherwise None.

        The disk's size is derived from the volume's size with the overhead of its storage class, so freeing space does
        not help. Small file systems reserve the most: ext4 13 % of 256 MiB, xfs 27 % of 300 MiB.

        Args:
            volume: Size of the volume in bytes.
            room: Bytes available to the disk, including those it occupies.
        """
        fits = (room - FILESYSTEM_RESERVE) // MEBI * MEBI
        if fits <= 0 or self.size <= fits:
            return None
        larger = "request a larger volume in a new DataVolume"
        overhead = -(-1000 * (volume - fits) // fits)
        if overhead > _MAX_OVERHEAD:
            return larger
        text = f"{overhead // 1000}.{overhead % 1000:03d}".rstrip("0").rstrip(".")
        return (
            f"set filesystemOverhead of the volume's storage class to {text} or more in CDIConfig: the disk is then "
            f"created with {fits} bytes at most, and the import restarts automatically; for a larger image, {larger}"
        )
