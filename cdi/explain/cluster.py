"""Explanation of an import into a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Final

from cdi.api import names
from cdi.api.errors import CdiError, ClusterForbidden, QuotaExceeded, TargetUnsuitable
from cdi.api.job import Job
from cdi.api.kinds import Object
from cdi.api.overhead import NO_OVERHEAD, required
from cdi.api.phases import Phase, Reason
from cdi.api.quantity import Quantity
from cdi.client.with_progress import OnProgress
from cdi.explain.clone_facts import clone_facts
from cdi.explain.cluster_overlay import dry_run_in_cluster
from cdi.explain.cron import CronFacts
from cdi.explain.dry_run import DryRunResult, blocking_error
from cdi.explain.item import Item
from cdi.explain.live_reader import LiveReader
from cdi.explain.prober import Prober
from cdi.explain.quota import required_resources, shortages
from cdi.explain.result import Explanation
from cdi.explain.source_report import SourceReport, report_source
from cdi.image.sizes import format_size
from cdi.reconcile.actions import is_peer_import
from cdi.reconcile.storage.claim_defaults import overhead_of
from cdi.reconcile.storage.classes import StorageClass

HERE: Final = "the source was requested from this machine; the cluster may reach it differently"
MEASURED: Final = (
    "a pod first detects the virtual size of the source's disk; the PVC gets that size instead of the volume's"
)
_UNRESOLVABLE: Final[Mapping[str, Callable[[str], CdiError]]] = {
    Reason.ERR_CLAIM_NOT_VALID.value: partial(TargetUnsuitable, remedy=""),
    Reason.ERR_EXCEEDED_QUOTA.value: partial(QuotaExceeded, remedy=""),
}


def explain(
    reader: LiveReader,
    manifest: Object,
    *,
    sized: bool = True,
    cron: CronFacts | None = None,
    on_progress: OnProgress | None = None,
) -> Explanation:
    """Explain the import of a DataVolume that does not exist yet.

    Args:
        reader: The cluster's objects.
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
    result = dry_run_in_cluster(reader, manifest)
    refusal = blocking_error(result, _UNRESOLVABLE)
    notes: tuple[str, ...] = (MEASURED,) if result.measured else ()
    if result.phase == Phase.SUCCEEDED:
        notes += (f"PVC {manifest['metadata']['name']} exists and has its content; nothing is imported",)
    report: SourceReport | None = None
    if refusal is None and isinstance(result.work, Job) and not is_peer_import(result.work):
        try:
            report = _report(reader, manifest, cron, on_progress, sized=sized)
        except ClusterForbidden as error:
            notes += (f"the source was not requested: {error.what}",)
        except CdiError as error:
            refusal = error
    found = None if report is None else report.found
    if report is not None:
        refusal = report.refusal
        notes += report.notes if found is None else (*report.notes, HERE)
    storage_class = _storage_class(reader, manifest, result)
    size = None if found is None else found.virtual_size
    room, shortage, unchecked = _check_quotas(reader, result)
    return Explanation(
        dry_run=result,
        report=report,
        clone=clone_facts(result.clone),
        cron=cron if report is None else report.cron,
        requested=None if report is None else report.job.size,
        required=None if size is None else required(size, _overhead(reader, result, storage_class)),
        refusal=refusal or shortage,
        place=(*_place(manifest, result, storage_class), *room),
        notes=(*notes, *unchecked, *(f"not checked: {what}" for what in reader.hidden.values())),
    )


def _report(
    reader: LiveReader, manifest: Object, cron: CronFacts | None, on_progress: OnProgress | None, *, sized: bool
) -> SourceReport | None:
    """Examine the source as the worker would, from this machine; None if no worker fetches anything."""
    metadata = manifest["metadata"]
    name = metadata["name"]
    item = Item(name=name, namespace=metadata["namespace"], label=name, place="", manifest=manifest)
    with Prober(reader).job(item) as job:
        if job is None:
            return None
        return report_source(job if sized else replace(job, size=None), None, cron, on_progress)


def _storage_class(reader: LiveReader, manifest: Object, result: DryRunResult) -> StorageClass | None:
    """Return the storage class of the PVC, else that of the manifest, else the default class."""
    spec = manifest.get("spec") or {}
    claim = result.claims[0]["spec"] if result.claims else spec.get("storage") or spec.get("pvc") or {}
    lister, name = reader.lister(), claim.get("storageClassName")
    if name:
        return lister.storage_class(name)
    return lister.default_storage_class(virtualization=spec.get("contentType") != "archive")


def _place(manifest: Object, result: DryRunResult, kind: StorageClass | None) -> Iterator[tuple[str, str]]:
    if kind is not None:
        spec = manifest["spec"]
        named = (spec.get("storage") or spec.get("pvc") or {}).get("storageClassName")
        yield "storage class", f"{kind.name}{'' if named else ' (the default)'}, provisioner {kind.provisioner}"
        yield "binding", "waits for the first consumer" if kind.wait_for_first_consumer else "immediate"
    if not result.claims:
        return
    spec = result.claims[0]["spec"]
    text = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
    size = None if text is None else Quantity.parse(str(text)).bytes
    mode = f"{', '.join(spec.get('accessModes') or ())}, {spec.get('volumeMode') or 'Filesystem'}"
    yield "claim", f"{'size not known' if size is None else f'{format_size(size)} ({size} bytes)'}, {mode}"
    if len(result.claims) > 1:
        yield "filled", f"through a temporary PVC of the same size ({names.prime_claim('UID')})"
    else:
        yield "filled", "in place"


def _overhead(reader: LiveReader, result: DryRunResult, storage_class: StorageClass | None) -> Fraction:
    if result.claims and result.claims[0]["spec"].get("volumeMode") == "Block":
        return NO_OVERHEAD
    return overhead_of(None if storage_class is None else storage_class.name, reader.lister().config())


def _check_quotas(
    reader: LiveReader, result: DryRunResult
) -> tuple[tuple[tuple[str, str], ...], CdiError | None, tuple[str, ...]]:
    """Return what to say about the quotas: of the place, the error of a shortage, and notes."""
    namespace = result.key.namespace
    try:
        quotas = reader.quotas(namespace)
    except ClusterForbidden as error:
        return (), None, (f"not checked: {error.what}",)
    pod = None if result.worker is None else result.worker.pod
    short = list(shortages(quotas, required_resources(result.claims, pod)))
    if not short:
        return ((("quota", "leaves room"),) if quotas else ()), None, ()
    more = f" ({len(result.claims)} claims and a worker pod)" if pod is not None else ""
    return (), QuotaExceeded("; ".join(map(str, short)) + more, where=f"namespace {namespace}"), ()
