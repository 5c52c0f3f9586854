"""Preview of what a worker would do with its source: the source is examined, and the transfer is planned."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cdi.api.errors import CdiError, ScratchNeeded
from cdi.api.job import BlankSourceSpec, Job
from cdi.client.with_progress import OnProgress
from cdi.explain.cron import CronFacts, ask_source
from cdi.explain.examine import examine_with_progress
from cdi.explain.findings import Ask, Findings
from cdi.image.block_map import TOO_LARGE
from cdi.image.plan import Plan, PlanInput
from cdi.image.plan import plan as plan_for
from cdi.transfer.plan_input import plan_input, target_kind
from cdi.transfer.unwrap import UnwrappedImage


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReport:
    """The source of a job, and the plan of its transfer."""

    job: Job
    found: Findings | None = None
    """None if nothing is fetched."""
    plan: Plan | None = None
    """None if the transfer is impossible."""
    cron: CronFacts | None = None
    """The DataImportCron, with the answer of its source."""
    refusal: CdiError | None = None
    """The first error that a worker would end with."""
    notes: tuple[str, ...] = ()


def report_source(job: Job, ask: Ask | None, cron: CronFacts | None, on_progress: OnProgress | None) -> SourceReport:
    """Examine the source of a job whose inputs exist.

    Args:
        job: The job.
        ask: What to examine.
        cron: The DataImportCron that would create the DataVolume, whose source is polled as well.
        on_progress: Called with the progress.

    Raises:
        Interrupted: The examination was cancelled.
    """
    found: Findings | None = None
    if not isinstance(job.source, BlankSourceSpec):
        found = examine_with_progress(job, ask or Ask(expected=True, allocation=True), on_progress)
    refused = None if found is None else found.refusal
    plan: Plan | None = None
    try:
        facts = _blank(job) if found is None else _fetched(job, found)
        plan = None if facts is None else _planned(facts)
    except CdiError as error:
        refused = refused or error
    if cron is not None:
        cron, failure = ask_source(cron, job, on_progress)
        refused = refused or failure
    many = found is not None and found.many_extents
    notes = ("the image has more extents than fit into memory: QEMU reads it",) if many else ()
    return SourceReport(job=job, found=found, plan=plan, cron=cron, refusal=refused, notes=notes)


def _planned(facts: PlanInput) -> Plan:
    """Return the plan of the attempt that succeeds: one that lacks scratch space is followed by one that has it."""
    try:
        return plan_for(facts)
    except ScratchNeeded:
        return plan_for(replace(facts, scratch=True))


def _blank(job: Job) -> PlanInput:
    return PlanInput(
        length=0,
        ranges=False,
        image=None,
        target=target_kind(job),
        size=job.size,
        preallocation=job.policy.preallocation,
        scratch=job.scratch is not None,
    )


def _fetched(job: Job, found: Findings) -> PlanInput | None:
    """Return the input of the plan; None if the content is not known."""
    image = found.image
    if found.facts is None or (image is None and not found.archive):
        return None
    if image is not None and image.virtual_size is None and found.virtual_size is not None:
        image = replace(image, virtual_size=found.virtual_size)
    if image is not None and found.many_extents:
        image = replace(image, needs_qemu=(TOO_LARGE,))
    return plan_input(
        job,
        found.facts,
        UnwrappedImage(found.wrappers, image),
        found.expected,
    )
