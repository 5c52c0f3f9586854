"""Import of images that only QEMU can read: with range requests, or from scratch space if the source is a stream."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace

from cdi.api.errors import CdiError, FormatUnsupported, ScratchNeeded, SourceChanged
from cdi.api.job import BlockTargetSpec, FileTargetSpec, Job
from cdi.codec.base import Buffer
from cdi.image.info import ImageInfo
from cdi.image.inspect import Inspector
from cdi.target.errors import map_os_errors
from cdi.target.file import partial_name
from cdi.transfer.bounds_check import check_file_bounds, check_source_bounds
from cdi.transfer.context import ImportContext
from cdi.transfer.qemu.block_cache import BlockCache
from cdi.transfer.qemu.convert import MirrorJob, convert
from cdi.transfer.qemu.disk import inspect_target
from cdi.transfer.qemu.nbd import NbdServer
from cdi.transfer.reader import ResumingReader


class ConsistentReader:
    """Reader for a cache that may fetch a block twice: once for QEMU and once for the digest.

    The digest proves what QEMU received only if both reads return the same bytes, so a hash of each block is compared.
    """

    def __init__(self, reader: ResumingReader) -> None:
        self._reader = reader
        self._seen: dict[tuple[int, int], bytes] = {}
        self._lock = threading.Lock()

    def __call__(self, offset: int, view: memoryview) -> None:
        """Read into `view` from `offset`; raise `SourceChanged` if the block differs from the first read."""
        self._reader.read_range_into(offset, view)
        found = hashlib.blake2b(view, digest_size=16).digest()
        with self._lock:
            before = self._seen.setdefault((offset, len(view)), found)
        if before != found:
            raise SourceChanged(
                f"the {len(view)} bytes at offset {offset} changed between reads",
                where=self._reader.facts.location,
            )


class QemuBridge:
    """Import by QEMU, which reads the source through a block cache that uses range requests."""

    def run(self, context: ImportContext) -> int:
        """Have QEMU convert the image, and take the content's digest in order from what it reads."""
        reader, image, digest = context.reader, context.unwrapped.image, context.digest
        length, connections = reader.facts.length, context.plan.connections
        assert image is not None
        assert length is not None
        check_source_bounds(reader, image, connections, context.unwrapped.head)
        context.prepare_target()
        cache = BlockCache(
            length=length,
            fetch=reader.read_range_into if digest is None else ConsistentReader(reader),
            connections=connections,
            on_block_in_order=None if digest is None else digest.update,
        )
        server = NbdServer(cache)
        try:
            disk_size = _convert(context, server)
            context.control.meter.phase = "verifying"
            cache.finish()
        except CdiError as error:
            if server.cause is not None:
                # QEMU itself reports only an input/output error.
                raise server.cause from error
            raise
        finally:
            reader.abort()
            cache.close()
            server.close()
        return disk_size


class QemuSpool:
    """Import by QEMU from scratch space, to which the source is written before."""

    def __init__(self, stream: Iterator[Buffer]) -> None:
        self._stream = stream

    def run(self, context: ImportContext) -> int:
        """Write the stream to scratch space, have QEMU convert it from there, and remove it.

        The complete file is inspected again, because some facts are known only at its end: a raw disk's size, a VHD's
        footer, the offset of a table.
        """
        scratch = context.job.scratch
        if scratch is None:
            raise ScratchNeeded("the image cannot be decoded as a stream and no scratch space is given")
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
            image = _inspected(spool.fileno())
            check_file_bounds(spool.fileno(), image)
            context.choose_plan(replace(context.unwrapped, image=image), "qemu")
            context.prepare_target()
            return _convert(context, spool.name)


def _inspected(descriptor: int) -> ImageInfo:
    inspector = Inspector(os.fstat(descriptor).st_size)
    while (wanted := inspector.next_range()) is not None:
        offset, size = wanted
        inspector.feed(offset, os.pread(descriptor, size, offset))
    return inspector.result()


def _convert(context: ImportContext, origin: NbdServer | str) -> int:
    """Have QEMU convert the image at `origin`, and return the size of the disk in bytes."""
    control, result, image = context.control, context.result, context.unwrapped.image
    assert image is not None
    virtual_size, disk_size = image.virtual_size, context.plan.disk_size
    if virtual_size is None or disk_size is None:
        raise FormatUnsupported(
            f"the {image.format} image does not contain its size; it is known only after reading all of it"
        )
    path, is_block = _partial_path(context.job)
    others, given = control.written, 0

    def progress(done: int, total: int) -> None:
        control.meter.total = total
        control.meter.advance(done)

    def wrote(size: int) -> None:
        nonlocal given
        result.written += size - given
        given = size

    control.meter.phase = "converting"
    control.written = lambda: others() + given
    with tempfile.TemporaryDirectory(prefix="cdi-qemu-") as workdir:
        job = MirrorJob(
            image=origin.attach() if isinstance(origin, NbdServer) else origin,
            format=image.format,
            virtual_size=virtual_size,
            target=inspect_target(path, is_block=is_block, reads_zero=context.target.reads_zero),
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
