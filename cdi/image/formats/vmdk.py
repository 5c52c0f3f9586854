"""VMDK with everything in one file, after VMware's Virtual Disk Format 5.0; bounds are those of QEMU's driver."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from cdi.api.errors import ExternalDataRefused, FormatUnsupported, ImageCorrupt, ImageUnsafe
from cdi.image.checks import Checklist
from cdi.image.formats import vmdk_descriptor
from cdi.image.formats.content import Content, Inspection, Steps
from cdi.image.info import ImageInfo
from cdi.image.sizes import SECTOR, round_up

MAGIC: Final = b"KDMV"
COWD: Final = b"COWD"
SESPARSE: Final = 0x0000_0000_CAFE_BABE.to_bytes(8, "little")

_FORM: Final = struct.Struct("<4sIIQQQQIQQQB4sH")
_NEWLINES: Final = b"\n \r\n"
_FLAG_NEWLINES: Final = 1
_FLAG_COMPRESSED: Final = 1 << 16
AT_END: Final = 0xFFFF_FFFF_FFFF_FFFF
_DEFLATE: Final = 1
_FOOTER_TAIL: Final = 1536
"""A marker, the footer and the end-of-stream marker, a sector each."""
_FOOTER_MARKER, _END_MARKER = 3, 0

DESCRIPTOR_AT: Final = SECTOR
DESCRIPTOR_READ: Final = 20 * SECTOR
"""Where QEMU looks for CID and parent and how far, whatever the header says about the descriptor."""
_MAX_GRAIN: Final = 0x20_0000
_MAX_TABLES: Final = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The sparse extent's header; sizes and offsets are sectors, as they stand there."""

    version: int
    flags: int
    capacity: int
    grain: int
    descriptor_offset: int
    descriptor_size: int
    table_entries: int
    directory_offset: int
    overhead: int
    unclean: bool
    newlines: bytes
    compression: int

    @classmethod
    def parse(cls, data: bytes) -> Header | None:
        if len(data) < _FORM.size or not data.startswith(MAGIC):
            return None
        (
            _,
            version,
            flags,
            capacity,
            grain,
            desc_at,
            desc_size,
            entries,
            _,
            directory,
            overhead,
            unclean,
            lines,
            how,
        ) = _FORM.unpack_from(data)
        return cls(
            version=version,
            flags=flags,
            capacity=capacity,
            grain=grain,
            descriptor_offset=desc_at,
            descriptor_size=desc_size,
            table_entries=entries,
            directory_offset=directory,
            overhead=overhead,
            unclean=bool(unclean),
            newlines=lines,
            compression=how,
        )

    @property
    def geometry(self) -> tuple[int, ...]:
        """What header and footer must agree on."""
        return (self.version, self.capacity, self.grain, self.table_entries, self.compression)


def inspect(content: Content) -> Inspection:
    """A sparse extent with an embedded descriptor.  Raises the `ImageError` of the gravest check that failed."""
    header = Header.parse(content.head)
    if header is None:
        raise ImageCorrupt("the file ends within the header", where="vmdk")
    checks = Checklist("vmdk")
    notes: list[str] = []
    _check_header(header, content.length, checks)
    kind = yield from _descriptor(header, content, checks)
    if header.directory_offset == AT_END:
        if content.seekable:
            yield from _check_footer(header, content, checks)
        else:
            notes.append("its footer is not seen in a stream")
    if header.unclean:
        notes.append("it was not closed cleanly by its last writer")
    passed = checks.settle()
    return ImageInfo(
        format="vmdk",
        variant=kind,
        virtual_size=header.capacity * SECTOR,
        cluster_size=header.grain * SECTOR,
        version=header.version,
        compression="zlib" if header.compression == _DEFLATE else None,
        notes=tuple(notes),
        checks=passed,
    )


def refuse_descriptor() -> ExternalDataRefused:
    """For a text descriptor that stands alone."""
    return ExternalDataRefused("a bare VMDK descriptor: its data is in other files", where="vmdk")


def refuse_extent(kind: str) -> FormatUnsupported:
    """For the extents of ESX, which only a descriptor makes a disk of."""
    return FormatUnsupported(f"a {kind} extent of a VMware host, not a whole disk", where="vmdk")


def _check_header(header: Header, length: int | None, checks: Checklist) -> None:
    checks.expect(1 <= header.version <= 3, "version", f"version {header.version}", FormatUnsupported)
    # QEMU takes an extent of no capacity for a wrapping of the descriptor and opens the files that it names.
    checks.expect(
        header.capacity > 0,
        "capacity",
        f"{header.capacity} sectors" if header.capacity else "it has no data of its own (capacity 0)",
        ExternalDataRefused,
    )
    sized = checks.expect_size(header.capacity * SECTOR)
    intact = not header.flags & _FLAG_NEWLINES or header.newlines == _NEWLINES
    checks.expect(intact, "line ends", "intact" if intact else "it was altered by a transfer that converts line ends")
    sound = 1 <= header.grain <= _MAX_GRAIN and header.grain & (header.grain - 1) == 0
    checks.expect(sound, "grain size", f"grains of {header.grain} sectors")
    tables = 1 <= header.table_entries <= 512
    checks.expect(tables, "grain tables", f"grain tables of {header.table_entries} entries")
    if sized and sound and tables:
        directory = -(-header.capacity // (header.grain * header.table_entries))
        checks.expect(
            directory <= _MAX_TABLES, "grain directory size", f"{directory} grain directory entries", ImageUnsafe
        )
        if length is not None and header.directory_offset != AT_END:
            end = header.directory_offset * SECTOR + directory * 4
            checks.expect(
                end <= length, "grain directory within the file", f"the directory ends at {end} of {length} bytes"
            )
    known = header.compression in (0, _DEFLATE)
    checks.expect(known, "compression", f"compression method {header.compression}", FormatUnsupported)
    if length is not None:
        overhead = header.overhead * SECTOR
        checks.expect(overhead <= round_up(length, SECTOR), "overhead within the file", f"{overhead} of {length} bytes")


def _descriptor(header: Header, content: Content, checks: Checklist) -> Steps[str | None]:
    """The createType, where descriptor and header let the image pass."""
    if header.descriptor_offset == 0:
        _one_of_many(checks)
        return None
    size = header.descriptor_size * SECTOR
    if not checks.expect(
        header.descriptor_offset * SECTOR == DESCRIPTOR_AT and 0 < size <= vmdk_descriptor.MAX_SIZE,
        "descriptor place",
        f"the descriptor is at sector {header.descriptor_offset} and has {header.descriptor_size} sectors",
        FormatUnsupported,
    ):
        return None
    text = yield from content.read(DESCRIPTOR_AT, max(size, DESCRIPTOR_READ))
    if not text.strip(b"\0"):
        _one_of_many(checks)
        return None
    descriptor = vmdk_descriptor.parse(text)
    if descriptor is None:
        checks.expect(passed=False, name="descriptor text", detail="the embedded descriptor is not one")
        return None
    kind = vmdk_descriptor.check(descriptor, text, checks)
    if len(descriptor.extents) == 1:
        said = descriptor.extents[0].sectors
        checks.expect(
            said <= header.capacity,
            "extent size",
            f"the descriptor says {said} sectors and the header {header.capacity}",
        )
    return kind


def _one_of_many(checks: Checklist) -> None:
    """Of an extent without a descriptor, which another file has."""
    detail = "it has none: one part of an image of several files"
    checks.expect(passed=False, name="descriptor", detail=detail, refusal=ExternalDataRefused)


def _check_footer(header: Header, content: Content, checks: Checklist) -> Steps[None]:
    """The footer takes the place of the header, so it must say the same of the disk."""
    assert content.length is not None
    at = round_up(content.length, SECTOR) - _FOOTER_TAIL
    tail = (yield from content.read(at, _FOOTER_TAIL)) if at >= SECTOR else b""
    footer = Header.parse(tail[SECTOR:])
    found = footer is not None and len(tail) == _FOOTER_TAIL and _marks(tail)
    checks.expect(found, "footer", "found" if found else "the footer is missing: the file is cut short or padded")
    if footer is not None and found:
        same = footer.geometry == header.geometry
        checks.expect(same, "footer agrees", "with the header" if same else "footer and header contradict each other")
        inside = 0 < footer.directory_offset * SECTOR < content.length
        checks.expect(inside, "grain directory place", f"the grain directory is at sector {footer.directory_offset}")


def _marks(tail: bytes) -> bool:
    first, last = (struct.unpack_from("<QII", tail, at) for at in (0, _FOOTER_TAIL - SECTOR))
    # The marker's own count of sectors differs between writers; size and type do not.
    return first[1:] == (0, _FOOTER_MARKER) and last == (0, 0, _END_MARKER)
