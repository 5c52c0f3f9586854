"""Signatures: whether content begins as an image of a format does.

They stand apart from the readers of the formats, because most content is none of them and loading a reader takes time.
"""

from __future__ import annotations

from typing import Final

QCOW2: Final = b"QFI\xfb"
VHD: Final = b"conectix"
"""Of the footer, a copy of which begins every VHD that is not fixed."""
VHDX: Final = b"vhdxfile"
VMDK: Final = b"KDMV"
VMDK_COWD: Final = b"COWD"
VMDK_SESPARSE: Final = 0x0000_0000_CAFE_BABE.to_bytes(8, "little")
VMDK_DESCRIPTOR: Final = b"# disk descriptorfile"
"""First line of a VMDK's text descriptor, in lower case."""

_VDI: Final = 0xBEDA_107F.to_bytes(4, "little")
_VDI_OFFSET: Final = 64


def is_vdi(head: bytes) -> bool:
    """Return whether `head`, at least 68 bytes of content, begins a VirtualBox disk image."""
    return head[_VDI_OFFSET : _VDI_OFFSET + len(_VDI)] == _VDI


def is_vmdk_descriptor(head: bytes) -> bool:
    """Return whether `head` begins with a bare descriptor by QEMU's rule: after comments comes the version."""
    if head[: len(VMDK_DESCRIPTOR)].lower() == VMDK_DESCRIPTOR:
        return True
    for line in head[:4096].split(b"\n"):
        words = line.strip(b" \r\t")
        if words and not words.startswith(b"#"):
            return words.lower().startswith(b"version=") and words[8:9].isdigit()
    return False
