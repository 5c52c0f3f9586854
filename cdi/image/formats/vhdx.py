"""VHDX ([MS-VHDX]); limits are those of QEMU's driver where they are tighter."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from typing import Final

from cdi.api.errors import BackingFileRefused, FormatUnsupported, ImageCorrupt, ImageDirty, ImageUnsafe
from cdi.image.checks import Checklist, quoted
from cdi.image.formats.content import Inspection, RandomAccessContent, Steps
from cdi.image.info import ImageInfo
from cdi.image.sizes import MEBI, SECTOR

_HEADERS: Final = (64 << 10, 128 << 10)
_HEADER_SIZE: Final = 4096
_REGIONS: Final = (192 << 10, 256 << 10)
REGION_TABLE: Final = _REGIONS[0]
_REGION_TABLE_SIZE: Final = 64 << 10
_REGION_LIMIT: Final = 2047
_METADATA_TABLE_SIZE: Final = 64 << 10
_METADATA_FIRST: Final = 128 << 10
"""Bytes of the first read: the table, and the items that usual writers put right after it."""
_METADATA_LIMIT: Final = 2047
_REQUIRED_REGION: Final = 1
_REQUIRED_ITEM: Final = 4


def _guid(text: str) -> bytes:
    """Return a GUID in Windows byte order: the first three fields are little-endian."""
    first, second, third, *rest = text.split("-")
    swapped = b"".join(bytes.fromhex(field)[::-1] for field in (first, second, third))
    return swapped + bytes.fromhex("".join(rest))


def _format_guid(guid: bytes) -> str:
    """Return the textual form of a GUID."""
    return "-".join(part.hex() for part in (guid[3::-1], guid[5:3:-1], guid[7:5:-1], guid[8:10], guid[10:]))


_BAT: Final = _guid("2dc27766-f623-4200-9d64-115e9bfd4a08")
_METADATA: Final = _guid("8b7ca206-4790-4b9a-b8fe-575f050f886e")

_FILE_PARAMETERS: Final = _guid("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
_VIRTUAL_SIZE: Final = _guid("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
_PAGE_83: Final = _guid("beca12ab-b2e6-4523-93ef-c309e000c746")
_LOGICAL_SECTOR: Final = _guid("8141bf1d-a96f-4709-ba47-f233a8faab5f")
_PHYSICAL_SECTOR: Final = _guid("cda348c7-445d-4471-9cc9-e9885251c556")
_PARENT_LOCATOR: Final = _guid("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
_NEEDED: Final = (_FILE_PARAMETERS, _VIRTUAL_SIZE, _PAGE_83, _LOGICAL_SECTOR, _PHYSICAL_SECTOR)
_ITEMS: Final = {*_NEEDED, _PARENT_LOCATOR}

_LEAVE_ALLOCATED, _HAS_PARENT = 1, 2


@dataclass(frozen=True, slots=True)
class _Region:
    offset: int
    length: int


def block_table(regions: bytes) -> int | None:
    """Return the offset of the block table from the first region table of an image that passed inspection."""
    count = min(struct.unpack_from("<I", regions, 8)[0], _REGION_LIMIT)
    for at in range(16, 16 + 32 * count, 32):
        if regions[at : at + 16] == _BAT:
            return int.from_bytes(regions[at + 16 : at + 24], "little")
    return None


def inspect(content: RandomAccessContent) -> Inspection:
    """Inspect a VHDX; raise the `ImageError` of the gravest failed check.

    `virtual_size` is None if the metadata lies further in than a stream is inspected.
    """
    checks = Checklist("vhdx")
    start, end = _HEADERS[0], _REGIONS[1] + _REGION_TABLE_SIZE
    front = yield from content.read(start, end - start)
    _check_headers(front, checks)
    regions = _regions(front, content.length, checks)
    creator = content.head[8:520].decode("utf-16-le", "replace").partition("\0")[0].strip()
    details = (("made by", quoted(creator.encode())),) if creator else ()
    region = regions.get(_METADATA)
    if region is None:
        checks.raise_for_failures()
        raise ImageCorrupt("it has no metadata", where="vhdx")
    if not content.reachable(region.offset, min(region.length, _METADATA_FIRST)) and not content.seekable:
        note = "the metadata is too far from the start to be inspected in a stream"
        return ImageInfo(
            format="vhdx",
            virtual_size=None,
            notes=(note,),
            details=details,
            checks=checks.raise_for_failures(),
            version=1,
        )
    variant, size, block_size = yield from _metadata(region, regions.get(_BAT), content, checks)
    return ImageInfo(
        format="vhdx",
        variant=variant,
        virtual_size=size,
        cluster_size=block_size,
        version=1,
        details=details,
        checks=checks.raise_for_failures(),
    )


def _check_headers(front: bytes, checks: Checklist) -> None:
    """Check the current header: of two, the intact one with the higher sequence number."""
    current: tuple[int, bytes] | None = None
    for place in _HEADERS:
        header = front[place - _HEADERS[0] :][:_HEADER_SIZE]
        if len(header) == _HEADER_SIZE and header.startswith(b"head") and _checksum_valid(header):
            sequence = struct.unpack_from("<Q", header, 8)[0]
            if current is None or sequence > current[0]:
                current = (sequence, header)
    if not checks.check(current is not None, "header", "found" if current else "neither header is intact"):
        return
    assert current is not None
    header = current[1]
    log_version, version, _, _ = struct.unpack_from("<HHIQ", header, 64)
    checks.check(version == 1, "version", f"version {version}", FormatUnsupported)
    clean = not any(header[48:64])
    checks.check(
        clean,
        "log",
        "empty" if clean else "it was not closed cleanly: its log holds changes that are not applied",
        ImageDirty,
    )
    if not clean:
        checks.check(log_version == 0, "log version", f"log version {log_version}", FormatUnsupported)


def _regions(front: bytes, length: int | None, checks: Checklist) -> dict[bytes, _Region]:
    """Return the listed regions; QEMU reads only the first copy of the table, so that one must be intact."""
    table = front[_REGIONS[0] - _HEADERS[0] :][:_REGION_TABLE_SIZE]
    whole = len(table) == _REGION_TABLE_SIZE and table.startswith(b"regi") and _checksum_valid(table)
    if not checks.check(whole, "region table", "intact" if whole else "the region table is damaged"):
        return {}
    count = struct.unpack_from("<I", table, 8)[0]
    if not checks.check(count <= _REGION_LIMIT, "regions", f"it claims {count} regions", ImageUnsafe):
        return {}
    found: dict[bytes, _Region] = {}
    for index in range(count):
        at = 16 + index * 32
        kind = table[at : at + 16]
        offset, size, flags = struct.unpack_from("<QII", table, at + 16)
        if kind not in (_BAT, _METADATA):
            if flags & _REQUIRED_REGION:
                checks.check(
                    passed=False,
                    name="regions known",
                    detail=f"it needs region {_format_guid(kind)}",
                    refusal=FormatUnsupported,
                )
                break
            continue
        name = "block table" if kind == _BAT else "metadata"
        checks.check(kind not in found, f"one {name}", f"the region table lists its {name}")
        placed = offset >= MEBI and offset % MEBI == 0 and size > 0 and size % MEBI == 0
        placed = placed and (length is None or offset + size <= length)
        if checks.check(placed, f"{name} place", f"the {name} has {size} bytes at offset {offset:#x}"):
            found[kind] = _Region(offset, size)
    for kind, name in ((_BAT, "block table"), (_METADATA, "metadata")):
        if not checks.failed:
            checks.check(
                kind in found, f"{name} listed", f"the region table lists {name if kind in found else 'no ' + name}"
            )
    return found


def _metadata(
    region: _Region, table: _Region | None, content: RandomAccessContent, checks: Checklist
) -> Steps[tuple[str | None, int | None, int | None]]:
    """Return variant, virtual size and block size."""
    nothing = (None, None, None)
    data = yield from content.read(region.offset, min(region.length, _METADATA_FIRST))
    whole = len(data) >= _METADATA_TABLE_SIZE and data.startswith(b"metadata")
    if not checks.check(whole, "metadata table", "found" if whole else "the metadata table is damaged"):
        return nothing
    count = struct.unpack_from("<H", data, 10)[0]
    if not checks.check(count <= _METADATA_LIMIT, "metadata items", f"it claims {count} items", ImageUnsafe):
        return nothing
    items: dict[bytes, tuple[int, int]] = {}
    for index in range(count):
        at = 32 + index * 32
        kind = data[at : at + 16]
        offset, size, flags = struct.unpack_from("<III", data, at + 16)
        if kind in _ITEMS:
            if not checks.check(kind not in items, "metadata items once", f"item {_format_guid(kind)} is listed"):
                return nothing
            items[kind] = (offset, size)
        elif flags & _REQUIRED_ITEM:
            checks.check(
                passed=False,
                name="metadata known",
                detail=f"it needs metadata {_format_guid(kind)}",
                refusal=FormatUnsupported,
            )
            return nothing
    missing = [_format_guid(kind) for kind in _NEEDED if kind not in items]
    if not checks.check(
        not missing, "metadata complete", f"it lacks metadata {', '.join(missing)}" if missing else "yes"
    ):
        return nothing
    end = max(items[kind][0] + items[kind][1] for kind in _NEEDED)
    if len(data) < end <= min(region.length, MEBI):
        data += yield from content.read(region.offset + len(data), end - len(data))
    parameters = _item(data, items[_FILE_PARAMETERS], 8, checks)
    sizes = _item(data, items[_VIRTUAL_SIZE], 8, checks)
    sectors = _item(data, items[_LOGICAL_SECTOR], 4, checks)
    if parameters is None or sizes is None or sectors is None:
        return nothing
    block_size, flags = struct.unpack("<II", parameters)
    size = int.from_bytes(sizes, "little")
    sector = int.from_bytes(sectors, "little")
    overlay = bool(flags & _HAS_PARENT) or _PARENT_LOCATOR in items
    checks.check(
        not overlay,
        "parent image",
        "it is a differencing image that needs a parent" if overlay else "none",
        BackingFileRefused,
    )
    _check_disk(size, sector, block_size, table, checks)
    return ("fixed" if flags & _LEAVE_ALLOCATED else "dynamic", size, block_size)


def _check_disk(size: int, sector: int, block_size: int, table: _Region | None, checks: Checklist) -> None:
    # QEMU reads a disk with 4096-byte sectors at an eighth of its size: reject it rather than truncate it.
    checks.check(sector == SECTOR, "logical sector", f"sectors of {sector} bytes", FormatUnsupported)
    if not checks.expect_size(size):
        return
    checks.check(size % SECTOR == 0, "whole sectors", f"a disk of {size} bytes")
    sound = MEBI <= block_size <= 256 * MEBI and block_size & (block_size - 1) == 0
    if checks.check(sound, "block size", f"blocks of {block_size} bytes") and table is not None:
        blocks = -(-size // block_size)
        ratio = (1 << 23) * SECTOR // block_size
        entries = blocks + max(blocks - 1, 0) // ratio
        checks.check(
            entries * 8 <= table.length,
            "block table covers the disk",
            f"{table.length} bytes of block table for {entries} entries",
        )


def _item(data: bytes, item: tuple[int, int], size: int, checks: Checklist) -> bytes | None:
    """Return the value of an item from the metadata read so far."""
    offset, length = item
    inside = length == size and _METADATA_TABLE_SIZE <= offset <= len(data) - size
    detail = f"an item of {length} bytes at {offset:#x} of the metadata"
    return data[offset : offset + size] if checks.check(inside, "metadata item", detail) else None


def _checksum_valid(block: bytes) -> bool:
    """Return whether the CRC-32C, computed with its own field as zeros, is correct."""
    said = int.from_bytes(block[4:8], "little")
    return _crc32c(block[:4] + bytes(4) + block[8:]) == said


@cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F6_3B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


def _crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli; RFC 3720, appendix B.4)."""
    table = _crc_table()
    crc = 0xFFFF_FFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFF_FFFF
