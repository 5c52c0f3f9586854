"""Reconciler of DataSources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from cdi.api.datasource import DataSource
from cdi.api.kinds import CLAIMS, DATA_SOURCES, DATA_VOLUMES, VOLUME_SNAPSHOTS
from cdi.controller.informers import InformerSet
from cdi.controller.reconcilers.base import KindReconciler, Watch, changed
from cdi.controller.reconcilers.dependencies import PLATFORM
from cdi.controller.reconcilers.event_handlers import all_of, itself, requests_for_all, volume_facts
from cdi.controller.request import Request
from cdi.controller.result import Result
from cdi.reconcile.datasource import reconcile_data_source


class DataSourceReconciler(KindReconciler):
    """Reconciler of DataSources, which show the readiness of their source and pass on some of its labels."""

    name: ClassVar = "source"
    resource: ClassVar = DATA_SOURCES

    @staticmethod
    def watches() -> tuple[Watch, ...]:
        every_source = all_of(DataSourceReconciler.name, DATA_SOURCES)
        return (
            Watch(resource=DATA_SOURCES, handler=itself(DataSourceReconciler.name)),
            Watch(resource=DATA_SOURCES, handler=every_source),  # one may refer to another
            Watch(resource=DATA_VOLUMES, handler=every_source, predicate=changed(volume_facts)),
            Watch(resource=CLAIMS, handler=every_source, predicate=changed(volume_facts)),
            Watch(resource=VOLUME_SNAPSHOTS, handler=every_source),
        )

    @staticmethod
    def initial(caches: InformerSet) -> Iterator[Request]:
        return requests_for_all(DataSourceReconciler.name, DATA_SOURCES, caches)

    async def reconcile(self, request: Request) -> Result:
        body = self.get_object(request)
        model = self._d.lister.model(DATA_SOURCES, request.namespace, request.name, DataSource)
        if body is not None and model is not None and self.handles(request, body):
            plan = reconcile_data_source(model, self._d.lister, PLATFORM, self._d.now(), self._d.clones)
            await self._d.apply(request, plan, body)
        return Result()
