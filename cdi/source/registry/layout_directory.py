"""Container images in a directory: an OCI image layout that is not packed into a tar."""

from __future__ import annotations

import bisect
import os
import re
import stat
import threading

from cdi.api.digest import HEX_LENGTH
from cdi.api.errors import (
    FormatUnsupported,
    Interrupted,
    NestedTooDeep,
    SourceForbidden,
    SourceNotFound,
    SourceTruncated,
)
from cdi.source.registry.archive import Archive
from cdi.source.registry.tar_index import Member

_MAX_BLOBS = 20_000
_ALGORITHMS = ("sha256", "sha384", "sha512")


class LayoutDirectory(Archive):
    """An `Archive` over a directory.

    Its files are addressed as if they followed each other in one file. Symbolic links are not followed, so that a
    layout from elsewhere cannot name files outside it.
    """

    def __init__(self, path: str) -> None:
        """Open and index the directory; raise `SourceForbidden`, `FormatUnsupported` or `NestedTooDeep`."""
        self.path = path
        self._offsets: list[int] = []
        self._names: list[str] = []
        self._subjects = {}
        self._lock = threading.Lock()
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise SourceNotFound("the directory does not exist", where=path, remedy="check the path") from error
        except OSError as error:
            raise SourceForbidden(f"cannot open the directory: {error.strerror}", where=path) from error
        try:
            self._members = self._scan()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with self._lock:
            super().close()

    def read_at(self, offset: int, view: memoryview) -> int:
        """Read into `view`, which does not cross the end of a file; return the number of bytes.

        Thread-safe, also beside `close`. Raises `Interrupted` after it, `SourceTruncated` or `SourceForbidden`.
        """
        number = bisect.bisect_right(self._offsets, offset) - 1
        # Opened for each read: a layout may have more blobs than a process may have open files.
        descriptor = self._open(self._names[number])
        try:
            return os.preadv(descriptor, [view], offset - self._offsets[number])
        finally:
            os.close(descriptor)

    def _scan(self) -> dict[str, Member]:
        members: dict[str, Member] = {}
        end = 0
        for name in self._list():
            status = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                continue
            members[name] = Member(name=name, offset=end, size=status.st_size)
            self._offsets.append(end)
            self._names.append(name)
            # An empty file needs an offset of its own as well.
            end += max(1, status.st_size)
        if "index.json" not in members or "oci-layout" not in members:
            raise FormatUnsupported(
                "the directory is not an OCI image layout",
                where=self.path,
                remedy="write one with: skopeo copy SOURCE oci:DIRECTORY:TAG",
            )
        return members

    def _list(self) -> list[str]:
        names = [name for name in ("index.json", "oci-layout") if self._mode(name) is not None]
        if not stat.S_ISDIR(self._mode("blobs") or 0):  # a symbolic link could lead anywhere
            return names
        for algorithm in _ALGORITHMS:
            pattern = re.compile(f"[0-9a-f]{{{HEX_LENGTH[algorithm]}}}")
            try:
                directory = os.open(
                    f"blobs/{algorithm}",
                    os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC,
                    dir_fd=self._descriptor,
                )
            except OSError:
                continue
            try:
                with os.scandir(directory) as entries:
                    for entry in entries:
                        if pattern.fullmatch(entry.name):
                            names.append(f"blobs/{algorithm}/{entry.name}")
                        if len(names) > _MAX_BLOBS:
                            raise NestedTooDeep(f"the layout has more than {_MAX_BLOBS} blobs", where=self.path)
            finally:
                os.close(directory)
        return sorted(names)

    def _mode(self, name: str) -> int | None:
        try:
            return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_mode
        except OSError:
            return None

    def _open(self, name: str) -> int:
        where = f"{self.path}, {name}"
        # The kernel may reuse the directory's descriptor once it is closed.
        with self._lock:
            if self._descriptor < 0:
                raise Interrupted("the layout was closed", where=where)
            try:
                return os.open(
                    name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._descriptor
                )
            except FileNotFoundError as error:
                raise SourceTruncated("a file of the layout was removed", where=where) from error
            except OSError as error:
                raise SourceForbidden(f"cannot open a file of the layout: {error.strerror}", where=where) from error
