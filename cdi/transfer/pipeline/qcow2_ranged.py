"""qcow2 import with range requests: reads the tables, then the file in order, and writes each cluster directly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from cdi.api.errors import TargetFull
from cdi.api.job import FileTargetSpec
from cdi.image.formats.qcow2 import Qcow2Header
from cdi.image.qcow2_map import RUN_LIMIT, FileChunk, Qcow2Map, pieces
from cdi.image.sizes import format_size
from cdi.target.base import Target
from cdi.transfer.pipeline.cluster_writer import ClusterWriter, inflater, writer_memory
from cdi.transfer.pipeline.ranged import Handler, RangedPipeline, run_ranged
from cdi.transfer.reader import ResumingReader
from cdi.transfer.watermark import Watermark

_TABLE_BATCH = 1 << 20
"""Maximum size in bytes of adjacent L2 tables that are read with one request."""
_TABLES_GAP = 256 << 10
"""Maximum gap in bytes between two tables of one request; reading over it is cheaper than another request."""
_TABLES_CONNECTIONS = 8
"""Maximum number of connections that read tables; two reads for each of them are kept in memory."""


def load_map(reader: ResumingReader, header: Qcow2Header, length: int, connections: int, head: bytes = b"") -> Qcow2Map:
    """Read the L1 table and all L2 tables, and return the sealed map.

    Args:
        reader: The source.
        header: The image's header.
        length: Size of the file in bytes.
        connections: Maximum number of connections.
        head: Bytes from the start of the file that are already in memory.

    Raises:
        MapTooLarge: The image has too many extents.
        ImageCorrupt: The tables are inconsistent.
        SourceError: The source cannot be read.
    """
    image = Qcow2Map(header, length)

    def read(offset: int, size: int) -> bytes:
        if offset + size <= len(head):
            return head[offset : offset + size]
        return reader.read(offset, size)

    offset, size = image.l1_range
    tables = image.tables(read(offset, size))
    cluster = image.cluster_size
    reads = list(_grouped(tables, cluster))
    indices = [[index for index, _ in group] for _, _, group in reads]
    connections = max(1, min(connections, _TABLES_CONNECTIONS))

    with ThreadPoolExecutor(connections, "tables") as pool:
        # Read only a few tables ahead: all tables of a large disk may exceed the worker's memory limit.
        waiting = [pool.submit(read, start, stop - start) for start, stop, _ in reads[: 2 * connections]]
        following = iter(reads[len(waiting) :])
        for (start, _, group), _ in zip(reads, indices, strict=True):
            data = memoryview(waiting.pop(0).result())
            if (ahead := next(following, None)) is not None:
                waiting.append(pool.submit(read, ahead[0], ahead[1] - ahead[0]))
            for index, table in group:
                image.add_table(index, data[table - start : table - start + cluster])
    image.sort_by_host_offset()
    return image


def _grouped(tables: list[tuple[int, int]], cluster: int) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Yield the reads for adjacent tables, as ``(start, stop, tables)``."""
    group: list[tuple[int, int]] = []
    start = stop = 0
    for index, offset in sorted(tables, key=lambda table: table[1]):
        if group and (offset - stop > _TABLES_GAP or offset + cluster - start > _TABLE_BATCH):
            yield start, stop, group
            group = []
        if not group:
            start = offset
        group.append((index, offset))
        stop = offset + cluster
    if group:
        yield start, stop, group


class Qcow2Ranged(RangedPipeline):
    """Import of a qcow2 image with range requests."""

    def __init__(self, image: Qcow2Map, length: int, *, whole: bool) -> None:
        """Describe the import.

        Args:
            image: The map of the image.
            length: Size of the file in bytes.
            whole: Whether to fetch every byte of the file, which a digest needs.
        """
        self.length = length
        self._image = image
        self._whole = whole

    def check_room(self, target: FileTargetSpec) -> None:
        found = os.statvfs(os.path.dirname(target.path) or ".")
        free, data = found.f_bavail * found.f_frsize, self._image.data_bytes()
        if data > free:
            raise TargetFull(
                f"the image holds {format_size(data)} ({data} bytes) of data and the volume has {format_size(free)} "
                f"({free} bytes) free",
                where=target.path,
            )

    def transfer(self, reader: ResumingReader, target: Target, watermark: Watermark, connections: int) -> None:
        image = self._image
        if not target.reads_zero:
            for offset, size in image.holes():
                reader.check()
                target.zero(offset, size)

        def handlers() -> Handler:
            writer = ClusterWriter(target, inflater(image.header.compression_type), image.cluster_size)

            def handle(piece: FileChunk, view: memoryview) -> None:
                for position in range(piece.first, piece.last):
                    extent = image.extent(position)
                    at = extent.host - piece.start
                    writer.write_extent(extent, view[at : at + extent.size])
                writer.flush()

            return handle

        def cut(begin: int, size: int) -> Iterator[FileChunk]:
            return pieces(image, self.length, begin=begin, size=size, whole=self._whole)

        # The last extent of a piece may extend this many bytes beyond it.
        beside = max(RUN_LIMIT, image.cluster_size)
        if 1 in image.kinds:
            beside += writer_memory(image.cluster_size)
        run_ranged(reader, cut, watermark, handlers, connections=connections, overhead_bytes=beside)
