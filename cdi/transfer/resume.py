"""Resuming an earlier attempt: checks that its journal matches the content and the disk, and writes new journals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cdi.api.job import Job
from cdi.atomic_file import mapped
from cdi.image.plan import Plan
from cdi.source.base import SourceFacts
from cdi.target.base import Target
from cdi.transfer.control import TransferControl
from cdi.transfer.expected_digest import ExpectedDigest
from cdi.transfer.hashed_stream import HashedStream
from cdi.transfer.journal import Journal, encode_state
from cdi.transfer.result import OutcomeBuilder
from cdi.transfer.watermark import Watermark
from cdi.verify.hashing import ResumableHash


def has_watermark(job: Job, path: str) -> bool:
    """Return whether an earlier attempt at `job` left a watermark of this pipeline."""
    journal = None if job.journal is None else Journal.load(job.journal)
    return journal is not None and journal.job == job.id and journal.path == path


def load_resume_point(
    job: Job,
    facts: SourceFacts,
    target: Target,
    plan: Plan,
    wanted: ExpectedDigest,
    digest: ResumableHash | None,
    result: OutcomeBuilder,
) -> tuple[int | None, ResumableHash | None]:
    """Return the watermark to resume from and the digest's state at it.

    If there is a watermark, the target is resized and ready for writing. Raises the target's errors.

    Returns:
        The offset in bytes, or None if the disk has to be written from its start; and the restored digest, or `digest`.
    """
    journal = None if job.journal is None else Journal.load(job.journal)
    if journal is None:
        return None, digest
    # Without a validator, only the comparison with an expected digest can show that the content is still the same.
    known = facts.validator is not None or bool(wanted.promises)
    same = (
        journal.job == job.id
        and journal.path == plan.path
        and journal.validator == facts.validator
        and journal.length == facts.length
        and journal.disk_size == plan.disk_size == _size(target, plan)
        and journal.watermark <= (facts.length or 0)
    )
    if not same or not known:
        result.warn("the content or the volume changed since an earlier attempt; starting over")
        return None, digest
    if digest is not None:
        state = journal.state
        restored = None
        if journal.algorithm == wanted.algorithm and state is not None:
            restored = ResumableHash.restore(journal.algorithm or "", state)
        if restored is None:
            result.warn("the digest of an earlier attempt cannot be resumed; starting over")
            return None, digest
        digest = restored
    if target.size != journal.disk_size:
        target.resize(journal.disk_size)
    return journal.watermark, digest


def _size(target: Target, plan: Plan) -> int | None:
    """Return the size in bytes of the disk that an earlier attempt left.

    This is the size of a file. The size of a device does not show how much of it is the disk; only the journal does.
    """
    if target.capacity is None or plan.disk_size is None:
        return target.size
    return min(plan.disk_size, target.capacity)


def checkpoints(
    job: Job, facts: SourceFacts, target: Target, plan: Plan, wanted: ExpectedDigest
) -> Callable[[int, bytes | None], None] | None:
    """Return a function that flushes the target and writes a journal; None if the job has no journal."""
    path, disk_size = job.journal, plan.disk_size
    if path is None:
        return None
    assert disk_size is not None

    def checkpoint(watermark: int, state: bytes | None) -> None:
        target.flush()
        journal = Journal(
            job=job.id,
            path=plan.path,
            validator=facts.validator,
            length=facts.length,
            watermark=watermark,
            disk_size=disk_size,
            algorithm=wanted.algorithm,
            digest_state=encode_state(state),
        )
        with mapped("the import's journal", path):
            journal.save(path)

    return checkpoint


@contextmanager
def checkpointing(
    job: Job,
    facts: SourceFacts,
    target: Target,
    plan: Plan,
    wanted: ExpectedDigest,
    intake: HashedStream | None,
    control: TransferControl,
) -> Iterator[Watermark | None]:
    """Yield a watermark with checkpoints for a stream that is written in order; None if it could not be resumed.

    `intake` is None if the written data is not the unwrapped content. Raises what a checkpoint raised.
    """
    if not facts.resumes or intake is None or job.journal is None or plan.disk_size is None:
        yield None
        return
    intake.record_states = True
    save = checkpoints(job, facts, target, plan, wanted)
    assert save is not None

    def checkpoint(watermark: int, _state: bytes | None) -> None:
        passed = intake.checkpoint_before(watermark)
        if passed is not None:
            save(*passed)

    mark = Watermark(intake.start, None, control.meter, control.cancelled, checkpoint)
    done = False
    try:
        yield mark
        done = True
    finally:
        mark.close(final=not done)
