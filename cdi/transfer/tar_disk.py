"""Selection of the disk in a tar archive: its only file, the one disk of an OVA, or the file that the user names.

An OVA is the package of a virtual machine (DMTF DSP0243): a tar with a descriptor in front, the disks, and usually a
manifest with digests of all files, in front of the disks or after them.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from cdi.api.digest import Digest
from cdi.api.errors import ChecksumMismatch, DiskNotInImage, ImageUnsafe
from cdi.api.policy import DISK
from cdi.codec.base import Buffer
from cdi.codec.tar import Member
from cdi.image.ovf import MAX_DESCRIPTOR, disk_names, plain_name
from cdi.transfer.result import OutcomeBuilder
from cdi.transfer.unwrap import DiskNotInLayer
from cdi.verify.checksum_file import MAX_SUMS, find_digest

_DESCRIPTOR: Final = ".ovf"
_MANIFEST: Final = ".mf"
_SHOWN: Final = 8
_LATE_ALGORITHMS: Final = ("sha1", "sha256")
"""Digests that are computed of a disk that precedes its manifest."""
_CHOOSE: Final = f"name one of them with the annotation {DISK} (cdi import --disk)"


class TarDisk:
    """Selection of the disk in one archive, and what the archive itself proves about it."""

    def __init__(self, wanted: str | None, location: str) -> None:
        """Select the file `wanted` of the archive at `location`; without a name, its only disk."""
        self.verified_by: str | None = None
        """Name of the manifest whose digest equals that of the disk, once the archive was read."""
        self.warning: str | None = None
        self._wanted = None if wanted is None else plain_name(wanted)
        self._location = location
        self._package = False
        self._found: str | None = None
        self._others: list[str] = []
        self._manifest: tuple[str, bytes] | None = None
        self._digests: dict[str, Digest] = {}

    def content(self, archive: Iterator[Member]) -> Iterator[Buffer]:
        """Yield the bytes of the disk, then read the archive to its end and compare the disk with the manifest.

        Raises:
            DiskNotInLayer: The archive contains no file.
            DiskNotInImage: The disk is missing, or it is ambiguous which one it is.
            ChecksumMismatch: The disk's digest differs from that in the manifest.
            ImageError: The descriptor or the manifest is invalid.
        """
        for member in archive:
            if member.kind != "file":
                continue
            name = plain_name(member.name)
            if name.lower().endswith(_DESCRIPTOR):
                self._select(disk_names(self._read(member, MAX_DESCRIPTOR), name), name)
            elif name == self._wanted or (self._wanted is None and self._found is None):
                if self._found is not None:
                    raise self._error(f"the archive holds {name!r} twice", "create the archive again")
                self._found = name
                yield from self._disk(member, name)
            elif self._package and name.lower().endswith(_MANIFEST):
                self._manifest = name, self._read(member, MAX_SUMS)
            elif self._wanted is None:
                raise self._error(
                    f"the archive holds both {self._found!r} and {name!r}, but only one can be the disk",
                    f"{_CHOOSE}, store a single disk in the archive, or use contentType archive",
                )
            elif len(self._others) <= _SHOWN:
                self._others.append(name)
        if self._found is None:
            if self._wanted is None:
                raise DiskNotInLayer
            raise self._error(
                f"the archive does not contain the disk {self._wanted!r}" + _listed("; it contains ", self._others),
                "name a file of the archive",
            )
        self._compare(self._found)

    def record(self, result: OutcomeBuilder) -> None:
        """Record what the archive proved about the disk, after it was read to its end."""
        if self.verified_by is not None:
            result.verified(self.verified_by)
        if self.warning is not None:
            result.warn(self.warning)

    def _select(self, disks: tuple[str, ...], descriptor: str) -> None:
        """Select one of the disks that the descriptor of an OVA lists."""
        if self._package:
            raise self._error(f"the archive holds a second descriptor, {descriptor!r}", "create the archive again")
        self._package = True
        listed = _listed(" ", disks)
        if not disks:
            raise self._error(f"{descriptor!r} describes a virtual machine without a disk", "export it with its disk")
        if self._wanted is None and len(disks) > 1:
            raise self._error(f"the OVA contains {len(disks)} disks:{listed}", _CHOOSE)
        if self._wanted is not None and self._wanted not in disks:
            raise self._error(f"the OVA has no disk {self._wanted!r}; its disks are{listed}", _CHOOSE)
        self._wanted = self._wanted or disks[0]
        if self._found not in (None, self._wanted):
            raise self._error(
                f"{self._found!r} precedes the descriptor {descriptor!r}, whose disk is {self._wanted!r}",
                "store the descriptor as the archive's first file, as DSP0243 requires",
            )

    def _disk(self, member: Member, name: str) -> Iterator[Buffer]:
        """Yield the disk, and compute the digests that the manifest has, or may have if it follows."""
        algorithms: tuple[str, ...] = _LATE_ALGORITHMS if self._package else ()
        if self._manifest is not None:
            declared = self._declared(name)
            algorithms = () if declared is None else (declared.algorithm,)
        if not algorithms:
            yield from member.read()
            return
        hashes = [hashlib.new(algorithm, usedforsecurity=False) for algorithm in algorithms]
        with ThreadPoolExecutor(len(hashes), "digest") as pool:
            for piece in member.read():
                # Hash in other threads while the decoder works on the same bytes.
                hashing = [pool.submit(one.update, piece) for one in hashes]
                try:
                    yield piece
                finally:
                    for job in hashing:
                        job.result()
        self._digests = {one.name: Digest(one.name, one.hexdigest()) for one in hashes}

    def _compare(self, name: str) -> None:
        declared = self._declared(name)
        if declared is None or self._manifest is None:
            return
        manifest, _ = self._manifest
        found = self._digests.get(declared.algorithm)
        if found is None:
            self.warning = f"the {declared.algorithm} digest in {manifest!r}, which follows the disk, was not compared"
        elif found != declared:
            raise ChecksumMismatch(
                f"digest mismatch: {manifest} says {declared} for {name!r}, received {found}", where=self._location
            )
        else:
            self.verified_by = manifest

    def _declared(self, name: str) -> Digest | None:
        """Return the digest that the manifest has for the file `name`."""
        if self._manifest is None:
            return None
        manifest, body = self._manifest
        relative = posixpath.relpath(name, posixpath.dirname(manifest) or ".")
        return find_digest(body, relative, file_name=manifest)

    def _read(self, member: Member, limit: int) -> bytes:
        if member.size > limit:
            raise ImageUnsafe(f"{member.name!r} in the archive has {member.size} bytes, more than {limit}", where="ova")
        return b"".join(bytes(piece) for piece in member.read())

    def _error(self, what: str, remedy: str) -> DiskNotInImage:
        return DiskNotInImage(what, where=self._location, remedy=remedy)


def _listed(before: str, names: list[str] | tuple[str, ...]) -> str:
    """Return the first names, quoted, with `before` in front; nothing if there are none."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return before + ", ".join(repr(name) for name in names[:_SHOWN]) + more if names else ""
