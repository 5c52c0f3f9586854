"""Raw content: everything that matches no other format. Its structures are reported, never trusted.

MBR and GPT follow the UEFI specification 2.10, chapter 5; ISO 9660 follows ECMA-119, 8.4.
"""

from __future__ import annotations

import struct
from typing import Final

from cdi.api.printable import printable
from cdi.image.sizes import SECTOR

_ISO_DESCRIPTOR: Final = 0x8000
_FILE_SYSTEMS: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"XFSB", "xfs"),
    (0x438, b"\x53\xef", "ext2/3/4"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (0, b"hsqs", "squashfs"),
    (3, b"NTFS    ", "ntfs"),
    (0x36, b"FAT1", "fat"),
    (0x52, b"FAT32", "fat"),
    (0x218, b"LVM2 001", "LVM physical volume"),
    (0, b"LUKS\xba\xbe", "LUKS container"),
)


def gpt(head: bytes) -> int | None:
    """Return the offset of the GUID partition table's header: the second sector, of 512 or 4096 bytes."""
    for sector in (SECTOR, 4096):
        if head[sector : sector + 8] == b"EFI PART":
            return sector
    return None


def mbr(head: bytes) -> bool:
    """Return whether there is an MBR with at least one partition; a bare boot sector has the mark and no partition."""
    if head[510:512] != b"\x55\xaa":
        return False
    entries = [head[at : at + 16] for at in range(446, 510, 16)]
    if any(entry[0] not in (0x00, 0x80) for entry in entries):
        return False
    return any(entry[4] != 0 and entry[12:16] != b"\0\0\0\0" for entry in entries)


def iso9660(head: bytes) -> bool:
    return head[_ISO_DESCRIPTOR + 1 : _ISO_DESCRIPTOR + 6] == b"CD001"


def details(head: bytes) -> tuple[tuple[str, str], ...]:
    """Return the structures in raw content, for display."""
    found: list[tuple[str, str]] = []
    at = gpt(head)
    if at is not None:
        table = "gpt" if at == SECTOR else "gpt (4096-byte sectors)"
        if len(head) >= at + 88:
            count = struct.unpack_from("<I", head, at + 80)[0]
            used = _gpt_partitions(head, at, count)
            if used:
                table += f", {used} partitions"
        found.append(("partition table", table))
    elif mbr(head):
        used = sum(1 for entry in range(446, 510, 16) if head[entry + 4])
        found.append(("partition table", f"mbr, {used} partitions"))
    if iso9660(head):
        label = head[_ISO_DESCRIPTOR + 40 : _ISO_DESCRIPTOR + 72].decode("ascii", "replace").strip(" \0")
        found.append(("iso9660 volume", printable(label, len(label), substitute="?") or "(no label)"))
    else:
        found.extend(("content", name) for offset, magic, name in _FILE_SYSTEMS if head.startswith(magic, offset))
    return tuple(found)


def _gpt_partitions(head: bytes, header: int, count: int) -> int:
    """Return the number of used partitions, as far as the head contains the entries."""
    lba, _, size = struct.unpack_from("<QII", head, header + 72)
    if size < 128 or size > 4096:
        return 0
    start, used = lba * header, 0
    for index in range(min(count, 128)):
        at = start + index * size
        if at + 16 > len(head):
            break
        used += head[at : at + 16] != bytes(16)
    return used
