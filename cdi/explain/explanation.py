"""Conversion of an `Explanation` to a document for ``--output json``; sizes are bytes, unknown values are null."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cdi.api.job import Job
from cdi.explain.cron import CronFacts
from cdi.explain.image import MEMORY, CloneFacts, Explanation
from cdi.explain.inspect import container_document, image_document, refusal_document, source_document
from cdi.explain.source_check import Findings


def document(told: Explanation) -> dict[str, Any]:
    """Return all results."""
    found, plan = told.found, told.plan
    key = told.course.key
    return {
        "kind": "DataVolume",
        "namespace": key.namespace,
        "name": key.name,
        "operation": told.course.operation,
        "source": None if found is None else _source(told.job, found),
        "container": None if found is None else container_document(found),
        "image": None if found is None else image_document(found),
        "checks": []
        if found is None
        else [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in found.checks],
        "expected": None if found is None else _expected(found),
        "clone": clone_document(told.clone),
        "size": {"requested": told.requested, "requiredOfPvc": told.required},
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
            "rereads": plan.rereads,
        },
        "place": dict(told.place) or None,
        "space": None if told.space is None else _camel(asdict(told.space)),
        "waits": told.course.waits or None,
        "notes": [*told.notes, *(found.result.warnings if found is not None else [])],
        "refusal": refusal_document(told.refusal),
        **({} if told.cron is None else {"cron": cron_document(told.cron)}),
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
