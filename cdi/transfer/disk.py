"""One attempt to import a disk image: inspect, plan, write, verify, commit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from cdi.api.errors import CdiError, Retry
from cdi.api.importer_messages import unexpected_content_type
from cdi.api.job import FileTargetSpec, HttpSourceSpec, Job
from cdi.api.peer import PeerSourceSpec
from cdi.image.info import ImageInfo
from cdi.image.plan import end_mark
from cdi.source.base import SourceFacts
from cdi.target.base import Target
from cdi.target.open import open_target
from cdi.transfer.context import ImportContext, Pipeline
from cdi.transfer.control import TransferControl
from cdi.transfer.hashed_stream import HashedStream
from cdi.transfer.journal import is_dirty, remove
from cdi.transfer.pipeline.raw import RawRanged, RawStream
from cdi.transfer.reader import ResumingReader
from cdi.transfer.result import OutcomeBuilder
from cdi.transfer.resume import has_watermark
from cdi.transfer.retry import RestartRequired
from cdi.transfer.unwrap import (
    DiskNotInLayer,
    NoDiskInLayer,
    UnwrappedImage,
    disk_not_in_archive,
    inspect_ranged,
    unwrap_stream,
)

if TYPE_CHECKING:
    from cdi.transfer.disk_search import LayerReading
    from cdi.transfer.restarts import ProbedSource

_RAW = UnwrappedImage((), ImageInfo(format="raw", virtual_size=None))


class DiskTransfer:
    """One attempt to write the image in a source to the disk of ``job.target``.

    If `layer` is given, the source is a layer of a container image and the disk is a file in it. After a retryable
    error the unfinished disk is kept (`cdi.transfer.cleanup` removes it if there is no retry); after any other error it
    is wiped.
    """

    def __init__(
        self,
        job: Job,
        probed: ProbedSource,
        control: TransferControl,
        result: OutcomeBuilder,
        layer: LayerReading | None = None,
    ) -> None:
        self.job = job
        self.probed = probed
        self.control = control
        self.result = result
        self.layer = layer

    def __repr__(self) -> str:
        return f"<DiskTransfer {self.job.id} from {self.probed.source!r}: {self.control.meter.phase}>"

    def run(self) -> None:
        """Run the attempt.

        Raises:
            CdiError: The attempt failed.
            RestartRequired: The source has to be read again from its first byte.
        """
        with ResumingReader(self.probed.source, self.control) as reader, self._open_target() as target:
            try:
                self._warn_of_content_type(reader.facts)
                context = ImportContext(
                    job=self.job,
                    reader=reader,
                    target=target,
                    control=self.control,
                    result=self.result,
                    expected=self.probed.expected,
                )
                with self._pipeline(context) as pipeline:
                    disk_size = pipeline.run(context)
                self._verify(context)
                self._commit(context, disk_size)
            except CdiError as error:
                if error.retry is Retry.NEVER:
                    self._wipe(target)
                raise

    @contextmanager
    def _open_target(self) -> Iterator[Target]:
        """Open the target, and count what is written to it."""
        target, earlier = open_target(self.job.target), self.result.written
        self.control.written = lambda: earlier + target.written
        try:
            yield target
        finally:
            self.result.written += target.written
            self.control.written = lambda: self.result.written
            target.close()

    def _warn_of_content_type(self, facts: SourceFacts) -> None:
        if isinstance(self.job.source, HttpSourceSpec) and (facts.content_type or "").startswith("text/"):
            self.result.warn(unexpected_content_type(facts.content_type or ""))

    # --- unwrap and plan ----------------------------------------------------------------------------------------

    @contextmanager
    def _pipeline(self, context: ImportContext) -> Iterator[Pipeline]:
        """Find the image in the source, plan its import, and provide the pipeline; then read the rest of the source.

        An image with another content around it, and one without range requests, is read once, in order.
        """
        if isinstance(self.job.source, PeerSourceSpec):
            # What is in the disk does not matter: a clone has every byte of it.
            from cdi.transfer.pipeline.peer import PeerDisk

            yield PeerDisk(context)
            return
        reader, wrapped = context.reader, self.layer is not None
        unwrapped = None
        if reader.ranged and not wrapped:
            unwrapped = inspect_ranged(reader, reader.facts, archive=False, disk=self.job.policy.disk)
        pipeline = None if unwrapped is None else self._ranged_pipeline(context, unwrapped)
        if pipeline is not None:
            yield pipeline
            return
        if unwrapped is not None:
            from cdi.transfer.pipeline.qemu import QemuSpool

            with context.stream() as content:
                yield QemuSpool(content.pieces)
                content.drain()
            return
        start = self._stream_resume_point(context)
        with context.stream(start or 0) as content:
            if start is None:
                yield self._stream_pipeline(context, content)
            else:
                yield RawStream(content.pieces, content, resumed=True)
            content.drain()

    def _ranged_pipeline(self, context: ImportContext, unwrapped: UnwrappedImage) -> Pipeline | None:
        """Plan the import of an image that can be read in any order; return None if it is spooled."""
        plan, image, length = context.choose_plan(unwrapped), unwrapped.image, context.reader.facts.length
        assert image is not None
        assert length is not None
        if plan.path == "raw-ranged":
            return RawRanged(length, length if image.raw_extent is None else image.raw_extent[1])
        if plan.path in ("qcow2-ranged", "mapped-ranged"):
            # The codecs of mapped images take longer to load than a small raw image does to import.
            from cdi.image.block_map import TOO_LARGE, MapTooLarge
            from cdi.image.inspect import map_builder
            from cdi.transfer.pipeline.mapped_ranged import MappedRanged, load_map

            builder = map_builder(image, unwrapped.head, length)
            try:
                table = load_map(context.reader, builder, plan.connections, unwrapped.head)
            except MapTooLarge:
                self.result.warn("the image has more extents than can be kept in memory: QEMU reads it")
                plan = context.choose_plan(replace(unwrapped, image=replace(image, needs_qemu=(TOO_LARGE,))))
            else:
                return MappedRanged(table, length, whole=context.digest is not None)
        if plan.path == "qemu-file":
            from cdi.transfer.pipeline.qemu import QemuFile

            return QemuFile()
        return None

    def _stream_resume_point(self, context: ImportContext) -> int | None:
        """Return the offset at which a stream of an earlier attempt is resumed; None to begin at its start."""
        if not context.reader.facts.resumes or not has_watermark(self.job, "raw-stream"):
            return None
        context.choose_plan(_RAW)
        return context.resume_point()

    def _stream_pipeline(self, context: ImportContext, content: HashedStream) -> Pipeline:
        """Unwrap the stream from its first byte."""
        facts, layer = context.reader.facts, None if self.layer is None else self.layer.content
        try:
            unwrapped = unwrap_stream(content.pieces, facts, archive=False, layer=layer, disk=self.job.policy.disk)
        except DiskNotInLayer as none:
            self._raise_no_disk(none, context, content)
        plan = context.choose_plan(unwrapped)
        assert unwrapped.stream is not None
        stream = content.interruptible(unwrapped.stream)
        if plan.path == "qemu-spool":
            from cdi.transfer.pipeline.qemu import QemuSpool

            return QemuSpool(stream)
        if plan.path in ("qcow2-stream", "mapped-stream"):
            from cdi.transfer.pipeline.mapped_stream import MappedStream

            return MappedStream(stream)
        return RawStream(stream, None if unwrapped.wrappers else content)

    def _raise_no_disk(self, none: DiskNotInLayer, context: ImportContext, content: HashedStream) -> NoReturn:
        """Raise the error for a missing disk after the digest was verified: damaged content proves nothing."""
        content.drain()
        context.verify_digest()
        if isinstance(none, NoDiskInLayer):
            raise none
        raise disk_not_in_archive(context.reader.facts.location)

    # --- verify and commit --------------------------------------------------------------------------------------

    def _verify(self, context: ImportContext) -> None:
        """Verify that the content is complete and the expected one."""
        reader = context.reader
        self.control.meter.phase = "verifying"
        proof = reader.proof_of_end(end_marked=end_mark(self.result.wrappers, self.result.format) is not None)
        if proof is not None:
            self.result.verified(proof)
        elif reader.unclean_end is not None and not context.expected.promises:
            raise RestartRequired(reader.unclean_end)
        context.verify_digest()
        selection = context.unwrapped.selection
        if selection is not None:
            selection.record(self.result)
        reader.check()
        if self.layer is not None:
            # Check before the commit: a lower layer may hold a second disk, which makes the image ambiguous.
            self.layer.confirm()

    def _commit(self, context: ImportContext, disk_size: int) -> None:
        """Flush the disk, then give it its final name."""
        context.preallocate()
        self.control.begin_finishing("flushing")
        context.target.commit()
        remove(self.job.journal)
        self.result.disk_size = disk_size

    def _wipe(self, target: Target) -> None:
        if (
            self.result.target_modified
            or self.job.continued
            or is_dirty(self.job.journal)
            or isinstance(self.job.target, FileTargetSpec)
        ):
            target.wipe()
        remove(self.job.journal)
        self.result.target_modified, self.result.wiped = False, True
