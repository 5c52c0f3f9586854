"""Container images in a file: ``oci-archive:PATH[:TAG]``, an OCI image layout in an uncompressed tar.

Follows the OCI image specification 1.1 (image layout). Blobs are read in place; nothing is unpacked.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from typing import Self

from cdi.api.digest import Digest
from cdi.api.errors import (
    ArchiveUnsafe,
    CdiError,
    ChecksumMismatch,
    FormatUnsupported,
    InternalError,
    Interrupted,
    SourceNotFound,
    SourceProtocolError,
    SourceTruncated,
    SourceUnreachable,
    SourceUrlInvalid,
)
from cdi.api.image_signature import SignatureVerifier
from cdi.api.json_document import parse_json
from cdi.source.base import SourceFacts
from cdi.source.file import error_from_errno
from cdi.source.registry.manifest import MANIFEST_LIMIT, OCI_INDEX, Descriptor, Index, Manifest, parse_manifest
from cdi.source.registry.resolve import Document, ResolvedImage, check_document, resolve
from cdi.source.registry.signatures import (
    UNUSABLE,
    ContentRequest,
    ReferrersRequest,
    SignatureRequest,
    TagRequest,
    is_kept_by_cosign,
    is_signature,
    may_be_signature,
    referrers_tag,
    require_signature,
)
from cdi.source.registry.tar_index import Member, index_tar

_PREFIXES = ("oci-archive://", "oci-archive:")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2"}


def split_archive(url: str) -> tuple[str, str | None]:
    """Return the path and tag of an ``oci-archive:`` URL; raise `SourceUrlInvalid`.

    A colon belongs to the path if a file of the whole name exists; otherwise the last colon starts the tag.
    """
    prefix = next((prefix for prefix in _PREFIXES if url.startswith(prefix)), None)
    if prefix is None:
        raise SourceUrlInvalid("not an oci-archive: URL", where=url[:200])
    path = url.removeprefix(prefix)
    if prefix.endswith("//"):
        path = "/" + path.lstrip("/")
    if not path.strip("/") or "\0" in path:
        raise SourceUrlInvalid("oci-archive: names no file", where=url[:200])
    if os.path.exists(path):
        return path, None
    name, colon, tag = path.rpartition(":")
    if colon and name and "/" not in tag:
        return name, tag or None
    return path, None


class Archive:
    """An open archive, whose blobs are readable until `close`."""

    def __init__(self, path: str) -> None:
        """Open and index the file.

        Raises `SourceNotFound`, `SourceForbidden`, `FormatUnsupported`, and whatever `index_tar` raises.
        """
        self.path = path
        self._subjects: dict[Digest, Digest | None] = {}
        self._descriptor = _open(path)
        try:
            self._length = os.fstat(self._descriptor).st_size
            self._refuse_compressed()
            self._members = self._index()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def resolve(self, tag: str | None, architecture: str | None) -> ResolvedImage:
        """Find the image for an architecture.

        Raises what `cdi.source.registry.resolve.resolve` raises, and `SourceNotFound` for an unknown tag.
        """
        where = self._where(tag)
        resolution = resolve(self.document(tag), architecture=architecture, where=where)
        try:
            wanted = next(resolution)
            while True:
                wanted = resolution.send(self._read(self._blob(wanted.descriptor, where), where))
        except StopIteration as stop:
            image: ResolvedImage = stop.value
            return image

    def document(self, tag: str | None) -> Document:
        """Return the manifest or index that the tag names, for polling; raise what `resolve` raises."""
        where = self._where(tag)
        body = self._read(self._members["index.json"], where)
        index = parse_manifest(body, OCI_INDEX, where)
        assert isinstance(index, Index), "the content type said so"
        return self._top(index, tag, body, where)

    def _where(self, tag: str | None) -> str:
        return f"{self.path}:{tag}" if tag else self.path

    def require_signature(self, image: ResolvedImage, verifier: SignatureVerifier) -> None:
        """Read the signatures in the archive until the verifier accepts one; raise its rejection if there is none."""
        search = require_signature(image, verifier)
        try:
            wanted = next(search)
            while True:
                try:
                    found = self._signatures(wanted)
                except UNUSABLE as error:
                    wanted = search.throw(error)
                else:
                    wanted = search.send(found)
        except StopIteration:
            return

    def index(self) -> Index:
        """Return the layout's index, which lists its images; raise what `resolve` raises."""
        index = parse_manifest(self._read(self._members["index.json"], self.path), OCI_INDEX, self.path)
        assert isinstance(index, Index), "the content type said so"
        return index

    def small_blob(self, descriptor: Descriptor, where: str) -> bytes:
        """Return a small blob, verified; raise `SourceNotFound`, `ChecksumMismatch`, or `SourceProtocolError`."""
        body = self._read(self._blob(descriptor, where), where)
        check_document(descriptor, body, where)
        return body

    def layer(self, descriptor: Descriptor) -> BlobSource:
        """Return a source for a layer; raise `SourceNotFound`, or `ChecksumMismatch` if its size differs."""
        member = self._blob(descriptor, self.path)
        if member.size != descriptor.size:
            raise ChecksumMismatch(
                f"a blob of {descriptor.size} bytes is listed, but the archive contains {member.size}",
                where=f"{self.path}, {descriptor.digest}",
            )
        return BlobSource(self, member, descriptor.digest)

    def read_at(self, offset: int, view: memoryview) -> int:
        """Read into `view` at an offset in the file; return the number of bytes. Thread-safe."""
        return os.preadv(self._descriptor, [view], offset)

    def _signatures(self, wanted: SignatureRequest) -> tuple[bytes, ...]:
        match wanted:
            case TagRequest():
                return self._tagged(wanted.tag)
            case ContentRequest():
                return (self._read(self._blob(wanted.descriptor, self.path), self.path),)
            case ReferrersRequest():
                # Tools list referrers among the images of a layout, or under the tag that registries use.
                return (self._referrers(wanted.digest), *self._tagged(referrers_tag(wanted.digest)))

    def _referrers(self, digest: Digest) -> bytes:
        """Return an index of the entries that may be signatures of `digest`: other images have some of their own."""
        body = self._read(self._members["index.json"], self.path)
        index = parse_manifest(body, OCI_INDEX, self.path)
        assert isinstance(index, Index), "the content type said so"
        document = parse_json(body)
        entries = [
            raw
            for raw, entry in zip(document["manifests"], index.entries, strict=True)
            if may_be_signature(entry) and (is_kept_by_cosign(entry) or self._refers(entry, digest))
        ]
        return json.dumps({"schemaVersion": 2, "manifests": entries}).encode()

    def _refers(self, entry: Descriptor, digest: Digest) -> bool:
        if entry.digest not in self._subjects:
            try:
                manifest = parse_manifest(self._read(self._blob(entry, self.path), self.path), None, self.path)
            except CdiError:
                return True  # the search reads it again, and reports why it could not be used
            self._subjects[entry.digest] = manifest.subject if isinstance(manifest, Manifest) else None
        return self._subjects[entry.digest] == digest

    def _tagged(self, tag: str) -> tuple[bytes, ...]:
        index = parse_manifest(self._read(self._members["index.json"], self.path), OCI_INDEX, self.path)
        assert isinstance(index, Index), "the content type said so"
        return tuple(
            self._read(self._blob(entry, self.path), self.path)
            for entry in index.entries
            if entry.name is not None and (entry.name == tag or entry.name.endswith(f":{tag}"))
        )

    def _top(self, index: Index, tag: str | None, body: bytes, where: str) -> Document:
        """Return the document that the tag names: a manifest or a nested index, or else the layout's own index.

        The layout's own index is used if its entries are the platforms of one image.
        """
        entries = [e for e in index.entries if not e.is_attestation and not is_signature(e)]
        names = sorted({e.name for e in entries if e.name is not None})
        if tag is not None:
            entries = [e for e in entries if e.name is not None and (e.name == tag or e.name.endswith(f":{tag}"))]
            if not entries:
                listed = ", ".join(names[:20]) or "no tags"
                raise SourceNotFound(f"the archive has no {tag[:140]!r}; it has {listed}", where=where)
        elif len(names) > 1:
            raise SourceUrlInvalid(
                f"the archive contains several images: {', '.join(names[:20])}",
                where=where,
                remedy="select one by its tag: oci-archive:PATH:TAG",
            )
        if len(entries) == 1:
            entry = entries[0]
            inner = self.small_blob(entry, where)
            return Document(body=inner, digest=entry.digest, media_type=entry.media_type)
        if tag is not None and len(names) > 1:
            raise SourceUrlInvalid(
                f"the archive has {len(entries)} images with the tag {tag!r}, among others",
                where=where,
                remedy="write one image to an archive",
            )
        return Document(body=body, digest=Digest("sha256", hashlib.sha256(body).hexdigest()), media_type=OCI_INDEX)

    def _index(self) -> dict[str, Member]:
        members: dict[str, Member] = {}
        for member in index_tar(self._descriptor, self._length, where=self.path):
            if member.name in members:
                raise ArchiveUnsafe(f"the archive has {member.name[:200]!r} twice", where=self.path)
            members[member.name] = member
        if "index.json" not in members or "oci-layout" not in members:
            kind = "docker-archive" if "manifest.json" in members else "tar archive"
            raise FormatUnsupported(
                f"the file is a {kind} and not an OCI archive",
                where=self.path,
                remedy="write it with: skopeo copy SOURCE oci-archive:PATH",
            )
        return members

    def _refuse_compressed(self) -> None:
        magic = os.pread(self._descriptor, 8, 0)
        for beginning, name in _COMPRESSED.items():
            if magic.startswith(beginning):
                raise FormatUnsupported(
                    f"the OCI archive is compressed with {name}",
                    where=self.path,
                    remedy="decompress it; its layers are compressed already",
                )

    def _blob(self, descriptor: Descriptor, where: str) -> Member:
        digest = descriptor.digest
        member = self._members.get(f"blobs/{digest.algorithm}/{digest.hex}")
        if member is None:
            raise SourceNotFound(
                f"the archive lacks the blob {digest}", where=where, remedy="write the archive again, complete"
            )
        return member

    def _read(self, member: Member, where: str) -> bytes:
        if member.size > MANIFEST_LIMIT:
            raise SourceProtocolError(
                f"{member.name} has {member.size} bytes; the limit is {MANIFEST_LIMIT}", where=where
            )
        body = bytearray(member.size)
        if self.read_at(member.offset, memoryview(body)) != member.size:
            raise SourceTruncated("the archive was truncated while it was read", where=where)
        return bytes(body)


def _open(path: str) -> int:
    try:
        # Without O_NONBLOCK, opening a FIFO would block the worker until it has a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise error_from_errno(error, path, "the archive") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FormatUnsupported(
            "not a regular file", where=path, remedy="give the path of a tar file; directories are not read"
        )
    return descriptor


class BlobSource:
    """A `Source` over one blob of an archive that it does not own."""

    def __init__(self, archive: Archive, member: Member, digest: Digest) -> None:
        self._archive = archive
        self._member = member
        self._facts = SourceFacts(
            location=f"{archive.path}, {digest}",
            length=member.size,
            ranges=True,
            validator=str(digest),
            digests=(digest,),
        )

    def probe(self) -> SourceFacts:
        return self._facts

    def open(self, offset: int = 0, length: int | None = None) -> BlobReader:
        """Return a reader; raise `InternalError` for a range outside the blob."""
        size = self._member.size
        end = size if length is None else offset + length
        if not 0 <= offset <= end <= size:
            raise InternalError(f"the range {offset}+{length} is not within {size}", where=self._facts.location)
        return BlobReader(self._archive, self._member.offset + offset, end - offset, self._facts.location)

    def sibling(self, name: str) -> None:
        """Return None, since blobs have no names."""

    def close(self) -> None:
        """Do nothing: the archive owns the descriptor."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class BlobReader:
    """A reader of one byte range of a blob."""

    def __init__(self, archive: Archive, offset: int, left: int, where: str) -> None:
        self._archive = archive
        self._offset = offset
        self._left = left
        self._where = where
        self._aborted = False

    def readinto(self, view: memoryview) -> int:
        """Read some bytes into `view`; return 0 at the end.

        Raises `SourceTruncated` if the file has become shorter, `SourceUnreachable` if it cannot be read, or
        `Interrupted`.
        """
        if self._aborted:
            raise Interrupted("reading was interrupted", where=self._where)
        wanted = min(len(view), self._left)
        if not wanted:
            return 0
        try:
            count = self._archive.read_at(self._offset, view[:wanted])
        except OSError as error:
            raise SourceUnreachable(
                f"cannot read the archive: {error.strerror}",
                where=self._where,
                remedy="check the storage that contains it",
            ) from error
        if not count:
            raise SourceTruncated("the archive was truncated while it was read", where=self._where)
        self._offset += count
        self._left -= count
        return count

    def abort(self) -> None:
        self._aborted = True

    def close(self) -> None:
        """Do nothing: the archive owns the descriptor."""
