"""Start of an import into a volume: the DataVolume, its inputs and, if it is not fetched, the upload."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdi.api.annotation_types import annotations_of
from cdi.api.annotations import UPLOAD_REQUEST
from cdi.api.errors import AlreadyExists, CdiError, Conflict, InvalidManifest, NotFound, UsageError
from cdi.client.backend import Backend
from cdi.client.request import Request
from cdi.client.request_to_manifests import Manifests, build_manifests, owned
from cdi.local.backend import LocalBackend
from cdi.reconcile.datavolume.upload import UploadRequest


def submit(
    backend: Backend, request: Request, namespace: str, name: str, size: int, *, stream: int | None = None
) -> bool:
    """Write the DataVolume and its inputs; return False if the same import was started before.

    On this machine, a file or standard input is uploaded into it; `stream` is a descriptor to use as standard input.

    Raises:
        InvalidManifest: The DataVolume would be invalid.
        AlreadyExists: A DataVolume of this name has another spec or has its upload already, or a Secret or ConfigMap of
            another owner has the name.
        Conflict: Another upload is running.
    """
    embedded = backend if isinstance(backend, LocalBackend) else None
    if embedded is None:
        refuse_local(request)
    wanted = build_manifests(request, namespace, name, size, local=embedded is not None)
    before = _stored(backend, "dv", namespace, name)
    for body in wanted.inputs:
        _check_free(backend, body, None if before is None else before["metadata"]["uid"])
    try:
        backend.apply([*wanted.inputs, wanted.datavolume], dry_run=True)
    except InvalidManifest as error:
        if before is None:
            raise
        raise AlreadyExists(
            f"DataVolume {namespace}/{name} already exists with another spec", where=error.what
        ) from error
    if before is not None and before["spec"] != wanted.datavolume["spec"]:
        raise AlreadyExists(f"DataVolume {namespace}/{name} already exists with another spec")
    _write(backend, wanted, new=before is None)
    if embedded is not None and not request.place.fetched:
        _upload(embedded, request, namespace, name, stream)
    return before is None


def refuse_local(request: Request) -> None:
    """Raise `UsageError` for an image that a cluster cannot fetch."""
    if not request.place.fetched:
        raise UsageError(
            "a cluster cannot fetch it from this machine",
            where=request.place.location,
            remedy="virtctl image-upload, or serve the file over HTTP and import its URL",
        )


def _stored(backend: Backend, kind: str, namespace: str, name: str) -> Mapping[str, Any] | None:
    with contextlib.suppress(NotFound):
        return backend.get(kind, namespace, name)
    return None


def _check_free(backend: Backend, body: Mapping[str, Any], owner: str | None) -> None:
    name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
    there = _stored(backend, body["kind"], namespace, name)
    owners = [] if there is None else there["metadata"].get("ownerReferences") or []
    if there is not None and not any(one.get("uid") == owner for one in owners):
        raise AlreadyExists(f"{body['kind']} {namespace}/{name} already exists and belongs to another object")


def _write(backend: Backend, wanted: Manifests, *, new: bool) -> None:
    """Write the DataVolume first: it waits for its inputs, and they need its uid as their owner."""
    metadata = wanted.datavolume["metadata"]
    backend.apply([wanted.datavolume])
    if not wanted.inputs:
        return
    try:
        owner = backend.get("dv", metadata["namespace"], metadata["name"])
        backend.apply([owned(body, owner) for body in wanted.inputs])
    except CdiError:
        if new:
            backend.delete("dv", metadata["namespace"], metadata["name"])
        raise


def _upload(embedded: LocalBackend, request: Request, namespace: str, name: str, stream: int | None) -> None:
    if stream is not None:
        embedded.upload_stream(namespace, name, stream)
        return
    if request.place.kind == "stdin":
        embedded.upload_stream(namespace, name, 0, stream_length())
        return
    path = request.place.text
    try:
        embedded.upload(namespace, name, Path(path))
    except Conflict:
        # The same command was started before, and is still running.
        claim = embedded.get("pvc", namespace, name)
        notes = annotations_of(claim)
        under_way = UPLOAD_REQUEST.read(UploadRequest, notes)
        if under_way is None or under_way.path != path:
            raise


def stream_length() -> int | None:
    """Return the number of bytes left in standard input if it is a file, or None."""
    status = os.fstat(0)
    if not stat.S_ISREG(status.st_mode):
        return None
    return max(0, status.st_size - os.lseek(0, 0, os.SEEK_CUR))
