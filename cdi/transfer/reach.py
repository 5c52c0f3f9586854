"""Reads an image's tables, over ranges or from a file, to see that the image is whole (`cdi.image.reach`)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from cdi.image.checks import Check
from cdi.image.info import ImageInfo
from cdi.image.reach import check_reach
from cdi.transfer.fetch import Fetcher


def reach_of_source(fetcher: Fetcher, image: ImageInfo, connections: int, head: bytes = b"") -> Check | None:
    """As `check_reach`, of a source with ranges.

    `head` are bytes from the start of the file that are at hand already.  Raises what the source raises, too.
    """
    length = fetcher.facts.length
    assert length is not None

    def one(wanted: tuple[int, int]) -> bytes:
        offset, size = wanted
        if offset + size <= len(head):
            return head[offset : offset + size]
        return fetcher.read(offset, size)

    def read(ranges: Sequence[tuple[int, int]]) -> Iterable[bytes]:
        fetcher.check()
        if len(ranges) == 1 or connections < 2:
            return map(one, ranges)
        return pool.map(one, ranges)

    # Its threads are not started before there is something for them.
    with ThreadPoolExecutor(max(1, connections), "tables") as pool:
        return check_reach(image, length, read)


def reach_of_file(descriptor: int, image: ImageInfo) -> Check | None:
    """As `check_reach`, of an open file."""

    def read(ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        for offset, size in ranges:
            yield os.pread(descriptor, size, offset)

    return check_reach(image, os.fstat(descriptor).st_size, read)
