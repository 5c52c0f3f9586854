"""The target that a job names."""

from __future__ import annotations

from typing import assert_never

from cdi.api.errors import TargetUnsuitable
from cdi.api.job import BlockTargetSpec, DirectoryTargetSpec, FileTargetSpec
from cdi.target.base import Target
from cdi.target.block import BlockDevice
from cdi.target.file import DiskFile


def open_target(spec: FileTargetSpec | BlockTargetSpec | DirectoryTargetSpec) -> Target:
    """Open what `spec` names for writing a disk; the caller closes it.

    Raises `TargetError`s; `TargetUnsuitable` for a directory, which takes archives only
    (`cdi.target.directory.DirectoryTarget`).
    """
    match spec:
        case FileTargetSpec():
            return DiskFile(spec)
        case BlockTargetSpec():
            return BlockDevice(spec)
        case DirectoryTargetSpec():
            raise TargetUnsuitable(
                "a disk image cannot be written into a directory",
                where=spec.path,
                remedy="use contentType archive, or name a disk file or a block device",
            )
        case _:
            assert_never(spec)
