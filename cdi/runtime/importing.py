"""One image on its way into a volume: the DataVolume, its inputs and, for what is not fetched, the upload."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdi.api.errors import AlreadyExists, CdiError, Conflict, InvalidManifest, NotFound
from cdi.reconcile import upload as uploads
from cdi.reconcile.upload import UploadRequest
from cdi.runtime.embedded import Embedded
from cdi.runtime.request import Request
from cdi.runtime.wanted import Manifests, manifests, owned


def begin(
    embedded: Embedded, request: Request, namespace: str, name: str, size: int, *, stream: int | None = None
) -> bool:
    """Write down the DataVolume and what it needs; False where the same one was begun before.

    A file or standard input is given to it; `stream` is a descriptor that stands for the latter.  Raises
    `InvalidManifest`, `AlreadyExists` (a DataVolume of that name that wants something else, or has its upload already;
    a Secret or ConfigMap that is somebody else's), `Conflict`.
    """
    wanted = manifests(request, namespace, name, size)
    before = _stored(embedded, "dv", namespace, name)
    for body in wanted.inputs:
        _check_free(embedded, body, None if before is None else before["metadata"]["uid"])
    try:
        embedded.apply([*wanted.inputs, wanted.datavolume], dry_run=True)
    except InvalidManifest as error:
        if before is None:
            raise
        raise AlreadyExists(f"DataVolume {namespace}/{name} exists and is another one", where=error.what) from error
    if before is not None and before["spec"] != wanted.datavolume["spec"]:
        raise AlreadyExists(f"DataVolume {namespace}/{name} exists and is another one")
    _write(embedded, wanted, new=before is None)
    if not request.place.fetched:
        _upload(embedded, request, namespace, name, stream)
    return before is None


def _stored(embedded: Embedded, kind: str, namespace: str, name: str) -> Mapping[str, Any] | None:
    with contextlib.suppress(NotFound):
        return embedded.get(kind, namespace, name)
    return None


def _check_free(embedded: Embedded, body: Mapping[str, Any], owner: str | None) -> None:
    name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
    there = _stored(embedded, body["kind"], namespace, name)
    owners = [] if there is None else there["metadata"].get("ownerReferences") or []
    if there is not None and not any(one.get("uid") == owner for one in owners):
        raise AlreadyExists(f"{body['kind']} {namespace}/{name} exists, and belongs to somebody else")


def _write(embedded: Embedded, wanted: Manifests, *, new: bool) -> None:
    """The DataVolume first: it waits for its inputs, and they need its uid to go with it."""
    metadata = wanted.datavolume["metadata"]
    embedded.apply([wanted.datavolume])
    if not wanted.inputs:
        return
    try:
        owner = embedded.get("dv", metadata["namespace"], metadata["name"])
        embedded.apply([owned(body, owner) for body in wanted.inputs])
    except CdiError:
        if new:
            embedded.delete("dv", metadata["namespace"], metadata["name"])
        raise


def _upload(embedded: Embedded, request: Request, namespace: str, name: str, stream: int | None) -> None:
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
        # The same command was given before, and is still at it.
        claim = embedded.get("pvc", namespace, name)
        notes = claim["metadata"].get("annotations") or {}
        under_way = UploadRequest.read(notes.get(uploads.ANNOTATION))
        if under_way is None or under_way.path != path:
            raise


def stream_length() -> int | None:
    """Bytes that standard input has left, where it is a file."""
    status = os.fstat(0)
    if not stat.S_ISREG(status.st_mode):
        return None
    return max(0, status.st_size - os.lseek(0, 0, os.SEEK_CUR))
