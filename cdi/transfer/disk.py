"""One attempt to import a disk image: inspect, plan, write, verify, commit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NoReturn

from cdi.api.errors import (
    CdiError,
    ContentTruncated,
    FormatUnsupported,
    ImageError,
    Retry,
    ScratchNeeded,
    TargetFull,
    TargetTooSmall,
)
from cdi.api.importer_messages import unexpected_content_type
from cdi.api.job import FileTargetSpec, HttpSourceSpec, Job
from cdi.image.formats.qcow2 import parse_header
from cdi.image.formats.vpc import fixed_payload
from cdi.image.info import ImageInfo
from cdi.image.plan import Plan, end_mark, needs_scratch
from cdi.image.plan import plan as plan_for
from cdi.image.qcow2_map import MapTooLarge, Qcow2Map
from cdi.image.sizes import MAX_DISK, format_size
from cdi.source.base import Source
from cdi.target.base import Target
from cdi.target.errors import map_os_errors
from cdi.target.open import open_target
from cdi.transfer.available_size import size_within_room
from cdi.transfer.bounds_check import check_source_bounds
from cdi.transfer.control import TransferControl
from cdi.transfer.expected_digest import ExpectedDigest, expectation
from cdi.transfer.hashed_stream import HashedStream
from cdi.transfer.journal import is_dirty, mark_dirty, remove
from cdi.transfer.plan_input import plan_input
from cdi.transfer.qcow2_ranged import load_map, qcow2_ranged
from cdi.transfer.qcow2_stream import Qcow2Stream
from cdi.transfer.raw import raw_ranged, raw_stream
from cdi.transfer.reader import ResumingReader
from cdi.transfer.result import OutcomeBuilder
from cdi.transfer.resume import checkpointing, checkpoints, has_watermark, load_resume_point
from cdi.transfer.retry import RestartRequired
from cdi.transfer.unwrap import (
    DiskNotInLayer,
    NoDiskInLayer,
    UnwrappedImage,
    disk_not_in_archive,
    inspect_ranged,
    unwrap_stream,
)
from cdi.transfer.watermark import Watermark
from cdi.verify.hashing import ResumableHash

if TYPE_CHECKING:
    from cdi.transfer.disk_search import LayerReading

_TAIL = 512
_MAX_TRAILING = 128
_RAW = ImageInfo(format="raw", virtual_size=None)


class DiskTransfer:
    """One attempt to write the image in `source` to the disk of ``job.target``.

    If `layer` is given, the source is a layer of a container image and the disk is a file in it. After a retryable
    error the unfinished disk is kept (`cdi.transfer.cleanup` removes it if there is no retry); after any other error it
    is wiped.
    """

    def __init__(
        self,
        job: Job,
        source: Source,
        control: TransferControl,
        result: OutcomeBuilder,
        layer: LayerReading | None = None,
    ) -> None:
        self.job = job
        self.source = source
        self.control = control
        self.result = result
        self.layer = layer
        self.meter = control.meter

    def run(self) -> None:
        """Run the attempt.

        Raises:
            CdiError: The attempt failed.
            RestartRequired: The source has to be read again from its first byte.
        """
        fetcher = ResumingReader(self.source, self.control)
        self.control.on_cancel(fetcher.abort)
        target = open_target(self.job.target)
        earlier = self.result.written
        self.control.written = lambda: earlier + target.written
        try:
            self._import(fetcher, target)
        except CdiError as error:
            if error.retry is Retry.NEVER:
                self._wipe(target)
            raise
        finally:
            self.result.written += target.written
            self.control.written = lambda: self.result.written
            target.close()

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

    # --- inspect and plan ---------------------------------------------------------------------------------------

    def _import(self, fetcher: ResumingReader, target: Target) -> None:
        facts = fetcher.facts
        if isinstance(self.job.source, HttpSourceSpec) and (facts.content_type or "").startswith("text/"):
            self.result.warn(unexpected_content_type(facts.content_type or ""))
        self.result.validator = facts.validator
        self.meter.total = facts.length if facts.length is not None else facts.announced
        wanted = expectation(self.job, self.source, facts, self.result, self.control)
        fetcher.digest_promised = bool(wanted.promises)
        digest = None if wanted.algorithm is None else ResumableHash(wanted.algorithm)
        peeled = inspect_ranged(fetcher, facts, archive=False) if fetcher.ranged and self.layer is None else None
        if peeled is not None:
            self._ranged(fetcher, target, peeled, wanted, digest)
        else:
            self._streamed(fetcher, target, wanted, digest)

    def _plan(
        self,
        fetcher: ResumingReader,
        target: Target,
        peeled: UnwrappedImage,
        wanted: ExpectedDigest,
        engine: Literal["qemu"] | None = None,
    ) -> Plan:
        assert peeled.image is not None
        size = peeled.image.virtual_size
        if size is None and not peeled.wrappers:
            size = fetcher.facts.length
        found = plan_for(
            plan_input(
                replace(self.job, size=size_within_room(self.job, target, size)),
                fetcher.facts,
                image=peeled.image,
                wrappers=peeled.wrappers,
                capacity=target.capacity,
                reads_zero=target.reads_zero,
                digest_wanted=wanted.algorithm is not None,
                digest_promised=bool(wanted.promises),
                engine=engine,
            )
        )
        self.result.format = peeled.image.format
        self.result.wrappers = peeled.wrappers
        self.result.path = found.path
        self.result.virtual_size = peeled.image.virtual_size
        return found

    # --- sources with range requests ----------------------------------------------------------------------------

    def _ranged(
        self,
        fetcher: ResumingReader,
        target: Target,
        peeled: UnwrappedImage,
        wanted: ExpectedDigest,
        digest: ResumableHash | None,
    ) -> None:
        plan, image, length = self._plan(fetcher, target, peeled, wanted), peeled.image, fetcher.facts.length
        assert image is not None
        assert length is not None
        table: Qcow2Map | None = None
        if plan.path == "qcow2-ranged":
            try:
                table = load_map(fetcher, parse_header(peeled.head, length), length, plan.connections, peeled.head)
            except MapTooLarge:
                self.result.warn("the image has more extents than can be kept in memory: QEMU reads it")
                plan = self._plan(fetcher, target, peeled, wanted, "qemu")
        if plan.path == "qemu-bridge":
            check_source_bounds(fetcher, image, plan.connections, peeled.head)
            self._prepare_target(target, plan, image)
            self.meter.phase = "converting"
            from cdi.transfer.qemu_pipelines import convert_bridged

            convert_bridged(self.job, fetcher, target, image, plan, digest, self.control, self.result)
            self._verify_and_commit(fetcher, target, plan, wanted, digest)
            return
        assert plan.disk_size is not None
        start, digest = load_resume_point(self.job, fetcher.facts, target, plan, wanted, digest, self.result)
        if start is None:
            if table is not None and isinstance(self.job.target, FileTargetSpec):
                self._check_room(self.job.target, table.data_bytes())
            self._prepare_target(target, plan, image)
        self.result.resumed_at = start or 0
        self.meter.restart(f"resumed at {format_size(start)}" if start else "", start or 0)
        self.meter.phase = "transferring"
        self.result.target_modified = True
        watermark = Watermark(
            start or 0,
            digest,
            self.meter,
            self.control.cancelled,
            checkpoints(self.job, fetcher.facts, target, plan, wanted),
        )
        done = False
        try:
            if table is not None:
                qcow2_ranged(
                    fetcher,
                    table,
                    target,
                    watermark,
                    length=length,
                    whole=digest is not None,
                    connections=plan.connections,
                )
            else:
                payload = image.raw_extent[1] if image.raw_extent is not None else length
                raw_ranged(fetcher, target, watermark, length=length, payload=payload, connections=plan.connections)
            done = True
        finally:
            watermark.close(final=not done)
        self.meter.advance(length)
        self._verify_and_commit(fetcher, target, plan, wanted, digest)

    # --- sources that are read once, in order -------------------------------------------------------------------

    def _streamed(
        self, fetcher: ResumingReader, target: Target, wanted: ExpectedDigest, digest: ResumableHash | None
    ) -> None:
        facts = fetcher.facts
        start, plan = 0, None
        if facts.resumes and has_watermark(self.job, "raw-stream"):
            plan = self._plan(fetcher, target, UnwrappedImage((), _RAW), wanted)
            found, digest = load_resume_point(self.job, facts, target, plan, wanted, digest, self.result)
            start, plan = (0, None) if found is None else (found, plan)
        connections = self.job.policy.connections or (4 if fetcher.ranged else 1)
        intake = HashedStream(fetcher, digest, self.meter, connections, start)
        pieces: Iterator[memoryview] = intake.pieces()
        try:
            if plan is not None:
                self.result.target_modified, self.result.resumed_at = True, start
                self.meter.restart(f"resumed at {format_size(start)}", start)
                self.meter.phase = "transferring"
                disk_size: int | None = self._raw_stream(pieces, fetcher, target, plan, wanted, intake)
            else:
                plan, disk_size = self._import_stream(pieces, fetcher, target, wanted, digest, intake)
            # Read the data after the image too: the content's length and digest include it.
            for _ in pieces:
                pass
        except ImageError as error:
            if isinstance(error, ContentTruncated) or intake.is_empty:
                raise fetcher.truncated(error) from error
            raise
        finally:
            intake.close()
        self._verify_and_commit(fetcher, target, plan, wanted, digest, disk_size=disk_size)

    def _import_stream(
        self,
        pieces: Iterator[memoryview],
        fetcher: ResumingReader,
        target: Target,
        wanted: ExpectedDigest,
        digest: ResumableHash | None,
        intake: HashedStream,
    ) -> tuple[Plan, int | None]:
        """Unwrap the stream from its first byte and write the image; return the plan and the disk's size in bytes."""
        try:
            layer = None if self.layer is None else self.layer.content
            peeled = unwrap_stream(pieces, fetcher.facts, archive=False, layer=layer, on_format=self._require_scratch)
        except DiskNotInLayer as none:
            self._no_disk(none, pieces, fetcher, wanted, digest)
        plan, image = self._plan(fetcher, target, peeled, wanted), peeled.image
        assert image is not None
        assert peeled.stream is not None
        stream = intake.interruptible(peeled.stream)
        if plan.path == "qemu-spool":
            from cdi.transfer.qemu_pipelines import convert_spooled

            def begin(image: ImageInfo) -> None:
                nonlocal plan
                plan = self._plan(fetcher, target, UnwrappedImage(peeled.wrappers, image), wanted)
                self._prepare_target(target, plan, image)

            convert_spooled(self.job, stream, target, begin, self.control, self.result)
            return plan, plan.disk_size
        self._prepare_target(target, plan, image)
        self.meter.phase = "transferring"
        if plan.path == "qcow2-stream":
            self._qcow2_stream(stream, target)
            return plan, plan.disk_size
        whole = None if peeled.wrappers else intake
        return plan, self._raw_stream(stream, fetcher, target, plan, wanted, whole)

    def _require_scratch(self, image_format: str) -> None:
        """Raise `ScratchNeeded` as soon as the format is known, while an upload can still be restarted."""
        if self.job.scratch is None and needs_scratch(image_format):
            raise ScratchNeeded(
                f"no scratch space is given, and {image_format} from a source that can be read only once is kept there"
            )

    def _no_disk(
        self,
        none: DiskNotInLayer,
        pieces: Iterator[memoryview],
        fetcher: ResumingReader,
        wanted: ExpectedDigest,
        digest: ResumableHash | None,
    ) -> NoReturn:
        """Raise the error for a missing disk after the digest was verified: damaged content proves nothing."""
        for _ in pieces:
            pass
        if digest is not None:
            location = fetcher.facts.location
            wanted.check(digest.digest(), location, self.result, may_be_cut=fetcher.may_be_cut)
        if isinstance(none, NoDiskInLayer):
            raise none
        raise disk_not_in_archive(fetcher.facts.location)

    def _qcow2_stream(self, stream: Iterator[bytes | memoryview], target: Target) -> None:
        held = bytearray()
        while len(held) < 64 << 10 and (piece := next(stream, None)) is not None:
            held += piece
        reader = Qcow2Stream(parse_header(bytes(held), None), target, self.job.scratch)

        def whole() -> Iterator[bytes | memoryview]:
            yield memoryview(held)
            yield from stream

        try:
            reader.run(whole())
        except MapTooLarge:
            raise FormatUnsupported(
                "the image has more extents than can be kept in memory while it streams",
                remedy="serve it with byte ranges and not compressed as a whole",
            ) from None
        finally:
            self.result.scratch += reader.scratch

    def _raw_stream(
        self,
        stream: Iterator[bytes | memoryview],
        fetcher: ResumingReader,
        target: Target,
        plan: Plan,
        wanted: ExpectedDigest,
        intake: HashedStream | None,
    ) -> int:
        """Write a raw stream and return the disk's size in bytes.

        `intake` is given if the stream is the unwrapped content.
        """
        facts, disk_size = fetcher.facts, plan.disk_size
        if disk_size is not None:
            limit, grow = disk_size, None
        else:
            limit, grow = target.capacity or MAX_DISK, target.resize
        has_vhd_footer, trailing = False, facts.announced is not None and intake is not None
        if trailing and (facts.announced or 0) - _MAX_TRAILING > limit:
            raise TargetTooSmall(f"the image has {facts.announced} bytes, but the disk may have only {limit}")

        def trim(tail: memoryview, total: int) -> int:
            """Return the number of trailing bytes that do not belong to the disk.

            A fixed VHD is a raw disk followed by a footer, and some upload clients send a form's closing delimiter.
            """
            nonlocal has_vhd_footer
            extra = _closing_length(tail) if trailing else 0
            payload = fixed_payload(bytes(tail[: len(tail) - extra][-_TAIL:]), total - extra)
            if payload is None:
                return extra
            self.result.format = "vpc"
            has_vhd_footer = True
            return total - payload

        with checkpointing(self.job, facts, target, plan, wanted, intake, self.control) as watermark:
            size = raw_stream(stream, target, limit=limit, grow=grow, trim=trim, watermark=watermark)
        self.result.virtual_size = size
        rounded = -(-size // 512) * 512
        if has_vhd_footer and self.job.size is None and target.capacity is None:
            # The disk was sized by the length of the content, footer included.
            disk_size = None
        if disk_size is not None and disk_size > size and (has_vhd_footer or not target.reads_zero):
            target.zero(size, disk_size - size)
        if disk_size is None:
            target.resize(rounded)
        return disk_size or rounded

    # --- prepare and commit -------------------------------------------------------------------------------------

    def _prepare_target(self, target: Target, plan: Plan, image: ImageInfo) -> None:
        """Resize the disk and discard the data of earlier attempts."""
        self.result.target_modified = True
        if self.job.journal is not None:
            with map_os_errors(self.job.journal):
                mark_dirty(self.job.journal)
        if plan.disk_size is not None:
            target.resize(plan.disk_size)
        target.reset()
        if self.job.policy.preallocation and plan.disk_size is not None:
            target.preallocate()
            self.result.preallocated = True
        # The disk beyond the image must read as zeros, but a block device may still hold old data there.
        size = image.virtual_size
        if size is not None and not target.reads_zero and target.size > size:
            target.zero(size, target.size - size)

    def _check_room(self, spec: FileTargetSpec, data: int) -> None:
        """Raise `TargetFull` before anything is fetched if the volume has less than `data` bytes free."""
        found = os.statvfs(os.path.dirname(spec.path) or ".")
        free = found.f_bavail * found.f_frsize
        if data > free:
            raise TargetFull(
                f"the image holds {format_size(data)} ({data} bytes) of data and the volume has {format_size(free)} "
                f"({free} bytes) free",
                where=spec.path,
            )

    def _verify_and_commit(
        self,
        fetcher: ResumingReader,
        target: Target,
        plan: Plan,
        wanted: ExpectedDigest,
        digest: ResumableHash | None,
        *,
        disk_size: int | None = None,
    ) -> None:
        """Verify the content, then flush the disk, then give it its final name."""
        facts = fetcher.facts
        self.meter.phase = "verifying"
        proof = fetcher.proof_of_end(end_marked=end_mark(self.result.wrappers, self.result.format) is not None)
        if proof is not None:
            self.result.verified(proof)
        elif fetcher.unclean_end is not None and not wanted.promises:
            raise RestartRequired(fetcher.unclean_end)
        if digest is not None:
            wanted.check(digest.digest(), facts.location, self.result, may_be_cut=fetcher.may_be_cut)
        fetcher.check()
        if self.layer is not None:
            # Check before the commit: a lower layer may hold a second disk, which makes the image ambiguous.
            self.layer.confirm()
        disk_size = disk_size or plan.disk_size
        if self.job.policy.preallocation and not self.result.preallocated:
            target.preallocate()
            self.result.preallocated = True
        self.meter.phase = "flushing"
        target.commit()
        remove(self.job.journal)
        self.result.disk_size = disk_size


def _closing_length(tail: memoryview) -> int:
    from cdi.codec.multipart import closing_length

    return closing_length(bytes(tail[-_MAX_TRAILING:]))
