"""Reconciler of StorageProfiles: one for each StorageClass, and of the same name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from cdi.api.kinds import STORAGE_CLASSES, STORAGE_PROFILES, VOLUME_SNAPSHOT_CLASSES, VOLUMES, Object
from cdi.api.storageprofile import StorageProfile
from cdi.controller.informers import InformerSet
from cdi.controller.reconcilers.base import KindReconciler, Watch, changed
from cdi.controller.reconcilers.event_handlers import all_of, itself, requests_for_all
from cdi.controller.request import Request
from cdi.controller.result import Result
from cdi.kube.reflector import WatchEvent
from cdi.reconcile.storage.profiles import ProfileFacts, reconcile_orphan, reconcile_storage_profile


class StorageProfileReconciler(KindReconciler):
    """Reconciler of StorageProfiles, unless another controller handles the cluster-scoped objects."""

    name: ClassVar = "profile"
    resource: ClassVar = STORAGE_PROFILES

    @staticmethod
    def watches() -> tuple[Watch, ...]:
        of_same_name = itself(StorageProfileReconciler.name)
        every_class = all_of(StorageProfileReconciler.name, STORAGE_CLASSES)
        return (
            Watch(resource=STORAGE_CLASSES, handler=of_same_name),
            Watch(resource=STORAGE_PROFILES, handler=of_same_name),
            Watch(resource=VOLUME_SNAPSHOT_CLASSES, handler=every_class),
            Watch(resource=VOLUMES, handler=_of_volume, predicate=changed(_volume_facts)),
        )

    @staticmethod
    def initial(caches: InformerSet) -> Iterator[Request]:
        for resource in (STORAGE_CLASSES, STORAGE_PROFILES):
            yield from requests_for_all(StorageProfileReconciler.name, resource, caches)

    async def reconcile(self, request: Request) -> Result:
        if self._d.scope.is_restricted:
            return Result()
        profile = self._d.lister.model(STORAGE_PROFILES, "", request.name, StorageProfile)
        storage_class = self._d.lister.storage_class(request.name)
        if storage_class is not None:
            facts = ProfileFacts(
                volumes=tuple(self._d.lister.provisioned_volumes(request.name)),
                snapshot_classes=self._d.lister.snapshot_classes(),
                owner=self._d.owner_reference(),
            )
            plan = reconcile_storage_profile(storage_class, profile, facts, self._d.now())
        elif profile is not None:
            plan = reconcile_orphan(profile)
        else:
            return Result()
        body = self.get_object(request) or self._d.caches.get(STORAGE_CLASSES, "", request.name)
        await self._d.apply(request, plan, body)
        return Result()


def _of_volume(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:  # noqa: ARG001  signature of handlers
    """Yield the profile of a PersistentVolume's class, which shows what its volumes support."""
    storage_class = change.object["spec"].get("storageClassName")
    if storage_class:
        yield Request(kind=StorageProfileReconciler.name, name=storage_class)


def _volume_facts(body: Object | None) -> object:
    if body is None:
        return None
    return body["spec"].get("accessModes"), body["spec"].get("volumeMode"), (body.get("status") or {}).get("phase")
