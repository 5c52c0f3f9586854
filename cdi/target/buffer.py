"""Buffers for direct I/O, and writes that leave out the zeros in them."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterator

from cdi.target.base import ALIGNMENT, Target

_HUGE_PAGE = 2 << 20
"""Size in bytes of a huge page on x86-64, and on arm64 with pages of 4 KiB."""
ZERO_GRANULARITY = 64 << 10
"""Granularity in bytes of the search for zeros: a separate hole costs more than writing fewer zeros."""

_ZERO = bytes(1 << 20)


def aligned_buffer(size: int) -> memoryview:
    """Return `size` bytes of zeroed, page-aligned anonymous memory.

    It is unmapped when its last view is released. Raises `ValueError` if `size` is less than one byte.
    """
    if size <= 0:
        raise ValueError(f"a buffer of {size} bytes")
    if size < _HUGE_PAGE:
        return _map_pages(size)[:size]
    # Each 4 KiB costs the kernel a page fault, and each direct write pins them; huge pages save nearly all of that. The
    # kernel uses them for aligned memory only. What is mapped beside the buffer is never touched, and takes no memory.
    view = _map_pages(size + _HUGE_PAGE)
    start = -_address(view) % _HUGE_PAGE
    assert isinstance(view.obj, mmap.mmap)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        view.obj.madvise(mmap.MADV_HUGEPAGE, start, size - size % _HUGE_PAGE)
    return view[start : start + size]


def _map_pages(size: int) -> memoryview:
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    return memoryview(mmap.mmap(-1, pages, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def is_aligned(view: memoryview, alignment: int = ALIGNMENT) -> bool:
    """Return whether the memory address is a multiple of `alignment`.

    Read-only views count as unaligned: their address is expensive to determine, and `bytes` objects are never aligned.
    """
    if view.readonly or not view.nbytes:
        return False
    return _address(view) % alignment == 0


def _address(view: memoryview) -> int:
    """Return the memory address of a writable view that is not empty."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def is_zero(view: memoryview) -> bool:
    """Return whether every byte is zero; true for an empty view."""
    size = len(view)
    if size <= len(_ZERO):
        # startswith is memcmp without a copy; comparing a memoryview with bytes is twenty times slower.
        return _ZERO.startswith(view)
    return all(_ZERO.startswith(view[at : at + len(_ZERO)]) for at in range(0, size, len(_ZERO)))


def data_runs(view: memoryview, granularity: int = ZERO_GRANULARITY) -> Iterator[tuple[int, int]]:
    """Yield the runs that contain data, as ``(start, stop)`` offsets in the view, in order and not adjacent.

    Everything between them is zero. A gap includes at least one whole step of `granularity` bytes, counted from the
    view's start; the ends of a run are trimmed to multiples of `ALIGNMENT`, except at the end of the view.
    """
    size = len(view)
    startswith = _ZERO.startswith
    if granularity > len(_ZERO):
        raise ValueError(f"steps of {granularity} bytes")
    begin: int | None = None
    for at in range(0, size, granularity):
        if startswith(view[at : at + granularity]):
            if begin is not None:
                yield _trim(view, begin, at)
                begin = None
        elif begin is None:
            begin = at
    if begin is not None:
        yield _trim(view, begin, size)


def _trim(view: memoryview, start: int, stop: int) -> tuple[int, int]:
    startswith = _ZERO.startswith
    while startswith(view[start : start + ALIGNMENT]):
        start += ALIGNMENT
    while startswith(view[(last := (stop - 1) // ALIGNMENT * ALIGNMENT) : stop]):
        stop = last
    return start, stop


def write_sparse(target: Target, view: memoryview, offset: int) -> None:
    """Write the data in `view`; zero the gaps only if the target does not read as zero already."""
    position = 0
    for start, stop in data_runs(view):
        if start > position and not target.reads_zero:
            target.zero(offset + position, start - position)
        target.write(view[start:stop], offset + start)
        position = stop
    if position < len(view) and not target.reads_zero:
        target.zero(offset + position, len(view) - position)
