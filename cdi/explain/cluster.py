"""Preflight check of an import into a cluster, for ``cdi explain``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from cdi.api import names
from cdi.api.errors import CdiError, ClusterForbidden, QuotaExceeded
from cdi.api.job import BlankSourceSpec, Job
from cdi.api.kinds import QUOTAS, Object
from cdi.api.overhead import NO_OVERHEAD, required
from cdi.client.with_progress import OnProgress, run_with_progress
from cdi.explain.clone_authorization import can_clone
from cdi.explain.clone_info import clone_facts
from cdi.explain.cluster_dry_run import DryRunResult, blocked, dry_run, requested
from cdi.explain.cron import CronFacts, ask_source
from cdi.explain.image import Explanation, plan_blank, plan_image
from cdi.explain.item import Item
from cdi.explain.live_reader import LiveReader
from cdi.explain.local_dry_run import Course
from cdi.explain.quota import required_resources, shortages
from cdi.explain.source_check import Ask, examine
from cdi.explain.source_probe import Prober
from cdi.image.sizes import format_size
from cdi.kube.sync import SyncClient
from cdi.reconcile.storage.claim_defaults import overhead_of
from cdi.transfer.control import TransferControl

HERE: Final = "the source was requested from this machine; the cluster may reach it differently"


def preflight(
    calls: SyncClient,
    lookups: LiveReader,
    manifest: Object,
    *,
    sized: bool = True,
    cron: CronFacts | None = None,
    on_progress: OnProgress | None = None,
) -> Explanation:
    """Explain the import of a DataVolume that does not exist yet.

    Args:
        calls: Blocking client of the API server.
        lookups: The cluster's objects.
        manifest: A valid manifest with its namespace.
        sized: Whether its size counts; if not, the size of the image is used.
        cron: The DataImportCron that would create it, whose source is polled as well.
        on_progress: Called with the progress of the inspection.

    Returns:
        The explanation; the error that would end the import is its ``refusal``.

    Raises:
        ClusterError: The cluster cannot be read.
        Interrupted: The inspection was interrupted.

    """
    found = dry_run(lookups, manifest, lambda origin: can_clone(calls, origin))
    course = Course(
        key=found.key,
        operation=found.operation,
        claim=None,
        work=found.work,
        failure=found.failure,
        waits=found.waits,
        reason=found.reason,
    )
    told = Explanation(course=course, cron=cron)
    told.place += _place(found)
    told.clone = clone_facts(found.clone)
    if found.measured:
        told.notes.append(
            "a pod first detects the virtual size of the source's disk; the PVC gets that size instead of the volume's"
        )
    if found.failure is not None:
        told.refuse(found.failure)
    elif found.work is None:
        obstacle = blocked(found)
        if obstacle is not None:
            told.refuse(obstacle)
    elif isinstance(found.work, Job):
        _look(lookups, manifest, found, told, sized=sized, on_progress=on_progress)
    _quotas(calls, found, told)
    told.notes += [f"not checked: {what}" for what in lookups.hidden.values()]
    return told


def _place(found: DryRunResult) -> Iterator[tuple[str, str]]:
    kind = found.storage_class
    if kind is not None:
        chosen = "" if found.named_class else " (the default)"
        yield "storage class", f"{kind.name}{chosen}, provisioner {kind.provisioner}"
        yield "binding", "waits for the first consumer" if kind.wait_for_first_consumer else "immediate"
    if not found.claims:
        return
    claim = found.claims[0]
    spec, size = claim["spec"], requested(claim)
    mode = f"{', '.join(spec.get('accessModes') or ())}, {spec.get('volumeMode') or 'Filesystem'}"
    yield "claim", f"{'size not known' if size is None else f'{format_size(size)} ({size} bytes)'}, {mode}"
    if found.populated:
        yield "filled", f"through a temporary PVC of the same size ({names.prime_claim('UID')})"
    else:
        yield "filled", "in place"


def _look(
    lookups: LiveReader,
    manifest: Object,
    found: DryRunResult,
    told: Explanation,
    *,
    sized: bool,
    on_progress: OnProgress | None,
) -> None:
    """Inspect the source as the worker would."""
    metadata = manifest["metadata"]
    item = Item(
        name=metadata["name"], namespace=metadata["namespace"], label=metadata["name"], place="", manifest=manifest
    )
    try:
        with Prober(lookups).job(item) as own:
            if own is None:
                return
            job = own if sized else replace(own, size=None)
            told.job, told.requested = job, job.size
            if isinstance(job.source, BlankSourceSpec):
                plan_blank(job, told)
                return
            control = TransferControl(job)
            wanted = Ask(expected=True, allocation=True)
            told.found = run_with_progress(lambda: examine(job, control, wanted), control, on_progress)
            if told.found.refusal is not None:
                told.refuse(told.found.refusal)
            plan_image(job, told.found, told)
            if told.cron is not None and (failure := ask_source(told.cron, job, on_progress)) is not None:
                told.refuse(failure)
    except ClusterForbidden as error:
        told.notes.append(f"the source was not requested: {error.what}")
        return
    except CdiError as error:
        told.refuse(error)
        return
    told.notes.append(HERE)
    if told.found.virtual_size is not None:
        told.required = required(told.found.virtual_size, _overhead(lookups, found))


def _overhead(lookups: LiveReader, found: DryRunResult) -> Any:
    if found.claims and found.claims[0]["spec"].get("volumeMode") == "Block":
        return NO_OVERHEAD
    name = found.storage_class.name if found.storage_class is not None else None
    return overhead_of(name, lookups.observed().config())


def _quotas(calls: SyncClient, found: DryRunResult, told: Explanation) -> None:
    try:
        quotas: list[Mapping[str, Any]] = list(calls.run(calls.client.list(QUOTAS, found.key.namespace)).items)
    except ClusterForbidden as error:
        told.notes.append(f"not checked: {error.what}")
        return
    short = list(shortages(quotas, required_resources(found.claims, found.pod)))
    if short:
        more = f" ({len(found.claims)} claims and a worker pod)" if found.pod is not None else ""
        told.refuse(QuotaExceeded("; ".join(map(str, short)) + more, where=f"namespace {found.key.namespace}"))
    elif quotas:
        told.place.append(("quota", "leaves room"))
