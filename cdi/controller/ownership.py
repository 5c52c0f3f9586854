"""Decision whether this installation handles an object, or another one in the same cluster does."""

from __future__ import annotations

from cdi.api.kinds import CLAIMS, DATA_VOLUMES, Object
from cdi.controller.informers import InformerSet
from cdi.controller.request import Scope

_MAX_OWNERS = 3
"""Length of the chain of owners that is followed: a scratch PVC belongs to a prime PVC, which belongs to its target."""


class Ownership:
    """Objects that this installation handles: those in its namespaces with its labels."""

    def __init__(self, caches: InformerSet, scope: Scope) -> None:
        self._caches = caches
        self._scope = scope

    def handles(self, namespace: str, body: Object) -> bool:
        """Return whether this installation handles an object; `namespace` is empty for cluster-scoped ones."""
        return self._scope.includes_namespace(namespace) and self._scope.matches(body)

    def handles_volume(self, body: Object) -> bool:
        """Return whether this installation handles an object of a volume: the scope selects it or one of its owners."""
        namespace = body["metadata"]["namespace"]
        if not self._scope.includes_namespace(namespace):
            return False
        for _ in range(_MAX_OWNERS):
            if self._scope.matches(body):
                return True
            owner = next((one for one in body["metadata"].get("ownerReferences") or () if one.get("controller")), None)
            if owner is None or owner.get("kind") not in (CLAIMS.kind, DATA_VOLUMES.kind):
                return False
            resource = CLAIMS if owner["kind"] == CLAIMS.kind else DATA_VOLUMES
            above = self._caches.get(resource, namespace, owner["name"])
            if above is None:
                return False
            body = above
        return False
