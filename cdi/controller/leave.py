"""Whether whoever asks may clone out of another namespace: what the webhook would ask the API server about them."""

from __future__ import annotations

from collections.abc import Mapping

from cdi.api.names import GROUP
from cdi.kube.blocking import Blocking
from cdi.kube.resources import SELF_SUBJECT_ACCESS_REVIEWS
from cdi.reconcile.origin import Clone


def may_clone(calls: Blocking, origin: Clone) -> bool:
    """By a right of its own, or those with which one could read the source anyway.  Raises `ClusterError`."""
    own = {"group": GROUP, "resource": "datavolumes", "subresource": "source", "name": origin.name}
    if _may(calls, origin.namespace, own):
        return True
    needed = ("pods", "persistentvolumeclaims") if origin.kind == "VolumeSnapshot" else ("pods",)
    return all(_may(calls, origin.namespace, {"group": "", "resource": resource}) for resource in needed)


def _may(calls: Blocking, namespace: str, what: Mapping[str, str]) -> bool:
    body = {
        "apiVersion": SELF_SUBJECT_ACCESS_REVIEWS.api_version,
        "kind": SELF_SUBJECT_ACCESS_REVIEWS.kind,
        "spec": {"resourceAttributes": {"namespace": namespace, "verb": "create", "version": "*", **what}},
    }
    answer = calls.run(calls.client.create(SELF_SUBJECT_ACCESS_REVIEWS, body))
    return (answer.get("status") or {}).get("allowed") is True
