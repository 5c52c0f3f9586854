"""Check that the tables of a source or local file refer to data within it (`cdi.image.bounds_check`)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from cdi.image.bounds_check import check_data_within_file
from cdi.image.checks import Check
from cdi.image.info import ImageInfo
from cdi.transfer.reader import ResumingReader


def check_source_bounds(fetcher: ResumingReader, image: ImageInfo, connections: int, head: bytes = b"") -> Check | None:
    """Run `check_data_within_file` on a source with range requests.

    `head` are bytes from the start of the file that are already in memory. Also raises the source's errors.
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

    # The pool starts its threads only when work is submitted.
    with ThreadPoolExecutor(max(1, connections), "tables") as pool:
        return check_data_within_file(image, length, read)


def check_file_bounds(descriptor: int, image: ImageInfo) -> Check | None:
    """Run `check_data_within_file` on an open file."""

    def read(ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        for offset, size in ranges:
            yield os.pread(descriptor, size, offset)

    return check_data_within_file(image, os.fstat(descriptor).st_size, read)
