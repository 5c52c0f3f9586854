"""Reasons of requests: the words of metrics and the sentences of logs."""

from __future__ import annotations

from typing import Final

from cdi.api.kinds import Resource
from cdi.controller.workqueue import Reason
from cdi.kube.reflector import WatchEvent

_VERBS: Final = {"ADDED": "was created", "MODIFIED": "changed", "DELETED": "was deleted"}
STARTED: Final = Reason("start", "controller started")
REFERENCE_CHANGED: Final = Reason("reference", "a Secret or ConfigMap in use changed")
UPLOAD_PROXY_CHANGED: Final = Reason("uploadproxy", "address or certificate authority of the upload proxy changed")


def object_changed(resource: Resource, change: WatchEvent) -> Reason:
    """Return the reason of requests that depend on a changed object."""
    return Reason(resource.plural, f"{resource.kind} {_place(change)} {_VERBS[change.type]}")


def progress_reported(namespace: str, pod: str) -> Reason:
    """Return the reason of requests for the volumes of a worker pod."""
    return Reason("progress", f"Pod {namespace}/{pod} reported progress")


def pvc_released(namespace: str, claim: str) -> Reason:
    """Return the reason of requests that may have waited for the end of a pod of a user."""
    return Reason("release", f"a pod stopped using PersistentVolumeClaim {namespace}/{claim}")


def requeued(delay: float) -> Reason:
    """Return the reason of a request that its last reconcile asked for."""
    return Reason("requeue", f"requeued after {delay:.3g} s")


def retried(cause: str) -> Reason:
    """Return the reason of a request whose last reconcile failed; `cause` is one word."""
    return Reason("retry", f"retried after {cause}")


def _place(change: WatchEvent) -> str:
    metadata = change.object["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}" if metadata.get("namespace") else str(metadata["name"])
