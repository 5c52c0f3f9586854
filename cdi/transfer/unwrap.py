"""Detection of the image in a source: unwraps compression and archives until an image is recognised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    from cdi.transfer.tar_disk import TarDisk

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
    selection: TarDisk | None = None
    """How the disk was selected in an archive; complete once `stream` was read to its end."""


def inspect_ranged(
    fetcher: ResumingReader, facts: SourceFacts, *, archive: bool, disk: str | None = None
) -> UnwrappedImage | None:
    """Inspect a source with range requests; return None if it is wrapped and must be read as a stream.

    Raises `DiskNotInImage` if the name of a file, `disk`, is given and the source is no archive.
    """
    assert facts.length is not None
    head = fetcher.read(0, READ_AHEAD)
    reject_foreign_content(head, facts)
    if archive or recognise_wrapper(head[:HEAD]) is not None:
        return None
    if disk is not None:
        raise _no_archive(disk, facts)
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
    disk: str | None = None,
) -> UnwrappedImage:
    """Inspect a stream and unwrap it.

    Args:
        pieces: The stream.
        facts: What is known about the source.
        archive: Whether a tar archive is expected instead of a disk image.
        layer: Selects the disk in a registry layer, if the stream is one; it then has to be a tar.
        disk: Name of the file in a tar archive that is the disk; None selects the only one.

    Raises:
        SourceNotAnImage: The content is a web page or the like.
        FormatUnsupported: The content has another format.
        NestedTooDeep: There are more than `DEPTH` wrappers.
        DiskNotInImage: A tar does not hold the disk, or several that it could be.
        DiskNotInLayer: A tar holds no file.
        ImageError: A decoder, an inspector or `layer` found the content invalid.
    """
    wrappers: list[Wrapper] = []
    selection: TarDisk | None = None
    if layer is not None:
        pieces = _disk_of_layer(pieces, facts, wrappers, layer)
    while True:
        head, pieces = peek(pieces, HEAD)
        if not wrappers:
            reject_foreign_content(head, facts)
        wrapper = recognise_wrapper(head)
        if wrapper is None:
            break
        if wrapper == "tar" and archive and disk is None:
            return UnwrappedImage((*wrappers, "tar"), None, pieces)
        wrappers.append(wrapper)
        if len(wrappers) > DEPTH:
            raise NestedTooDeep(f"the content is wrapped more than {DEPTH} times: {' in '.join(reversed(wrappers))}")
        if wrapper == "tar":
            # Most sources are no archive, and these modules would take a good part of their start-up time.
            from cdi.codec.tar import members
            from cdi.transfer.tar_disk import TarDisk

            selection = TarDisk(disk if selection is None else None, facts.location)
            pieces = selection.content(members(pieces))
        else:
            pieces = decoder(wrapper).decode(pieces)
    if disk is not None and (archive or selection is None):
        raise _no_archive(disk, facts)
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
        while len(held) < offset + size and (piece := next(pieces, None)) is not None:
            held += piece
        inspector.feed(offset, bytes(held[offset : offset + size]))
    info = inspector.result()
    return UnwrappedImage(tuple(wrappers), info, _chain(held, pieces), selection=selection)


def _no_archive(disk: str, facts: SourceFacts) -> DiskNotInImage:
    """Return the error for a file that cannot be selected, as the source is not an archive that contains a disk."""
    return DiskNotInImage(
        f"the disk {disk!r} is to be selected, but the source is not an archive with disks",
        where=facts.location,
        remedy="remove the annotation cdi.kubevirt.io/policy.disk (cdi import --disk)",
    )


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
