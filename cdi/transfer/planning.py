"""What was found, in the words of `cdi.image.plan`."""

from __future__ import annotations

from typing import Literal, assert_never

from cdi.api.job import BlockTargetSpec, DirectoryTargetSpec, FileTargetSpec, Job
from cdi.image.info import ImageInfo
from cdi.image.plan import PlanInput
from cdi.source.base import Ending, SourceFacts


def may_use_ranges(facts: SourceFacts, *, digest_promised: bool) -> bool:
    """Return whether a content may be read in ranges, over several connections and continued after a break.

    Its pieces are then of one content: either every answer carries the same validator, or the digest of the whole is
    compared with a promised one.  A weak validator serves as well: of a Last-Modified, two versions within one second
    are the same (RFC 9110 section 8.8.2.2), which is better than to read everything over one connection.
    """
    return facts.ranges and facts.length is not None and (facts.validator is not None or digest_promised)


def plan_input(
    job: Job,
    facts: SourceFacts,
    *,
    image: ImageInfo | None,
    wrappers: tuple[str, ...],
    capacity: int | None,
    reads_zero: bool,
    digest_wanted: bool,
    digest_promised: bool,
    engine: Literal["auto", "qemu"] | None = None,
) -> PlanInput:
    """The facts that decide how `job` is done; `engine` overrides its policy."""
    ranges = may_use_ranges(facts, digest_promised=digest_promised)
    return PlanInput(
        length=facts.length,
        ranges=ranges,
        unversioned=facts.ranges and facts.length is not None and not ranges,
        close_delimited=facts.length is None and facts.ending is Ending.CLOSE,
        location=facts.location,
        wrappers=wrappers,
        image=_sized(image, facts, wrappers),
        content_type=job.content_type,
        target=target_kind(job),
        size=job.size,
        capacity=capacity,
        reads_zero=reads_zero,
        engine=engine or job.policy.engine,
        preallocation=job.policy.preallocation,
        connections=job.policy.connections,
        digest_wanted=digest_wanted,
        digest_promised=digest_promised,
        scratch=job.scratch is not None,
    )


def _sized(image: ImageInfo | None, facts: SourceFacts, wrappers: tuple[str, ...]) -> ImageInfo | None:
    """A raw image that comes as a stream has the length that its source announced."""
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
