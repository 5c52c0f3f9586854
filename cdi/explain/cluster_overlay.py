"""Overlay of the objects in a cluster."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from cdi.api.annotation_types import annotations_of
from cdi.api.kinds import CLAIMS, Object, Resource, resource_named, resource_of
from cdi.api.names import ANN_CLONE_TOKEN, ANN_IMMEDIATE_BINDING
from cdi.api.phases import Phase
from cdi.controller.clone_lister import InformerCloneLister, NoPodUsage
from cdi.controller.lister import ClusterLister
from cdi.explain.dry_run import DryRunResult, Overlay, dry_run
from cdi.explain.live_reader import LiveReader
from cdi.reconcile.clone.types import CloneAuthorization
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.context_builder import build_context
from cdi.reconcile.settings import Platform, Retries
from cdi.reconcile.source import resolve_source
from cdi.reconcile.types import Clone
from cdi.store.base import Key

_SIMULATED_TOKEN: Final = "explained"  # noqa: S105  no secret: stands for a token that the dry run does not need
_WAITING: Final = (Phase.WAIT_FOR_FIRST_CONSUMER.value, Phase.PENDING_POPULATION.value)


def dry_run_in_cluster(reader: LiveReader, manifest: Object) -> DryRunResult:
    """Dry-run a DataVolume that does not exist yet; `manifest` is complete and valid, with its namespace.

    If it would wait for the first consumer of its volume, the result is what follows then.
    """
    result = dry_run(ClusterOverlay(reader, manifest), Key.of_object(manifest))
    if result.phase not in _WAITING:
        return result
    metadata = manifest["metadata"]
    annotations = {**(metadata.get("annotations") or {}), ANN_IMMEDIATE_BINDING: ""}
    scheduled = {**manifest, "metadata": {**metadata, "annotations": annotations}}
    return dry_run(ClusterOverlay(reader, scheduled), Key.of_object(manifest))


class ClusterOverlay(Overlay):
    """The objects of a cluster, and a new DataVolume with what its reconciler makes; implements `Cache`."""

    def __init__(self, reader: LiveReader, manifest: Object) -> None:
        super().__init__()
        self._reader = reader
        self._simulated: dict[tuple[Resource, str, str], Object] = {}
        self._grant: CloneAuthorization | None = None
        self.create(manifest)

    # --- Overlay ------------------------------------------------------------------------------------------------------

    def find(self, plural: str, namespace: str, name: str) -> Object | None:
        return self.get(resource_named(plural), namespace, name)

    def put(self, body: Object) -> None:
        metadata = body["metadata"]
        resource = resource_of(body["apiVersion"], body["kind"])
        self._simulated[resource, metadata.get("namespace") or "", metadata["name"]] = body

    def context(self, key: Key) -> ReconcileContext | None:
        context = self._context(key)
        if context is None or self._grant is not None:
            return context
        source = resolve_source(context)
        if not isinstance(source, Clone) or source.namespace == key.namespace or not self._reader.can_clone(source):
            return context
        # The webhook would add a token for it.
        self._grant = CloneAuthorization(
            kind=source.kind,
            namespace=source.namespace,
            name=source.name,
            target_namespace=key.namespace,
            target_name=key.name,
        )
        body = self.find(key.plural, key.namespace, key.name)
        assert body is not None
        annotations = {**annotations_of(body), ANN_CLONE_TOKEN: _SIMULATED_TOKEN}
        self.replace({**body, "metadata": {**body["metadata"], "annotations": annotations}})
        return self._context(key)

    def _context(self, key: Key) -> ReconcileContext | None:
        lister = self._reader.lister(self)
        return build_context(
            lister,
            key.namespace,
            key.name,
            now=time.time(),
            config=lister.config(),
            retries=Retries(),
            platform=Platform(cluster=True),
            clones=_Clones(self, lister, self._grant),
        )

    # --- Cache --------------------------------------------------------------------------------------------------------

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        return self._simulated.get((resource, namespace, name)) or self._reader.get(resource, namespace, name)

    def values(self, resource: Resource) -> Iterable[Object]:
        return self._reader.values(resource)

    def volumes_for(self, namespace: str, claim: str) -> Iterable[Object]:
        return self._reader.volumes_for(namespace, claim)

    def pods_using(self, namespace: str, claim: str) -> tuple[str, ...]:
        """Return the pods that use a PVC; a simulated one has none, the source of a clone may have some."""
        return () if (CLAIMS, namespace, claim) in self._simulated else self._reader.pods_using(namespace, claim)


class _Clones(InformerCloneLister):
    """Clones with a placeholder token, which needs no signing key."""

    def __init__(self, overlay: ClusterOverlay, lister: ClusterLister, grant: CloneAuthorization | None) -> None:
        super().__init__(overlay, lister, NoPodUsage())
        self._grant = grant

    def verify_token(self, token: str, moment: float) -> CloneAuthorization | None:
        return self._grant if token == _SIMULATED_TOKEN else super().verify_token(token, moment)

    def sign_long_lived_token(self, grant: CloneAuthorization) -> str:  # noqa: ARG002  signature of the protocol
        return _SIMULATED_TOKEN
