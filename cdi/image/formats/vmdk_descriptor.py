"""Text descriptor of a VMDK (VMware's Virtual Disk Format 5.0, "The Descriptor File").

It can name any file of the machine that opens it, so parsing is strict: duplicate keys must not differ, and every line
that resembles an extent is treated as one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cdi.api.errors import BackingFileRefused, EncryptionRefused, ExternalDataRefused, FormatUnsupported, ImageUnsafe
from cdi.image.checks import Checklist, quoted
from cdi.image.formats import signatures

MAX_SIZE: Final = 64 << 10
MAX_LINES: Final = 2048

MONOLITHIC: Final = ("monolithicSparse", "streamOptimized")
"""Types that keep everything in one file; all others store the data elsewhere."""
_OTHER_FILES: Final = frozenset(
    {
        "monolithicflat",
        "twogbmaxextentsparse",
        "twogbmaxextentflat",
        "fulldevice",
        "partitioneddevice",
        "vmfs",
        "vmfspreallocated",
        "vmfseagerzeroedthick",
        "vmfsthin",
        "vmfssparse",
        "vmfsrdm",
        "vmfsrdmp",
        "vmfsrawdevicemap",
        "vmfspassthroughrawdevicemap",
        "vmfsraw",
        "sesparse",
        "custom",
    }
)
_NO_PARENT: Final = b"ffffffff"

_EXTENT: Final = re.compile(rb"\s*(?:RW|RDONLY|NOACCESS)\s", re.IGNORECASE)
_EXTENT_PARTS: Final = re.compile(rb'\s*\S+\s+(\d{1,19})\s+(\w+)(?:\s+"([^"]*)")?(.*)', re.DOTALL)
_KEY: Final = re.compile(rb'\s*([A-Za-z_][\w.]*)\s*=\s*"?([^"\r]*)"?\s*')


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """One extent line."""

    kind: str
    """Type: ``SPARSE``, ``FLAT``, ``VMFS`` …"""
    sectors: int
    name: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    values: dict[str, bytes]
    """Values by lower-case key."""
    duplicate_keys: tuple[str, ...]
    """Keys with two different values."""
    extents: tuple[Extent, ...]
    malformed_extents: tuple[bytes, ...]
    """Malformed extent lines."""
    unknown_lines: tuple[bytes, ...]
    """Lines that are neither comments, keys nor extents."""


def parse(text: bytes) -> Descriptor | None:
    """Return the descriptor in `text`, which ends at its first zero byte; None if it is not one."""
    text = text.partition(b"\0")[0]
    if text[: len(signatures.VMDK_DESCRIPTOR)].lower() != signatures.VMDK_DESCRIPTOR:
        return None
    values: dict[str, bytes] = {}
    duplicates: list[str] = []
    extents: list[Extent] = []
    malformed: list[bytes] = []
    unknown: list[bytes] = []
    for line in text.split(b"\n", MAX_LINES)[:MAX_LINES]:
        if line.lstrip().startswith(b"#"):
            continue
        if _EXTENT.match(line):
            parts = _EXTENT_PARTS.fullmatch(line)
            if parts is None:
                malformed.append(line)
            else:
                extents.append(
                    Extent(
                        kind=parts[2].decode("ascii", "replace").upper(), sectors=int(parts[1]), name=parts[3] or b""
                    )
                )
        elif match := _KEY.fullmatch(line):
            key = match[1].decode("ascii", "replace").lower()
            value = match[2].strip()
            if values.setdefault(key, value) != value:
                duplicates.append(key)
        elif line.strip() and b"=" not in line:
            unknown.append(line)
    return Descriptor(
        values=values,
        duplicate_keys=tuple(duplicates),
        extents=tuple(extents),
        malformed_extents=tuple(malformed),
        unknown_lines=tuple(unknown),
    )


def check(descriptor: Descriptor, text: bytes, checks: Checklist) -> str | None:
    """Add all checks of a descriptor, whose bytes are `text`; return the createType if it is accepted."""
    lines = text.partition(b"\0")[0].count(b"\n")
    checks.check(lines < MAX_LINES, "descriptor length", f"the descriptor has {lines} lines", ImageUnsafe)
    duplicates = ", ".join(quoted(key.encode()) for key in descriptor.duplicate_keys[:4])
    checks.check(
        not duplicates,
        "descriptor keys",
        f"the descriptor has conflicting values for {duplicates}" if duplicates else "each once",
        ImageUnsafe,
    )
    unknown = descriptor.unknown_lines
    checks.check(
        not unknown,
        "descriptor lines",
        f"the descriptor has the line {quoted(unknown[0])}, which is no key and no extent" if unknown else "known",
        ImageUnsafe,
    )
    encrypted = [key for key in descriptor.values if key.startswith("encryption.")]
    checks.check(not encrypted, "encryption", "it is encrypted" if encrypted else "not encrypted", EncryptionRefused)
    _check_parent(descriptor, text, checks)
    kind = _check_kind(descriptor, checks)
    _check_extents(descriptor, checks)
    return kind


def _check_parent(descriptor: Descriptor, text: bytes, checks: Checklist) -> None:
    cid = descriptor.values.get("parentcid", _NO_PARENT).lower()
    # QEMU searches the whole text for the hint's name, so the name must not occur anywhere.
    hint = b"parentfilenamehint" in text.partition(b"\0")[0].lower()
    if hint:
        detail = f"it is an overlay over {quoted(descriptor.values.get('parentfilenamehint', b'another file'))}"
    elif cid != _NO_PARENT:
        detail = f"it is an overlay over the image with CID {quoted(cid)}"
    else:
        detail = "no parent"
    checks.check(not hint and cid == _NO_PARENT, "parent image", detail, BackingFileRefused)


def _check_kind(descriptor: Descriptor, checks: Checklist) -> str | None:
    said = descriptor.values.get("createtype", b"")
    for kind in MONOLITHIC:
        if said == kind.encode():
            checks.check(passed=True, name="create type", detail=kind)
            return kind
    elsewhere = said.decode("ascii", "replace").lower() in _OTHER_FILES
    checks.check(
        passed=False,
        name="create type",
        detail=f"its data is in other files (createType {quoted(said)})"
        if elsewhere
        else f"createType {quoted(said)} is not one of {', '.join(MONOLITHIC)}",
        refusal=ExternalDataRefused if elsewhere else FormatUnsupported,
    )
    return None


def _check_extents(descriptor: Descriptor, checks: Checklist) -> None:
    extents = descriptor.extents
    if descriptor.malformed_extents:
        checks.check(
            passed=False,
            name="extent lines",
            detail=f"the extent line {quoted(descriptor.malformed_extents[0])} is malformed",
            refusal=ImageUnsafe,
        )
    checks.check(
        len(extents) == 1,
        "one extent",
        f"the descriptor names {len(extents)} extents",
        ExternalDataRefused if extents else ImageUnsafe,
    )
    for extent in extents[:4]:
        sparse = extent.kind == "SPARSE"
        inside = not any(mark in extent.name for mark in (b"/", b"\\")) and extent.name not in (b"", b".", b"..")
        checks.check(
            sparse and inside,
            "extent is the image itself",
            f"{extent.kind} extent {quoted(extent.name)}" + ("" if sparse and inside else " is outside the image"),
            ExternalDataRefused,
        )
