"""From a source's first bytes to the image in it: wrapper after wrapper, until an image is recognised."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Literal

from cdi.api.errors import DiskNotInImage, FormatUnsupported, NestedTooDeep, SourceNotAnImage
from cdi.codec.base import Buffer
from cdi.codec.open import decoder
from cdi.image.document import recognise_document
from cdi.image.info import ImageInfo
from cdi.image.inspect import Inspector, name_format
from cdi.image.wrapper import recognise_foreign, recognise_wrapper
from cdi.source.base import SourceFacts
from cdi.transfer.fetch import Fetcher

if TYPE_CHECKING:
    from cdi.codec.tar import Member

HEAD = 64 << 10
READ_AHEAD = 512 << 10
"""Read at once from the start of a source with ranges: mostly the tables of a qcow2 image lie there too."""
DEPTH = 4
"""Wrappers within one another: registry layer, tar, and a disk that is compressed once more, even twice."""

Wrapper = Literal["gz", "xz", "zst", "tar"]


LayerContent = Callable[["Iterator[Member]"], Iterator[Buffer]]
"""Gives the disk's bytes out of the members of a registry layer; raises `NoDisk` where the layer has no disk."""

_WRAPPER_NAMES: dict[Wrapper, str] = {
    "gz": "a gzip stream",
    "xz": "an xz stream",
    "zst": "a zstd stream",
    "tar": "a tar archive",
}


_OVF = ".ovf"
_OVA_EXTRAS = (".ovf", ".mf", ".cert", ".xml", ".nvram", ".iso")
"""Files of an OVA beside its disks: descriptor, manifest, certificate, messages, firmware's variables, CD images."""
_OVA_MEMBERS = 16
_OVA_BYTES = 16 << 20


class NoDisk(Exception):
    """The tar was read to its end and no member of it is the disk."""


class NoDiskInLayer(NoDisk):
    """The disk is not in this layer of a container image; another may have it."""


@dataclass(slots=True)
class Peeled:
    """The image inside a source.

    Either `stream` gives the innermost content from its start, or it is None and the source itself is the content, to
    be read at any place; then `head` are its first bytes.
    """

    wrappers: tuple[Wrapper, ...]
    image: ImageInfo | None
    """None where the content is to be an archive."""
    stream: Iterator[Buffer] | None = None
    head: bytes = b""
    close: Callable[[], None] = field(default=lambda: None)


def peel_ranged(fetcher: Fetcher, facts: SourceFacts, *, archive: bool) -> Peeled | None:
    """Look into a source with ranges; None where it is wrapped and must be read as a stream."""
    assert facts.length is not None
    head = fetcher.read(0, READ_AHEAD)
    refuse_strangers(head, facts)
    if archive or recognise_wrapper(head[:HEAD]) is not None:
        return None
    inspector = Inspector(facts.length)
    while (wanted := inspector.wants()) is not None:
        offset, size = wanted
        data = head[offset : offset + size] if offset + size <= len(head) else fetcher.read(offset, size)
        inspector.feed(offset, data)
    return Peeled((), inspector.verdict(), None, head)


def peel_stream(
    pieces: Iterator[Buffer],
    facts: SourceFacts,
    *,
    archive: bool,
    layer: LayerContent | None = None,
    on_format: Callable[[str], None] = lambda _: None,
) -> Peeled:
    """Look into a one-way stream, unwrapping as it goes.

    With `layer` the stream is a registry's layer, which has to be a tar; without, the only file of a tar is the disk.
    `on_format` is called with the image's format where more than `HEAD` bytes have to be read to check it, and may
    refuse it by raising.  Raises what the decoders, the inspectors and `layer` raise, `SourceNotAnImage`,
    `NestedTooDeep`, `DiskNotInImage`, `NoDisk`.
    """
    wrappers: list[Wrapper] = []
    if layer is not None:
        pieces = _disk_of_layer(pieces, facts, wrappers, layer)
    while True:
        head, pieces = look(pieces, HEAD)
        if not wrappers:
            refuse_strangers(head, facts)
        wrapper = recognise_wrapper(head)
        if wrapper is None:
            break
        if wrapper == "tar" and archive:
            return Peeled((*wrappers, "tar"), None, pieces)
        wrappers.append(wrapper)
        if len(wrappers) > DEPTH:
            raise NestedTooDeep(f"the content is wrapped more than {DEPTH} times: {' in '.join(reversed(wrappers))}")
        pieces = _only_disk(pieces, facts) if wrapper == "tar" else decoder(wrapper).decode(pieces)
    if archive:
        raise FormatUnsupported(
            "the content is no tar archive", where=facts.location, remedy="use contentType kubevirt for disk images"
        )
    if wrappers:
        refuse_strangers(head, facts, content_type=None)
    inspector = Inspector(None)
    held = bytearray()
    while (wanted := inspector.wants()) is not None:
        offset, size = wanted
        if offset + size > HEAD and (claimed := name_format(head)) is not None:
            on_format(claimed)
        while len(held) < offset + size and (piece := next(pieces, None)) is not None:
            held += piece
        inspector.feed(offset, bytes(held[offset : offset + size]))
    info = inspector.verdict()
    return Peeled(tuple(wrappers), info, _chain(held, pieces))


def refuse_strangers(head: bytes, facts: SourceFacts, *, content_type: str | None = "") -> None:
    """Raise for what is plainly something else: a web page, a zip."""
    if content_type == "":
        content_type = facts.content_type
    document = recognise_document(head, content_type)
    if document is not None:
        raise SourceNotAnImage(f"the source gave {document} instead of an image", where=facts.location)
    foreign = recognise_foreign(head)
    if foreign is not None:
        raise FormatUnsupported(
            f"the content is {foreign.name}, which is not supported", where=facts.location, remedy=foreign.remedy
        )


def look(pieces: Iterator[Buffer], size: int) -> tuple[bytes, Iterator[Buffer]]:
    """The first `size` bytes (fewer at the end of the content), and an iterator that gives all of them again."""
    held = bytearray()
    while len(held) < size and (piece := next(pieces, None)) is not None:
        held += piece
    return bytes(held[:size]), _chain(held, pieces)


def _chain(held: bytearray, rest: Iterator[Buffer]) -> Iterator[Buffer]:
    if held:
        yield memoryview(held)
    yield from rest


def _disk_of_layer(
    pieces: Iterator[Buffer], facts: SourceFacts, wrappers: list[Wrapper], layer: LayerContent
) -> Iterator[Buffer]:
    """Give the bytes of the disk in a registry layer, a tar that is compressed once at most; adds to `wrappers`."""
    from cdi.codec.tar import members

    head, pieces = look(pieces, HEAD)
    wrapper = recognise_wrapper(head)
    if wrapper is not None and wrapper != "tar":
        wrappers.append(wrapper)
        head, pieces = look(decoder(wrapper).decode(pieces), HEAD)
        wrapper = recognise_wrapper(head)
    if wrapper == "tar":
        wrappers.append("tar")
        return layer(members(pieces))
    # A tar without members is its end mark, zeros, and the layer of a build step that changed nothing.
    first = next((piece for piece in pieces if bytes(piece).strip(b"\0")), None)
    if first is None:
        return layer(iter(()))
    name = f"{_WRAPPER_NAMES[wrapper]} once more" if wrapper is not None else _name(head)
    inside = f"{_WRAPPER_NAMES[wrappers[0]]} around " if wrappers else ""
    raise FormatUnsupported(
        f"the layer is {inside}{name}, and no tar archive",
        where=facts.location,
        remedy="build a container image that has the disk as a file below /disk: FROM scratch, ADD disk.qcow2 /disk/",
    )


def _name(head: bytes) -> str:
    """Name what `head` begins, with its article."""
    if document := recognise_document(head, None):
        return document
    if foreign := recognise_foreign(head):
        return foreign.name
    if (image := name_format(head)) is not None:
        return f"a {image} image"
    return "something unknown"


def _only_disk(pieces: Iterator[Buffer], facts: SourceFacts) -> Iterator[Buffer]:
    """Give the bytes of the only file in a tar; what follows it is read to the end."""
    from cdi.codec.tar import members

    found: str | None = None
    archive = members(pieces)
    for member in archive:
        if member.kind != "file":
            continue
        if member.name.lower().endswith(_OVF):
            raise _ova(member.name, found or _disk_of_ova(archive), facts)
        if found is not None:
            raise DiskNotInImage(
                f"the archive holds both {found!r} and {member.name!r}, and only one can be the disk",
                where=facts.location,
                remedy="put one disk alone into the archive, or use contentType archive",
            )
        found = member.name
        yield from member.read()
    if found is None:
        raise NoDisk


def _disk_of_ova(archive: Iterator[Member]) -> str | None:
    """Return the name of the first disk behind the descriptor of an OVA, None where much else lies between."""
    skipped = 0
    for member in islice(archive, _OVA_MEMBERS):
        if member.kind == "file" and not member.name.lower().endswith(_OVA_EXTRAS):
            return member.name
        skipped += member.stored
        if skipped > _OVA_BYTES:
            break
    return None


def _ova(descriptor: str, disk: str | None, facts: SourceFacts) -> FormatUnsupported:
    """Return the error for an OVA, the package of the Open Virtualization Format (DSP0243)."""
    extract = "its disk" if disk is None else f"{disk!r}"
    command = "tar -xf FILE.ova" if disk is None else f"tar -xf FILE.ova {shlex.quote(disk)}"
    return FormatUnsupported(
        f"the content is an OVA, the package of a whole virtual machine that {descriptor!r} describes",
        where=facts.location,
        remedy=f"extract {extract} from it and import that: {command}",
    )
