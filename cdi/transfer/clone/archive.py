"""Directory tree as a tar stream, which is sent from the beginning each time, as it cannot be resumed.

Files, directories, symbolic and hard links, modes and times are transferred, and holes are skipped. Owners and extended
attributes are not, as the target's worker may not set them. Other file types are rejected before any byte is sent.
"""

from __future__ import annotations

import itertools
import os
import stat
import tarfile
import threading
from collections.abc import Iterator

from cdi.api.errors import SourceChanged, SourceNotSupported, SourceUnreachable
from cdi.image.tar_header import BLOCK
from cdi.source.file import error_from_errno
from cdi.source.peer_chunks import CHUNK, leaf_hash
from cdi.source.peer_messages import PROTOCOL, PeerFacts
from cdi.target.directory import LOST_AND_FOUND, STAGING
from cdi.transfer.clone.disk_reader import data_extents
from cdi.transfer.clone.window import Piece, SharedWindow

_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_CHUNK_SIZE = 256 << 10
_MAX_PARTS = 1 << 16
"""Maximum extents of a sparse file; one with more is sent including its holes."""
_MAX_LINKS = 1_000_000
_NOT_CARRIED = (LOST_AND_FOUND, STAGING, ".cdi")
"""Top-level names that belong to the volume and not to its content."""


class ArchiveSource:
    """One state of a tree; raises `SourceNotSupported` for sockets, pipes and devices, and source errors."""

    def __init__(self, path: str) -> None:
        self.size = 0
        """Approximate bytes of data."""
        self._path = path
        self._lock = threading.Lock()
        self._pass: ArchivePass | None = None
        for _, _, status in self._walk():
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode)):
                raise SourceNotSupported(
                    "the volume contains something other than files, directories and links",
                    where=path,
                    remedy="remove sockets, pipes and device nodes from the source volume",
                )
            self.size += min(status.st_size, status.st_blocks * 512) + BLOCK

    def facts(self) -> PeerFacts:
        return PeerFacts(
            protocol=PROTOCOL,
            content="archive",
            size=self.size,
            data=self.size,
            validator="",
            is_strong=True,
            tag="archive",
        )

    def reader(self, window: SharedWindow) -> ArchivePass:
        """Return a pass that a target can read from its beginning."""
        with self._lock:
            current = self._pass
            if current is None or not (current.is_new or window.holds(current, 0)):
                current = self._pass = ArchivePass(self._stream())
            return current

    def check(self) -> None:
        """Do nothing: each file is checked when it is read."""

    def close(self) -> None:
        """Do nothing: no file is open between two passes."""

    # --- the tree -----------------------------------------------------------------------------------------------

    def _walk(self) -> Iterator[tuple[str, int, os.stat_result]]:
        """Yield the name in the archive, its directory's descriptor and the status of everything, directories first."""

        def failed(error: OSError) -> None:
            raise error

        try:
            for root, directories, files, descriptor in os.fwalk(self._path, onerror=failed):
                relative = os.path.relpath(root, self._path)
                prefix = "" if relative == "." else f"{relative}/"
                if not prefix:
                    directories[:] = [name for name in directories if name not in _NOT_CARRIED]
                directories.sort()
                for name in sorted([*directories, *files]):
                    yield f"{prefix}{name}", descriptor, os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        except FileNotFoundError as error:
            raise SourceChanged("the volume was modified while it was cloned", where=self._path) from error
        except OSError as error:
            raise error_from_errno(error, self._path, "the source volume") from error

    def _stream(self) -> Iterator[bytes | memoryview]:
        links: dict[tuple[int, int], str] = {}
        buffer = memoryview(bytearray(_CHUNK_SIZE))
        for name, directory, status in self._walk():
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = stat.S_IMODE(status.st_mode), status.st_mtime_ns / 1e9
            last = os.path.basename(name)
            if stat.S_ISDIR(status.st_mode):
                info.type = tarfile.DIRTYPE
                yield _header(info)
            elif stat.S_ISLNK(status.st_mode):
                info.type, info.linkname = tarfile.SYMTYPE, os.readlink(last, dir_fd=directory)
                yield _header(info)
            elif status.st_nlink > 1 and (first := links.get((status.st_dev, status.st_ino))) is not None:
                info.type, info.linkname = tarfile.LNKTYPE, first
                yield _header(info)
            else:
                if status.st_nlink > 1 and len(links) < _MAX_LINKS:
                    links[status.st_dev, status.st_ino] = name
                yield from self._file(info, last, directory, status, buffer)
        yield bytes(2 * BLOCK)

    def _file(
        self, info: tarfile.TarInfo, name: str, directory: int, status: os.stat_result, buffer: memoryview
    ) -> Iterator[bytes | memoryview]:
        descriptor = os.open(name, _OPEN, dir_fd=directory)
        try:
            before = os.fstat(descriptor)
            changed = SourceChanged(
                "a file was modified while it was cloned", where=os.path.join(self._path, info.name)
            )
            if not stat.S_ISREG(before.st_mode) or not os.path.samestat(before, status):
                raise changed
            size = before.st_size
            parts = _parts(descriptor, size)
            if parts == [(0, size)] or not size:
                info.size = size
                yield _header(info)
            else:
                # GNU's sparse format 1.0: the map precedes the data (tar manual, "PAX Format, Version 1.0").
                numbers = [len(parts), *(number for start, stop in parts for number in (start, stop - start))]
                table = "".join(f"{number}\n" for number in numbers).encode()
                table += bytes(-len(table) % BLOCK)
                info.pax_headers = {
                    "GNU.sparse.major": "1",
                    "GNU.sparse.minor": "0",
                    "GNU.sparse.name": info.name,
                    "GNU.sparse.realsize": str(size),
                }
                info.size = len(table) + sum(stop - start for start, stop in parts)
                info.name = "GNUSparseFile.0/file"
                yield _header(info)
                yield table
            stored = 0
            for start, stop in parts:
                at = start
                while at < stop:
                    got = os.preadv(descriptor, [buffer[: stop - at]], at)
                    if not got:
                        raise changed
                    yield buffer[:got]
                    at += got
                stored += stop - start
            after = os.fstat(descriptor)
            if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise changed
            yield bytes(-stored % BLOCK)
        finally:
            os.close(descriptor)


class ArchivePass:
    """One pass over a tree: a `ChunkReader` of the tar stream, which is read in order."""

    def __init__(self, stream: Iterator[bytes | memoryview]) -> None:
        self._stream = stream
        self._left = memoryview(b"")
        self._next = 0
        self._lock = threading.Lock()

    @property
    def is_new(self) -> bool:
        """Whether nothing was read yet."""
        return not self._next

    def read(self, offset: int, buffer: memoryview) -> Piece | None:
        """Return the next chunk; raise `SourceUnreachable` for one that was read before."""
        with self._lock:
            if offset != self._next:
                raise SourceUnreachable("a target lagged behind the others, and has to start over")
            filled = 0
            while filled < CHUNK:
                if not self._left:
                    piece = next(self._stream, None)
                    if piece is None:
                        break
                    self._left = memoryview(piece)
                    continue
                count = min(len(self._left), CHUNK - filled)
                buffer[filled : filled + count] = self._left[:count]
                filled, self._left = filled + count, self._left[count:]
            if not filled:
                return None
            self._next = offset + CHUNK
            runs, view = ((0, filled),), buffer[:filled]
            return Piece(view=view, runs=runs, leaf=leaf_hash(runs, (view,)))


def _parts(descriptor: int, size: int) -> list[tuple[int, int]]:
    """Return the ranges of a file that contain data."""
    parts = list(itertools.islice(data_extents(descriptor, size, 0), _MAX_PARTS + 1))
    return parts if len(parts) <= _MAX_PARTS else [(0, size)]


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
