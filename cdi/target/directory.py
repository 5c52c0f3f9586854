"""Target that unpacks an archive into a directory, completely or not at all.

Members are first written to a hidden staging directory inside the volume. After all of them were written and checked,
they are moved to their final places.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from cdi.api.errors import ArchiveUnsafe, TargetFull
from cdi.api.job import DirectoryTargetSpec
from cdi.target import linux
from cdi.target.errors import UNSUPPORTED, map_os_errors
from cdi.target.tree import ContainedTree, Path, remove, shown, split

STAGING = ".cdi-unpack.partial"
MAX_MEMBERS = 1_000_000
MAX_NAMES = 32 << 20
"""Maximum total size in bytes of directory names, which are kept in memory until modes and times are set."""
MAX_DIRECTORIES = 200_000

LOST_AND_FOUND = "lost+found"
_ROOM_CHECKED_FROM = 1 << 20


class ArchiveMember(Protocol):
    """Interface of an archive member, such as `cdi.codec.tar.Member`."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def stored(self) -> int: ...
    @property
    def mode(self) -> int: ...
    @property
    def mtime(self) -> float: ...
    @property
    def link(self) -> str: ...
    def chunks(self) -> Iterator[tuple[int, bytes | memoryview]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackResult:
    members: int
    written: int
    """Bytes of content written."""


class DirectoryTarget:
    """A directory into which one archive is unpacked.

    Call `unpack`, and then `commit` once the archive is verified, or else `wipe`. The directory is locked with
    ``flock(2)``; a second worker gets `TargetBusy`.
    """

    def __init__(self, spec: DirectoryTargetSpec) -> None:
        """Lock the directory and remove the unfinished files of an earlier attempt.

        Raises:
            TargetBusy: Another worker uses the directory.
            TargetPermission: The directory may not be written.
            TargetUnsuitable: The directory does not exist.
        """
        self.path = spec.path
        self.written = 0
        """Bytes of content written so far."""
        self._root = self._staging = -1
        self._directories: dict[Path, tuple[int, float]] = {}
        with map_os_errors(spec.path):
            self._root = os.open(spec.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                try:
                    fcntl.flock(self._root, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    if error.errno not in UNSUPPORTED:
                        raise
                self._reset_staging()
            except BaseException:
                self.close()
                raise

    def unpack(self, members: Iterable[ArchiveMember], progress: Callable[[int], None] | None = None) -> UnpackResult:
        """Write all members to the staging directory, which is emptied first.

        Modes (without setuid, setgid and sticky bits) and times are taken from the archive; the owner is this process.
        After an error, `wipe` or a new attempt removes the staging directory.

        Args:
            members: The members; what the iterator raises is raised here.
            progress: Called with the number of bytes of each piece after it was written.

        Raises:
            ArchiveUnsafe: A member is not allowed, or there are too many.
            TargetError: A member cannot be written.
        """
        count = names = 0
        with map_os_errors(self.path):
            self._reset_staging()
            tree = ContainedTree(self._staging)
            try:
                for member in members:
                    count += 1
                    names += len(member.name) if member.kind == "directory" else 0
                    if count > MAX_MEMBERS:
                        raise ArchiveUnsafe(f"the archive has more than {MAX_MEMBERS} members")
                    if names > MAX_NAMES or len(self._directories) > MAX_DIRECTORIES:
                        raise ArchiveUnsafe("the archive has too many directories")
                    self._extract_member(tree, member, progress)
                tree.check_links()
                self._finish_directories(tree, lambda path: len(path) > 1)
            finally:
                tree.close()
        return UnpackResult(members=count, written=self.written)

    def commit(self) -> None:
        """Flush, and move everything to its final place; entries of the same name are replaced."""
        with map_os_errors(self.path):
            linux.sync_file_system(self._staging)
            top = os.listdir(self._staging)
            for name in top:
                self._move(name)
            tree = ContainedTree(self._root)
            try:
                self._finish_directories(tree, lambda path: len(path) == 1)
            finally:
                tree.close()
            os.close(self._staging)
            self._staging = -1
            remove(STAGING, self._root)
            linux.sync_file_system(self._root)

    def wipe(self) -> None:
        """Remove the staging directory; the rest of the directory is unchanged."""
        with map_os_errors(self.path):
            self._close_staging()
            remove(STAGING, self._root)
            os.fsync(self._root)

    def close(self) -> None:
        """Close the descriptors and release the lock; uncommitted files stay hidden until the next attempt."""
        self._close_staging()
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- members ------------------------------------------------------------------------------------------------

    def _extract_member(
        self, tree: ContainedTree, member: ArchiveMember, progress: Callable[[int], None] | None
    ) -> None:
        path = split(member.name)
        if path and path[0] == STAGING:
            raise ArchiveUnsafe("the archive contains a member with a reserved name", where=shown(member.name))
        match member.kind:
            case "directory":
                tree.directory(path)
                if path:
                    self._directories[path] = (member.mode & 0o777, member.mtime)
            case "file":
                self._file(tree, path, member, progress)
            case "symlink":
                tree.symlink(path, member.link)
                os.utime(
                    path[-1], (member.mtime, member.mtime), dir_fd=tree.directory(path[:-1]), follow_symlinks=False
                )
            case "hardlink":
                tree.hardlink(path, split(member.link))
            case "character" | "block":
                raise ArchiveUnsafe("the archive contains a device", where=shown(member.name))
            case "fifo":
                raise ArchiveUnsafe("the archive contains a named pipe", where=shown(member.name))
            case _:
                raise ArchiveUnsafe("the archive contains a member of an unknown type", where=shown(member.name))

    def _file(
        self, tree: ContainedTree, path: Path, member: ArchiveMember, progress: Callable[[int], None] | None
    ) -> None:
        if member.stored >= _ROOM_CHECKED_FROM:
            found = os.fstatvfs(self._staging)
            available = found.f_bavail * found.f_frsize
            if member.stored > available:
                raise TargetFull(
                    f"{shown(member.name)} has {member.stored} bytes, {available} are available", where=self.path
                )
        fd = tree.file(path)
        try:
            for offset, piece in member.chunks():
                view, at = memoryview(piece), offset
                while view:
                    done = os.pwrite(fd, view, at)
                    view, at = view[done:], at + done
                self.written += len(piece)
                if progress is not None:
                    progress(len(piece))
            if os.fstat(fd).st_size != member.size:
                os.ftruncate(fd, member.size)
            os.fchmod(fd, member.mode & 0o777)
            os.utime(fd, (member.mtime, member.mtime))
        finally:
            os.close(fd)

    def _finish_directories(self, tree: ContainedTree, wanted: Callable[[Path], bool]) -> None:
        """Set modes and times, children before parents: a parent's mode may deny access to its children."""
        for path in sorted(filter(wanted, self._directories), key=len, reverse=True):
            mode, mtime = self._directories[path]
            parent = tree.directory(path[:-1])
            try:
                found = os.stat(path[-1], dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(found.st_mode):
                fd = os.open(path[-1], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
                try:
                    os.utime(fd, (mtime, mtime))
                    os.fchmod(fd, mode)
                finally:
                    os.close(fd)

    # --- the volume ---------------------------------------------------------------------------------------------

    def _reset_staging(self) -> None:
        self._close_staging()
        self._directories.clear()
        self.written = 0
        remove(STAGING, self._root)
        os.mkdir(STAGING, 0o700, dir_fd=self._root)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._staging = os.open(STAGING, flags, dir_fd=self._root)

    def _close_staging(self) -> None:
        if self._staging >= 0:
            os.close(self._staging)
            self._staging = -1

    def _move(self, name: str) -> None:
        if name == LOST_AND_FOUND and self._is_directory(name, self._root) and self._is_empty(name):
            # An archive of a whole file system contains this directory, but the volume has its own.
            os.rmdir(name, dir_fd=self._staging)
            self._directories.pop((name,), None)
            return
        try:
            os.rename(name, name, src_dir_fd=self._staging, dst_dir_fd=self._root)
        except OSError:
            if name == LOST_AND_FOUND or not self._exists(name):
                raise
            remove(name, self._root)
            os.rename(name, name, src_dir_fd=self._staging, dst_dir_fd=self._root)

    def _exists(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._root, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    @staticmethod
    def _is_directory(name: str, parent: int) -> bool:
        try:
            return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return False

    def _is_empty(self, name: str) -> bool:
        if not self._is_directory(name, self._staging):
            return False
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._staging)
        try:
            return not os.listdir(fd)
        finally:
            os.close(fd)
