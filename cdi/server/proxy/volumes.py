"""Which volumes wait for an upload, and where their upload servers are."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cdi.api.errors import AlreadyUploaded, NotFound, UploadNotReady
from cdi.api.names import (
    ANN_POD_PHASE,
    ANN_POD_READY,
    ANN_PVC_PRIME,
    ANN_USE_POPULATOR,
    means_true,
    upload_service,
)
from cdi.api.upload_protocol import SERVER_PORT
from cdi.kube.blocking import Blocking
from cdi.kube.resources import CLAIMS
from cdi.reconcile.upload_target import is_upload_target

PATIENCE = 10.0
"""Seconds that a request waits for its volume."""
_LOOKS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """An upload server."""

    host: str
    """A name or address; its certificate is for it."""
    port: int = SERVER_PORT
    name: str | None = None
    """What its certificate is for, where that is something else."""
    local: str | None = None
    """The abstract Unix socket of a worker of this user, without TLS, instead of all that."""


class Volumes(Protocol):
    """Asked from several threads at once."""

    def look(self, namespace: str, name: str) -> Destination | None:
        """Where the upload server of a claim is; None where it is not ready yet.

        Raises `UploadNotReady` where no waiting helps, `AlreadyUploaded`, and a `ClusterError`.
        """
        ...


def await_ready(
    volumes: Volumes,
    namespace: str,
    name: str,
    *,
    seconds: float = PATIENCE,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Destination:
    """Look now and then until it is ready; raises as `Volumes.look`, and `UploadNotReady` after `seconds`."""
    until = clock() + seconds
    while True:
        found = volumes.look(namespace, name)
        if found is not None:
            return found
        if clock() >= until:
            raise UploadNotReady(
                f"the volume did not become ready for an upload within {seconds:.0f} s", where=f"{namespace}/{name}"
            )
        sleep(_LOOKS)


class ClusterVolumes:
    """As the annotations of PersistentVolumeClaims tell."""

    def __init__(self, client: Blocking) -> None:
        self._client = client

    def look(self, namespace: str, name: str) -> Destination | None:
        where = f"{namespace}/{name}"
        claim = self._claim(namespace, name)
        if claim is None:
            raise UploadNotReady("there is no such PersistentVolumeClaim", where=where)
        annotations = _annotations(claim)
        if not is_upload_target(claim):
            raise UploadNotReady(
                "the PersistentVolumeClaim does not wait for an upload",
                where=where,
                remedy="make a DataVolume with source: {upload: {}}",
            )
        filled = name
        if means_true(annotations.get(ANN_USE_POPULATOR)):
            filled = annotations.get(ANN_PVC_PRIME, "")
            prime = self._claim(namespace, filled) if filled else None
            told = {} if prime is None else _annotations(prime)
            annotations = {**annotations, **{key: told[key] for key in (ANN_POD_PHASE, ANN_POD_READY) if key in told}}
        if annotations.get(ANN_POD_PHASE) == "Succeeded":
            raise AlreadyUploaded("the volume has been filled", where=where)
        if not filled or not means_true(annotations.get(ANN_POD_READY)):
            return None
        return Destination(host=f"{upload_service(filled)}.{namespace}.svc")

    def _claim(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        try:
            return self._client.run(self._client.client.get(CLAIMS, namespace, name))
        except NotFound:
            return None


def _annotations(claim: Mapping[str, Any]) -> dict[str, str]:
    return dict(claim["metadata"].get("annotations") or {})
