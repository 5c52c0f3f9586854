"""Recognises an image and checks it, without reading anything itself.

An `Inspector` says which bytes it wants, is fed them, and gives a verdict:

    inspector = Inspector(length)
    while (want := inspector.wants()) is not None:
        offset, size = want
        inspector.feed(offset, read(offset, size))      # b"" says that the content ends there
    info = inspector.verdict()

Formats are told by content.  Where more than one claims it, it is refused: readers that disagree about what a file is
are how a harmless image becomes another one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cdi.api.errors import CdiError, FormatUnrecognised, FormatUnsupported
from cdi.image.formats import qcow2, raw, vdi, vhdx, vmdk, vmdk_descriptor, vpc
from cdi.image.formats.content import HEAD, Content, Inspection, Want
from cdi.image.info import ImageInfo
from cdi.image.sizes import SECTOR, require_size
from cdi.image.wrapper import recognise_foreign

_NO_TAIL: Final = 2 * SECTOR
"""Content shorter than this has no footer behind its disk."""


class Inspector:
    """One inspection.  Whatever the bytes are, and in whatever pieces they come, the verdict is the same.

    `length` is that of the content, where it is known.  `seekable` says that any part of it can be had; if not (the
    default where no length is known) wants only go forward, end within the first 4 MiB, and what stands at the end
    of the content is not seen.  `where` names the image in errors; without it they name the format.
    """

    def __init__(self, length: int | None, *, seekable: bool | None = None, where: str | None = None) -> None:
        self._content = Content(length, seekable=length is not None if seekable is None else seekable)
        self._where = where
        self._steps = _inspect(self._content)
        self._want: Want | None = None
        self._got = bytearray()
        self._info: ImageInfo | None = None
        self._error: CdiError | None = None
        self._advance(None)

    def wants(self) -> tuple[int, int] | None:
        """The offset and length of what is to be fed next; None once the verdict is ready.

        The first is the start, 64 KiB or less; all together are at most 4 MiB and lie within the known length.
        """
        if self._want is None:
            return None
        offset, size = self._want
        return offset + len(self._got), size - len(self._got)

    def feed(self, offset: int, data: bytes | memoryview) -> None:
        """Bytes of the content at `offset`: more or fewer than wanted, or others, which are passed over.

        No bytes, at the wanted offset or before it, say that the content ends there.
        """
        if not data:
            want = self.wants()
            if want is not None and offset <= want[0]:
                self._advance(bytes(self._got))
            return
        view = memoryview(data)
        while (want := self.wants()) is not None:
            start = want[0] - offset
            piece = view[start : start + want[1]] if 0 <= start < len(view) else None
            if not piece:
                return
            self._got += piece
            if len(piece) == want[1]:
                self._advance(bytes(self._got))

    def verdict(self) -> ImageInfo:
        """What the image is.

        Raises the `ImageError` that refuses it: `FormatUnrecognised`, `FormatUnsupported`, `BackingFileRefused`,
        `ExternalDataRefused`, `EncryptionRefused`, `ImageUnsafe`, `ImageCorrupt`, `ImageDirty`.  To ask while
        something is still wanted is a defect of the caller (`ValueError`).
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


def name_format(head: bytes) -> str | None:
    """Return the name of the image format that `head` begins, None where there is none, or it is a raw image."""
    return next((claim.name for claim in _claims(head)), None)


@dataclass(frozen=True, slots=True)
class _Claim:
    """A format that recognises the content's start."""

    name: str
    inspect: Callable[[Content], Inspection]
    owned: int
    """Bytes at the start that belong to the format alone: nothing of a guest's stands there."""


def _inspect(content: Content) -> Inspection:
    head = yield from content.begin()
    if not head:
        raise FormatUnrecognised("the content is empty", remedy="check what the source serves")
    claims = _claims(head)
    names = [claim.name for claim in claims]
    if claims:
        names += _disk_structures(head[: claims[0].owned])
    if len(names) > 1:
        raise FormatUnrecognised(f"it is {' and '.join(names)} at the same time")
    if claims:
        return (yield from claims[0].inspect(content))
    foreign = recognise_foreign(head)
    if foreign is not None:
        raise FormatUnsupported(f"it is {foreign.name}", remedy=foreign.remedy)
    return (yield from _inspect_raw(content))


def _claims(head: bytes) -> list[_Claim]:
    claims: list[_Claim] = []
    if head.startswith(qcow2.MAGIC):
        claims.append(_Claim("qcow2", _inspect_qcow2, qcow2.header_cluster(head)))
    if head.startswith(vmdk.MAGIC):
        claims.append(_Claim("vmdk", vmdk.inspect, SECTOR))
    if head.startswith(vmdk.COWD):
        claims.append(_Claim("vmdk (COWD)", _refuser(vmdk.refuse_extent("COWD")), SECTOR))
    if head.startswith(vmdk.SESPARSE):
        claims.append(_Claim("vmdk (SESPARSE)", _refuser(vmdk.refuse_extent("SESPARSE")), SECTOR))
    if vmdk_descriptor.is_descriptor(head):
        claims.append(_Claim("vmdk", _refuser(vmdk.refuse_descriptor()), SECTOR))
    if vdi.recognised(head):
        claims.append(_Claim("vdi", vdi.inspect, SECTOR))
    if head.startswith(vpc.COOKIE):
        claims.append(_Claim("vhd", vpc.inspect, SECTOR))
    if head.startswith(vhdx.SIGNATURE):
        claims.append(_Claim("vhdx", vhdx.inspect, HEAD))
    return claims


def _disk_structures(head: bytes) -> list[str]:
    """What only a raw disk has at its start.  Among themselves these agree: a hybrid ISO has them all."""
    found = []
    if raw.gpt(head) is not None or raw.mbr(head):
        found.append("a partitioned raw disk")
    if raw.iso9660(head):
        found.append("an ISO 9660 volume")
    return found


def _refuser(error: CdiError) -> Callable[[Content], Inspection]:
    def inspect(_: Content) -> Inspection:
        yield from ()
        raise error

    return inspect


def _inspect_qcow2(content: Content) -> Inspection:
    yield from ()
    header, checks = qcow2.examine(content.head, content.length)
    notes = []
    if header.snapshots:
        notes.append(f"{header.snapshots} internal snapshots are left behind")
    return ImageInfo(
        format="qcow2",
        virtual_size=header.virtual_size,
        cluster_size=header.cluster_size,
        version=header.version,
        compression=header.compression,
        needs_qemu=header.needs_qemu,
        has_snapshots=header.snapshots > 0,
        notes=tuple(notes),
        checks=checks,
    )


def _inspect_raw(content: Content) -> Inspection:
    length = content.length
    whole = length is not None and length % SECTOR in (0, vpc.SHORT_FOOTER)
    if content.seekable and length is not None and length >= _NO_TAIL and whole:
        tail = yield from content.read(length - SECTOR, SECTOR)
        fixed = vpc.inspect_fixed(content, tail)
        if fixed is not None:
            return fixed
        if tail.startswith(b"koly"):
            raise FormatUnsupported("it is an Apple disk image (UDIF)", where="dmg")
        length = content.length
    if length is not None:
        require_size(length, "the image has", where="raw")
    return ImageInfo(
        format="raw",
        virtual_size=length,
        payload=None if length is None else (0, length),
        details=raw.details(content.head),
    )
