"""Clone permission check with SelfSubjectAccessReviews, which ask what the webhook would ask about the user."""

from __future__ import annotations

from cdi.api.kinds import SELF_SUBJECT_ACCESS_REVIEWS
from cdi.kube.sync import SyncClient
from cdi.reconcile.clone.authorization import has_permission
from cdi.reconcile.types import Clone


def can_clone(calls: SyncClient, origin: Clone) -> bool:
    """Return whether the current user may clone from another namespace.

    Raises:
        ClusterError: The API server cannot be asked.

    """
    ways = has_permission(origin.kind, origin.namespace, origin.name)
    return any(all(_may(calls, right) for right in way) for way in ways)


def _may(calls: SyncClient, right: dict[str, str]) -> bool:
    body = {
        "apiVersion": SELF_SUBJECT_ACCESS_REVIEWS.api_version,
        "kind": SELF_SUBJECT_ACCESS_REVIEWS.kind,
        "spec": {"resourceAttributes": right},
    }
    answer = calls.run(calls.client.create(SELF_SUBJECT_ACCESS_REVIEWS, body))
    return (answer.get("status") or {}).get("allowed") is True
