"""Writer for the extents of a mapped image, with decompression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import deflate
from isal import isal_zlib

from cdi.api.errors import DecoderFailed, ImageCorrupt
from cdi.image.block_map import Encoding, Extent
from cdi.image.formats.vmdk import grain_payload
from cdi.image.sizes import SECTOR
from cdi.target.base import Target
from cdi.target.buffer import aligned_buffer, write_sparse

_OUTPUT = 4 << 20
"""Maximum size in bytes of adjacent clusters that are combined into one write.

A thread waits for each of its writes: with writes of half the size the processors idle more.
"""

Inflate = Callable[[memoryview, int], bytes | bytearray]


def inflate_deflate(data: memoryview, size: int) -> bytes | bytearray:
    """Inflate a raw deflate stream with a window of 4 KiB, as QEMU writes it; ignore what follows it in the sector."""
    try:
        # libdeflate takes two thirds of ISA-L's time for buffers of this size.
        return deflate.deflate_decompress(data, size)
    except deflate.DeflateError:
        # libdeflate requires the end of the stream, QEMU only enough data to fill the cluster. A new object for each
        # cluster is cheap, and unlike the one-shot call it never returns more than `size` bytes.
        return isal_zlib.decompressobj(-12).decompress(data, size)


def inflate_zstd(data: memoryview, size: int) -> bytes:
    """Inflate a zstd frame; ignore what follows it in the sector."""
    # Few images need it, and importing it takes time.
    from cdi.image.zstd import zstd

    return zstd.ZstdDecompressor().decompress(data, size)


_INFLATERS: Final[dict[Encoding, Inflate]] = {
    Encoding.DEFLATE: inflate_deflate,
    Encoding.ZSTD: inflate_zstd,
    Encoding.GRAIN: deflate.zlib_decompress,
}


def writer_memory(block_size: int) -> int:
    """Return the bytes of memory that a `ClusterWriter` needs: one inflated cluster and the combined output."""
    return block_size + max(_OUTPUT, block_size)


class ClusterWriter:
    """Writer of extents that combines adjacent compressed clusters.  Not thread-safe: use one in each thread."""

    def __init__(self, target: Target, block_size: int) -> None:
        self._target = target
        self._cluster = block_size
        self._output = memoryview(b"")
        """Allocated for the first compressed extent."""
        self._guest = 0
        self._filled = 0

    def write_extent(self, extent: Extent, data: memoryview) -> None:
        """Decode and write one extent; `data` are its bytes in the file, fewer if the file ends within it."""
        if extent.encoding is Encoding.STORED:
            self.flush()
            self._plain(extent, data)
            return
        if extent.encoding is Encoding.SECTOR_BITMAP:
            self.flush()
            self._sectors(extent, data)
            return
        if self._filled and (
            extent.guest != self._guest + self._filled or self._filled + self._cluster > len(self._output)
        ):
            self.flush()
        if not self._filled:
            self._guest = extent.guest
            if not self._output:
                self._output = aligned_buffer(max(_OUTPUT, self._cluster))
        needed = self._cluster
        if extent.encoding is Encoding.GRAIN:
            data = grain_payload(data, extent.host, extent.guest)
            # Some writers compress only the part of the last grain that is on the disk.
            needed = extent.length
        try:
            plain = _INFLATERS[extent.encoding](data, self._cluster)
        # Each decoder has its own exception class; any exception means that the cluster is damaged.
        except Exception as error:
            raise DecoderFailed(
                f"the compressed cluster at {extent.host:#x} (disk offset {extent.guest:#x}) cannot be inflated: "
                f"{error}"
            ) from error
        if not needed <= len(plain) <= self._cluster:
            raise DecoderFailed(
                f"the compressed cluster at {extent.host:#x} (disk offset {extent.guest:#x}) holds {len(plain)} bytes, "
                f"not {needed}"
            )
        self._output[self._filled : self._filled + len(plain)] = plain
        self._filled += extent.length
        if extent.length < self._cluster:
            self.flush()

    def _plain(self, extent: Extent, data: memoryview) -> None:
        if len(data) < extent.length:
            if not data:
                raise ImageCorrupt(f"the data of disk offset {extent.guest:#x} lies beyond the end of the file")
            # QEMU reads zeros past the end of the file.
            write_sparse(self._target, data, extent.guest)
            if not self._target.reads_zero:
                self._target.zero(extent.guest + len(data), extent.length - len(data))
            return
        write_sparse(self._target, data[: extent.length], extent.guest)

    def _sectors(self, extent: Extent, data: memoryview) -> None:
        """Write the sectors that the bitmap before the block marks; a sector without data reads as zeros."""
        start = extent.size - self._cluster
        count = -(-extent.length // SECTOR)
        content = data[start : start + extent.length]
        bits = f"{int.from_bytes(data[:start], 'big'):0{8 * start}b}"[:count]
        position = 0
        while position < count:
            bit = bits[position]
            stop = bits.find("0" if bit == "1" else "1", position)
            stop = count if stop < 0 else stop
            first, last = position * SECTOR, min(stop * SECTOR, extent.length)
            if bit == "1":
                write_sparse(self._target, content[first:last], extent.guest + first)
            elif not self._target.reads_zero:
                self._target.zero(extent.guest + first, last - first)
            position = stop

    def flush(self) -> None:
        """Write the combined clusters; call this after the last `write_extent` of a piece."""
        if self._filled:
            filled, self._filled = self._filled, 0
            write_sparse(self._target, self._output[:filled], self._guest)
