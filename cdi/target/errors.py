"""Mapping of operating system errors on a volume to `TargetError`s."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from cdi.api.errors import QuotaExceeded, TargetBusy, TargetError, TargetFull, TargetUnsuitable
from cdi.atomic_file import storage_error

UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.ENOTTY})
"""Error codes of a system call that the kernel or file system does not support; a fallback is needed."""


def error_from_errno(error: OSError, where: str, room: str = "", remedy: str | None = None) -> TargetError:
    """Return the `TargetError` for an `OSError` on a volume.

    Errors that are not specific to disks are mapped by `cdi.atomic_file.storage_error`.

    Args:
        error: Error of a system call.
        where: Path for the message.
        room: Required and available space, for the message if the volume is full.
        remedy: Remedy if the volume is full; None for the default.
    """
    text = os.strerror(error.errno) if error.errno else str(error)
    match error.errno:
        case errno.ENOSPC:
            return TargetFull(f"no space left{': ' + room if room else ''}", where=where, remedy=remedy)
        case errno.EDQUOT:
            return QuotaExceeded(f"the disk quota is exceeded{': ' + room if room else ''}", where=where)
        case errno.EBUSY | errno.ETXTBSY | errno.EWOULDBLOCK:
            return TargetBusy(f"the volume is in use: {text}", where=where)
        case errno.EFBIG:
            return TargetUnsuitable(
                "the file system cannot hold a file as large as the disk",
                where=where,
                remedy="use a volume with another file system (ext4, xfs), or a block volume",
            )
        case errno.ENOENT | errno.ENOTDIR | errno.ENXIO:
            return TargetUnsuitable(
                f"the volume does not exist: {text}",
                where=where,
                remedy="check the target's path and that it is mounted",
            )
        case errno.ELOOP | errno.EISDIR | errno.ENOTEMPTY | errno.EEXIST:
            return occupied(f"the path of the disk is occupied: {text}", where)
        case _:
            return storage_error(error, "the volume", where)


def occupied(what: str, where: str) -> TargetUnsuitable:
    """Return the error for a target path that is not a regular file.

    Its remedy does not suggest removing the file, because it may be a device.
    """
    return TargetUnsuitable(what, where=where, remedy="use an empty volume, or give a new file or a block device")


@contextmanager
def map_os_errors(where: str, *, named: bool = False) -> Iterator[None]:
    """Raise every `OSError` from the block as a `TargetError`.

    Args:
        where: Path for the message.
        named: Use the file name from the `OSError` instead, if it has one.
    """
    try:
        yield
    except OSError as error:
        own = error.filename if named and isinstance(error.filename, str) else None
        raise error_from_errno(error, own or where) from error
