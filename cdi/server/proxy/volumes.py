"""Upload state of volumes, and the addresses of their upload servers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cdi.api.annotation_types import annotations_of
from cdi.api.datavolume import ContentType
from cdi.api.errors import NotFound, UploadNotReady
from cdi.api.kinds import CLAIMS
from cdi.api.names import (
    ANN_BOUND_CONDITION_MESSAGE,
    ANN_CONTENT_TYPE,
    ANN_IMAGE_VALIDATOR,
    ANN_POD_PHASE,
    ANN_POD_READY,
    ANN_PVC_PRIME,
    ANN_RUNNING_CONDITION_MESSAGE,
    ANN_USE_POPULATOR,
    means_true,
    upload_service,
)
from cdi.api.printable import printable
from cdi.api.upload_protocol import SERVER_PORT
from cdi.kube.sync import SyncClient
from cdi.reconcile.datavolume.upload import is_upload_target

_MAX_SHOWN = 200
"""Largest number of characters of an annotation's value in a message."""
_HTML_ESCAPES = str.maketrans({"&": "&amp;", "'": "&#39;", "<": "&lt;", ">": "&gt;", '"': "&#34;"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """The address of an upload server."""

    host: str
    """A host name or address, for which its certificate is valid unless `name` is set."""
    port: int = SERVER_PORT
    name: str | None = None
    """The name in its certificate, if different from `host`."""
    local: str | None = None
    """The abstract Unix socket of a worker of the same user, used without TLS instead of `host` and `port`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """State of a volume whose upload server is not ready yet and needs no intervention."""

    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """State of a volume that has its image."""

    upload: str | None = None
    """The name of the resumable upload that filled it."""


VolumeState = Destination | Pending | Filled


class Volumes(Protocol):
    """Lookup of upload states; called from several threads at once."""

    def look(self, namespace: str, name: str) -> VolumeState:
        """Return the state of a PVC.

        Raises:
            UploadNotReady: There will be no upload server: the PVC does not exist, accepts no upload, is being deleted
                or has failed permanently.
            UploadUnderWay: Another client is uploading into the volume.
            ClusterError: The API server cannot be asked.
        """
        ...


class ClusterVolumes:
    """Upload states from the annotations of PersistentVolumeClaims."""

    def __init__(self, client: SyncClient) -> None:
        self._client = client

    def look(self, namespace: str, name: str) -> VolumeState:
        where = f"{namespace}/{name}"
        claim = self._claim(namespace, name)
        if claim is None:
            raise UploadNotReady("the PersistentVolumeClaim does not exist", where=where)
        annotations = annotations_of(claim)
        if not is_upload_target(claim):
            raise UploadNotReady(
                "the PersistentVolumeClaim is not an upload target",
                where=where,
                remedy="create a DataVolume with source: {upload: {}}",
            )
        filled = name
        if means_true(annotations.get(ANN_USE_POPULATOR)):
            filled = annotations.get(ANN_PVC_PRIME, "")
            prime = self._claim(namespace, filled) if filled else None
            prime_annotations = annotations_of(prime)
            mirrored = (ANN_POD_PHASE, ANN_POD_READY)
            annotations = {**annotations, **{key: text for key, text in prime_annotations.items() if key in mirrored}}
        if claim["metadata"].get("deletionTimestamp") is not None:
            raise UploadNotReady("the PersistentVolumeClaim is being deleted", where=where, remedy="create another one")
        phase = annotations.get(ANN_POD_PHASE)
        if phase == "Succeeded":
            return Filled(upload=annotations.get(ANN_IMAGE_VALIDATOR))
        _require_known_content_type(annotations.get(ANN_CONTENT_TYPE, ""), name, where)
        if phase == "Failed":
            why = annotations.get(ANN_RUNNING_CONDITION_MESSAGE, "").rstrip(".")
            raise UploadNotReady(
                f"the volume no longer accepts an upload: {why or 'it has failed'}",
                where=where,
                remedy="remove the cause, then delete the DataVolume or PVC and create it again",
            )
        if not filled or not means_true(annotations.get(ANN_POD_READY)):
            messages = (ANN_RUNNING_CONDITION_MESSAGE, ANN_BOUND_CONDITION_MESSAGE)
            return Pending(why=next(filter(None, map(annotations.get, messages)), ""))
        return Destination(host=f"{upload_service(filled)}.{namespace}.svc")

    def _claim(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        try:
            return self._client.run(self._client.client.get(CLAIMS, namespace, name))
        except NotFound:
            return None


def _require_known_content_type(value: str, name: str, where: str) -> None:
    """Raise `UploadNotReady` for an unknown content type; empty means a disk.

    The value is escaped as Go's ``html.EscapeString`` does, because the error may be shown in a browser.
    """
    if value in ("", ContentType.KUBEVIRT, ContentType.ARCHIVE):
        return
    shown = printable(value, _MAX_SHOWN)
    raise UploadNotReady(
        f"rejecting upload request for PVC {name} - upload content-type {shown.translate(_HTML_ESCAPES)} is invalid",
        where=where,
        remedy=f"set the annotation {ANN_CONTENT_TYPE} to kubevirt or archive",
    )
