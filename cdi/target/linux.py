"""System calls that the standard library lacks: ``fallocate(2)`` with modes, ``syncfs(2)``, and block device ioctls."""

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
# fallocate64 takes 64-bit offsets on every architecture; so does musl's fallocate.
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Call ``fallocate(2)``, again if it is interrupted; raise `OSError` if it fails."""
    while _fallocate(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        if code != 4:  # EINTR
            raise OSError(code, os.strerror(code))


def zero_out(fd: int, offset: int, length: int) -> None:
    """Zero a range of a block device with ``BLKZEROOUT``, by offload or by writing zeros."""
    fcntl.ioctl(fd, _BLKZEROOUT, struct.pack("=QQ", offset, length))


def logical_block_size(fd: int) -> int:
    """Return the block size in bytes for direct I/O on a block device (``BLKSSZGET``)."""
    answer = array.array("i", [0])
    fcntl.ioctl(fd, _BLKSSZGET, answer)
    return answer[0]


def sync_file_system(fd: int) -> None:
    """Flush the file system of `fd` to stable storage with ``syncfs(2)``; raise `OSError` if that fails."""
    if _libc.syncfs(ctypes.c_int(fd)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
