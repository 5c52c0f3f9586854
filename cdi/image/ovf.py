"""Descriptor of the Open Virtualization Format (DMTF DSP0243): the disks that a package, an OVA, contains."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote
from xml.parsers import expat

from cdi.api.errors import FormatUnsupported, ImageCorrupt, ImageUnsafe
from cdi.image.checks import quoted

MAX_DESCRIPTOR: Final = 1 << 20
"""Maximum size of a descriptor in bytes; usual ones have about 20 KiB."""
_MAX_ENTRIES: Final = 1024


def disk_names(descriptor: bytes, name: str) -> tuple[str, ...]:
    """Return the names in the archive of the files that hold the disks, in the order of the descriptor.

    Disks without a file are empty and left out.

    Args:
        descriptor: The descriptor's XML.
        name: Its name in the archive; the names of files are relative to it.

    Raises:
        ImageCorrupt: The descriptor is malformed or in an unknown encoding, or a disk refers to a file that it does
            not list.
        ImageUnsafe: It declares entities, has too many entries, or names a file outside of the archive.
        FormatUnsupported: A disk is divided into several files.
    """
    found = _Descriptor()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = found.start
    parser.EndElementHandler = found.end
    parser.StartDoctypeDeclHandler = _reject_doctype
    try:
        parser.Parse(descriptor, True)
    # The parser decodes declared encodings with Python's codecs, which raise the other two for one they do not know.
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise ImageCorrupt(f"the descriptor {name!r} is not well-formed XML: {error}", where="ova") from error
    names: dict[str, None] = {}
    for reference in found.disks:
        file = found.files.get(reference)
        if file is None:
            raise ImageCorrupt(
                f"a disk refers to the file {quoted(reference.encode())}, which is not listed", where="ova"
            )
        href = file.get("href", "")
        if file.get("chunkSize"):
            raise FormatUnsupported(f"the disk {href!r} is divided into several files", where="ova")
        names[_resolve(href, name)] = None
    return tuple(names)


def plain_name(name: str) -> str:
    """Return a name in an archive without ``.`` and repeated slashes."""
    return posixpath.normpath(name)


@dataclass(slots=True)
class _Descriptor:
    """Handlers that collect the attributes of ``References/File`` and ``DiskSection/Disk``, by local name."""

    files: dict[str, dict[str, str]] = field(default_factory=dict)
    disks: list[str] = field(default_factory=list)
    _path: list[str] = field(default_factory=list)

    def start(self, name: str, attributes: dict[str, str]) -> None:
        local = name.rpartition(" ")[2]
        parent = self._path[-1] if self._path else ""
        self._path.append(local)
        if (parent, local) == ("References", "File"):
            values = {key.rpartition(" ")[2]: value for key, value in attributes.items()}
            self.files[values.get("id", "")] = values
        # Version 0.9 calls every section "Section".
        elif parent in ("DiskSection", "Section") and local == "Disk":
            values = {key.rpartition(" ")[2]: value for key, value in attributes.items()}
            if "fileRef" in values:
                self.disks.append(values["fileRef"])
        if len(self.files) + len(self.disks) + len(self._path) > _MAX_ENTRIES:
            raise ImageUnsafe(f"the descriptor has more than {_MAX_ENTRIES} entries", where="ova")

    def end(self, _: str) -> None:
        self._path.pop()


def _reject_doctype(*_: object) -> None:
    raise ImageUnsafe("the descriptor declares a document type, which no such file needs", where="ova")


def _resolve(href: str, descriptor: str) -> str:
    path = posixpath.normpath(posixpath.join(posixpath.dirname(descriptor), unquote(href)))
    if not href or "://" in href or path.startswith(("/", "..")):
        raise ImageUnsafe(f"the descriptor names the disk {href!r}, which is outside of the archive", where="ova")
    return path
