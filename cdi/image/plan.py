"""Which pipeline an import takes, why, and what it will cost: facts in, a `Plan` out, nothing done.

`cdi explain` prints it, conditions quote it, tests assert it.  All sizes are bytes.
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
from cdi.image.info import ImageInfo
from cdi.image.sizes import MAX_OFFSET, MEBI, SECTOR, human, request, round_up

Path = Literal[
    "raw-ranged", "raw-stream", "qcow2-ranged", "qcow2-stream", "qemu-bridge", "qemu-spool", "archive", "blank"
]

FEW_CONNECTIONS: Final = 4
MANY_CONNECTIONS: Final = 8
LARGE: Final = 4 << 30
"""From here on a source is fetched over many connections."""
SHARE: Final = 8 * MEBI
"""What makes another connection worth its handshake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInput:
    """Everything that decides."""

    length: int | None
    """Of the source's content, wrapped as it is."""
    ranges: bool
    """It may be read in ranges."""
    unversioned: bool = False
    """It is served in ranges, which are not used: nothing would tell pieces of two versions apart."""
    close_delimited: bool = False
    """No length is announced, and only the connection's closing ends it."""
    location: str | None = None
    """Of the source, for messages."""
    wrappers: tuple[str, ...] = ()
    """Around the image, outermost first."""
    image: ImageInfo | None
    """What is in them; None for an archive, and for a blank disk."""
    content_type: Literal["kubevirt", "archive"] = "kubevirt"
    target: Literal["file", "block", "directory"]
    size: int | None = None
    """The disk that was asked for: a smaller image is grown to it, a larger one refused."""
    capacity: int | None = None
    """What the volume can hold: a device's size, or a file system's room."""
    reads_zero: bool = True
    """What is not written reads as zeros."""
    engine: Literal["auto", "qemu"] = "auto"
    preallocation: bool = False
    connections: int = 0
    """As the policy has them; 0 chooses."""
    digest_wanted: bool = False
    """The source's bytes are to be hashed, which needs all of them and in order."""
    digest_promised: bool = False
    """Their digest is known beforehand, and compared."""
    scratch: bool = False
    """There is scratch space."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be done."""

    path: Path
    why: str
    """One sentence that names what decided."""
    fetch_bytes: int | None
    """At most, from the source, each byte once; None where nobody knows.  What comes on top is what is fetched again:
    after a lost connection, and where `rereads`."""
    write_bytes: int | None
    """At most, to the target."""
    scratch_bytes: int | None
    """At most, to scratch space: 0 none, None where it shows only on the way."""
    connections: int
    resumable: str
    """Where a killed import goes on: ``from the watermark``, or ``from the start: `` and the reason."""
    disk_size: int | None
    """Of the disk on the volume; None where the image's own size shows only on the way, and for an archive."""
    rereads: bool = False
    """QEMU reads where it likes, through a window of bounded memory: a block that had to make room is fetched again
    when QEMU, or the digest in its order, comes to it.  `fetch_bytes` is without those, as nobody knows them before;
    images written from front to back, as the usual tools do, have next to none."""


WATERMARK: Final = "from the watermark"


def plan(facts: PlanInput) -> Plan:
    """Choose.

    Raises `TargetTooSmall`, naming both sizes and one that fits, `TargetUnsuitable`, `ScratchNeeded`,
    `FormatUnsupported`, `SourceLengthUnknown`.
    """
    if facts.content_type == "archive":
        return _archive(facts)
    if facts.target == "directory":
        raise TargetUnsuitable(
            "a disk image goes onto a disk file or a block device, not into a directory",
            remedy="set contentType: archive if the source is a tar archive",
        )
    if facts.image is None:
        return _blank(facts)
    image = facts.image
    _require_provable_end(facts, image)
    disk_size = _disk_size(facts, image.virtual_size)
    path, why = _choose(facts, image)
    ranged = path in ("raw-ranged", "qcow2-ranged", "qemu-bridge")
    connections, told = _connections(facts, ranged=ranged)
    if path == "qemu-bridge" and facts.digest_wanted:
        why += "; its digest is taken in order from what QEMU reads, and from the rest after that"
    if facts.close_delimited:
        proof = "its digest" if facts.digest_promised else end_mark(facts.wrappers, image.format)
        why += f"; the server announces no length, so {proof} shows that all of it has come"
    return Plan(
        path=path,
        why=f"{why}; {told}",
        fetch_bytes=facts.length,
        write_bytes=image.virtual_size,
        scratch_bytes=_scratch(facts, path),
        connections=connections,
        resumable=_resumable(facts, path),
        disk_size=disk_size,
        rereads=path == "qemu-bridge",
    )


def _require_provable_end(facts: PlanInput, image: ImageInfo) -> None:
    """Raise `SourceLengthUnknown` where content that was cut off could not be told from the whole.

    Without a length and chunks, a connection that was cut off looks like the end of the content. A digest tells them
    apart, and so do compressed streams, archives and image formats, which say themselves where they end; of a raw image
    any part is a raw image.
    """
    if facts.close_delimited and not facts.digest_promised and end_mark(facts.wrappers, image.format) is None:
        raise length_unknown(facts.location)


def length_unknown(location: str | None) -> SourceLengthUnknown:
    """Return the refusal of a raw image that is ended by the connection's closing only."""
    return SourceLengthUnknown(
        "the server announces neither a length nor chunks, and the end of a raw image cannot be told from a connection "
        "that was cut off",
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
    if image.format == "raw" or (image.payload is not None and not by_policy and plain):
        if by_policy and direct:
            return "qemu-bridge", f"policy gives {name} to QEMU and {access}"
        if by_policy and plain:
            _need_scratch(facts, f"policy gives {name} to QEMU and {access}")
            return "qemu-spool", f"policy gives {name} to QEMU and {access}"
        if direct:
            return "raw-ranged", f"{name} needs no decoding and {access}"
        return "raw-stream", f"{name} needs no decoding and {access}"
    if image.format == "qcow2" and not image.needs_qemu and not by_policy:
        return ("qcow2-ranged" if direct else "qcow2-stream"), f"{name} is decoded on the way and {access}"
    reason = (
        f"policy gives {name} to QEMU"
        if by_policy
        else f"{name} needs QEMU because {' and '.join(image.needs_qemu)}"
        if image.needs_qemu
        else f"{name} is read by QEMU"
    )
    if direct:
        return "qemu-bridge", f"{reason} and {access}, so without scratch space"
    _need_scratch(facts, f"{reason} and {access}")
    return "qemu-spool", f"{reason} and {access}, so it goes through scratch space"


def needs_scratch(image_format: str) -> bool:
    """Return whether an image of this format that comes but once goes through scratch space, whatever is in it.

    Of a VHD that shows only further in, as it may be fixed, and of qcow2 as well, which QEMU has to read now and then.
    """
    return image_format in {"vmdk", "vdi", "vhdx"}


def _no_ranges(facts: PlanInput) -> str:
    if facts.wrappers:
        return f"it is wrapped in {', '.join(facts.wrappers)}"
    if facts.unversioned:
        return (
            "its source names no version (neither ETag nor Last-Modified) that ranges could be compared by; a checksum "
            "would allow them"
        )
    return "its source gives no byte ranges"


def _need_scratch(facts: PlanInput, why: str) -> None:
    if not facts.scratch:
        raise ScratchNeeded(f"no scratch space is given, and {why}")


def _scratch(facts: PlanInput, path: Path) -> int | None:
    match path:
        case "raw-ranged" | "raw-stream" | "qcow2-ranged" | "qemu-bridge" | "archive" | "blank":
            return 0
        case "qcow2-stream":
            # What arrives before its map is kept in memory first; usual writers put the map in front.
            return None if facts.scratch else 0
        case "qemu-spool":
            return None if facts.wrappers else facts.length
    assert_never(path)


def _resumable(facts: PlanInput, path: Path) -> str:
    match path:
        case "raw-ranged" | "qcow2-ranged":
            return WATERMARK
        case "raw-stream" | "qcow2-stream" | "archive" | "qemu-spool":
            if facts.wrappers:
                return f"from the start: {facts.wrappers[0]} cannot be entered midway"
            if facts.unversioned:
                return "from the start: the source does not tell whether its content is still the same"
            return "from the start: the source gives no byte ranges"
        case "qemu-bridge":
            return "from the start: QEMU converts in one run"
        case "blank":
            return "from the start: there is nothing to fetch"
    assert_never(path)


def _connections(facts: PlanInput, *, ranged: bool) -> tuple[int, str]:
    """How many, and the words for it."""
    if not ranged:
        return 1, "one connection, as it is read from front to back"
    if facts.connections:
        return facts.connections, f"{_count(facts.connections)}, as the policy says"
    if facts.length is None:
        return FEW_CONNECTIONS, _count(FEW_CONNECTIONS)
    most = MANY_CONNECTIONS if facts.length >= LARGE else FEW_CONNECTIONS
    number = max(1, min(most, -(-facts.length // SHARE)))
    return number, f"{_count(number)} for {human(facts.length)}"


def _count(number: int) -> str:
    return "one connection" if number == 1 else f"{number} connections"


def _disk_size(facts: PlanInput, virtual: int | None) -> int | None:
    """Of the disk as it will stand on the volume; raises `TargetTooSmall`."""
    if virtual is not None:
        if facts.size is not None and virtual > facts.size:
            raise _too_small(facts, virtual, f"the disk that was asked for has {_exact(facts.size)}")
        if facts.capacity is not None and virtual > facts.capacity:
            raise _too_small(facts, virtual, f"the volume holds {_exact(facts.capacity)}")
    if facts.size is not None and facts.capacity is not None and facts.size > facts.capacity:
        raise TargetTooSmall(
            f"a disk of {_exact(facts.size)} was asked for and the volume holds {_exact(facts.capacity)}",
            remedy=f"give it a volume of {_exact(facts.size)} or more",
        )
    if facts.size is not None:
        if round_up(facts.size, SECTOR) > MAX_OFFSET:
            raise TargetUnsuitable(
                f"a disk of {_exact(facts.size)} was asked for, which no file or device can hold",
                remedy="request a size that storage can provide",
            )
        return round_up(facts.size, SECTOR)
    if facts.target == "block" and facts.capacity is not None:
        return facts.capacity
    return None if virtual is None else round_up(virtual, SECTOR)


def _too_small(facts: PlanInput, virtual: int, room: str) -> TargetTooSmall:
    fits = request(virtual)
    remedy = f"request storage: {fits}"
    if facts.target == "file":
        # Only when it is needed: exact fractions cost more to import than the rest of the plan.
        from cdi.api.overhead import required

        remedy += f" (with spec.pvc on a file system: {request(required(virtual))})"
    return TargetTooSmall(f"the image's virtual size is {_exact(virtual)} and {room}", remedy=remedy)


def _exact(size: int) -> str:
    return f"{size} bytes ({human(size)})"


def _archive(facts: PlanInput) -> Plan:
    if facts.target != "directory":
        raise TargetUnsuitable("an archive is unpacked into a directory, not onto a disk")
    if not facts.wrappers or facts.wrappers[-1] != "tar":
        found = "a disk image" if facts.image is not None else "something else"
        raise FormatUnsupported(
            f"contentType archive wants a tar archive, and the source is {found}",
            remedy="set contentType: kubevirt for a disk image",
        )
    return Plan(
        path="archive",
        why="contentType is archive; one connection, as it is read from front to back",
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
        why="a blank disk has nothing to fetch",
        fetch_bytes=0,
        write_bytes=size if facts.preallocation or not facts.reads_zero else 0,
        scratch_bytes=0,
        connections=0,
        resumable="from the start: there is nothing to fetch",
        disk_size=size,
    )


def render(chosen: Plan) -> str:
    """For people: a line for each thing that `chosen` says, names aligned."""
    lines = [
        ("path", chosen.path),
        ("why", chosen.why),
        ("disk", _amount(chosen.disk_size, "as large as its content")),
        ("fetch", _most(chosen.fetch_bytes) + (", and again what QEMU reads out of order" if chosen.rereads else "")),
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
        return "not known before"
    return "nothing" if size == 0 else f"at most {_exact(size)}"
