"""What was found, in the words of `cdi.image.plan`."""

from __future__ import annotations

from typing import Literal, assert_never

from cdi.api.job import BlockTargetSpec, DirectoryTargetSpec, FileTargetSpec, Job
from cdi.image.info import ImageInfo
from cdi.image.plan import PlanInput
from cdi.source.base import SourceFacts


def plan_input(
    job: Job,
    facts: SourceFacts,
    *,
    image: ImageInfo | None,
    wrappers: tuple[str, ...],
    capacity: int | None,
    reads_zero: bool,
    digest_wanted: bool,
    engine: Literal["auto", "qemu"] | None = None,
) -> PlanInput:
    """The facts that decide how `job` is done; `engine` overrides its policy."""
    return PlanInput(
        length=facts.length,
        ranges=facts.ranges,
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
