"""Explanation of what the import of a DataVolume would do, and its document for ``--output json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from cdi.api.errors import CdiError, TargetFull
from cdi.api.job import Job
from cdi.explain.clone_facts import CloneFacts
from cdi.explain.cron import CronFacts
from cdi.explain.dry_run import DryRunResult
from cdi.explain.findings import Findings
from cdi.explain.inspect import container_document, image_document, refusal_document, source_document
from cdi.explain.source_report import SourceReport
from cdi.image.plan import Plan
from cdi.image.sizes import format_size

MEMORY: Final = 192 << 20
"""Bytes of memory that a worker's process tree stays below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The space on the volume's file system, in bytes."""

    path: str
    free: int
    needed: int | None
    """None if not known in advance."""
    exact: bool
    """Whether `needed` is exact; otherwise it is an upper limit."""

    @property
    def is_short(self) -> bool:
        """Whether the space may not suffice."""
        return self.needed is not None and self.needed > self.free

    @property
    def refusal(self) -> CdiError | None:
        """The error of a disk that certainly does not fit."""
        if not self.is_short or not self.exact or self.needed is None:
            return None
        return TargetFull(
            f"the disk needs {format_size(self.needed)} ({self.needed} bytes), but the volume has "
            f"{format_size(self.free)} ({self.free} bytes) free",
            where=self.path,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """A warning about a disk that may not fit."""
        if not self.is_short or self.exact or self.needed is None:
            return ()
        written, free = format_size(self.needed), format_size(self.free)
        return (f"the volume may run full: up to {written} are written, {free} are free",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What the import of one DataVolume would do."""

    dry_run: DryRunResult
    report: SourceReport | None = None
    """None if no source is examined: of clones, and of a DataVolume that starts no worker."""
    clone: CloneFacts | None = None
    cron: CronFacts | None = None
    """The DataImportCron that would create the DataVolume."""
    requested: int | None = None
    """The requested size of the disk in bytes."""
    required: int | None = None
    """Bytes that a PVC given as spec.pvc has to request for the image's disk."""
    space: Space | None = None
    refusal: CdiError | None = None
    """The first error that the import would end with."""
    place: tuple[tuple[str, str], ...] = ()
    """Placement in a cluster: labels, and how and where the volume would be created."""
    notes: tuple[str, ...] = ()

    @property
    def job(self) -> Job | None:
        return None if self.report is None else self.report.job

    @property
    def found(self) -> Findings | None:
        return None if self.report is None else self.report.found

    @property
    def plan(self) -> Plan | None:
        return None if self.report is None else self.report.plan


def document(explanation: Explanation) -> dict[str, Any]:
    """Return all results; sizes are bytes, unknown values are null."""
    found, plan = explanation.found, explanation.plan
    key = explanation.dry_run.key
    return {
        "kind": "DataVolume",
        "namespace": key.namespace,
        "name": key.name,
        "operation": explanation.dry_run.operation,
        "source": None if found is None else _source(explanation.job, found),
        "container": None if found is None else container_document(found),
        "image": None if found is None else image_document(found),
        "checks": []
        if found is None
        else [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in found.checks],
        "expected": None if found is None else _expected(found),
        "clone": clone_document(explanation.clone),
        "size": {"requested": explanation.requested, "requiredOfPvc": explanation.required},
        "plan": None
        if plan is None
        else {
            "path": plan.path,
            "why": plan.reason,
            "fetchBytes": plan.fetch_bytes,
            "writeBytes": plan.write_bytes,
            "scratchBytes": plan.scratch_bytes,
            "memoryBytes": MEMORY,
            "connections": plan.connections,
            "resumes": plan.resumable,
            "diskSize": plan.disk_size,
        },
        "place": dict(explanation.place) or None,
        "space": None if explanation.space is None else _camel(asdict(explanation.space)),
        "waits": explanation.dry_run.waits or None,
        "notes": [*explanation.notes, *(found.result.warnings if found is not None else [])],
        "refusal": refusal_document(explanation.refusal),
        **({} if explanation.cron is None else {"cron": cron_document(explanation.cron)}),
    }


def cron_document(cron: CronFacts) -> dict[str, Any]:
    """Return the facts about a DataImportCron and the answer of its source."""
    return {
        "namespace": cron.key.namespace,
        "name": cron.key.name,
        "dataSource": cron.data_source,
        "schedule": cron.schedule,
        "nextPolls": list(cron.next_polls),
        "wantedDigest": cron.wanted,
        "poll": None if cron.result is None else _camel(asdict(cron.result)),
        "version": cron.version,
    }


def clone_document(clone: CloneFacts | None) -> dict[str, Any] | None:
    """Return the facts about a clone."""
    return None if clone is None else _camel(asdict(clone))


def encryption(job: Job | None, found: Findings) -> str | None:
    """Return the protection of the connection: ``checked``, ``unchecked`` (TLS, any certificate), ``plain`` or None."""
    if found.encrypted is None:
        return None
    if not found.encrypted:
        return "plain"
    tls = getattr(job.source, "tls", None) if job is not None else None
    return "unchecked" if tls is not None and tls.insecure else "checked"


def _source(job: Job | None, found: Findings) -> dict[str, Any] | None:
    source = source_document(found)
    return None if source is None else {**source, "tls": encryption(job, found)}


def _expected(found: Findings) -> dict[str, Any]:
    promises = found.expected.promises if found.expected is not None else ()
    return {
        "digests": [{"digest": str(promise.digest), "by": promise.by} for promise in promises],
        "verified": list(found.result.verified_by),
    }


def _camel(body: dict[str, Any]) -> dict[str, Any]:
    return {name.split("_")[0] + "".join(w.title() for w in name.split("_")[1:]): v for name, v in body.items()}
