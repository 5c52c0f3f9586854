"""Search for the disk of a container image: decides which member of which layer it is.

Layers are read from the topmost down. The first file below /disk that a container may see is passed to the caller while
it is read, so that the usual image, one layer with one file, is read once. Whether that file is the disk is known only
later: at the end of its layer, as a later member may replace it, and after all lower layers that are not hidden, of
which only the tar headers matter. The caller must call `LayerReading.confirm` before it commits the disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cdi.api.errors import DiskNotInImage, SourceChanged
from cdi.codec.base import Buffer
from cdi.transfer.overlay import Changeset, Overlay, split_name
from cdi.transfer.unwrap import NoDiskInLayer

if TYPE_CHECKING:
    from cdi.codec.tar import Member
    from cdi.source.registry.open import Layer, RegistryImage

_FIRST = -1
"""Position that selects the first file that may be the disk."""
_NONE = -2
"""Position that selects no file."""
_READINGS = 3
"""Maximum number of times a layer is read: a guess, its correction, and one more if the first read was damaged."""


class OtherMember(Exception):
    """Signal that another member is the disk, at `position` in the layer; None if the layer has no disk."""

    def __init__(self, position: int | None) -> None:
        super().__init__(position)
        self.position = position


class LayerReading:
    """One pass over a layer, which yields the disk's bytes and collects the layer's other members.

    It can be reused if a connection broke and the layer is read from its start again.
    """

    def __init__(self, above: Overlay, number: int, wanted: int, confirm: Callable[[Overlay], None]) -> None:
        """Prepare a pass over layer `number`.

        Args:
            above: The merged layers above this one.
            number: Number of the layer; 1 is the lowest.
            wanted: Position of the member to yield.
            confirm: Checks the lower layers that are not hidden.
        """
        self.number = number
        self.overlay = above
        """The merged layers above this one; after `ended`, with this one."""
        self.ended = False
        """Whether the layer was read to its end."""
        self._above = above
        self._wanted = wanted
        self._confirm = confirm

    def content(self, members: Iterator[Member]) -> Iterator[Buffer]:
        """Yield the bytes of the member that may be the disk, then read the tar to its end.

        Raises:
            NoDiskInLayer: The layer does not contain the disk.
            OtherMember: Another member is the disk, or the one that was yielded is not.
            DiskNotInImage: The image cannot have a disk.
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
        """Read the lower layers that are not hidden; raise `DiskNotInImage` if one of them has another disk."""
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
                f"/disk/{name} is {entry.describe()}, and the layer does not contain the file before it",
                remedy="build a containerDisk with the file itself below /disk",
            )
        return position


class DiskSearch:
    """The search through the layers of one image."""

    def __init__(self, image: RegistryImage, survey: Callable[[Layer, LayerReading], None]) -> None:
        """Prepare a search in `image`.

        Args:
            image: The container image.
            survey: Reads to its end a layer that should not contain the disk, and verifies its digest; raises what
                `LayerReading.content` raises.
        """
        self._image = image
        self._survey = survey
        self._below = deque(zip(range(len(image.layers), 0, -1), image.layers, strict=True))

    @property
    def bytes_below(self) -> int:
        """Compressed size in bytes of the layers below the current one."""
        return sum(layer.size for _, layer in self._below)

    def find(self, take: Callable[[Layer, LayerReading], None]) -> int:
        """Call `take` for one layer after the other until it returns; return the number of the layer with the disk.

        Args:
            take: Reads a layer and writes its disk; raises what `LayerReading.content` raises. It may be called again
                for the same layer. Its other errors are raised here.

        Raises:
            DiskNotInImage: There is no disk, or more than one.
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
        # Keep the queue: the disk's layer may have to be read again, and then these layers too.
        for number, layer in self._below:
            if overlay.complete:
                return
            overlay, _ = self._read(overlay, number, layer, self._survey, _NONE)

    def _read(
        self, above: Overlay, number: int, layer: Layer, act: Callable[[Layer, LayerReading], None], wanted: int
    ) -> tuple[Overlay, bool]:
        """Read a layer; return the merged layers down to it, and whether the disk was read from it."""
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
        raise SourceChanged("the members of the layer changed between reads", where=self._image.location)
