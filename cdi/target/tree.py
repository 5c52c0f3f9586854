"""Directory tree that is created from untrusted names.

Every name is resolved from the root, component by component, with ``openat(2)`` and ``O_NOFOLLOW``, so nothing is
created, read or removed through a link, even one that already exists. A symbolic link is accepted if it cannot lead out
of the tree. Its own directory is known to be a real one, so a leading ``..`` in its target has a known effect. A ``..``
after a name may start from wherever another link leads, so it is checked after the tree is complete.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from cdi.api.errors import ArchiveUnsafe

MAX_DEPTH = 256
"""Maximum number of nested directories."""
_MAX_NAME = 255
_MAX_PATH = 4095
_MAX_HOPS = 40
# Maximum number of links followed, as in the kernel (path_resolution(7)).
_MAX_CLIMBING_LINKS = 10_000

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Path = tuple[str, ...]
"""Components of a path from the root of the tree; none is empty, ``.`` or ``..``."""


def split(name: str) -> Path:
    """Return the components of a member's name; raise `ArchiveUnsafe` if the name is not allowed."""
    if name.startswith("/"):
        raise ArchiveUnsafe("the archive contains a member with an absolute name", where=shown(name))
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise ArchiveUnsafe("the archive contains a member whose name contains ..", where=shown(name))
    if "\0" in name or len(parts) > MAX_DEPTH or len(os.fsencode(name)) > _MAX_PATH:
        raise ArchiveUnsafe("the archive contains a member whose name is invalid in a file system", where=shown(name))
    if any(len(os.fsencode(part)) > _MAX_NAME for part in parts):
        raise ArchiveUnsafe("the archive contains a member whose name is too long", where=shown(name))
    return parts


def shown(name: str) -> str:
    """Return a name from an archive, escaped and shortened for a message."""
    return ascii(name if len(name) <= 200 else f"{name[:200]}…")


class ContainedTree:
    """A tree below the descriptor `root`, which the caller closes.  Raises `ArchiveUnsafe` and `OSError`."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._last: tuple[Path, int] | None = None
        self._dotdot_links: list[Path] = []

    def close(self) -> None:
        if self._last is not None:
            os.close(self._last[1])
            self._last = None

    def directory(self, path: Path) -> int:
        """Return a descriptor of the directory, which is valid until the next call.

        The directory and its parents are created if they do not exist.
        """
        if not path:
            return self._root
        if self._last is not None and self._last[0] == path:
            return self._last[1]
        fd = self._walk(path)
        self.close()
        self._last = path, fd
        return fd

    def file(self, path: Path) -> int:
        """Create an empty regular file and open it for writing; replace anything but a non-empty directory."""
        parent = self._unlink_existing(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path[-1], flags, 0o600, dir_fd=parent)

    def hardlink(self, path: Path, existing: Path) -> None:
        """Create a hard link to a file of this tree.

        For a symbolic link, create another symbolic link, which is checked at its own place.
        """
        source = self._existing_parent(existing)
        try:
            mode = self._mode(existing[-1], source)
            if path == existing:
                return
            if stat.S_ISLNK(mode):
                self.symlink(path, os.readlink(existing[-1], dir_fd=source))
                return
            if not stat.S_ISREG(mode):
                raise ArchiveUnsafe(
                    "the archive contains a hard link to something other than a file", where=shown("/".join(existing))
                )
            parent = self._unlink_existing(path)
            os.link(existing[-1], path[-1], src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    def symlink(self, path: Path, target: str) -> None:
        parts = [part for part in target.split("/") if part not in ("", ".")]
        climb = next((at for at, part in enumerate(parts) if part != ".."), len(parts))
        if not target or "\0" in target or len(os.fsencode(target)) > _MAX_PATH:
            raise ArchiveUnsafe("the archive contains a link without a target", where=shown("/".join(path)))
        if target.startswith("/") or climb > len(path) - 1:
            raise ArchiveUnsafe(
                f"the archive contains a link that leads out of it, to {shown(target)}", where=shown("/".join(path))
            )
        parent = self._unlink_existing(path)
        os.symlink(target, path[-1], dir_fd=parent)
        if ".." in parts[climb:]:
            self._dotdot_links.append(path)
            if len(self._dotdot_links) > _MAX_CLIMBING_LINKS:
                raise ArchiveUnsafe("the archive contains too many links with .. after a name")

    def check_links(self) -> None:
        """Check links after the tree is complete; raise `ArchiveUnsafe` if one leads out of the tree."""
        for path in self._dotdot_links:
            try:
                mode = os.stat("/".join(path), dir_fd=self._root, follow_symlinks=False).st_mode
            except FileNotFoundError:
                continue
            if stat.S_ISLNK(mode):
                self._resolve(path)

    # --- walking ------------------------------------------------------------------------------------------------

    def _walk(self, path: Path) -> int:
        fd = os.dup(self._root)
        try:
            for at, part in enumerate(path):
                try:
                    deeper = os.open(part, _OPEN_DIRECTORY, dir_fd=fd)
                except FileNotFoundError:
                    os.mkdir(part, 0o755, dir_fd=fd)
                    deeper = os.open(part, _OPEN_DIRECTORY, dir_fd=fd)
                except OSError as error:
                    if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                        raise
                    raise ArchiveUnsafe(
                        "the archive contains a member below a link or file", where=shown("/".join(path[: at + 1]))
                    ) from error
                os.close(fd)
                fd = deeper
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _existing_parent(self, path: Path) -> int:
        """Return a new descriptor of the directory that contains a hard link's target; the caller closes it."""
        if not path:
            raise ArchiveUnsafe("the archive links to its own root")
        fd = os.dup(self._root)
        try:
            for part in path[:-1]:
                deeper = os.open(part, _OPEN_DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = deeper
            os.stat(path[-1], dir_fd=fd, follow_symlinks=False)
        except OSError as error:
            os.close(fd)
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                raise
            raise ArchiveUnsafe(
                "the archive contains a link to a file that it does not contain", where=shown("/".join(path))
            ) from None
        return fd

    def _unlink_existing(self, path: Path) -> int:
        """Remove the entry at `path` if there is one, and return a descriptor of its parent."""
        if not path:
            raise ArchiveUnsafe("the archive contains a file in place of its root")
        parent = self.directory(path[:-1])
        try:
            mode = self._mode(path[-1], parent)
        except FileNotFoundError:
            return parent
        if not stat.S_ISDIR(mode):
            os.unlink(path[-1], dir_fd=parent)
            return parent
        if self._last is not None and self._last[0] == path:
            self.close()
        try:
            os.rmdir(path[-1], dir_fd=parent)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise ArchiveUnsafe(
                "the archive contains a directory and another member of the same name", where=shown("/".join(path))
            ) from error
        return parent

    @staticmethod
    def _mode(name: str, parent: int) -> int:
        return os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode

    def _resolve(self, path: Path) -> None:
        """Resolve a link by the kernel's rules without following it; raise `ArchiveUnsafe` if it leaves the tree."""
        unsafe = ArchiveUnsafe("the archive contains a link that leads out of it", where=shown("/".join(path)))
        here = list(path[:-1])
        todo = [path[-1]]
        hops = 0
        while todo:
            part = todo.pop()
            if part == "..":
                if not here:
                    raise unsafe
                here.pop()
                continue
            here.append(part)
            if len(here) > MAX_DEPTH:
                raise unsafe
            target = ""
            # A missing component cannot lead anywhere; it is treated as a directory.
            with suppress(FileNotFoundError, NotADirectoryError):
                if stat.S_ISLNK(self._mode("/".join(here), self._root)):
                    target = os.readlink("/".join(here), dir_fd=self._root)
            if target:
                hops += 1
                here.pop()
                todo.extend(step for step in reversed(target.split("/")) if step not in ("", "."))
                if hops > _MAX_HOPS or len(todo) > _MAX_PATH:
                    raise unsafe


def remove(name: str, parent: int) -> None:
    """Remove `name` and everything below it without following links; do nothing if it does not exist.

    Directories are first made accessible. Raises `OSError` if something cannot be removed.
    """
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        _remove_directory(name, parent)


def _remove_directory(name: str, parent: int) -> None:
    try:
        fd = os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        fd = os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
    try:
        if stat.S_IMODE(os.fstat(fd).st_mode) & 0o700 != 0o700:
            os.fchmod(fd, 0o700)
        for entry in os.listdir(fd):
            remove(entry, fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)
