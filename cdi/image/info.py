"""What inspection finds out about an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cdi.image.checks import Check

Format = Literal["raw", "qcow2", "vmdk", "vdi", "vpc", "vhdx"]
"""Names as QEMU's drivers have them; a VHD is ``vpc``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """An image that passed every check.  Sizes and offsets are bytes."""

    format: Format
    variant: str | None = None
    """``monolithicSparse``, ``streamOptimized``, ``dynamic``, ``fixed`` … where the format has kinds."""
    virtual_size: int | None
    """Of the disk as a guest sees it, the same that QEMU would say; of raw content its length.  None where a stream
    does not tell before it ends."""
    cluster_size: int | None = None
    """The unit of allocation: cluster, grain or block."""
    version: int | None = None
    compression: str | None = None
    """How clusters may be compressed."""
    needs_qemu: tuple[str, ...] = ()
    """Why the project's own reader cannot take it; of no meaning for formats that it never takes."""
    payload: tuple[int, int] | None = None
    """Offset and length, where the disk is one plain run of the content's bytes."""
    has_snapshots: bool = False
    """Internal snapshots, which are left behind: the disk is the active state."""
    notes: tuple[str, ...] = ()
    """What is out of the ordinary and accepted."""
    details: tuple[tuple[str, str], ...] = ()
    """Name and value, for display."""
    checks: tuple[Check, ...] = ()
