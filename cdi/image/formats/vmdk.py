"""VMDK in a single file (VMware's Virtual Disk Format 5.0); limits are those of QEMU's driver."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from cdi.api.errors import (
    ContentTruncated,
    DecoderFailed,
    ExternalDataRefused,
    FormatUnsupported,
    ImageCorrupt,
    ImageUnsafe,
)
from cdi.image.checks import Checklist
from cdi.image.formats import signatures, vmdk_descriptor
from cdi.image.formats.content import Inspection, RandomAccessContent, Steps
from cdi.image.info import ImageInfo
from cdi.image.sizes import MEBI, SECTOR, format_size, round_up

GRAIN_MARKER: Final = struct.Struct("<QI")
"""Marker in front of a compressed grain: its first sector on the disk, and the bytes that follow."""
_FORM: Final = struct.Struct("<4sIIQQQQIQQQB4sH")
_NEWLINES: Final = b"\n \r\n"
_FLAG_NEWLINES: Final = 1
_FLAG_ZERO_GRAINS: Final = 1 << 2
_FLAG_MARKERS: Final = 1 << 17
AT_END: Final = 0xFFFF_FFFF_FFFF_FFFF
_DEFLATE: Final = 1
_FOOTER_TAIL: Final = 1536
"""Footer marker, footer and end-of-stream marker, one sector each."""
_FOOTER_MARKER, _END_MARKER = 3, 0

DESCRIPTOR_AT: Final = SECTOR
DESCRIPTOR_READ: Final = 20 * SECTOR
"""Bytes from `DESCRIPTOR_AT` in which QEMU looks for CID and parent, whatever the header says."""
_MAX_GRAIN: Final = 0x20_0000
_MAX_TABLES: Final = 32 << 20
_MAX_MAPPED_GRAIN: Final = MEBI // SECTOR
"""Largest grain that the project's own reader accepts, as several are in memory at once; 64 KiB are usual."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Header of a sparse extent; sizes and offsets are in sectors, as stored."""

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
        if len(data) < _FORM.size or not data.startswith(signatures.VMDK):
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
        """Fields in which header and footer must agree."""
        flags = self.flags & (_FLAG_ZERO_GRAINS | _FLAG_MARKERS)
        descriptor = (self.descriptor_offset, self.descriptor_size)
        return (self.version, flags, self.capacity, self.grain, *descriptor, self.table_entries, self.compression)

    @property
    def compressed(self) -> bool:
        """Whether grains are zlib streams; the flag of that name does not matter to QEMU either."""
        return self.compression == _DEFLATE

    @property
    def zero_grains(self) -> bool:
        """Whether 1 in a grain table is a grain of zeros and no sector number."""
        return bool(self.flags & _FLAG_ZERO_GRAINS)

    @property
    def markers(self) -> bool:
        """Whether a marker with its length precedes each compressed grain."""
        return bool(self.flags & _FLAG_MARKERS)


def parse_header(head: bytes) -> Header:
    """Return the header of an image that begins with `head`; raise `ImageCorrupt` if that is too short."""
    header = Header.parse(head)
    if header is None:
        raise ImageCorrupt("the file ends within the header", where="vmdk")
    return header


def inspect(content: RandomAccessContent) -> Inspection:
    """Inspect a sparse extent with an embedded descriptor; raise the `ImageError` of the gravest failed check."""
    header = parse_header(content.head)
    checks = Checklist("vmdk")
    notes: list[str] = []
    _check_header(header, content.length, checks)
    kind = yield from _descriptor(header, content, checks)
    # In a stream, footer and tables are compared with the grains when they arrive.
    if header.directory_offset == AT_END and content.seekable:
        yield from _check_footer(header, content, checks)
    if header.unclean:
        notes.append("it was not closed cleanly by its last writer")
    passed = checks.raise_for_failures()
    return ImageInfo(
        format="vmdk",
        variant=kind,
        virtual_size=header.capacity * SECTOR,
        cluster_size=header.grain * SECTOR,
        version=header.version,
        compression="zlib" if header.compressed else None,
        needs_qemu=_unmapped(header),
        notes=tuple(notes),
        checks=passed,
    )


def _unmapped(header: Header) -> tuple[str, ...]:
    """Return why the project's own reader does not support the image."""
    reasons = []
    if header.grain > _MAX_MAPPED_GRAIN:
        reasons.append(f"its grains have {format_size(header.grain * SECTOR)}")
    if header.compressed and not header.markers:
        reasons.append("its compressed grains have no markers")
    if header.compressed and header.overhead <= header.directory_offset < AT_END:
        reasons.append("its tables follow its grains without a footer")
    if not header.compressed and header.directory_offset == AT_END:
        # Without markers, a stream does not show which grain arrives.
        reasons.append("its tables follow grains that are not compressed")
    return tuple(reasons)


def grain_payload(data: memoryview, host: int, guest: int) -> memoryview:
    """Return the zlib stream of the compressed grain of disk offset `guest`, which begins with `data`.

    Raises:
        DecoderFailed: The marker is that of another grain.
        ContentTruncated: The file ends, or the next grain begins, within it.
    """
    if len(data) >= GRAIN_MARKER.size:
        sector, size = GRAIN_MARKER.unpack_from(data)
        if sector * SECTOR != guest or not size:
            raise DecoderFailed(f"no grain of disk offset {guest:#x} is stored at {host:#x}", where="vmdk")
        if GRAIN_MARKER.size + size <= len(data):
            return data[GRAIN_MARKER.size : GRAIN_MARKER.size + size]
    raise ContentTruncated(f"the grain of disk offset {guest:#x} at {host:#x} is cut off", where="vmdk")


def refuse_descriptor() -> ExternalDataRefused:
    """Return the error for a standalone text descriptor."""
    return ExternalDataRefused("a bare VMDK descriptor: its data is in other files", where="vmdk")


def refuse_extent(kind: str) -> FormatUnsupported:
    """Return the error for an extent of ESX, which needs a descriptor."""
    return FormatUnsupported(f"a {kind} extent of a VMware host, not a whole disk", where="vmdk")


def _check_header(header: Header, length: int | None, checks: Checklist) -> None:
    checks.check(1 <= header.version <= 3, "version", f"version {header.version}", FormatUnsupported)
    # QEMU treats an extent without capacity as an envelope of the descriptor and opens the files that it names.
    checks.check(
        header.capacity > 0,
        "capacity",
        f"{header.capacity} sectors" if header.capacity else "it has no data of its own (capacity 0)",
        ExternalDataRefused,
    )
    sized = checks.expect_size(header.capacity * SECTOR)
    intact = not header.flags & _FLAG_NEWLINES or header.newlines == _NEWLINES
    checks.check(intact, "line ends", "intact" if intact else "it was altered by a transfer that converts line ends")
    sound = 1 <= header.grain <= _MAX_GRAIN and header.grain & (header.grain - 1) == 0
    checks.check(sound, "grain size", f"grains of {header.grain} sectors")
    tables = 1 <= header.table_entries <= 512
    checks.check(tables, "grain tables", f"grain tables of {header.table_entries} entries")
    if sized and sound and tables:
        directory = -(-header.capacity // (header.grain * header.table_entries))
        checks.check(
            directory <= _MAX_TABLES, "grain directory size", f"{directory} grain directory entries", ImageUnsafe
        )
        if length is not None and header.directory_offset != AT_END:
            end = header.directory_offset * SECTOR + directory * 4
            checks.check(
                end <= length, "grain directory within the file", f"the directory ends at {end} of {length} bytes"
            )
    known = header.compression in (0, _DEFLATE)
    checks.check(known, "compression", f"compression method {header.compression}", FormatUnsupported)
    if length is not None:
        overhead = header.overhead * SECTOR
        checks.check(overhead <= round_up(length, SECTOR), "overhead within the file", f"{overhead} of {length} bytes")


def _descriptor(header: Header, content: RandomAccessContent, checks: Checklist) -> Steps[str | None]:
    """Return the createType if descriptor and header are accepted."""
    if header.descriptor_offset == 0:
        _missing_descriptor(checks)
        return None
    size = header.descriptor_size * SECTOR
    if not checks.check(
        header.descriptor_offset * SECTOR == DESCRIPTOR_AT and 0 < size <= vmdk_descriptor.MAX_SIZE,
        "descriptor place",
        f"the descriptor is at sector {header.descriptor_offset} and has {header.descriptor_size} sectors",
        FormatUnsupported,
    ):
        return None
    text = yield from content.read(DESCRIPTOR_AT, max(size, DESCRIPTOR_READ))
    if not text.strip(b"\0"):
        _missing_descriptor(checks)
        return None
    descriptor = vmdk_descriptor.parse(text)
    if descriptor is None:
        checks.check(passed=False, name="descriptor text", detail="the embedded descriptor is invalid")
        return None
    kind = vmdk_descriptor.check(descriptor, text, checks)
    if len(descriptor.extents) == 1:
        said = descriptor.extents[0].sectors
        checks.check(
            said <= header.capacity,
            "extent size",
            f"the descriptor says {said} sectors and the header {header.capacity}",
        )
    return kind


def _missing_descriptor(checks: Checklist) -> None:
    """Reject an extent without a descriptor, which is in another file."""
    detail = "it has none: the file is one part of a multi-file image"
    checks.check(passed=False, name="descriptor", detail=detail, refusal=ExternalDataRefused)


def _check_footer(header: Header, content: RandomAccessContent, checks: Checklist) -> Steps[None]:
    """Check the footer: it overrides the header, so both must describe the same disk."""
    assert content.length is not None
    at = round_up(content.length, SECTOR) - _FOOTER_TAIL
    tail = (yield from content.read(at, _FOOTER_TAIL)) if at >= SECTOR else b""
    footer = Header.parse(tail[SECTOR:])
    found = footer is not None and len(tail) == _FOOTER_TAIL and _stream_markers_valid(tail)
    checks.check(found, "footer", "found" if found else "the footer is missing: the file is truncated or padded")
    if footer is not None and found:
        same = footer.geometry == header.geometry
        checks.check(same, "footer agrees", "with the header" if same else "footer and header contradict each other")
        inside = 0 < footer.directory_offset * SECTOR < content.length
        checks.check(inside, "grain directory place", f"the grain directory is at sector {footer.directory_offset}")


def _stream_markers_valid(tail: bytes) -> bool:
    first, last = (struct.unpack_from("<QII", tail, at) for at in (0, _FOOTER_TAIL - SECTOR))
    # Writers differ in the marker's sector count, but not in its size and type.
    return first[1:] == (0, _FOOTER_MARKER) and last == (0, 0, _END_MARKER)
