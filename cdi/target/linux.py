"""The system calls that the standard library lacks: ``fallocate(2)`` with modes, and ioctls of block devices."""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import struct

KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02
ZERO_RANGE = 0x10

_BLKZEROOUT = 0x127F
_BLKSSZGET = 0x1268

_libc = ctypes.CDLL(None, use_errno=True)
# fallocate64 takes 64-bit offsets on every architecture; musl's plain name does too.
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """``fallocate(2)``; raises `OSError`.  `InterruptedError` is never seen: an interrupted call is made again."""
    while _fallocate(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        if code != 4:  # EINTR
            raise OSError(code, os.strerror(code))


def zero_out(fd: int, offset: int, length: int) -> None:
    """``BLKZEROOUT``: the range of a block device reads as zeros afterwards, by offload or by writing them."""
    fcntl.ioctl(fd, _BLKZEROOUT, struct.pack("=QQ", offset, length))


def logical_block_size(fd: int) -> int:
    """``BLKSSZGET``: the unit of direct I/O on a block device, bytes."""
    answer = array.array("i", [0])
    fcntl.ioctl(fd, _BLKSSZGET, answer)
    return answer[0]


def sync_file_system(fd: int) -> None:
    """``syncfs(2)``: everything in the file system of `fd` is on stable storage; raises `OSError`."""
    if _libc.syncfs(ctypes.c_int(fd)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
