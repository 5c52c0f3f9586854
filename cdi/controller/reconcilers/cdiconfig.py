"""Reconciler of the CDIConfig."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from cdi.api.configuration import CONFIG_NAME, CDIConfig
from cdi.api.kinds import CDI_CONFIGS, CDIS, STORAGE_CLASSES, STORAGE_PROFILES
from cdi.controller.informers import InformerSet
from cdi.controller.reconcilers.base import KindReconciler, Watch
from cdi.controller.request import CONFIG, Request
from cdi.controller.result import Result
from cdi.kube.reflector import WatchEvent
from cdi.reconcile.actions import CreateObject, Plan
from cdi.reconcile.cdi.config import ConfigFacts, active_cdi, reconcile_config


class CDIConfigReconciler(KindReconciler):
    """Reconciler of the CDIConfig, unless another controller handles the cluster-scoped objects."""

    name: ClassVar = "config"
    resource: ClassVar = CDI_CONFIGS

    @staticmethod
    def watches() -> tuple[Watch, ...]:
        relevant = (CDI_CONFIGS, CDIS, STORAGE_CLASSES, STORAGE_PROFILES)
        return tuple(Watch(resource=resource, handler=_the_config) for resource in relevant)

    @staticmethod
    def initial(caches: InformerSet) -> Iterable[Request]:  # noqa: ARG004  signature of the protocol
        return (CONFIG,)

    async def reconcile(self, request: Request) -> Result:  # noqa: ARG002  there is only one
        if self._d.scope.is_restricted:
            return Result()
        uploads = self._d.uploads
        facts = ConfigFacts(
            storage_classes=self._d.lister.storage_classes(),
            upload_proxy_known=uploads.known,
            upload_proxy_url=uploads.host or None,
            upload_proxy_ca=uploads.authorities or None,
            owner=self._d.owner_reference(),
        )
        config = self._d.lister.model(CDI_CONFIGS, "", CONFIG_NAME, CDIConfig)
        plan = reconcile_config(active_cdi(self._d.lister.cdis()), config, facts)
        if plan.create is not None:
            await self._d.applier.apply(Plan(actions=(CreateObject(body=plan.create),)), {}, self._d.now())
        if plan.update is not None:
            updated = await self._d.client.update(CDI_CONFIGS, dict(plan.update))
            self._d.caches.record_write(CDI_CONFIGS, updated)
            for event in plan.events:
                await self._d.recorder.record(updated, event, self._d.now())
        return Result()


def _the_config(change: WatchEvent, caches: InformerSet) -> Iterable[Request]:  # noqa: ARG001  signature of handlers
    return (CONFIG,)
