"""Sans-I/O detection and validation of images.

An `Inspector` requests ranges, is fed the bytes, and returns a result:

    inspector = Inspector(length)
    while (want := inspector.wants()) is not None:
        offset, size = want
        inspector.feed(offset, read(offset, size))      # b"" reports the end of the content
    info = inspector.verdict()

Formats are detected by content. Content that matches more than one format is rejected: if readers disagree about the
format of a file, a harmless image can be read as a malicious one. The module that reads a format is imported once its
signature is found: loading all of them takes longer than importing a small raw image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cdi.api.errors import CdiError, FormatUnrecognised, FormatUnsupported
from cdi.image.formats import raw, signatures
from cdi.image.formats.content import HEAD, Inspection, RandomAccessContent, Want
from cdi.image.info import ImageInfo
from cdi.image.sizes import SECTOR, require_size
from cdi.image.wrapper import identify_unsupported

if TYPE_CHECKING:
    from cdi.image.block_map import MapBuilder

_NO_TAIL: Final = 2 * SECTOR
"""Content shorter than this has no footer after its disk."""


class Inspector:
    """State of one inspection; the result does not depend on how the bytes are split when they are fed.

    `length` is the size of the content in bytes, if known. `seekable` says that any range can be read. Without it (the
    default if the length is unknown) requests only move forward and end within the first 4 MiB, and structures at the
    end of the content are not checked. `where` names the image in errors; without it they name the format.
    """

    def __init__(self, length: int | None, *, seekable: bool | None = None, where: str | None = None) -> None:
        self._content = RandomAccessContent(length, seekable=length is not None if seekable is None else seekable)
        self._where = where
        self._steps = _inspect(self._content)
        self._want: Want | None = None
        self._got = bytearray()
        self._info: ImageInfo | None = None
        self._error: CdiError | None = None
        self._advance(None)

    def next_range(self) -> tuple[int, int] | None:
        """Return offset and length of the next range to feed, or None once the result is available.

        The first range is the beginning, at most 64 KiB; all ranges together are at most 4 MiB and within the known
        length.
        """
        if self._want is None:
            return None
        offset, size = self._want
        return offset + len(self._got), size - len(self._got)

    def feed(self, offset: int, data: bytes | memoryview) -> None:
        """Accept bytes at `offset`: more, fewer or others than requested; what was not requested is ignored.

        Empty `data`, at the requested offset or before it, reports the end of the content.
        """
        if not data:
            want = self.next_range()
            if want is not None and offset <= want[0]:
                self._advance(bytes(self._got))
            return
        view = memoryview(data)
        while (want := self.next_range()) is not None:
            start = want[0] - offset
            piece = view[start : start + want[1]] if 0 <= start < len(view) else None
            if not piece:
                return
            self._got += piece
            if len(piece) == want[1]:
                self._advance(bytes(self._got))

    def result(self) -> ImageInfo:
        """Return the properties of the image.

        Raises:
            ImageError: the image is rejected: `FormatUnrecognised`, `FormatUnsupported`, `BackingFileRefused`,
                `ExternalDataRefused`, `EncryptionRefused`, `ImageUnsafe`, `ImageCorrupt` or `ImageDirty`.
            ValueError: the inspection still needs data (a defect of the caller).
        """
        if self._error is not None:
            raise self._error
        if self._info is None:
            raise ValueError("the inspection is not finished")
        return self._info

    def _advance(self, answer: bytes | None) -> None:
        self._got = bytearray()
        self._want = None
        try:
            self._want = next(self._steps) if answer is None else self._steps.send(answer)
        except StopIteration as done:
            self._info = done.value
        except CdiError as error:
            if self._where is not None:
                error.where = self._where if error.where is None else f"{self._where}, {error.where}"
            self._error = error


def map_builder(image: ImageInfo, head: bytes, length: int | None) -> MapBuilder:
    """Return the builder of the map of an inspected image; `head` are at least the first 64 KiB of its file.

    `length` is the file's size in bytes, if known. The image is one of those that `cdi.image.plan.is_mapped` names.
    """
    if image.format == "qcow2":
        from cdi.image.formats import qcow2
        from cdi.image.qcow2_map import Qcow2MapBuilder

        return Qcow2MapBuilder(qcow2.parse_header(head, length), length)
    if image.format == "vmdk":
        from cdi.image.formats import vmdk
        from cdi.image.vmdk_map import VmdkMapBuilder

        return VmdkMapBuilder(vmdk.parse_header(head), length)
    from cdi.image.bat_map import bat_map_builder

    builder = bat_map_builder(image, length)
    if builder is None:
        raise ValueError(f"there is no map of {image.format}")
    return builder


def name_format(head: bytes) -> str | None:
    """Return the name of the image format that `head` begins; None if there is none, or the image is raw."""
    return next((claim.name for claim in _claims(head)), None)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Format whose signature matches the beginning of the content."""

    name: str
    inspect: Callable[[RandomAccessContent], Inspection]
    owned: int
    """Bytes at the beginning that hold only the format's own structures, never guest data."""


def _inspect(content: RandomAccessContent) -> Inspection:
    head = yield from content.begin()
    if not head:
        raise FormatUnrecognised("the content is empty", remedy="check what the source serves")
    claims = _claims(head)
    names = [claim.name for claim in claims]
    if claims:
        names += _disk_structures(head[: claims[0].owned])
    if len(names) > 1:
        raise FormatUnrecognised(f"the content matches several formats: {' and '.join(names)}")
    if claims:
        return (yield from claims[0].inspect(content))
    foreign = identify_unsupported(head)
    if foreign is not None:
        raise FormatUnsupported(f"the content is {foreign.name}", remedy=foreign.remedy)
    return (yield from _inspect_raw(content))


def _claims(head: bytes) -> list[_Candidate]:
    claims: list[_Candidate] = []
    if head.startswith(signatures.QCOW2):
        from cdi.image.formats import qcow2

        claims.append(_Candidate("qcow2", _inspect_qcow2, qcow2.header_cluster(head)))
    claims += _vmdk_claims(head)
    if signatures.is_vdi(head):
        from cdi.image.formats import vdi

        claims.append(_Candidate("vdi", vdi.inspect, SECTOR))
    if head.startswith(signatures.VHD):
        from cdi.image.formats import vpc

        claims.append(_Candidate("vhd", vpc.inspect, SECTOR))
    if head.startswith(signatures.VHDX):
        from cdi.image.formats import vhdx

        claims.append(_Candidate("vhdx", vhdx.inspect, HEAD))
    return claims


def _vmdk_claims(head: bytes) -> list[_Candidate]:
    sparse = head.startswith(signatures.VMDK)
    extents = {"COWD": signatures.VMDK_COWD, "SESPARSE": signatures.VMDK_SESPARSE}
    kinds = [kind for kind, signature in extents.items() if head.startswith(signature)]
    descriptor = signatures.is_vmdk_descriptor(head)
    if not (sparse or kinds or descriptor):
        return []
    from cdi.image.formats import vmdk

    claims = [_Candidate("vmdk", vmdk.inspect, SECTOR)] if sparse else []
    claims += [_Candidate(f"vmdk ({kind})", _reject_with(vmdk.refuse_extent(kind)), SECTOR) for kind in kinds]
    if descriptor:
        claims.append(_Candidate("vmdk", _reject_with(vmdk.refuse_descriptor()), SECTOR))
    return claims


def _disk_structures(head: bytes) -> list[str]:
    """Return the raw-disk structures at the beginning; they may coexist, as a hybrid ISO has them all."""
    found = []
    if raw.gpt(head) is not None or raw.mbr(head):
        found.append("a partitioned raw disk")
    if raw.iso9660(head):
        found.append("an ISO 9660 volume")
    return found


def _reject_with(error: CdiError) -> Callable[[RandomAccessContent], Inspection]:
    def inspect(_: RandomAccessContent) -> Inspection:
        yield from ()
        raise error

    return inspect


def _inspect_qcow2(content: RandomAccessContent) -> Inspection:
    from cdi.image.formats import qcow2

    yield from ()
    header, checks = qcow2.examine(content.head, content.length)
    notes = []
    if header.snapshots:
        notes.append(f"{header.snapshots} internal snapshots are not imported")
    return ImageInfo(
        format="qcow2",
        virtual_size=header.virtual_size,
        cluster_size=header.cluster_size,
        version=header.version,
        compression=header.compression,
        has_snapshots=header.snapshots > 0,
        notes=tuple(notes),
        checks=checks,
    )


def _inspect_raw(content: RandomAccessContent) -> Inspection:
    length = content.length
    # The footer of a fixed VHD may lack its last byte.
    whole = length is not None and length % SECTOR in (0, SECTOR - 1)
    if content.seekable and length is not None and length >= _NO_TAIL and whole:
        tail = yield from content.read(length - SECTOR, SECTOR)
        if signatures.VHD in tail:
            from cdi.image.formats import vpc

            fixed = vpc.inspect_fixed(content, tail)
            if fixed is not None:
                return fixed
        if tail.startswith(b"koly"):
            raise FormatUnsupported("the content is an Apple disk image (UDIF)", where="dmg")
        length = content.length
    if length is not None:
        require_size(length, "the image has", where="raw")
    return ImageInfo(
        format="raw",
        virtual_size=length,
        raw_extent=None if length is None else (0, length),
        details=raw.details(content.head),
    )
