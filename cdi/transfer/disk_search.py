"""The search for the disk of a container image: the one place that decides which member of which layer it is.

Layers are read from the topmost down.  The first file below /disk that a container may see is given to the caller while
it is read, so that the usual image, a single layer with a single file, is read once.  Whether it is the disk is known
only later: at the end of its layer, where a later member may have replaced it, and after all lower layers that show
through, of which only the headers are of interest.  Whoever writes the disk calls `LayerReading.confirm` before the
disk gets its name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cdi.api.errors import DiskNotInImage, SourceChanged
from cdi.codec.base import Buffer
from cdi.transfer.overlay import Changeset, Overlay, split_name
from cdi.transfer.peel import NoDiskInLayer

if TYPE_CHECKING:
    from cdi.codec.tar import Member
    from cdi.source.registry.open import Layer, RegistryImage

_FIRST = -1
"""Give the first file that may be the disk."""
_NONE = -2
"""Give no file."""
_READINGS = 3
"""Of one layer: guess, correct the guess, and once more where the first reading was of damaged content."""


class OtherMember(Exception):
    """Another member is the disk: `position` is its place in the layer, None where the layer has no disk."""

    def __init__(self, position: int | None) -> None:
        super().__init__(position)
        self.position = position


class LayerReading:
    """A reading of one layer: gives the disk's bytes, and learns what else the layer has.

    It can be used again where a connection broke and the layer is read from its start.
    """

    def __init__(self, above: Overlay, number: int, wanted: int, confirm: Callable[[Overlay], None]) -> None:
        """`number` is the layer's, 1 the lowest; `wanted` is the position of the member to give."""
        self.number = number
        self.overlay = above
        """This layer and all above it, once `ended`."""
        self.ended = False
        """The layer was read to its end."""
        self._above = above
        self._wanted = wanted
        self._confirm = confirm

    def content(self, members: Iterator[Member]) -> Iterator[Buffer]:
        """Give the bytes of the member that should be the disk, then read the tar to its end.

        Raises `NoDiskInLayer`, `OtherMember`, and `DiskNotInImage` where the image cannot have a disk.
        """
        self.ended = False
        changes = Changeset(self.number)
        candidate: int | None = None
        for position, member in enumerate(members):
            changes.add(member.name, member.kind, member.link)
            if candidate is None and member.kind == "file" and self._is_candidate(position, member, changes):
                candidate = position
                yield from member.read()
        self.overlay, self.ended = self._above.over(changes), True
        disk = self._disk(changes)
        if candidate != disk:
            raise OtherMember(disk)
        if candidate is None:
            raise NoDiskInLayer

    def confirm(self) -> None:
        """Read the lower layers that show through; raises `DiskNotInImage` where one of them has another disk."""
        self._confirm(self.overlay)

    def _is_candidate(self, position: int, member: Member, changes: Changeset) -> bool:
        if self._wanted != _FIRST:
            return position == self._wanted
        parts = split_name(member.name)
        if len(parts) != 2:
            return False
        entry = changes.entries.get(parts[1])
        return entry is not None and entry.position == position and self._above.shows(parts[1])

    def _disk(self, changes: Changeset) -> int | None:
        visible = self.overlay.file()
        if visible is None or visible[1].layer != self.number:
            return None
        name, entry = visible
        if entry.kind == "file":
            return entry.position
        position = changes.link_target(entry)
        if position is None:
            raise DiskNotInImage(
                f"/disk/{name} is {entry.describe()}, and the layer has no such file before it",
                remedy="build a containerDisk with the file itself below /disk",
            )
        return position


class DiskSearch:
    """The search through the layers of one image."""

    def __init__(self, image: RegistryImage, survey: Callable[[Layer, LayerReading], None]) -> None:
        """`survey` reads a layer that should not have the disk to its end, compares it with its digest, and raises what
        `LayerReading.content` raises.
        """
        self._image = image
        self._survey = survey
        self._below = deque(zip(range(len(image.layers), 0, -1), image.layers, strict=True))

    @property
    def bytes_below(self) -> int:
        """Length of the layers below the one that is being read, compressed as they are."""
        return sum(layer.size for _, layer in self._below)

    def find(self, take: Callable[[Layer, LayerReading], None]) -> int:
        """Have `take` read layer after layer until it returns, having taken the disk; return the number of that layer.

        `take` raises what `LayerReading.content` raises, and may be called again for the same layer.  Raises
        `DiskNotInImage` where there is no disk, or more than one, and what else `take` raises.
        """
        overlay = Overlay()
        try:
            while self._below and not overlay.complete:
                number, layer = self._below.popleft()
                overlay, has_disk = self._read(overlay, number, layer, take, _FIRST)
                if has_disk:
                    return number
            raise overlay.missing(len(self._image.layers))
        except DiskNotInImage as error:
            error.where = error.where or self._image.location
            raise

    def _confirm(self, overlay: Overlay) -> None:
        # Nothing is removed from the queue: the disk's layer may have to be read again, and then all of these.
        for number, layer in self._below:
            if overlay.complete:
                return
            overlay, _ = self._read(overlay, number, layer, self._survey, _NONE)

    def _read(
        self, above: Overlay, number: int, layer: Layer, act: Callable[[Layer, LayerReading], None], wanted: int
    ) -> tuple[Overlay, bool]:
        """Read a layer; return it with those above it, and whether the disk was taken from it."""
        for _ in range(_READINGS):
            reading = LayerReading(above, number, wanted, self._confirm)
            try:
                act(layer, reading)
            except NoDiskInLayer:
                return reading.overlay, False
            except OtherMember as other:
                wanted = _NONE if other.position is None else other.position
            else:
                return reading.overlay, True
        raise SourceChanged("the layer has other members each time it is read", where=self._image.location)
