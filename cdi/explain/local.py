"""Explanation of an import on one machine."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Final

from cdi.api.annotations import UPLOAD_REQUEST
from cdi.api.datavolume import DataVolume
from cdi.api.errors import AlreadyExists, CdiError, Conflict, InternalError, InvalidManifest, NotFound
from cdi.api.job import Job, StreamSourceSpec
from cdi.api.overhead import required
from cdi.api.peer import PeerSourceSpec
from cdi.api.phases import EventReason, Reason
from cdi.api.validation import parse
from cdi.client.request import Request
from cdi.client.request_to_manifests import build_manifests
from cdi.client.with_progress import OnProgress
from cdi.explain.clone_facts import local_clone_facts
from cdi.explain.cron import CronFacts
from cdi.explain.dry_run import DryRunResult, blocking_error, dry_run, missing
from cdi.explain.findings import Ask
from cdi.explain.local_overlay import LocalOverlay
from cdi.explain.result import Explanation, Space
from cdi.explain.source_report import SourceReport, report_source
from cdi.local.home import DISK, Home
from cdi.reconcile.actions import CloneJob
from cdi.reconcile.datavolume.upload import UploadRequest
from cdi.reconcile.source import requested_size
from cdi.store.base import Key
from cdi.store.file_store import LocalStore

_RETRIES: Final = 2
"""A user is waiting, so errors are reported soon."""
_STALL: Final = 30.0
_ANY: Final = 1 << 40
"""A placeholder: a DataVolume has to request some size."""
_UNRESOLVABLE: Final = {Reason.NOT_FOUND.value: missing, EventReason.CLONE_WITHOUT_SOURCE.value: missing}
"""Reasons of waiting for what only the user of this machine can create."""


def explain(
    overlay: LocalOverlay,
    key: Key,
    *,
    upload: Path | None = None,
    stream: int | None = None,
    sized: bool = True,
    ask: Ask | None = None,
    cron: CronFacts | None = None,
    on_progress: OnProgress | None = None,
) -> Explanation:
    """Explain the import of a DataVolume from its beginning.

    Args:
        overlay: The objects, with the DataVolume.
        key: The DataVolume.
        upload: The file to upload.
        stream: The descriptor to upload from; it is read.
        sized: Whether the DataVolume's size counts; otherwise the image's own size is used.
        ask: What to examine.
        cron: The DataImportCron that would create it, whose source is polled as well.
        on_progress: Called with the progress.

    Returns:
        The explanation; the error that the import would end with is its ``refusal``.

    Raises:
        NotFound: There is no such DataVolume.
        Interrupted: The examination was cancelled.
    """
    given = upload if stream is None else Path("/dev/stdin")
    request = None if given is None else UploadRequest(id="explained", path=str(given))
    annotations = {} if request is None else UPLOAD_REQUEST.write(request)
    overlay.restart(key, annotations)
    result = dry_run(overlay, key, claim_annotations=annotations)
    if result.worker is None:
        return Explanation(dry_run=result, cron=cron, refusal=blocking_error(result, _UNRESOLVABLE))
    overlay.write_inputs(result.worker)
    conflict = _existing_files(overlay.home, key)
    work = result.worker.work
    if isinstance(work, CloneJob):
        return _explain_clone(overlay.home, result, work, cron, conflict)
    if isinstance(work.source, PeerSourceSpec):
        raise InternalError("clones over the network are supported only in clusters")
    report = report_source(_local_job(work, stream, sized=sized), ask, cron, on_progress)
    space = _space_of(overlay.home, report)
    size = None if report.found is None else report.found.virtual_size
    return Explanation(
        dry_run=result,
        report=report,
        cron=report.cron,
        requested=report.job.size,
        required=None if size is None else required(size),
        space=space,
        refusal=conflict or report.refusal or (None if space is None else space.refusal),
        notes=(*report.notes, *(() if space is None else space.notes)),
    )


def _explain_clone(
    home: Home, result: DryRunResult, job: CloneJob, cron: CronFacts | None, conflict: CdiError | None
) -> Explanation:
    clone = local_clone_facts(home, job)
    absent: CdiError | None = None
    if job.content == "kubevirt" and clone.size is None:
        remedy = f"the disk of a volume is named {DISK}"
        absent = NotFound(f"the source has no disk at {job.source}", remedy=remedy)
    needed = job.size if job.preallocation else 0 if clone.reflink else clone.allocated
    space = _space(home, needed, exact=True)
    return Explanation(
        dry_run=result,
        clone=clone,
        cron=cron,
        requested=job.size,
        space=space,
        refusal=conflict or absent or space.refusal,
        notes=space.notes,
    )


def explain_request(
    home: Home,
    request: Request,
    namespace: str,
    name: str | None,
    *,
    ask: Ask | None = None,
    stream: int = 0,
    on_progress: OnProgress | None = None,
) -> Explanation:
    """Explain the import that a request on the command line asks for.

    Args:
        home: The CDI_HOME.
        request: The request.
        namespace: The namespace of the DataVolume.
        name: The name of the DataVolume.
        ask: What to examine.
        stream: The descriptor that is read as standard input.
        on_progress: Called with the progress.

    Raises:
        UsageError: The request is invalid.
        InvalidManifest: The DataVolume would be invalid.
        AlreadyExists: A DataVolume of this name has another spec.
        Interrupted: The examination was cancelled.
    """
    name = name or request.place.name or "image"
    before = _stored_size(home, namespace, name)
    wanted = build_manifests(request, namespace, name, request.size or before or _ANY)
    place = request.place
    with LocalOverlay.open(home) as overlay:
        try:
            (key,) = overlay.apply([*wanted.inputs, wanted.datavolume], namespace=namespace)
        except InvalidManifest as error:
            if before is None:
                raise
            raise AlreadyExists(
                f"DataVolume {namespace}/{name} already exists with another spec", where=error.what
            ) from error
        return explain(
            overlay,
            key,
            upload=Path(place.text) if place.kind == "file" else None,
            stream=stream if place.kind == "stdin" else None,
            sized=request.size is not None,
            ask=ask,
            on_progress=on_progress,
        )


def _stored_size(home: Home, namespace: str, name: str) -> int | None:
    """Return the size that an existing DataVolume of this name requested, or None if there is none."""
    try:
        dv = parse(LocalStore(home.objects).get(Key.of("dv", namespace, name)))
    except NotFound:
        return None
    return (requested_size(dv) if isinstance(dv, DataVolume) else None) or _ANY


def _local_job(job: Job, stream: int | None, *, sized: bool) -> Job:
    """Return the job for an examination, with few retries and the given source."""
    policy = replace(
        job.policy, retries=min(job.policy.retries, _RETRIES), stall_timeout=min(job.policy.stall_timeout, _STALL)
    )
    source = job.source if stream is None else StreamSourceSpec(descriptor=stream)
    return replace(job, policy=policy, source=source, size=job.size if sized else None)


def _existing_files(home: Home, key: Key) -> Conflict | None:
    """Return the error for a volume's directory that holds files of the user, which an import would not touch."""
    directory = home.volume(key.namespace, key.name)
    with home.mapped("the objects"):
        claimed = (home.objects / "persistentvolumeclaims" / key.namespace / f"{key.name}.json").exists()
    with contextlib.suppress(OSError):
        if not claimed and any(directory.iterdir()):
            return Conflict(
                f"the directory {directory} already holds files", remedy="remove them, or choose another name"
            )
    return None


def _space_of(home: Home, report: SourceReport) -> Space | None:
    """Return the space for a planned import."""
    plan, found = report.plan, report.found
    if plan is None:
        return None
    needed, exact = plan.write_bytes, False
    if report.job.policy.preallocation and plan.disk_size is not None:
        needed, exact = plan.disk_size, True
    elif found is not None and found.data_bytes is not None:
        needed, exact = found.data_bytes, True
    if needed is not None and plan.scratch_bytes:
        needed += plan.scratch_bytes
    return _space(home, needed, exact=exact)


def _space(home: Home, needed: int | None, *, exact: bool) -> Space:
    with home.mapped("the volumes"):
        found = os.statvfs(_existing_parent(home.volumes))
    return Space(path=str(home.volumes), free=found.f_bavail * found.f_frsize, needed=needed, exact=exact)


def _existing_parent(directory: Path) -> Path:
    """Return the directory or its nearest existing ancestor; CDI_HOME is created by the first command that writes."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return directory
