"""Layers of container images written by hand, and a model of what a container of them sees.

The model extracts the layers into memory, one over another, and shares nothing with the code under test. It follows the
OCI image specification (layer.md) and, where that is silent, containerd: links in a path are followed within the root,
a member that is not a directory replaces whatever exists, and a directory replaces whatever is not one.
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

from cdi.api.errors import CdiError
from cdi.source.base import SourceFacts
from cdi.transfer.disk_search import DiskSearch
from cdi.transfer.unwrap import unwrap_stream

FACTS = SourceFacts(location="layer", length=None, ranges=False)
KINDS = {
    "file": tarfile.REGTYPE,
    "directory": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE,
    "fifo": tarfile.FIFOTYPE,
}
END = bytes(1024)


@dataclass(frozen=True)
class Item:
    """A member of a layer."""

    name: str
    kind: str = "file"
    content: bytes = b""
    link: str = ""


def file(name: str, content: bytes = b"x") -> Item:
    return Item(name, content=content)


def directory(name: str) -> Item:
    return Item(name, "directory")


def symlink(name: str, target: str) -> Item:
    return Item(name, "symlink", link=target)


def hardlink(name: str, target: str) -> Item:
    return Item(name, "hardlink", link=target)


def layer(*items: Item) -> bytes:
    """Return the tar of these members, in this order; names may repeat."""
    parts = []
    for item in items:
        info = tarfile.TarInfo(item.name)
        info.type, info.linkname, info.size = KINDS[item.kind], item.link, len(item.content)
        parts += [info.tobuf(tarfile.GNU_FORMAT), item.content, bytes(-len(item.content) % 512)]
    return b"".join(parts) + END


# --- a container --------------------------------------------------------------------------------------------------


class NoContainer(Exception):
    """The layers cannot be extracted."""


@dataclass(eq=False)
class Node:
    kind: str
    content: bytes = b""
    link: str = ""
    children: dict[str, Node] = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)
    """The highest layer that created each child."""

    def put(self, name: str, node: Node, layer: int) -> None:
        self.children[name], self.layers[name] = node, layer

    def hide(self, name: str, layer: int) -> None:
        """Remove what layers other than `layer` have created there."""
        child = self.children.get(name)
        if child is None:
            return
        if child.kind == "directory":
            for inner in list(child.children):
                child.hide(inner, layer)
        if self.layers[name] != layer:
            del self.children[name]


class Container:
    """A file system, extracted from layers from the lowest up."""

    def __init__(self, *layers: list[Item]) -> None:
        self.root = Node("directory")
        for self.layer, items in enumerate(layers):
            for item in items:
                self._extract(item)

    def disks(self) -> dict[str, bytes]:
        """Return the regular files in /disk."""
        disk = self.root.children.get("disk")
        if disk is None or disk.kind != "directory":
            return {}
        return {name: node.content for name, node in disk.children.items() if node.kind == "file"}

    def _extract(self, item: Item) -> None:
        parents, base = _split(item.name)
        if not base:
            return
        if base in (".wh.", ".wh..", ".wh..."):
            raise NoContainer
        place = self._directory(parents, make=True)
        assert place is not None
        if base.startswith(".wh."):
            for name in list(place.children) if base == ".wh..wh..opq" else [base[4:]]:
                place.hide(name, self.layer)
            return
        before = place.children.get(base)
        if before is not None and before.kind == item.kind == "directory":
            place.layers[base] = self.layer
            return
        place.children.pop(base, None)
        if item.kind == "hardlink":
            inner, name = _split(item.link)
            holder = self._directory(inner, make=False)
            node = None if holder is None else holder.children.get(name)
            if node is None or node.kind == "directory":
                raise NoContainer
            place.put(base, node, self.layer)
        else:
            place.put(base, Node(item.kind, item.content, item.link), self.layer)

    def _directory(self, parts: list[str], *, make: bool) -> Node | None:
        """Return the directory of these components, through links."""
        path: list[Node] = [self.root]
        left, hops = list(parts), 0
        while left:
            part = left.pop(0)
            if part == "..":
                path = path[:-1] or path
                continue
            if part in ("", "."):
                continue
            node = path[-1].children.get(part)
            if node is None:
                if not make:
                    return None
                node = Node("directory")
                path[-1].put(part, node, self.layer)
            elif make and node.kind == "directory":
                path[-1].layers[part] = self.layer
            if node.kind == "symlink":
                hops += 1
                if hops > 20:
                    raise NoContainer
                left = node.link.split("/") + left
                if node.link.startswith("/"):
                    path = [self.root]
                continue
            if node.kind != "directory":
                if not make:
                    return None
                raise NoContainer
            path.append(node)
        return path[-1]


def _split(name: str) -> tuple[list[str], str]:
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part and part != ".":
            parts.append(part)
    return (parts[:-1], parts[-1]) if parts else ([], "")


# --- the code under test ------------------------------------------------------------------------------------------


@dataclass
class Searched:
    """The disk that a search found, and the layers that it read, top first, once for each reading."""

    content: bytes = b""
    layer: int = 0
    read: list[int] = field(default_factory=list)
    surveyed: list[int] = field(default_factory=list)


def search(
    *layers: bytes | Callable[[], bytes],
    pack: Callable[[bytes], bytes] = gzip.compress,
    step: int = 1 << 16,
    confirm: bool = True,
) -> Searched:
    """Search for the disk in an image of these layers, the lowest first.

    A layer that is a function is called for its content whenever it is read.

    Raises:
        CdiError: there is no disk.
    """
    found = Searched()
    blobs = [SimpleNamespace(number=n, raw=raw, size=1) for n, raw in enumerate(layers, 1)]
    image = SimpleNamespace(layers=tuple(reversed(blobs)), location="image")

    def read(one: SimpleNamespace, reading) -> bytes:
        blob = pack(one.raw() if callable(one.raw) else one.raw)
        pieces = (memoryview(blob)[at : at + step] for at in range(0, len(blob), step))
        peeled = unwrap_stream(pieces, FACTS, archive=False, layer=reading.content)
        return b"".join(bytes(piece) for piece in peeled.stream)

    def take(one: SimpleNamespace, reading) -> None:
        found.read.append(one.number)
        found.content = read(one, reading)
        if confirm:
            reading.confirm()

    def survey(one: SimpleNamespace, reading) -> None:
        found.surveyed.append(one.number)
        read(one, reading)
        raise AssertionError("a layer gave a disk that was not asked for")

    found.layer = DiskSearch(image, survey).find(take)
    return found


def check(layers: list[list[Item]], **options) -> str:
    """Check that the disk that is found is the one that a container has, or that the search fails.

    Without links and special files the search may fail only if a container has no disk, or more than one.

    Returns:
        The result: "disk", "no container" or the name of the error.
    """
    try:
        disks = Container(*layers).disks()
    except NoContainer:
        disks = None
    try:
        content = search(*(layer(*items) for items in layers), **options).content
    except CdiError as error:
        assert error.what.isprintable()
        simple = all(item.kind in ("file", "directory") for items in layers for item in items)
        assert not (simple and disks is not None and len(disks) == 1), (error, disks)
        return type(error).__name__
    if disks is None:
        return "no container"
    assert list(disks.values()) == [content], (disks, content)
    return "disk"


def items_of(data: bytes) -> Iterator[list[Item]]:
    """Yield layers made from any bytes: three bytes for a member, the first of which may begin another layer."""
    items: list[Item] = []
    for at in range(0, len(data) - 2, 3):
        what, name, link = data[at : at + 3]
        if what & 0x80 and items:
            yield items
            items = []
        made = NAMES[name % len(NAMES)]
        kind = list(KINDS)[what % 8 % len(KINDS)]
        # Links are not followed; outside of /disk, where that would matter, builders create none that lead into it.
        if kind == "symlink" and "disk" not in made:
            kind = "file"
        if kind == "file" and made.endswith("/"):
            kind = "directory"
        content = b"content %d" % at if kind == "file" else b""
        items.append(Item(made, kind, content, LINKS[link % len(LINKS)] if kind in ("symlink", "hardlink") else ""))
    yield items


NAMES = (
    "disk", "disk/", "disk/a", "disk/b", "disk/a/x", "disk/b/y/z", "./disk/a", "/disk//b", "etc/../disk/a", "disk/../disk/b",
    ".wh.disk", ".wh..wh..opq", "disk/.wh..wh..opq", "disk/.wh.a", "disk/.wh.b", "disk/.wh.", "disk/a/.wh.x",
    "disk/a/.wh..wh..opq", "disk/.wh.a/b", ".wh..wh.plnk", "images", "images/i", "images/j", ".wh.images", "images/.wh.i", "./",
)  # fmt: skip
LINKS = (
    "disk/a", "disk/b", "images/i", "images/j", "images", "a", "b", "../images/i", ".", "..", "/disk", "disk", "missing",
    "./disk/../images/i", "",
)  # fmt: skip
