"""Writing of an OCI image layout (OCI image specification 1.1), in a directory or an uncompressed tar.

The bytes are deterministic. A blob is written under a temporary name and renamed when its digest was verified, so that
a bundle that was interrupted can be continued.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import stat
import tarfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from cdi import atomic_file
from cdi.api.digest import HEX_LENGTH, Digest
from cdi.api.errors import CdiError, ChecksumMismatch, Retry, SourceTruncated, TargetUnsuitable
from cdi.api.origin import canonical
from cdi.bundle.contents import GOLDEN, RECORD, STATEMENT
from cdi.source.base import Source
from cdi.source.registry.manifest import MANIFEST_LIMIT, OCI_INDEX, OCI_MANIFEST, Index, parse_manifest
from cdi.source.registry.signatures import is_signature

REF_NAME: Final = "org.opencontainers.image.ref.name"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
_EMPTY = b"{}"
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_CHUNK = 1 << 20
_ATTEMPTS = 8
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0

JsonDescriptor = dict[str, Any]
"""A descriptor as in a manifest."""
OnBytes = Callable[[int], None]
"""Called with the number of bytes of each chunk."""


class LayoutWriter:
    """An OCI image layout that is being written to a directory; existing complete blobs are kept."""

    def __init__(self, root: Path) -> None:
        """Create the directory; raise `TargetUnsuitable` if it is not that of a bundle, or a `TargetError`.

        Blobs that a bundle does not need are removed in the end, so the directory must not contain other images.
        """
        self.root = root
        self._used: set[Path] = set()
        with atomic_file.mapped("the bundle", root):
            root.mkdir(mode=0o755, parents=True, exist_ok=True)
            foreign = [name for name in os.listdir(root) if name not in ("oci-layout", "index.json", "blobs", ".work")]
            if foreign:
                raise _unsuitable(root, foreign[0])
            _require_bundle(root)
            shutil.rmtree(self.work, ignore_errors=True)
            self.work.mkdir()
            (root / "blobs").mkdir(exist_ok=True)

    @property
    def work(self) -> Path:
        """Directory for temporary files on the same file system."""
        return self.root / ".work"

    def put(self, content: bytes, media_type: str, **fields: Any) -> JsonDescriptor:
        """Write a small blob and return its descriptor with additional `fields`."""
        digest = Digest("sha256", hashlib.sha256(content).hexdigest())
        return self.put_as(digest, content, media_type, **fields)

    def put_as(self, digest: Digest, content: bytes, media_type: str, **fields: Any) -> JsonDescriptor:
        """Write a small blob whose digest was verified."""
        path = self._blob(digest)
        with atomic_file.mapped("the bundle", self.root):
            if not _has(path, len(content), digest):
                atomic_file.write(path, content, mode=0o644, fsync=False)
        return {"mediaType": media_type, "digest": str(digest), "size": len(content), **fields}

    def artifact(self, artifact_type: str, subject: Mapping[str, Any], content: bytes) -> JsonDescriptor:
        """Write a manifest with one layer of `content` that refers to `subject`, and return its descriptor."""
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": artifact_type,
            "config": self.put(_EMPTY, EMPTY_TYPE),
            "layers": [self.put(content, artifact_type)],
            "subject": {name: subject[name] for name in ("mediaType", "digest", "size")},
        }
        return self.put(canonical(manifest), OCI_MANIFEST, artifactType=artifact_type)

    def adopt(self, file: Path, media_type: str, on_bytes: OnBytes = lambda _: None) -> JsonDescriptor:
        """Move a file of the same file system into the layout and return its descriptor."""
        with atomic_file.mapped("the bundle", self.root):
            hexadecimal, size = _hash_file(file, "sha256", on_bytes)
            digest = Digest("sha256", hexadecimal)
            os.chmod(file, 0o644)
            os.replace(file, self._blob(digest))
        return {"mediaType": media_type, "digest": str(digest), "size": size}

    def fetch(self, digest: Digest, size: int, source: Source, on_bytes: OnBytes = lambda _: None) -> None:
        """Copy a blob of `size` bytes; transient failures are retried, and an earlier partial copy is continued.

        Raises:
            ChecksumMismatch: The source's content does not have the digest; nothing is kept.
            CdiError: The source's error.
            TargetError: The bundle cannot be written.
        """
        path = self._blob(digest)
        with atomic_file.mapped("the bundle", self.root):
            if _has(path, size, digest):
                on_bytes(size)
                return
        partial = path.with_name(f".{digest.hex}.partial")
        delay, best = _FIRST_DELAY, -1
        left = _ATTEMPTS
        while True:
            try:
                self._append(partial, size, source, on_bytes)
                break
            except CdiError as error:
                done = partial.stat().st_size if partial.exists() else 0
                left = _ATTEMPTS if done > best else left - 1
                best = max(best, done)
                if error.retry is not Retry.BACKOFF or left <= 0:
                    raise
                time.sleep(delay)
                delay = min(delay * 2, _LONGEST_DELAY)
        with atomic_file.mapped("the bundle", self.root):
            actual, _ = _hash_file(partial, digest.algorithm, lambda _: None)
            if actual != digest.hex:
                partial.unlink()
                raise ChecksumMismatch(
                    f"digest mismatch: expected {digest}, received {digest.algorithm}:{actual}",
                    where=source.probe().location,
                    remedy="push the image again; the registry's content is damaged, or was altered in transit",
                )
            os.replace(partial, path)

    def finish(self, entries: list[JsonDescriptor]) -> None:
        """Write the index, and remove blobs that no earlier call wrote or kept."""
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        with atomic_file.mapped("the bundle", self.root):
            atomic_file.write(self.root / "oci-layout", _LAYOUT, mode=0o644, fsync=False)
            atomic_file.write(self.root / "index.json", canonical(index), mode=0o644)
            for path in _files(self.root / "blobs"):
                if path not in self._used:
                    path.unlink()
            shutil.rmtree(self.work, ignore_errors=True)

    def _blob(self, digest: Digest) -> Path:
        directory = self.root / "blobs" / digest.algorithm
        with atomic_file.mapped("the bundle", self.root):
            directory.mkdir(exist_ok=True)
        path = directory / digest.hex
        self._used.add(path)
        return path

    def _append(self, partial: Path, size: int, source: Source, on_bytes: OnBytes) -> None:
        with atomic_file.mapped("the bundle", self.root), open(partial, "ab") as file:
            done = file.tell()
            if done and (done > size or not source.probe().ranges):
                file.truncate(0)
                done = 0
            if done == size:
                return
            buffer = memoryview(bytearray(_CHUNK))
            reader = source.open(done) if done else source.open()
            try:
                while done < size:
                    count = reader.readinto(buffer[: min(_CHUNK, size - done)])
                    if not count:
                        break
                    file.write(buffer[:count])
                    done += count
                    on_bytes(count)
            finally:
                reader.close()
        if done < size:
            raise SourceTruncated(f"the source ended after {done} of {size} bytes", where=source.probe().location)


def _require_bundle(root: Path) -> None:
    """Raise `TargetUnsuitable` if a directory has an index of other images, or blobs that no bundle has."""
    blobs = root / "blobs"
    if os.path.lexists(blobs):
        # Through a symbolic link, files outside the directory would be written and removed.
        for path in (blobs, *(sorted(blobs.iterdir()) if _is_own_directory(blobs) else ())):
            if not _is_own_directory(path) or (path != blobs and path.name not in HEX_LENGTH):
                raise _unsuitable(root, str(path.relative_to(root)))
    index = root / "index.json"
    if not os.path.lexists(index):
        return
    status = index.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MANIFEST_LIMIT:
        raise _unsuitable(root, index.name)
    try:
        parsed = parse_manifest(index.read_bytes(), OCI_INDEX, str(index))
    except CdiError as error:
        raise _unsuitable(root, index.name) from error
    assert isinstance(parsed, Index), "the content type said so"
    names = {entry.name for entry in parsed.entries if entry.name is not None}
    images = {name.removesuffix(GOLDEN) for name in names if name.endswith(GOLDEN)}
    belonging = {name + suffix for name in images for suffix in ("", GOLDEN, RECORD, STATEMENT)}
    for entry in parsed.entries:
        # Referrers of a bundle's images have no name.
        if entry.name not in belonging and not (images and (entry.name is None or is_signature(entry))):
            raise _unsuitable(root, f"image {entry.name or entry.digest}")


def _is_own_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _unsuitable(root: Path, content: str) -> TargetUnsuitable:
    return TargetUnsuitable(
        f"the directory contains {content[:80]!r}, which does not belong to a bundle",
        where=str(root),
        remedy="give a new directory, or one of an earlier bundle",
    )


def pack(root: Path, target: Path, on_bytes: OnBytes = lambda _: None) -> None:
    """Write the layout in `root` as an uncompressed tar, and remove `root`; `target` is replaced atomically."""
    temporary = target.with_name(f".{target.name}.{os.urandom(8).hex()}")
    files = [root / "oci-layout", root / "index.json", *_files(root / "blobs")]
    with atomic_file.mapped("the bundle", target):
        try:
            with open(temporary, "xb") as file:
                for path in files:
                    for piece in _member(str(path.relative_to(root)), path):
                        file.write(piece)
                        on_bytes(len(piece))
                file.write(bytes(2 * tarfile.BLOCKSIZE))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            raise
        shutil.rmtree(root, ignore_errors=True)


def _member(name: str, path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    yield tar_header(name, size)
    with open(path, "rb") as source:
        while piece := source.read(_CHUNK):
            yield piece
    yield bytes(-size % tarfile.BLOCKSIZE)


def tar_header(name: str, size: int | None, *, owner: int = 0, mode: int = 0o644) -> bytes:
    """Return the deterministic header of a file, or of a directory if `size` is None."""
    info = tarfile.TarInfo(name)
    info.size, info.uid, info.gid, info.mtime = size or 0, owner, owner, 0
    info.mode = mode
    info.type = tarfile.DIRTYPE if size is None else tarfile.REGTYPE
    return info.tobuf(tarfile.GNU_FORMAT)


def copy_into(target: io.BufferedIOBase, source: Path) -> int:
    """Append a file and return its size in bytes."""
    done = 0
    with open(source, "rb") as file:
        while piece := file.read(_CHUNK):
            target.write(piece)
            done += len(piece)
    return done


def _has(path: Path, size: int, digest: Digest) -> bool:
    try:
        if path.lstat().st_size != size or path.is_symlink():
            return False
    except FileNotFoundError:
        return False
    return _hash_file(path, digest.algorithm, lambda _: None)[0] == digest.hex


def _hash_file(path: Path, algorithm: str, on_bytes: OnBytes) -> tuple[str, int]:
    digest, size = hashlib.new(algorithm), 0
    with open(path, "rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
            size += len(piece)
            on_bytes(len(piece))
    return digest.hexdigest(), size


def _files(directory: Path) -> Collection[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() or path.is_symlink())
