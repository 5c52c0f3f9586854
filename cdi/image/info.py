"""Result of an inspection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cdi.image.checks import Check

Format = Literal["raw", "qcow2", "vmdk", "vdi", "vpc", "vhdx"]
"""Format names of QEMU's drivers; a VHD is ``vpc``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """Image that passed every check; sizes and offsets are in bytes."""

    format: Format
    variant: str | None = None
    """Subformat: ``monolithicSparse``, ``streamOptimized``, ``dynamic``, ``fixed`` …"""
    virtual_size: int | None
    """Size of the disk as a guest sees it and QEMU reports it; for raw content its length.

    None if a stream does not reveal it before its end.
    """
    cluster_size: int | None = None
    """Unit of allocation: cluster, grain or block."""
    version: int | None = None
    compression: str | None = None
    """Compression of clusters, if any."""
    needs_qemu: tuple[str, ...] = ()
    """Why the project's own reader does not support the image; empty for formats that it never reads."""
    raw_extent: tuple[int, int] | None = None
    """Offset and length, if the disk is one contiguous range of the content."""
    has_snapshots: bool = False
    """Whether there are internal snapshots; they are not imported: the disk is the active state."""
    notes: tuple[str, ...] = ()
    """Unusual but accepted properties."""
    details: tuple[tuple[str, str], ...] = ()
    """Names and values for display."""
    checks: tuple[Check, ...] = ()
