"""Import of images that only QEMU reads: a local file itself, anything else from a copy in scratch space."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from cdi.api.errors import FormatUnsupported, SourceChanged
from cdi.api.job import BlockTargetSpec, FileSourceSpec, FileTargetSpec, Job
from cdi.codec.base import Buffer
from cdi.image.info import ImageInfo
from cdi.image.inspect import Inspector
from cdi.source.file import identity
from cdi.target.errors import map_os_errors
from cdi.target.file import partial_name
from cdi.transfer.bounds_check import check_file_bounds, check_source_bounds
from cdi.transfer.context import ImportContext
from cdi.transfer.qemu.convert import MirrorJob, convert
from cdi.transfer.qemu.disk import inspect_target

_LATE_SIZE = "its size is not stated at its beginning"


class QemuFile:
    """Import by QEMU, which opens the source, a file of this machine."""

    def run(self, context: ImportContext) -> int:
        """Take the digest of the file, if one is needed, and have QEMU convert it."""
        source, image = context.job.source, context.unwrapped.image
        assert isinstance(source, FileSourceSpec)
        assert image is not None
        check_source_bounds(context.reader, image, context.plan.connections, context.unwrapped.head)
        context.control.meter.phase = "transferring"
        if context.digest is not None:
            with context.stream() as content:
                content.drain()
        _require_same_file(context, source.path)
        context.prepare_target()
        disk_size = _convert(context, os.path.abspath(source.path))
        _require_same_file(context, source.path)
        return disk_size


def _require_same_file(context: ImportContext, path: str) -> None:
    """Raise `SourceChanged` if QEMU, which opens the path again, finds another file than the one that was hashed."""
    validator = None
    with suppress(OSError):
        validator = identity(os.stat(path))
    if validator != context.reader.facts.validator:
        raise SourceChanged("the file was replaced or modified", where=path)


class QemuSpool:
    """Import by QEMU from scratch space, to which the source is copied before."""

    def __init__(self, stream: Iterator[Buffer]) -> None:
        self._stream = stream

    def run(self, context: ImportContext) -> int:
        """Write the stream to scratch space, have QEMU convert it from there, and remove it.

        The complete file is inspected again, because some facts are known only at its end: a raw disk's size, a VHD's
        footer, the offset of a table.
        """
        scratch = context.job.scratch
        assert scratch is not None, "the plan requires scratch space"
        context.control.meter.phase = "transferring"
        with (
            map_os_errors(scratch),
            tempfile.NamedTemporaryFile(prefix=".spool-", dir=scratch, buffering=0) as spool,
        ):
            for piece in self._stream:
                view = memoryview(piece)
                while view:
                    view = view[spool.write(view) :]
                context.result.scratch += len(piece)
            image, begun = _inspected(spool.fileno()), context.unwrapped.image
            check_file_bounds(spool.fileno(), image)
            needs_qemu = (begun and begun.needs_qemu) or (_LATE_SIZE,)
            context.choose_plan(replace(context.unwrapped, image=replace(image, needs_qemu=needs_qemu)))
            context.prepare_target()
            return _convert(context, spool.name)


def _inspected(descriptor: int) -> ImageInfo:
    inspector = Inspector(os.fstat(descriptor).st_size)
    while (wanted := inspector.next_range()) is not None:
        offset, size = wanted
        inspector.feed(offset, os.pread(descriptor, size, offset))
    return inspector.result()


def _convert(context: ImportContext, path: str) -> int:
    """Have QEMU convert the image in the file at `path`, and return the size of the disk in bytes."""
    control, result, image = context.control, context.result, context.unwrapped.image
    assert image is not None
    virtual_size, disk_size = image.virtual_size, context.plan.disk_size
    if virtual_size is None or disk_size is None:
        raise FormatUnsupported(
            f"the {image.format} image does not contain its size; it is known only after reading all of it"
        )
    partial, is_block = _partial_path(context.job)
    others, given = control.written, 0

    def progress(done: int, total: int) -> None:
        control.meter.total = total
        control.meter.advance(done)

    def wrote(size: int) -> None:
        nonlocal given
        result.written += size - given
        given = size

    control.begin_finishing("converting")
    control.written = lambda: others() + given
    with tempfile.TemporaryDirectory(prefix="cdi-qemu-") as workdir:
        job = MirrorJob(
            image=path,
            format=image.format,
            virtual_size=virtual_size,
            target=inspect_target(partial, is_block=is_block, reads_zero=context.target.reads_zero),
            policy=context.job.policy,
            on_progress=progress,
            on_written=wrote,
            bandwidth=lambda: control.throttle.bandwidth,
            cancelled=control.cancelled,
        )
        convert(job, workdir)
    return disk_size


def _partial_path(job: Job) -> tuple[str, bool]:
    """Return the path of the unfinished disk, and whether it is a device."""
    if isinstance(job.target, BlockTargetSpec):
        return job.target.path, True
    assert isinstance(job.target, FileTargetSpec)
    directory, name = os.path.split(job.target.path)
    return os.path.join(directory, partial_name(name)), False
