"""Selection of the import pipeline, with its reason and its cost, as a pure function of the facts.

`cdi explain` prints the plan and conditions quote it. All sizes are in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, assert_never

from cdi.api.errors import (
    FormatUnsupported,
    ScratchNeeded,
    SourceLengthUnknown,
    TargetTooSmall,
    TargetUnsuitable,
)
from cdi.api.importer_messages import image_too_large
from cdi.image.info import ImageInfo
from cdi.image.sizes import MAX_OFFSET, MEBI, SECTOR, format_size, kubernetes_quantity, round_up

Path = Literal[
    "raw-ranged",
    "raw-stream",
    "qcow2-ranged",
    "qcow2-stream",
    "mapped-ranged",
    "mapped-stream",
    "qemu-file",
    "qemu-spool",
    "archive",
    "blank",
    "copy",
]

FEW_CONNECTIONS: Final = 4
MANY_CONNECTIONS: Final = 8
MANY_CONNECTIONS_FROM: Final = 4 << 30
"""Source size from which on many connections are used."""
BYTES_PER_CONNECTION: Final = 8 * MEBI
"""Bytes per connection that are worth another handshake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInput:
    """Facts on which the plan depends."""

    length: int | None
    """Size of the source's content, including its wrappers."""
    ranges: bool
    """Whether ranges can be read."""
    unversioned: bool = False
    """Whether ranges are served but unused, because pieces of two versions could not be distinguished."""
    close_delimited: bool = False
    """Whether no length is announced, and only closing the connection ends the content."""
    local: bool = False
    """Whether the source is a file of this machine, which QEMU can open itself."""
    location: str | None = None
    """Location of the source, for messages."""
    wrappers: tuple[str, ...] = ()
    """Wrappers around the image, outermost first."""
    image: ImageInfo | None
    """The image within the wrappers; None for an archive and for a blank disk."""
    content_type: Literal["kubevirt", "archive"] = "kubevirt"
    target: Literal["file", "block", "directory"]
    size: int | None = None
    """Requested size of the disk: a smaller image is extended to it, a larger one rejected."""
    capacity: int | None = None
    """Capacity of the volume: the size of a device, or the space in a file system."""
    reads_zero: bool = True
    """Whether unwritten ranges of the target read as zeros."""
    engine: Literal["auto", "qemu"] = "auto"
    preallocation: bool = False
    connections: int = 0
    """Connections that the policy sets; 0 selects automatically."""
    digest_promised: bool = False
    """Whether the digest of the source's bytes is known in advance and compared."""
    scratch: bool = False
    """Whether scratch space is available."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Pipeline of an import, with upper bounds of its cost."""

    path: Path
    reason: str
    """One sentence that names what decided."""
    fetch_bytes: int | None
    """Maximum to fetch from the source, each byte once; None if unknown.

    Bytes that are fetched again after a lost connection come on top.
    """
    write_bytes: int | None
    """Maximum to write to the target."""
    scratch_bytes: int | None
    """Maximum to write to scratch space: 0 if none, None if known only during the import."""
    connections: int
    resumable: str
    """Where an interrupted import resumes: ``from the watermark``, or ``from the start: `` and the reason."""
    disk_size: int | None
    """Size of the disk on the volume; None for an archive, or if the image's size is known only during the import."""


WATERMARK: Final = "from the watermark"

_MAPPED: Final = {"qcow2", "vmdk", "vdi", "vpc", "vhdx"}
"""Formats with a builder of their map (`cdi.image.inspect.map_builder`)."""


def plan(facts: PlanInput) -> Plan:
    """Choose the pipeline.

    Raises:
        TargetTooSmall: the disk does not fit; the message names both sizes and one that fits.
        TargetUnsuitable: the target is of the wrong kind, or a blank disk has no size.
        ScratchNeeded: the pipeline needs scratch space and there is none.
        FormatUnsupported: an archive was requested and the source is not one.
        SourceLengthUnknown: the source's length is unknown, and nothing else would detect a truncated stream.
    """
    if facts.content_type == "archive":
        return _archive(facts)
    if facts.target == "directory":
        raise TargetUnsuitable(
            "a disk image requires a disk file or a block device, not a directory",
            remedy="set contentType: archive if the source is a tar archive",
        )
    if facts.image is None:
        return _blank(facts)
    image = facts.image
    _require_provable_end(facts, image)
    disk_size = _disk_size(facts, image.virtual_size)
    path, why = _choose(facts, image)
    connections, told = _connections(facts, path)
    if facts.close_delimited:
        proof = "its digest" if facts.digest_promised else end_mark(facts.wrappers, image.format)
        why += f"; the server announces no length, so {proof} shows that it is complete"
    return Plan(
        path=path,
        reason=f"{why}; {told}",
        fetch_bytes=facts.length,
        write_bytes=image.virtual_size,
        scratch_bytes=_scratch(facts, path),
        connections=connections,
        resumable=_resumable(facts, path),
        disk_size=disk_size,
    )


def _require_provable_end(facts: PlanInput, image: ImageInfo) -> None:
    """Raise `SourceLengthUnknown` if truncated content could not be detected.

    Without a length and chunks, a lost connection looks like the end of the content. A digest detects it, and so do
    compressed streams, archives and image formats, which mark their own end; any prefix of a raw image is a valid raw
    image.
    """
    if facts.close_delimited and not facts.digest_promised and end_mark(facts.wrappers, image.format) is None:
        raise length_unknown(facts.location)


def length_unknown(location: str | None) -> SourceLengthUnknown:
    """Return the error for a raw image that only the closing of the connection ends."""
    return SourceLengthUnknown(
        "the server announces neither a length nor chunks, and the end of a raw image cannot be distinguished from "
        "a lost connection",
        where=location,
    )


def end_mark(wrappers: tuple[str, ...], image_format: str | None) -> str | None:
    """Return what in a content shows where it ends, None where nothing does.

    `wrappers` are those around the image, whose format is `image_format`.
    """
    if wrappers:
        return f"the {wrappers[0]} stream" if wrappers[0] != "tar" else "the tar archive"
    return None if image_format in (None, "raw") else f"the {image_format} image"


def _choose(facts: PlanInput, image: ImageInfo) -> tuple[Path, str]:
    name = image.format if image.variant is None else f"{image.format} ({image.variant})"
    plain = not facts.wrappers
    direct = plain and facts.ranges
    access = "it is served with byte ranges" if direct else _no_ranges(facts)
    by_policy = facts.engine == "qemu"
    if image.format == "raw" or (image.raw_extent is not None and not by_policy and plain):
        if by_policy and plain:
            return _by_qemu(facts, f"policy assigns {name} to QEMU")
        if direct:
            return "raw-ranged", f"{name} needs no decoding and {access}"
        return "raw-stream", f"{name} needs no decoding and {access}"
    if is_mapped(image) and not by_policy:
        why = f"{name} is decoded on the way and {access}"
        if image.format == "qcow2":
            return ("qcow2-ranged" if direct else "qcow2-stream"), why
        return ("mapped-ranged" if direct else "mapped-stream"), why
    reason = (
        f"policy assigns {name} to QEMU"
        if by_policy
        else f"{name} needs QEMU because {' and '.join(image.needs_qemu)}"
        if image.needs_qemu
        else f"{name} is read by QEMU"
    )
    return _by_qemu(facts, reason)


def _by_qemu(facts: PlanInput, reason: str) -> tuple[Path, str]:
    if facts.local and not facts.wrappers:
        return "qemu-file", f"{reason}; QEMU opens the file itself"
    if not facts.scratch:
        raise ScratchNeeded(f"scratch space is required: {reason}, and QEMU reads only local files")
    return "qemu-spool", f"{reason}; QEMU reads a copy in scratch space"


def is_mapped(image: ImageInfo) -> bool:
    """Return whether the image is read without QEMU, by a map of its tables.

    In a stream, the size of a VHDX may be unknown when the pipeline is chosen.
    """
    if image.virtual_size is None or image.raw_extent is not None:
        return False
    return image.format in _MAPPED and not image.needs_qemu


def _no_ranges(facts: PlanInput) -> str:
    if facts.wrappers:
        return f"it is wrapped in {', '.join(facts.wrappers)}"
    if facts.unversioned:
        return "its source has no validator (ETag or Last-Modified) to compare ranges by; a checksum would allow them"
    return "its source does not support byte ranges"


def _scratch(facts: PlanInput, path: Path) -> int | None:
    match path:
        case (
            "raw-ranged" | "raw-stream" | "qcow2-ranged" | "mapped-ranged" | "qemu-file" | "archive" | "blank" | "copy"
        ):
            return 0
        case "qcow2-stream" | "mapped-stream":
            # Data before its map is spilled, to memory first; usual writers put the map in front.
            return None if facts.scratch else 0
        case "qemu-spool":
            return None if facts.wrappers else facts.length
    assert_never(path)


def _resumable(facts: PlanInput, path: Path) -> str:
    match path:
        case "raw-ranged" | "qcow2-ranged" | "mapped-ranged" | "copy":
            return WATERMARK
        case "raw-stream" | "qcow2-stream" | "mapped-stream" | "archive":
            if facts.wrappers:
                return f"from the start: {facts.wrappers[0]} cannot be decompressed from the middle"
            if facts.unversioned:
                return "from the start: the source has no validator that shows whether its content has changed"
            return "from the start: the source does not support byte ranges"
        case "qemu-file" | "qemu-spool":
            return "from the start: QEMU converts in one run"
        case "blank":
            return "from the start: there is nothing to fetch"
    assert_never(path)


def _connections(facts: PlanInput, path: Path) -> tuple[int, str]:
    """Return the number of connections and its description."""
    if path not in ("raw-ranged", "qcow2-ranged", "mapped-ranged"):
        return 1, "one connection, as it is read from front to back"
    if facts.connections:
        return facts.connections, f"{_count(facts.connections)}, as the policy says"
    if facts.length is None:
        return FEW_CONNECTIONS, _count(FEW_CONNECTIONS)
    # A digest takes the pieces in order: with more of them in flight, fewer threads wait for their turn.
    many = facts.digest_promised or facts.length >= MANY_CONNECTIONS_FROM
    most = MANY_CONNECTIONS if many else FEW_CONNECTIONS
    number = max(1, min(most, -(-facts.length // BYTES_PER_CONNECTION)))
    return number, f"{_count(number)} for {format_size(facts.length)}"


def _count(number: int) -> str:
    return "one connection" if number == 1 else f"{number} connections"


def _disk_size(facts: PlanInput, virtual: int | None) -> int | None:
    """Return the size of the disk on the volume, or raise `TargetTooSmall`."""
    if virtual is not None:
        if facts.size is not None and virtual > facts.size:
            raise _too_small(facts, virtual, facts.size, "the requested disk has")
        if facts.capacity is not None and virtual > facts.capacity:
            raise _too_small(facts, virtual, facts.capacity, "the volume holds")
    if facts.size is not None and facts.capacity is not None and facts.size > facts.capacity:
        raise TargetTooSmall(
            f"the requested disk has {_exact(facts.size)} and the volume holds {_exact(facts.capacity)}",
            remedy=f"request a volume of at least {_exact(facts.size)}",
        )
    if facts.size is not None:
        if round_up(facts.size, SECTOR) > MAX_OFFSET:
            raise TargetUnsuitable(
                f"a disk of {_exact(facts.size)} was requested, which no file or device can hold",
                remedy="request a size that storage can provide",
            )
        return round_up(facts.size, SECTOR)
    if facts.target == "block" and facts.capacity is not None:
        return facts.capacity
    return None if virtual is None else round_up(virtual, SECTOR)


def _too_small(facts: PlanInput, virtual: int, room: int, holder: str) -> TargetTooSmall:
    fits = kubernetes_quantity(virtual)
    remedy = f"request storage: {fits}"
    if facts.target == "file":
        # Imported on demand: the fractions module costs more than the rest of the plan.
        from cdi.api.overhead import required

        remedy += f" (with spec.pvc on a file system: {kubernetes_quantity(required(virtual))})"
    error = TargetTooSmall(f"the image's virtual size is {_exact(virtual)} and {holder} {_exact(room)}", remedy=remedy)
    return error.with_upstream(image_too_large(virtual, room))


def _exact(size: int) -> str:
    return f"{size} bytes ({format_size(size)})"


def _archive(facts: PlanInput) -> Plan:
    if facts.target != "directory":
        raise TargetUnsuitable("an archive is unpacked into a directory, not onto a disk")
    if not facts.wrappers or facts.wrappers[-1] != "tar":
        found = "a disk image" if facts.image is not None else "something else"
        raise FormatUnsupported(
            f"contentType archive requires a tar archive, but the source is {found}",
            remedy="set contentType: kubevirt for a disk image",
        )
    return Plan(
        path="archive",
        reason="contentType is archive; one connection, as it is read from front to back",
        fetch_bytes=facts.length,
        write_bytes=facts.capacity,
        scratch_bytes=0,
        connections=1,
        resumable="from the start: an archive is unpacked in one run",
        disk_size=None,
    )


def _blank(facts: PlanInput) -> Plan:
    size = _disk_size(facts, None)
    if size is None:
        raise TargetUnsuitable(
            "a blank disk needs a size, and neither the request nor the volume has one",
            remedy="set storage.resources.requests.storage",
        )
    return Plan(
        path="blank",
        reason="a blank disk has nothing to fetch",
        fetch_bytes=0,
        write_bytes=size if facts.preallocation or not facts.reads_zero else 0,
        scratch_bytes=0,
        connections=0,
        resumable="from the start: there is nothing to fetch",
        disk_size=size,
    )


def render(chosen: Plan) -> str:
    """Format a plan for display: one aligned line per property."""
    lines = [
        ("path", chosen.path),
        ("why", chosen.reason),
        ("disk", _amount(chosen.disk_size, "as large as its content")),
        ("fetch", _most(chosen.fetch_bytes)),
        ("write", _most(chosen.write_bytes)),
        ("scratch", "none" if chosen.scratch_bytes == 0 else _most(chosen.scratch_bytes)),
        ("connections", str(chosen.connections)),
        ("resumes", chosen.resumable),
    ]
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name + ':':<{width}}{value}" for name, value in lines)


def _amount(size: int | None, unknown: str) -> str:
    return unknown if size is None else _exact(size)


def _most(size: int | None) -> str:
    if size is None:
        return "not known in advance"
    return "nothing" if size == 0 else f"at most {_exact(size)}"
