"""The content of /disk in a container image, derived from the tar headers of its layers.

Follows the OCI image specification 1.1, "Image Layer Filesystem Changeset" (layer.md). Layers are merged from the
topmost down, so that reading can stop at the first layer that hides all lower ones.

Symbolic links are never followed. If the content of /disk depends on one (/disk is a link, or a layer writes through a
link below /disk), the image is rejected.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from cdi.api.errors import DiskNotInImage, ImageUnsafe

MAX_ENTRIES = 1000
"""Maximum number of names directly below /disk, in one layer and in the merged image."""
MAX_NAME = 255
"""Maximum length of a file name in bytes (Linux: NAME_MAX)."""
MAX_PATH = 4096
"""Maximum length of a member's name or a link's target in characters (Linux: PATH_MAX)."""
MAX_LINKABLE = 1 << 20
"""Maximum number of members of one layer that hard links may refer to; each takes 8 bytes of memory."""

_DIRECTORY = "disk"
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_SHOWN = 5
_REMEDY = "build a containerDisk: exactly one file below /disk"

EntryKind = Literal["file", "hardlink", "symlink", "directory", "special", "removed"]

_KIND_NAMES: dict[EntryKind, str] = {
    "file": "a file",
    "hardlink": "a hard link",
    "symlink": "a symbolic link",
    "directory": "a directory",
    "special": "a special file",
    "removed": "deleted",
}


def split_name(name: str) -> list[str]:
    """Split a member's name into its components from the root; resolve ``.`` and ``..`` lexically."""
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file system entry: /disk itself, or a name directly below it."""

    kind: EntryKind
    layer: int
    """Number of the layer; 1 is the lowest."""
    position: int = -1
    """Index of the member in the layer's tar, from 0."""
    link: str = ""
    final: bool = False
    """Whether this entry hides lower layers' entries of the same name."""

    @property
    def is_file(self) -> bool:
        return self.kind in ("file", "hardlink")

    def describe(self) -> str:
        target = f" to {self.link[:200]!r}" if self.link else ""
        return f"{_KIND_NAMES[self.kind]}{target} in layer {self.layer}"


class Changeset:
    """The changes of one layer below /disk, collected from the members of its tar in order.

    The result is that of extracting the tar: a later member replaces an earlier one of the same name, and whiteouts
    apply to lower layers only, wherever they are in the tar.
    """

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.entries: dict[str, Entry] = {}
        self.whiteouts: set[str] = set()
        self.mentioned: set[str] = set()
        """Names below /disk that the layer sets or hides."""
        self.implicit: set[str] = set()
        """Names in `mentioned` whose directory has content but no member before it; lower layers decide their kind."""
        self.opaque = False
        """Whether the layer hides the lower layers' content of /disk."""
        self.hides_disk = False
        """Whether the layer hides /disk of the lower layers, whatever its kind."""
        self.disk: Entry | None = None
        """The entry /disk if it is not a directory."""
        self.mentions_disk = False
        self.disk_implicit = False
        """Whether /disk has content but no member before it, as in `implicit`."""
        self._linkable = _Linkable()
        self._position = -1

    def add(self, name: str, kind: str, link: str = "") -> None:
        """Add the next member of the tar; `kind` is a `cdi.codec.tar.Kind`.

        Raises:
            DiskNotInImage: No container can be created from these members.
            ImageUnsafe: There are too many names, or a name is too long.
        """
        self._position += 1
        if max(len(name), len(link)) > MAX_PATH:
            raise ImageUnsafe(f"layer {self.layer} has a path of more than {MAX_PATH} characters", remedy=_REMEDY)
        parts = split_name(name)
        hidden = parts[-1].removeprefix(_WHITEOUT) if parts and parts[-1].startswith(_WHITEOUT) else None
        self._linkable.add([] if hidden is not None else parts, kind)
        if hidden is not None:
            self._hide(parts[:-1], parts[-1], hidden)
        elif parts == [_DIRECTORY]:
            self._set_disk(self._entry(kind, link))
        elif parts[:1] == [_DIRECTORY]:
            self._enter()
            self._set(parts[1], self._entry(kind, link) if len(parts) == 2 else None)

    def link_target(self, entry: Entry) -> int | None:
        """Return the position of the regular file that a hard link of this layer refers to; None if there is none."""
        return self._linkable.find(split_name(entry.link), entry.position)

    def _entry(self, kind: str, link: str) -> Entry:
        entry_kind: EntryKind = "special"
        match kind:
            case "file" | "hardlink" | "symlink" | "directory":
                entry_kind = kind
            case _:
                pass
        link = link if entry_kind in ("hardlink", "symlink") else ""
        return Entry(kind=entry_kind, layer=self.layer, position=self._position, link=link)

    def _hide(self, parents: list[str], whiteout: str, hidden: str) -> None:
        if parents not in ([], [_DIRECTORY]):
            if parents[0] == _DIRECTORY:
                self._enter()
                self._set(parents[1], None)
            return
        if hidden in ("", ".", ".."):
            raise DiskNotInImage(f"layer {self.layer} has a whiteout without a name, {whiteout!r}")
        if not parents:
            if whiteout == _OPAQUE or hidden == _DIRECTORY:
                self.hides_disk = self.mentions_disk = True
            return
        self._enter()
        if whiteout == _OPAQUE:
            self.opaque = True
        else:
            self.whiteouts.add(hidden)
            self._mention(hidden)

    def _enter(self) -> None:
        """Record that the layer has a member below /disk."""
        if self.disk is not None:
            raise DiskNotInImage(f"layer {self.layer} has files below /disk, which is {self.disk.describe()}")
        self.disk_implicit |= not self.mentions_disk
        self.mentions_disk = True

    def _set_disk(self, entry: Entry) -> None:
        self.mentions_disk = True
        if entry.kind != "directory":
            self.entries.clear()
            self.disk, self.disk_implicit, self.hides_disk = entry, False, True
        else:
            self.disk = None

    def _set(self, name: str, entry: Entry | None) -> None:
        """Set the entry of a name below /disk; None stands for a directory that is known by a member inside it."""
        before = self.entries.get(name)
        if before is not None and before.kind == "directory" and (entry is None or entry.kind == "directory"):
            return
        if entry is None:
            if before is not None:
                raise DiskNotInImage(f"layer {self.layer} has files below {_shown(name)}, which is {before.describe()}")
            entry = Entry(kind="directory", layer=self.layer, position=self._position)
            if name not in self.mentioned:
                self.implicit.add(name)
        elif entry.kind != "directory" or before is not None:
            # The member, or the one it replaces, has replaced the lower layers' entry of this name.
            entry = replace(entry, final=True)
        self.entries[name] = entry
        self._mention(name)

    def _mention(self, name: str) -> None:
        self.mentioned.add(name)
        if len(name.encode("utf-8", "surrogateescape")) > MAX_NAME:
            raise ImageUnsafe(
                f"layer {self.layer} has a name of more than {MAX_NAME} bytes below /disk", remedy=_REMEDY
            )
        if len(self.mentioned) > MAX_ENTRIES:
            raise ImageUnsafe(f"layer {self.layer} has more than {MAX_ENTRIES} names below /disk", remedy=_REMEDY)


class _Linkable:
    """The possible hard link targets of a layer: a hash of each member's name, and its kind.

    Hashes keep this small. Python keys them with a new random value in each process, so an image cannot be crafted to
    contain colliding names.
    """

    _OTHER, _FILE, _DIRECTORY = 0, 1, 2
    _KIND_BITS = 3

    def __init__(self) -> None:
        self._members: array[int] = array("q")

    def add(self, parts: list[str], kind: str) -> None:
        """Add the next member; `parts` is empty for a member that creates no file or directory in a container."""
        if len(self._members) < MAX_LINKABLE:
            code = {"file": self._FILE, "directory": self._DIRECTORY}.get(kind, self._OTHER)
            self._members.append(self._hashed(parts) | (code if parts else self._DIRECTORY))

    def find(self, parts: list[str], before: int) -> int | None:
        """Return the position of the regular file of that name which exists when the member `before` is extracted."""
        if not parts or before >= len(self._members):
            return None
        wanted = self._hashed(parts)
        if self._members[before] & ~self._KIND_BITS == wanted:
            # The link refers to its own name, which extraction removes before it creates the link.
            return None
        parents = {self._hashed(parts[:count]) for count in range(1, len(parts))}
        for position in range(before - 1, -1, -1):
            hashed, code = self._members[position] & ~self._KIND_BITS, self._members[position] & self._KIND_BITS
            if hashed == wanted:
                return position if code == self._FILE else None
            if hashed in parents and code != self._DIRECTORY:
                # This member replaced a parent directory of the file.
                return None
        return None

    def _hashed(self, parts: list[str]) -> int:
        return hash("/".join(parts)) & ~self._KIND_BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """The topmost layers of an image, merged into the /disk that a container sees."""

    entries: Mapping[str, Entry] = field(default_factory=lambda: MappingProxyType({}))
    """Entries by name, with deleted ones, so that they hide those of lower layers."""
    disk: Entry | None = None
    """The entry /disk if it is not a directory."""
    complete: bool = False
    """Whether lower layers have no effect on /disk."""
    hidden_by: int | None = None
    """Number of the layer that hides the lower layers' content of /disk."""
    _mentions_disk: bool = False
    _disk_implicit: bool = False
    """Whether the lowest of these layers that mentions /disk expects a lower one to have created it."""
    _implicit: frozenset[str] = frozenset()
    """Directories below /disk that these layers expect a lower one to have created."""

    def over(self, lower: Changeset) -> Overlay:
        """Return these layers merged over the next lower one.

        Raises:
            DiskNotInImage: No container can be created from these layers.
            ImageUnsafe: There are too many names below /disk.
        """
        if lower.disk is not None:
            if self._disk_implicit:
                raise DiskNotInImage(f"upper layers have files below /disk, which is {lower.disk.describe()}")
            # If an upper layer mentions /disk, its directory has replaced this entry.
            return replace(self, disk=None if self._mentions_disk else lower.disk, complete=True)
        entries, implicit = dict(self.entries), self._implicit
        if self.hidden_by is None:
            for name, entry in lower.entries.items():
                if name in implicit and entry.kind != "directory":
                    raise DiskNotInImage(f"upper layers have files below {_shown(name)}, which is {entry.describe()}")
                entries[name] = _merged(entries.get(name), entry)
            for name in lower.whiteouts:
                upper = entries.get(name, Entry(kind="removed", layer=lower.layer))
                entries[name] = replace(upper, final=True)
            implicit = implicit - lower.mentioned | lower.implicit
        if max(len(entries), len(implicit)) > MAX_ENTRIES:
            raise ImageUnsafe(f"the layers have more than {MAX_ENTRIES} names below /disk", remedy=_REMEDY)
        disk_implicit = lower.disk_implicit if lower.mentions_disk else self._disk_implicit
        hides = lower.opaque or lower.hides_disk
        hidden_by = lower.layer if hides and self.hidden_by is None else self.hidden_by
        return Overlay(
            entries=MappingProxyType(entries),
            # With an implicit /disk, lower layers still matter: the layer would write through a link at /disk.
            complete=hidden_by is not None and not disk_implicit,
            hidden_by=hidden_by,
            _mentions_disk=self._mentions_disk or lower.mentions_disk,
            _disk_implicit=disk_implicit,
            _implicit=implicit,
        )

    def shows(self, name: str) -> bool:
        """Return whether a container would see a file of that name in the next lower layer."""
        return not self.complete and self.hidden_by is None and name not in self.entries

    def file(self) -> tuple[str, Entry] | None:
        """Return the only file below /disk, None if there is none yet; raise `DiskNotInImage` if there are several."""
        files = [(name, entry) for name, entry in self.entries.items() if entry.is_file]
        if len(files) > 1:
            files.sort(key=lambda file: (file[1].layer, file[1].position))
            names = [f"{_shown(name)} (layer {entry.layer})" for name, entry in files[:_SHOWN]]
            more = f", and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
            raise DiskNotInImage(
                f"a container of the image sees {len(files)} files below /disk, and only one can be the disk: "
                f"{', '.join(names)}{more}"
            )
        return files[0] if files else None

    def missing(self, layers: int) -> DiskNotInImage:
        """Return the error for an image of `layers` layers without a file below /disk."""
        if self.disk is not None:
            return DiskNotInImage(
                f"/disk is {self.disk.describe()}, not a directory",
                remedy="build a containerDisk: exactly one file below /disk, which is a directory and no link",
            )
        for name, entry in self.entries.items():
            if entry.kind == "symlink":
                return DiskNotInImage(
                    f"{_shown(name)} is {entry.describe()}, which is not followed",
                    remedy="build a containerDisk with the file itself below /disk",
                )
        deleted = [(name, entry) for name, entry in self.entries.items() if entry.kind == "removed"]
        reason = ""
        if self.hidden_by is not None:
            reason = f"; layer {self.hidden_by} hides whatever lower layers have there"
        elif deleted:
            reason = f"; layer {deleted[0][1].layer} deletes {_shown(deleted[0][0])}"
        return DiskNotInImage(f"none of the {layers} layers has a file below /disk that a container sees{reason}")


def _merged(upper: Entry | None, lower: Entry) -> Entry:
    """Return the entry that is visible if `upper` is merged over `lower`."""
    if upper is None:
        return lower
    if upper.final or upper.kind != "directory":
        return upper
    return replace(upper, final=lower.final or lower.kind != "directory")


def _shown(name: str) -> str:
    return repr(f"/disk/{name}")
