"""Data clusters of a qcow2 image, inflated and put where they belong."""

from __future__ import annotations

from collections.abc import Callable

import deflate
from isal import isal_zlib

from cdi.api.errors import DecoderFailed, ImageCorrupt
from cdi.image.qcow2map import Extent
from cdi.target.base import Target
from cdi.target.buffer import aligned_buffer, data_runs

_OUTPUT = 2 << 20
"""Neighbouring clusters are gathered up to this many bytes before they are written."""

Inflate = Callable[[memoryview, int], bytes | bytearray]


def inflate_deflate(data: memoryview, size: int) -> bytes | bytearray:
    """One raw deflate stream with a window of 4 KiB, as QEMU writes it; what follows it in the sector is ignored."""
    try:
        # libdeflate takes two thirds of ISA-L's time for buffers of this size.
        return deflate.deflate_decompress(data, size)
    except deflate.DeflateError:
        # It wants the stream's end; QEMU is content with as much as fills the cluster.  A new object a cluster costs
        # little, and unlike the one-shot call it never gives more than `size` bytes.
        return isal_zlib.decompressobj(-12).decompress(data, size)


def inflate_zstd() -> Inflate:
    """For images of compression type 1."""
    from backports import zstd

    def inflate(data: memoryview, size: int) -> bytes:
        return zstd.ZstdDecompressor().decompress(data, size)

    return inflate


def inflater(compression: int) -> Inflate:
    """By the header's compression type: 0 deflate, 1 zstd."""
    return inflate_zstd() if compression == 1 else inflate_deflate


def memory_of_writer(cluster_size: int) -> int:
    """Bytes that a `ClusterWriter` takes for compressed clusters: one as it is inflated, and those gathered."""
    return cluster_size + max(_OUTPUT, cluster_size)


class ClusterWriter:
    """Writes extents to the target, neighbours on the disk in one go.  One a thread."""

    def __init__(self, target: Target, inflate: Inflate, cluster_size: int) -> None:
        self._target = target
        self._inflate = inflate
        self._cluster = cluster_size
        self._output = aligned_buffer(max(_OUTPUT, cluster_size))
        self._guest = 0
        self._filled = 0

    def put(self, extent: Extent, data: memoryview) -> None:
        """Decode and write one extent.  `data` are its bytes in the file, fewer where the file ends."""
        if not extent.compressed:
            self.flush()
            self._plain(extent, data)
            return
        if self._filled and (
            extent.guest != self._guest + self._filled or self._filled + self._cluster > len(self._output)
        ):
            self.flush()
        if not self._filled:
            self._guest = extent.guest
        try:
            plain = self._inflate(data, self._cluster)
        # Each decoder has an exception class of its own, and whatever it is, the cluster is damaged.
        except Exception as error:
            raise DecoderFailed(
                f"the compressed cluster at {extent.host:#x} (disk offset {extent.guest:#x}) cannot be inflated: "
                f"{error}"
            ) from error
        if len(plain) != self._cluster:
            raise DecoderFailed(
                f"the compressed cluster at {extent.host:#x} (disk offset {extent.guest:#x}) holds {len(plain)} bytes, "
                f"not {self._cluster}"
            )
        self._output[self._filled : self._filled + len(plain)] = plain
        self._filled += extent.length
        if extent.length < self._cluster:
            self.flush()

    def _plain(self, extent: Extent, data: memoryview) -> None:
        if len(data) < extent.length:
            if not data:
                raise ImageCorrupt(f"the data of disk offset {extent.guest:#x} lies beyond the end of the file")
            # As QEMU reads it: past the end of the file are zeros.
            write_sparse(self._target, data, extent.guest)
            if not self._target.reads_zero:
                self._target.zero(extent.guest + len(data), extent.length - len(data))
            return
        write_sparse(self._target, data[: extent.length], extent.guest)

    def flush(self) -> None:
        """Write what has been gathered; to be called after the last `put` of a piece."""
        if self._filled:
            filled, self._filled = self._filled, 0
            write_sparse(self._target, self._output[:filled], self._guest)


def write_sparse(target: Target, view: memoryview, offset: int) -> None:
    """Write what is not zero; the zeros only where the target would not read as zero without them."""
    position = 0
    for start, stop in data_runs(view):
        if start > position and not target.reads_zero:
            target.zero(offset + position, start - position)
        target.write(view[start:stop], offset + start)
        position = stop
    if position < len(view) and not target.reads_zero:
        target.zero(offset + position, len(view) - position)
