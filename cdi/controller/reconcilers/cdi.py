"""Reconciler of CDI objects, which show the state of the installation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from cdi.api.installation import CDI
from cdi.api.kinds import CDI_CONFIGS, CDIS
from cdi.controller.informers import InformerSet
from cdi.controller.reconcilers.base import KindReconciler, Watch
from cdi.controller.reconcilers.event_handlers import all_of, requests_for_all
from cdi.controller.request import Request
from cdi.controller.result import Result
from cdi.reconcile.cdi.config import active_cdi, problems
from cdi.reconcile.cdi.installation import reconcile_installation


class CDIReconciler(KindReconciler):
    """Reconciler of CDI objects, unless another controller handles the cluster-scoped objects."""

    name: ClassVar = "installation"
    resource: ClassVar = CDIS

    @staticmethod
    def watches() -> tuple[Watch, ...]:
        # Only one CDI object is active, so a change of one may concern the others.
        every_cdi = all_of(CDIReconciler.name, CDIS)
        return tuple(Watch(resource=resource, handler=every_cdi) for resource in (CDIS, CDI_CONFIGS))

    @staticmethod
    def initial(caches: InformerSet) -> Iterator[Request]:
        return requests_for_all(CDIReconciler.name, CDIS, caches)

    async def reconcile(self, request: Request) -> Result:
        if self._d.scope.is_restricted:
            return Result()
        installed = await self._d.components.check()
        body = self.get_object(request)
        model = self._d.lister.model(CDIS, "", request.name, CDI)
        if body is None or model is None:
            return Result()
        active = active_cdi(self._d.lister.cdis())
        plan = reconcile_installation(
            model,
            active=active is not None and active.metadata.uid == model.metadata.uid,
            installed=installed,
            found=problems(active, self._d.lister.cdi_config(), self._d.lister.storage_classes()),
            now=self._d.now(),
        )
        await self._d.apply(request, plan, body)
        return Result(requeue_after=self._d.components.pause)
