"""Detection of the image in a source: unwraps compression and archives until an image is recognised."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Literal

from cdi.api.errors import DiskNotInImage, FormatUnsupported, NestedTooDeep, SourceNotAnImage
from cdi.codec.base import Buffer
from cdi.codec.open import decoder
from cdi.image.info import ImageInfo
from cdi.image.inspect import Inspector, name_format
from cdi.image.web_page import sniff_document
from cdi.image.wrapper import identify_unsupported, recognise_wrapper
from cdi.source.base import SourceFacts
from cdi.transfer.reader import ResumingReader

if TYPE_CHECKING:
    from cdi.codec.tar import Member

HEAD = 64 << 10
READ_AHEAD = 512 << 10
"""Bytes of the first range request to a source; the tables of a qcow2 image are usually within them."""
DEPTH = 4
"""Maximum number of nested wrappers: registry layer, tar, and a disk that is compressed once or even twice."""

Wrapper = Literal["gz", "xz", "zst", "tar"]


LayerContent = Callable[["Iterator[Member]"], Iterator[Buffer]]
"""Function that yields the disk's bytes from the members of a registry layer, or raises `DiskNotInLayer`."""

_WRAPPER_NAMES: dict[Wrapper, str] = {
    "gz": "a gzip stream",
    "xz": "an xz stream",
    "zst": "a zstd stream",
    "tar": "a tar archive",
}


_OVF = ".ovf"
_OVA_EXTRAS = (".ovf", ".mf", ".cert", ".xml", ".nvram", ".iso")
"""Files of an OVA other than disks: descriptor, manifest, certificate, messages, firmware variables, CD images."""
_OVA_MEMBERS = 16
_OVA_BYTES = 16 << 20


class DiskNotInLayer(Exception):
    """Signal that a tar was read to its end and no member is the disk."""


class NoDiskInLayer(DiskNotInLayer):
    """Signal that the disk is not in this layer of a container image; another layer may have it."""


def disk_not_in_archive(location: str) -> DiskNotInImage:
    """Return the error for an archive that was read to its end and contains no file."""
    return DiskNotInImage("the archive contains no disk file", where=location)


@dataclass(slots=True)
class UnwrappedImage:
    """The image inside a source.

    Either `stream` yields the innermost content from its start, or it is None and the source itself is the content,
    which can be read at any offset; then `head` are its first bytes.
    """

    wrappers: tuple[str, ...]
    image: ImageInfo | None
    """The recognised image; None if an archive is imported."""
    stream: Iterator[Buffer] | None = None
    head: bytes = b""
    close: Callable[[], None] = field(default=lambda: None)


def inspect_ranged(fetcher: ResumingReader, facts: SourceFacts, *, archive: bool) -> UnwrappedImage | None:
    """Inspect a source with range requests; return None if it is wrapped and must be read as a stream."""
    assert facts.length is not None
    head = fetcher.read(0, READ_AHEAD)
    reject_foreign_content(head, facts)
    if archive or recognise_wrapper(head[:HEAD]) is not None:
        return None
    inspector = Inspector(facts.length)
    while (wanted := inspector.next_range()) is not None:
        offset, size = wanted
        data = head[offset : offset + size] if offset + size <= len(head) else fetcher.read(offset, size)
        inspector.feed(offset, data)
    return UnwrappedImage((), inspector.result(), None, head)


def unwrap_stream(
    pieces: Iterator[Buffer],
    facts: SourceFacts,
    *,
    archive: bool,
    layer: LayerContent | None = None,
    on_format: Callable[[str], None] = lambda _: None,
) -> UnwrappedImage:
    """Inspect a stream and unwrap it.

    Args:
        pieces: The stream.
        facts: What is known about the source.
        archive: Whether a tar archive is expected instead of a disk image.
        layer: Selects the disk in a registry layer, if the stream is one; it then has to be a tar. Otherwise the disk
            is the only file of a tar.
        on_format: Called with the image's format if more than `HEAD` bytes must be read to check the image; may
            reject it by raising.

    Raises:
        SourceNotAnImage: The content is a web page or the like.
        FormatUnsupported: The content has another format.
        NestedTooDeep: There are more than `DEPTH` wrappers.
        DiskNotInImage: A tar holds several files.
        DiskNotInLayer: A tar holds no file.
        ImageError: A decoder, an inspector or `layer` found the content invalid.
    """
    wrappers: list[Wrapper] = []
    if layer is not None:
        pieces = _disk_of_layer(pieces, facts, wrappers, layer)
    while True:
        head, pieces = peek(pieces, HEAD)
        if not wrappers:
            reject_foreign_content(head, facts)
        wrapper = recognise_wrapper(head)
        if wrapper is None:
            break
        if wrapper == "tar" and archive:
            return UnwrappedImage((*wrappers, "tar"), None, pieces)
        wrappers.append(wrapper)
        if len(wrappers) > DEPTH:
            raise NestedTooDeep(f"the content is wrapped more than {DEPTH} times: {' in '.join(reversed(wrappers))}")
        pieces = _only_disk(pieces, facts) if wrapper == "tar" else decoder(wrapper).decode(pieces)
    if archive:
        raise FormatUnsupported(
            "the content is not a tar archive", where=facts.location, remedy="use contentType kubevirt for disk images"
        )
    if wrappers:
        reject_foreign_content(head, facts, content_type=None)
    inspector = Inspector(None)
    held = bytearray()
    while (wanted := inspector.next_range()) is not None:
        offset, size = wanted
        if offset + size > HEAD and (claimed := name_format(head)) is not None:
            on_format(claimed)
        while len(held) < offset + size and (piece := next(pieces, None)) is not None:
            held += piece
        inspector.feed(offset, bytes(held[offset : offset + size]))
    info = inspector.result()
    return UnwrappedImage(tuple(wrappers), info, _chain(held, pieces))


def reject_foreign_content(head: bytes, facts: SourceFacts, *, content_type: str | None = "") -> None:
    """Raise an error for content that is obviously not a disk image, such as a web page or a zip file."""
    if content_type == "":
        content_type = facts.content_type
    document = sniff_document(head, content_type)
    if document is not None:
        raise SourceNotAnImage(f"the source returned {document} instead of an image", where=facts.location)
    foreign = identify_unsupported(head)
    if foreign is not None:
        raise FormatUnsupported(
            f"the content is {foreign.name}, which is not supported", where=facts.location, remedy=foreign.remedy
        )


def peek(pieces: Iterator[Buffer], size: int) -> tuple[bytes, Iterator[Buffer]]:
    """Return the first `size` bytes, or fewer if the content ends, and an iterator over the whole content."""
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
    """Return the bytes of the disk in a registry layer, a tar that is compressed at most once; extend `wrappers`."""
    from cdi.codec.tar import members

    head, pieces = peek(pieces, HEAD)
    wrapper = recognise_wrapper(head)
    if wrapper is not None and wrapper != "tar":
        wrappers.append(wrapper)
        head, pieces = peek(decoder(wrapper).decode(pieces), HEAD)
        wrapper = recognise_wrapper(head)
    if wrapper == "tar":
        wrappers.append("tar")
        return layer(members(pieces))
    # A build step that changes nothing makes a layer without members: only the tar's end mark, which is zeros.
    first = next((piece for piece in pieces if bytes(piece).strip(b"\0")), None)
    if first is None:
        return layer(iter(()))
    name = f"{_WRAPPER_NAMES[wrapper]} once more" if wrapper is not None else _name(head)
    inside = f"{_WRAPPER_NAMES[wrappers[0]]} around " if wrappers else ""
    raise FormatUnsupported(
        f"the layer is {inside}{name}, not a tar archive",
        where=facts.location,
        remedy="build a container image that has the disk as a file below /disk: FROM scratch, ADD disk.qcow2 /disk/",
    )


def _name(head: bytes) -> str:
    """Return a name, with its article, for the kind of content that begins with `head`."""
    if document := sniff_document(head, None):
        return document
    if foreign := identify_unsupported(head):
        return foreign.name
    if (image := name_format(head)) is not None:
        return f"a {image} image"
    return "unknown content"


def _only_disk(pieces: Iterator[Buffer], facts: SourceFacts) -> Iterator[Buffer]:
    """Yield the bytes of the only file in a tar, then read the tar to its end."""
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
                f"the archive holds both {found!r} and {member.name!r}, but only one can be the disk",
                where=facts.location,
                remedy="store a single disk in the archive, or use contentType archive",
            )
        found = member.name
        yield from member.read()
    if found is None:
        raise DiskNotInLayer


def _disk_of_ova(archive: Iterator[Member]) -> str | None:
    """Return the name of the first disk after the descriptor of an OVA; None if too much other data precedes it."""
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
