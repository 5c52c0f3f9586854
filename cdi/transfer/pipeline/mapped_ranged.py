"""Import of a mapped image with range requests: reads the tables, then the file in order, and writes each extent."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from cdi.api.errors import TargetFull
from cdi.api.job import FileTargetSpec
from cdi.image.block_map import RUN_LIMIT, BlockMap, FileChunk, MapBuilder, TableRange, pieces
from cdi.image.sizes import format_size
from cdi.target.base import Target
from cdi.transfer.pipeline.cluster_writer import ClusterWriter, writer_memory
from cdi.transfer.pipeline.ranged import Handler, RangedPipeline, run_ranged
from cdi.transfer.reader import ResumingReader
from cdi.transfer.watermark import Watermark

_TABLE_BATCH = 1 << 20
"""Maximum size in bytes of adjacent tables that are read with one request."""
_TABLES_GAP = 256 << 10
"""Maximum gap in bytes between two tables of one request; reading over it is cheaper than another request."""
_TABLES_CONNECTIONS = 8
"""Maximum number of connections that read tables; two reads for each of them are kept in memory."""


def load_map(reader: ResumingReader, builder: MapBuilder, connections: int, head: bytes = b"") -> BlockMap:
    """Read all tables of an image, and return its map, sorted by offset in the file.

    Args:
        reader: The source.
        builder: The builder for the image's format.
        connections: Maximum number of connections.
        head: Bytes from the start of the file that are already in memory.

    Raises:
        MapTooLarge: The image has too many extents.
        ImageError: The tables are inconsistent, or the file lacks data that they refer to.
        SourceError: The source cannot be read.
    """

    def read(offset: int, size: int) -> bytes:
        if offset + size <= len(head):
            return head[offset : offset + size]
        return reader.read(offset, size)

    connections = max(1, min(connections, _TABLES_CONNECTIONS))
    # The pool starts its threads only when work is submitted.
    with ThreadPoolExecutor(connections, "tables") as pool:
        pending = builder.begin()
        while pending:
            reads = list(_grouped(pending))
            pending = []
            # Read only a few tables ahead: all tables of a large disk may exceed the worker's memory limit.
            waiting = deque(pool.submit(read, start, stop - start) for start, stop, _ in reads[: 2 * connections])
            following = iter(reads[len(waiting) :])
            for start, _, group in reads:
                data = memoryview(waiting.popleft().result())
                if (ahead := next(following, None)) is not None:
                    waiting.append(pool.submit(read, ahead[0], ahead[1] - ahead[0]))
                for table in group:
                    at = table.offset - start
                    pending += builder.feed(table, data[at : at + table.size])[0]
    builder.finish()
    return builder.map


def _grouped(tables: list[TableRange]) -> Iterator[tuple[int, int, list[TableRange]]]:
    """Yield the reads for adjacent tables, as ``(start, stop, tables)``."""
    group: list[TableRange] = []
    start = stop = 0
    for table in sorted(tables):
        end = table.offset + table.size
        if group and (table.offset - stop > _TABLES_GAP or end - start > _TABLE_BATCH):
            yield start, stop, group
            group = []
        if not group:
            start = stop = table.offset
        group.append(table)
        stop = max(stop, end)
    if group:
        yield start, stop, group


class MappedRanged(RangedPipeline):
    """Import of a mapped image with range requests."""

    def __init__(self, image: BlockMap, length: int, *, whole: bool) -> None:
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
            writer = ClusterWriter(target, image.block_size)

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
        beside = max(RUN_LIMIT, image.block_size)
        if any(image.encodings):
            beside += writer_memory(image.block_size)
        run_ranged(reader, cut, watermark, handlers, connections=connections, overhead_bytes=beside)
