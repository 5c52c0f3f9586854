"""Selection of the target for a job."""

from __future__ import annotations

from typing import assert_never

from cdi.api.errors import TargetUnsuitable
from cdi.api.job import BlockTargetSpec, DirectoryTargetSpec, FileTargetSpec
from cdi.target.base import Target
from cdi.target.block import BlockDevice
from cdi.target.file import DiskFile


def open_target(spec: FileTargetSpec | BlockTargetSpec | DirectoryTargetSpec) -> Target:
    """Open the target for writing a disk; the caller closes it.

    Raises:
        TargetUnsuitable: The target is a directory, which takes only archives
            (`cdi.target.directory.DirectoryTarget`).
        TargetError: The target cannot be opened.
    """
    match spec:
        case FileTargetSpec():
            return DiskFile(spec)
        case BlockTargetSpec():
            return BlockDevice(spec)
        case DirectoryTargetSpec():
            raise TargetUnsuitable(
                "a disk image cannot be written to a directory",
                where=spec.path,
                remedy="use contentType archive, or give a disk file or a block device",
            )
        case _:
            assert_never(spec)
