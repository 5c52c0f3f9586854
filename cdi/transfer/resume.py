"""Resuming an earlier attempt: checks that its journal matches the content and the disk, and writes new journals."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdi.api.job import Job
from cdi.atomic_file import mapped
from cdi.image.plan import Plan
from cdi.source.base import SourceFacts
from cdi.target.base import Target
from cdi.transfer.expected_digest import ExpectedDigest
from cdi.transfer.journal import Journal, encode_state
from cdi.transfer.result import OutcomeBuilder

if TYPE_CHECKING:
    from cdi.verify.hashing import ResumableHash

LOG = logging.getLogger(__name__)


def has_watermark(job: Job, path: str) -> bool:
    """Return whether an earlier attempt at `job` left a watermark of this pipeline."""
    journal = None if job.journal is None else Journal.load(job.journal)
    return journal is not None and journal.job == job.id and journal.path == path


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where an earlier attempt ended."""

    offset: int
    """Offset in the source, in bytes."""
    digest: ResumableHash | None
    """Digest of the content before it; None if none is needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """The checkpoints of one pipeline: writes a journal that a later attempt can resume from."""

    job: Job
    facts: SourceFacts
    target: Target
    plan: Plan
    expected: ExpectedDigest

    def save(self, watermark: int, state: bytes | None) -> None:
        """Flush the target and write a journal; raise the errors of the target, and of the journal's file system."""
        path, disk_size = self.job.journal, self.plan.disk_size
        assert path is not None
        assert disk_size is not None
        self.target.flush()
        journal = Journal(
            job=self.job.id,
            path=self.plan.path,
            validator=self.facts.validator,
            length=self.facts.length,
            watermark=watermark,
            disk_size=disk_size,
            algorithm=self.expected.algorithm,
            digest_state=encode_state(state),
        )
        with mapped("the import's journal", path):
            journal.save(path)
        LOG.debug("checkpoint at byte %d of %s", watermark, self.facts.length)

    def matches(self, journal: Journal) -> bool:
        """Return whether `journal` is of the same content, pipeline and disk."""
        # Without a validator, only the comparison with an expected digest can show that the content is still the same.
        known = self.facts.validator is not None or bool(self.expected.promises)
        return (
            known
            and journal.job == self.job.id
            and journal.path == self.plan.path
            and journal.validator == self.facts.validator
            and journal.length == self.facts.length
            and journal.disk_size == self.plan.disk_size == self._size()
            and journal.watermark <= (self.facts.length or 0)
        )

    def _size(self) -> int | None:
        """Return the size in bytes of the disk that an earlier attempt left.

        This is the size of a file. The size of a device does not show how much of it is the disk; only the journal
        does.
        """
        if self.target.capacity is None or self.plan.disk_size is None:
            return self.target.size
        return min(self.plan.disk_size, self.target.capacity)


def load_resume_point(checkpoints: Checkpoints, result: OutcomeBuilder) -> ResumePoint | None:
    """Return where to resume; None if the disk has to be written from its start.

    If there is a resume point, the target is resized and ready for writing. Raises the target's errors.
    """
    path, target = checkpoints.job.journal, checkpoints.target
    journal = None if path is None else Journal.load(path)
    if journal is None:
        return None
    if not checkpoints.matches(journal):
        result.warn("the content or the volume changed since an earlier attempt; starting over")
        return None
    digest = None
    if (algorithm := checkpoints.expected.algorithm) is not None:
        if journal.algorithm == algorithm and journal.state is not None:
            from cdi.verify.hashing import ResumableHash

            digest = ResumableHash.restore(algorithm, journal.state)
        if digest is None:
            result.warn("the digest of an earlier attempt cannot be resumed; starting over")
            return None
    if target.size != journal.disk_size:
        target.resize(journal.disk_size)
    return ResumePoint(journal.watermark, digest)
