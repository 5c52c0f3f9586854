"""Inspection of an image and its safety, without importing it: ``cdi inspect``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cdi.api.errors import CdiError
from cdi.api.job import FileTargetSpec, Job
from cdi.client.request import Request, source_spec
from cdi.client.with_progress import OnProgress
from cdi.explain.examine import examine_with_progress
from cdi.explain.findings import Ask, Findings
from cdi.private_directory import private_directory

_RETRIES = 2
"""A user is waiting, so errors are reported soon."""
_STALL = 30.0


def inspect(
    request: Request,
    *,
    digest: bool = False,
    whole: bool = False,
    secret: Mapping[str, bytes] | None = None,
    on_progress: OnProgress | None = None,
) -> Findings:
    """Examine an image.

    Args:
        request: The image.
        digest: Read all of it and compute its sha256.
        whole: Read all of it.
        secret: The values of the Secret that the request names.
        on_progress: Called with the progress.

    Returns:
        The results; the error that an import would raise is their ``refusal``.

    Raises:
        UsageError: The request is invalid.
        Interrupted: The examination was cancelled.
    """
    with private_directory() as directory:
        job = Job(
            id="inspect",
            source=source_spec(request, directory, secret),
            # Nothing is written; the usual kind of target is assumed.
            target=FileTargetSpec(path=str(directory / "disk.img")),
            content_type=request.content_type,
            checksum=request.checksum,
            policy=replace(request.policy(), retries=_RETRIES, stall_timeout=_STALL, signature="ignore"),
        )
        return examine_with_progress(job, Ask(digest=digest, whole=whole or digest, allocation=True), on_progress)


def document(found: Findings, location: str) -> dict[str, Any]:
    """Return all results for ``--output json``; sizes are bytes, unknown values are null."""
    return {
        "location": location,
        "source": source_document(found),
        "container": container_document(found),
        "image": image_document(found),
        "checks": [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in found.checks],
        "digest": None if found.digest is None else str(found.digest),
        "refusal": refusal_document(found.refusal),
    }


def source_document(found: Findings) -> dict[str, Any] | None:
    facts = found.facts
    if facts is None:
        return None
    return {
        "location": facts.location,
        "redirectedTo": found.redirected,
        "length": facts.length,
        "byteRanges": facts.ranges,
        "validator": facts.validator,
        "contentType": facts.content_type,
        "digests": [str(digest) for digest in facts.digests],
    }


def container_document(found: Findings) -> dict[str, Any] | None:
    container = found.container
    if container is None:
        return None
    return {
        "digest": str(container.digest),
        "manifestDigest": str(container.manifest_digest),
        "architecture": container.architecture,
        "layers": container.layers,
        "diskLayer": found.layer,
        "labels": container.labels,
    }


def image_document(found: Findings) -> dict[str, Any] | None:
    image = found.image
    if image is None:
        return {"format": "archive", "wrappers": list(found.wrappers)} if found.archive else None
    return {
        "format": image.format,
        "variant": image.variant,
        "version": image.version,
        "wrappers": list(found.wrappers),
        "virtualSize": found.virtual_size,
        "dataBytes": found.data_bytes,
        "clusterSize": image.cluster_size,
        "compression": image.compression,
        "snapshots": image.has_snapshots,
        "needsQemu": list(image.needs_qemu),
        "notes": list(image.notes),
        "details": dict(image.details),
    }


def refusal_document(error: CdiError | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {"code": error.code, "message": error.message, "retry": str(error.retry), "exitStatus": error.exit_status}
