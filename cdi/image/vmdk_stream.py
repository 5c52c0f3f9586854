"""Parser of a VMDK stream whose grain directory follows the grains (VMware's Virtual Disk Format 5.0, streamOptimized).

Every grain has a marker with its place on the disk, so the disk is known before the tables. They are compared with the
grains when they arrive: what the stream says and what a reader of the tables would see must be the same disk.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from cdi.api.errors import ContentTruncated, FormatUnsupported, ImageCorrupt, ImageError
from cdi.image.block_map import TABLE_LIMIT, Encoding, Extent, table_entries
from cdi.image.formats.vmdk import GRAIN_MARKER, Header
from cdi.image.sizes import SECTOR, round_up
from cdi.image.vmdk_map import largest_grain

GRAIN_LIMIT: Final = 1 << 22
"""Maximum number of grains: 256 GiB of data in grains of 64 KiB, which take 32 MiB of memory here."""
_DIRECTORY_LIMIT: Final = 1 << 20
"""Maximum number of entries of a directory: 32 TiB of a disk with the usual grains and tables."""
_MAX_DIRECTORIES: Final = 2

_MARKER: Final = struct.Struct("<QII")
"""Marker of metadata: sectors that follow, a size of 0, which no grain has, and the type."""
_END, _TABLE, _DIRECTORY, _FOOTER = range(4)

Grain = tuple[Extent, memoryview]


class GrainStream:
    """State of one stream, which is consumed from its first byte.

    Attributes:
        position: Offset of the next byte that matters.
    """

    def __init__(self, header: Header) -> None:
        self.position = SECTOR * max(header.overhead, header.descriptor_offset + header.descriptor_size, 1)
        self._header = header
        self._grain = header.grain * SECTOR
        self._size = header.capacity * SECTOR
        self._grains = -(-header.capacity // header.grain)
        self._directory_size = -(-self._grains // header.table_entries)
        if self._directory_size > _DIRECTORY_LIMIT:
            raise FormatUnsupported(
                f"the grain directory has {self._directory_size} entries, more than a stream may have",
                where="vmdk",
                remedy="serve it with byte ranges and not compressed as a whole",
            )
        self._numbers = array("I")
        """Numbers of the grains so far, ascending."""
        self._sectors = array("I")
        """Their sectors in the file."""
        self._tables: dict[int, tuple[int, int]] = {}
        """Index and number of grains of each table, by its sector."""
        self._directories: dict[int, array[int]] = {}
        """Directories by their sector."""
        self._kind = _END
        """Type of the metadata that is being received, of which `_remaining` bytes are missing."""
        self._remaining = 0
        self._metadata = 0
        """Offset at which it begins."""
        self._received = bytearray()
        self._verified = False
        self._ended = False

    def feed(self, window: memoryview, base: int, *, final: bool) -> list[Grain]:
        """Consume `window`, the bytes of the stream from `base` to its current end, as far as it is complete.

        Afterwards `position` is where the next window has to begin, unless it is beyond this one. `final` tells that
        the stream ends here.

        Returns:
            The complete grains, each with its marker.

        Raises:
            ImageError: The stream is invalid, or its tables do not describe its grains.
        """
        grains: list[Grain] = []
        stop = base + len(window)
        while self.position < stop:
            at = self.position - base
            if self._ended:
                raise self._error(f"data follows the end-of-stream marker, at {self.position:#x}")
            if self._remaining:
                self._receive(window[at:])
                continue
            if stop - self.position < SECTOR:
                if final:
                    raise self._truncated(stop)
                break
            sectors, size, kind = _MARKER.unpack_from(window, at)
            if size:
                self._require_unfinished()
                end = at + GRAIN_MARKER.size + size
                if size > largest_grain(self._header) - GRAIN_MARKER.size:
                    raise self._error(f"the grain at {self.position:#x} has {size} bytes, more than two whole grains")
                if end > len(window):
                    if final:
                        raise self._truncated(stop)
                    break
                grains.append((self._add(sectors, end - at), window[at:end]))
                self.position = round_up(base + end, SECTOR)
            else:
                self._begin(kind, sectors)
        return grains

    def finish(self, total: int) -> None:
        """Raise `ContentTruncated` unless the stream of `total` bytes ended with its end-of-stream marker."""
        if not self._ended:
            raise self._truncated(total)

    def holes(self) -> Iterator[tuple[int, int]]:
        """Yield the runs of the disk that no grain holds as (offset, length)."""
        position = 0
        for number in self._numbers:
            if number * self._grain > position:
                yield position, number * self._grain - position
            position = (number + 1) * self._grain
        if position < self._size:
            yield position, self._size - position

    def _add(self, sector: int, size: int) -> Extent:
        """Record the grain at the position, which begins at `sector` of the disk."""
        number, within = divmod(sector, self._header.grain)
        if within or number >= self._grains:
            raise self._error(f"the grain at {self.position:#x} is for sector {sector}, where the disk has none")
        if self._numbers and number <= self._numbers[-1]:
            twice = "twice" if number == self._numbers[-1] else "after a later one"
            raise self._error(
                f"the grain of disk offset {number * self._grain:#x} is stored {twice}, at {self.position:#x}"
            )
        if len(self._numbers) >= GRAIN_LIMIT:
            raise FormatUnsupported(
                f"the image has more than {GRAIN_LIMIT} grains, which cannot be compared with its tables in memory",
                where="vmdk",
                remedy="serve it with byte ranges and not compressed as a whole",
            )
        place = self.position // SECTOR
        if place > 0xFFFF_FFFF:
            raise self._error(f"the grain at {self.position:#x} is beyond the reach of grain tables")
        self._numbers.append(number)
        self._sectors.append(place)
        guest = number * self._grain
        return Extent(self.position, size, guest, min(self._grain, self._size - guest), Encoding.GRAIN)

    def _begin(self, kind: int, sectors: int) -> None:
        """Process a marker of metadata, of which `sectors` sectors follow."""
        self._metadata = self.position + SECTOR
        if kind == _END:
            # In front of the footer it is padding, as all of it is zero.
            self._ended = self._verified
        elif kind in (_TABLE, _DIRECTORY, _FOOTER):
            self._require_unfinished()
            # Writers differ in what the footer's marker counts.
            self._kind, self._received = kind, bytearray()
            self._remaining = SECTOR if kind == _FOOTER else max(1, sectors) * SECTOR
        else:
            raise self._error(f"the marker at {self.position:#x} has the unknown type {kind}")
        self.position = self._metadata

    def _receive(self, data: memoryview) -> None:
        """Collect the bytes of metadata, without the padding behind it."""
        limit = max(SECTOR, 4 * (self._directory_size if self._kind == _DIRECTORY else self._header.table_entries))
        data = data[: self._remaining]
        self._received += data[: max(0, limit - len(self._received))]
        self._remaining -= len(data)
        self.position += len(data)
        if self._remaining:
            return
        sector = self._metadata // SECTOR
        if self._kind == _TABLE:
            self._check_table(sector, table_entries("I", self._received, "little"))
        elif self._kind == _DIRECTORY:
            self._directories[sector] = table_entries("I", self._received, "little")
            if len(self._directories) > _MAX_DIRECTORIES:
                raise self._error(f"it has more than {_MAX_DIRECTORIES} grain directories")
        else:
            self._check_footer(Header.parse(bytes(self._received)))

    def _check_table(self, sector: int, table: array[int]) -> None:
        """Compare a grain table with the grains that it should name, those of its part of the disk."""
        entries = self._header.table_entries
        lowest = 2 if self._header.zero_grains else 1
        place = next((place for place in table[:entries] if place >= lowest), None)
        index = -1
        count = 0
        if place is not None:
            at = bisect_left(self._sectors, place)
            if at == len(self._sectors) or self._sectors[at] != place:
                raise self._no_grain(place, sector)
            index = self._numbers[at] // entries
            first = index * entries
            begin, end = (bisect_left(self._numbers, number) for number in (first, first + entries))
            expected = array("I", bytes(4 * min(entries, self._grains - first)))
            for number, where in zip(self._numbers[begin:end], self._sectors[begin:end], strict=True):
                expected[number - first] = where
            if len(table) < len(expected):
                raise self._error(f"the grain table at sector {sector} has {len(table)} of {len(expected)} entries")
            for slot, (said, where) in enumerate(zip(table, expected, strict=False)):
                if said != where and (where or said >= lowest):
                    if said < lowest:
                        raise self._unnamed(first + slot)
                    raise self._no_grain(said, sector)
            count = end - begin
        self._tables[sector] = index, count
        if len(self._tables) > TABLE_LIMIT:
            raise self._error(f"it has more than {TABLE_LIMIT} grain tables")

    def _check_footer(self, footer: Header | None) -> None:
        """Check that the directory which the footer names refers to every grain that arrived."""
        self._require_unfinished()
        if footer is None or footer.geometry != self._header.geometry:
            raise self._error("footer and header contradict each other")
        directory = self._directories.get(footer.directory_offset)
        if directory is None:
            raise self._error(
                f"the footer places the grain directory at sector {footer.directory_offset}, where none is"
            )
        if len(directory) < self._directory_size:
            raise self._error(f"the grain directory has {len(directory)} of {self._directory_size} entries")
        named = 0
        for index, place in enumerate(directory[: self._directory_size]):
            if not place:
                continue
            found, count = self._tables.get(place, (None, 0))
            if found not in (-1, index):
                raise self._error(f"the grain directory places table {index} at sector {place}, where it is not")
            named += count
        if named != len(self._numbers):
            entries = self._header.table_entries
            raise self._unnamed(next((n for n in self._numbers if not directory[n // entries]), self._numbers[-1]))
        self._verified = True

    def _require_unfinished(self) -> None:
        if self._verified:
            raise self._error(f"data follows the footer, at {self.position:#x}")

    def _no_grain(self, place: int, table: int) -> ImageError:
        return self._error(f"the grain table at sector {table} names a grain at sector {place}, where it is not")

    def _unnamed(self, number: int) -> ImageError:
        return self._error(f"the grain of disk offset {number * self._grain:#x} is in no grain table")

    def _error(self, what: str, kind: type[ImageError] = ImageCorrupt) -> ImageError:
        return kind(what, where="vmdk")

    def _truncated(self, total: int) -> ImageError:
        end = "its end-of-stream marker" if self._verified else "its footer"
        return self._error(f"the image ends at byte {total}, before {end}: it is truncated", ContentTruncated)
