"""Reconciler of DataSources."""

from __future__ import annotations

from collections.abc import Iterable

from cdi.api.datasource import DataSource
from cdi.local.applier import PlanApplier
from cdi.local.lister import PLATFORM, Observed, Setting
from cdi.local.reconcilers.reconciler import Changes, Result
from cdi.reconcile.datasource import reconcile_data_source
from cdi.store.base import Key


class DataSourceReconciler:
    """Reconciler of DataSources, all of which depend on the volumes and DataSources that they may refer to."""

    def __init__(self, observed: Observed, applier: PlanApplier, setting: Setting) -> None:
        self._observed = observed
        self._applier = applier
        self._setting = setting

    def requests_for(self, changes: Changes) -> Iterable[Key]:
        keys = changes.keys("datasources")
        return (
            {*keys, *self._observed.keys("datasources")} if changes.affects_references or changes.affects_all else keys
        )

    def reconcile(self, key: Key) -> Result:
        source, body = self._observed.model(key, DataSource), self._observed.body(key)
        if source is not None and body is not None:
            now = self._setting.now()
            self._applier.apply(reconcile_data_source(source, self._observed, PLATFORM, now), body, now)
        return Result()
