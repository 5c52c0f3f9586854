"""One attempt to import a disk image: inspect, plan, write, verify, commit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NoReturn

from cdi.api.errors import (
    CdiError,
    ContentTruncated,
    DiskNotInImage,
    FormatUnsupported,
    ImageError,
    Retry,
    ScratchNeeded,
    TargetFull,
    TargetTooSmall,
)
from cdi.api.job import FileTargetSpec, Job
from cdi.image.formats.qcow2 import parse_header
from cdi.image.formats.vpc import fixed_payload
from cdi.image.info import ImageInfo
from cdi.image.plan import Plan, end_mark, needs_scratch
from cdi.image.plan import plan as plan_for
from cdi.image.qcow2map import MapTooLarge, Qcow2Map
from cdi.image.sizes import MAX_DISK, human
from cdi.source.base import Source
from cdi.target.base import Target
from cdi.target.failure import mapped
from cdi.target.open import open_target
from cdi.transfer.control import Control
from cdi.transfer.expect import Expectation, expectation
from cdi.transfer.fetch import Fetcher
from cdi.transfer.intake import Intake
from cdi.transfer.journal import forget, mark, marked
from cdi.transfer.peel import NoDisk, NoDiskInLayer, Peeled, peel_ranged, peel_stream
from cdi.transfer.planning import plan_input
from cdi.transfer.qcow2_ranged import load_map, qcow2_ranged
from cdi.transfer.qcow2_stream import Qcow2Stream
from cdi.transfer.raw import raw_ranged, raw_stream
from cdi.transfer.reach import reach_of_source
from cdi.transfer.result import Result
from cdi.transfer.resume import checkpoints, has_watermark, keep_watermark, resume
from cdi.transfer.retry import RestartRequired
from cdi.transfer.watermark import Watermark
from cdi.verify.hashing import ResumableHash

if TYPE_CHECKING:
    from cdi.transfer.disk_search import LayerReading

_TAIL = 512
_MOST_TRAILING = 128
_RAW = ImageInfo(format="raw", virtual_size=None)


class DiskTransfer:
    """One attempt to write the image in `source` to the disk of ``job.target``.

    If `layer` is given, the source is a layer of a container image and the disk is a file in it. After a retryable
    error the unfinished disk is kept (`cdi.transfer.abandon` removes it if there is no retry); after any other error it
    is wiped.
    """

    def __init__(
        self,
        job: Job,
        source: Source,
        control: Control,
        result: Result,
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
        fetcher = Fetcher(self.source, self.control)
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
            self.result.begun
            or self.job.continued
            or marked(self.job.journal)
            or isinstance(self.job.target, FileTargetSpec)
        ):
            target.wipe()
        forget(self.job.journal)
        self.result.begun, self.result.wiped = False, True

    # --- inspect and plan ---------------------------------------------------------------------------------------

    def _import(self, fetcher: Fetcher, target: Target) -> None:
        facts = fetcher.facts
        self.result.validator = facts.validator
        self.meter.total = facts.length if facts.length is not None else facts.announced
        wanted = expectation(self.job, self.source, facts, self.result, self.control)
        fetcher.digest_promised = bool(wanted.promises)
        digest = None if wanted.algorithm is None else ResumableHash(wanted.algorithm)
        peeled = peel_ranged(fetcher, facts, archive=False) if fetcher.ranged and self.layer is None else None
        if peeled is not None:
            self._ranged(fetcher, target, peeled, wanted, digest)
        else:
            self._streamed(fetcher, target, wanted, digest)

    def _plan(
        self,
        fetcher: Fetcher,
        target: Target,
        peeled: Peeled,
        wanted: Expectation,
        engine: Literal["qemu"] | None = None,
    ) -> Plan:
        assert peeled.image is not None
        found = plan_for(
            plan_input(
                self.job,
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
        self, fetcher: Fetcher, target: Target, peeled: Peeled, wanted: Expectation, digest: ResumableHash | None
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
            reach_of_source(fetcher, image, plan.connections, peeled.head)
            self._begin(target, plan, image)
            self.meter.phase = "converting"
            from cdi.transfer.through_qemu import convert_bridged

            convert_bridged(self.job, fetcher, target, image, plan, digest, self.control, self.result)
            self._finish(fetcher, target, plan, wanted, digest)
            return
        assert plan.disk_size is not None
        start, digest = resume(self.job, fetcher.facts, target, plan, wanted, digest, self.result)
        if start is None:
            if table is not None and isinstance(self.job.target, FileTargetSpec):
                self._check_room(self.job.target, table.data_bytes())
            self._begin(target, plan, image)
        self.result.resumed_at = start or 0
        self.meter.restart(f"resumed at {human(start)}" if start else "", start or 0)
        self.meter.phase = "transferring"
        self.result.begun = True
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
                payload = image.payload[1] if image.payload is not None else length
                raw_ranged(fetcher, target, watermark, length=length, payload=payload, connections=plan.connections)
            done = True
        finally:
            watermark.close(final=not done)
        self.meter.advance(length)
        self._finish(fetcher, target, plan, wanted, digest)

    # --- sources that are read once, in order -------------------------------------------------------------------

    def _streamed(self, fetcher: Fetcher, target: Target, wanted: Expectation, digest: ResumableHash | None) -> None:
        facts = fetcher.facts
        start, plan = 0, None
        if facts.resumes and has_watermark(self.job, "raw-stream"):
            plan = self._plan(fetcher, target, Peeled((), _RAW), wanted)
            found, digest = resume(self.job, facts, target, plan, wanted, digest, self.result)
            start, plan = (0, None) if found is None else (found, plan)
        connections = self.job.policy.connections or (4 if fetcher.ranged else 1)
        intake = Intake(fetcher, digest, self.meter, connections, start)
        pieces: Iterator[memoryview] = intake.pieces()
        try:
            if plan is not None:
                self.result.begun, self.result.resumed_at = True, start
                self.meter.restart(f"resumed at {human(start)}", start)
                self.meter.phase = "transferring"
                disk_size: int | None = self._raw_stream(pieces, fetcher, target, plan, wanted, intake)
            else:
                plan, disk_size = self._unwrapped(pieces, fetcher, target, wanted, digest, intake)
            # Read the data after the image too: the content's length and digest include it.
            for _ in pieces:
                pass
        except ImageError as error:
            if isinstance(error, ContentTruncated) or intake.is_empty:
                raise fetcher.truncated(error) from error
            raise
        finally:
            intake.close()
        self._finish(fetcher, target, plan, wanted, digest, disk_size=disk_size)

    def _unwrapped(
        self,
        pieces: Iterator[memoryview],
        fetcher: Fetcher,
        target: Target,
        wanted: Expectation,
        digest: ResumableHash | None,
        intake: Intake,
    ) -> tuple[Plan, int | None]:
        """Unwrap the stream from its first byte and write the image; return the plan and the disk's size in bytes."""
        try:
            layer = None if self.layer is None else self.layer.content
            peeled = peel_stream(pieces, fetcher.facts, archive=False, layer=layer, on_format=self._require_scratch)
        except NoDisk as none:
            self._no_disk(none, pieces, fetcher, wanted, digest)
        plan, image = self._plan(fetcher, target, peeled, wanted), peeled.image
        assert image is not None
        assert peeled.stream is not None
        stream = intake.interruptible(peeled.stream)
        if plan.path == "qemu-spool":
            from cdi.transfer.through_qemu import convert_spooled

            def begin(image: ImageInfo) -> None:
                nonlocal plan
                plan = self._plan(fetcher, target, Peeled(peeled.wrappers, image), wanted)
                self._begin(target, plan, image)

            convert_spooled(self.job, stream, target, begin, self.control, self.result)
            return plan, plan.disk_size
        self._begin(target, plan, image)
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
        none: NoDisk,
        pieces: Iterator[memoryview],
        fetcher: Fetcher,
        wanted: Expectation,
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
        raise DiskNotInImage("the archive contains no disk file", where=fetcher.facts.location)

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
        fetcher: Fetcher,
        target: Target,
        plan: Plan,
        wanted: Expectation,
        intake: Intake | None,
    ) -> int:
        """Write a raw stream and return the disk's size in bytes.

        `intake` is given if the stream is the unwrapped content.
        """
        facts, disk_size = fetcher.facts, plan.disk_size
        if disk_size is not None:
            limit, grow = disk_size, None
        else:
            limit, grow = target.capacity or MAX_DISK, target.resize
        footed, trailing = False, facts.announced is not None and intake is not None
        if trailing and (facts.announced or 0) - _MOST_TRAILING > limit:
            raise TargetTooSmall(f"the image has {facts.announced} bytes, but the disk may have only {limit}")

        def trim(tail: memoryview, total: int) -> int:
            """Return the number of trailing bytes that do not belong to the disk.

            A fixed VHD is a raw disk followed by a footer, and some upload clients send a form's closing delimiter.
            """
            nonlocal footed
            extra = _closing_length(tail) if trailing else 0
            payload = fixed_payload(bytes(tail[: len(tail) - extra][-_TAIL:]), total - extra)
            if payload is None:
                return extra
            self.result.format = "vpc"
            footed = True
            return total - payload

        with keep_watermark(self.job, facts, target, plan, wanted, intake, self.control) as watermark:
            size = raw_stream(stream, target, limit=limit, grow=grow, trim=trim, watermark=watermark)
        self.result.virtual_size = size
        rounded = -(-size // 512) * 512
        if footed and self.job.size is None and target.capacity is None:
            # The disk was sized by the length of the content, footer included.
            disk_size = None
        if disk_size is not None and disk_size > size and (footed or not target.reads_zero):
            target.zero(size, disk_size - size)
        if disk_size is None:
            target.resize(rounded)
        return disk_size or rounded

    # --- prepare and commit -------------------------------------------------------------------------------------

    def _begin(self, target: Target, plan: Plan, image: ImageInfo) -> None:
        """Resize the disk and discard the data of earlier attempts."""
        self.result.begun = True
        if self.job.journal is not None:
            with mapped(self.job.journal):
                mark(self.job.journal)
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
                f"the image holds {human(data)} ({data} bytes) of data and the volume has {human(free)} "
                f"({free} bytes) free",
                where=spec.path,
            )

    def _finish(
        self,
        fetcher: Fetcher,
        target: Target,
        plan: Plan,
        wanted: Expectation,
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
        forget(self.job.journal)
        self.result.disk_size = disk_size


def _closing_length(tail: memoryview) -> int:
    from cdi.codec.multipart import closing_length

    return closing_length(bytes(tail[-_MOST_TRAILING:]))
