"""State of one attempt to import a source, which all of its steps share."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from cdi.api.job import Job
from cdi.image.plan import Plan
from cdi.image.plan import plan as plan_for
from cdi.image.sizes import format_size
from cdi.target.base import Target
from cdi.target.errors import map_os_errors
from cdi.transfer.available_size import size_within_room
from cdi.transfer.control import TransferControl
from cdi.transfer.expected_digest import ExpectedDigest
from cdi.transfer.hashed_stream import HashedStream
from cdi.transfer.journal import mark_dirty
from cdi.transfer.plan_input import plan_input
from cdi.transfer.reader import ResumingReader
from cdi.transfer.result import OutcomeBuilder
from cdi.transfer.resume import Checkpoints, load_resume_point
from cdi.transfer.unwrap import UnwrappedImage
from cdi.transfer.watermark import Hash, Watermark

if TYPE_CHECKING:
    from cdi.verify.hashing import ResumableHash

LOG = logging.getLogger(__name__)
_STREAM_CONNECTIONS = 4


@dataclass(slots=True, kw_only=True)
class SourceContext:
    """One pass over a source, with the digest that its content is expected to have."""

    job: Job
    reader: ResumingReader
    control: TransferControl
    result: OutcomeBuilder
    expected: ExpectedDigest
    digest: ResumableHash | None = field(init=False)
    """Digest of the content that was read so far; None if no digest is needed."""

    def __post_init__(self) -> None:
        algorithm = self.expected.algorithm
        self.digest = None
        if algorithm is not None:
            # Loading the hash functions takes time, and most content has no known digest.
            from cdi.verify.hashing import ResumableHash

            self.digest = ResumableHash(algorithm)
        self.reader.digest_promised = bool(self.expected.promises)

    def stream(self, start: int = 0) -> HashedStream:
        """Return the content from byte `start` on, which is 0 unless the source `resumes`."""
        connections = self.job.policy.connections or (_STREAM_CONNECTIONS if self.reader.ranged else 1)
        return HashedStream(self.reader, self.digest, self.control.meter, connections, start)

    def verify_digest(self) -> None:
        """Compare the digest of the content, which was read to its end; raise what `ExpectedDigest.check` raises."""
        if self.digest is not None:
            reader = self.reader
            found = self.digest.digest()
            self.expected.check(found, reader.facts.location, self.result, may_be_cut=reader.may_be_cut)


@dataclass(slots=True, kw_only=True)
class ImportContext(SourceContext):
    """One attempt to write a disk; `choose_plan` sets `unwrapped` and `plan`."""

    target: Target
    unwrapped: UnwrappedImage = field(init=False)
    plan: Plan = field(init=False)

    def choose_plan(self, unwrapped: UnwrappedImage) -> Plan:
        """Plan the import of `unwrapped` and record the plan; raise what `cdi.image.plan.plan` raises."""
        image, facts, result = unwrapped.image, self.reader.facts, self.result
        assert image is not None
        size = image.virtual_size
        if size is None and not unwrapped.wrappers:
            size = facts.length
        job = replace(self.job, size=size_within_room(self.job, self.target, size))
        self.unwrapped = unwrapped
        self.plan = plan_for(plan_input(job, facts, unwrapped, self.expected, self.target))
        LOG.debug("path %s: %s", self.plan.path, self.plan.reason)
        result.format, result.virtual_size = image.format, image.virtual_size
        result.wrappers, result.path = unwrapped.wrappers, self.plan.path
        return self.plan

    def resume_point(self) -> int | None:
        """Return the offset from which the plan's pipeline resumes, with `digest` set to its state there.

        Returns:
            The offset in bytes; None if the disk has to be written from its start. The target is then unchanged.
        """
        found = load_resume_point(self._checkpoints(), self.result)
        if found is None:
            return None
        if self.digest is not None:
            self.digest = found.digest
        self.result.target_modified, self.result.resumed_at = True, found.offset
        self.control.meter.restart(f"resumed at {format_size(found.offset)}" if found.offset else "", found.offset)
        return found.offset

    def prepare_target(self) -> None:
        """Resize the disk and discard the data of earlier attempts."""
        target, plan, image = self.target, self.plan, self.unwrapped.image
        assert image is not None
        self.result.target_modified, self.result.resumed_at = True, 0
        if self.job.journal is not None:
            with map_os_errors(self.job.journal):
                mark_dirty(self.job.journal)
        if plan.disk_size is not None:
            target.resize(plan.disk_size)
        target.reset()
        if plan.disk_size is not None:
            self.preallocate()
        # The disk beyond the image must read as zeros, but a block device may still hold old data there.
        size = image.virtual_size
        if size is not None and not target.reads_zero and target.size > size:
            target.zero(size, target.size - size)

    def preallocate(self) -> None:
        """Allocate the disk's blocks if the policy says so and it was not done yet."""
        if self.job.policy.preallocation and not self.result.preallocated:
            self.target.preallocate()
            self.result.preallocated = True

    def watermark(self, start: int, digest: Hash | None = None) -> Watermark:
        """Return the watermark of a pipeline that reads the source in pieces from `start` on, with checkpoints.

        `digest` takes the place of the digest of the content.
        """
        save = None if self.job.journal is None else self._checkpoints().save
        return Watermark(start, digest or self.digest, self.control.meter, self.control.cancelled, save)

    def stream_watermark(self, content: HashedStream) -> Watermark | None:
        """Return the watermark of content that is written in order; None if it could not be resumed."""
        if not self.reader.facts.resumes or self.job.journal is None or self.plan.disk_size is None:
            return None
        content.record_states = True
        checkpoints = self._checkpoints()

        def checkpoint(watermark: int, _state: bytes | None) -> None:
            passed = content.checkpoint_before(watermark)
            if passed is not None:
                checkpoints.save(*passed)

        return Watermark(content.start, None, self.control.meter, self.control.cancelled, checkpoint)

    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(
            job=self.job, facts=self.reader.facts, target=self.target, plan=self.plan, expected=self.expected
        )


class Pipeline(Protocol):
    """A way to move the image from the source to the target."""

    def run(self, context: ImportContext) -> int:
        """Prepare the target, write the whole image, and return the size of the disk in bytes."""
        ...
