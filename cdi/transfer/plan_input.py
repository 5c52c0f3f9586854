"""Input for `cdi.image.plan`, derived from the job, the source and the image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, assert_never

from cdi.api.job import BlockTargetSpec, DirectoryTargetSpec, FileSourceSpec, FileTargetSpec, Job
from cdi.image.info import ImageInfo
from cdi.image.plan import PlanInput
from cdi.source.base import Ending, SourceFacts

if TYPE_CHECKING:
    from cdi.transfer.expected_digest import ExpectedDigest
    from cdi.transfer.unwrap import UnwrappedImage


def may_use_ranges(facts: SourceFacts, *, digest_promised: bool) -> bool:
    """Return whether content may be read with range requests, over several connections and across connection losses.

    All ranges must be of the same content: either every response carries the same validator, or the digest of the whole
    is compared with an expected one. A weak validator is accepted too. A Last-Modified does not distinguish versions
    within one second (RFC 9110 section 8.8.2.2), but the alternative is to read everything over one connection.
    """
    return facts.ranges and facts.length is not None and (facts.validator is not None or digest_promised)


class PlannedTarget(Protocol):
    """What a plan depends on of a target."""

    capacity: int | None
    reads_zero: bool


def plan_input(
    job: Job,
    facts: SourceFacts,
    unwrapped: UnwrappedImage,
    expected: ExpectedDigest | None,
    target: PlannedTarget | None = None,
) -> PlanInput:
    """Return the facts that determine the plan for `job`.

    Args:
        job: The job.
        facts: What is known about its source.
        unwrapped: The image in the source; without one, an archive.
        expected: The content's digest, if any is computed.
        target: The disk; None if it is not open, or a directory.
    """
    promised = expected is not None and bool(expected.promises)
    ranges = may_use_ranges(facts, digest_promised=promised)
    return PlanInput(
        length=facts.length,
        ranges=ranges,
        unversioned=facts.ranges and facts.length is not None and not ranges,
        close_delimited=facts.length is None and facts.ending is Ending.CLOSE,
        local=isinstance(job.source, FileSourceSpec),
        location=facts.location,
        wrappers=unwrapped.wrappers,
        image=_sized(unwrapped.image, facts, unwrapped.wrappers),
        content_type=job.content_type,
        target=target_kind(job),
        size=job.size,
        capacity=None if target is None else target.capacity,
        reads_zero=target is None or target.reads_zero,
        engine=job.policy.engine,
        preallocation=job.policy.preallocation,
        connections=job.policy.connections,
        digest_promised=promised,
        scratch=job.scratch is not None,
    )


def _sized(image: ImageInfo | None, facts: SourceFacts, wrappers: tuple[str, ...]) -> ImageInfo | None:
    """Return `image`; if it is a raw image in a stream, with the length announced by the source as its size."""
    if image is None or image.format != "raw" or image.virtual_size is not None or wrappers or facts.length is None:
        return image
    from dataclasses import replace

    return replace(image, virtual_size=facts.length)


def target_kind(job: Job) -> Literal["file", "block", "directory"]:
    match job.target:
        case FileTargetSpec():
            return "file"
        case BlockTargetSpec():
            return "block"
        case DirectoryTargetSpec():
            return "directory"
        case _:
            assert_never(job.target)
