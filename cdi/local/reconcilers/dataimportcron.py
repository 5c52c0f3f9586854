"""Reconciler of DataImportCrons."""

from __future__ import annotations

from collections.abc import Iterable

from cdi.api.dataimportcron import DataImportCron
from cdi.api.names import LABEL_DATA_IMPORT_CRON
from cdi.local.applier import PlanApplier
from cdi.local.cron_lister import LocalCronLister, cron_context
from cdi.local.home import Home
from cdi.local.lister import Observed, Setting
from cdi.local.reconcilers.reconciler import Changes, Result
from cdi.local.tasks import Tasks
from cdi.local.worker_slots import ProcessMonitor
from cdi.reconcile.dataimportcron.deletion import plan_deletion
from cdi.reconcile.dataimportcron.reconcile import reconcile_cron
from cdi.store.base import Key

_SOON = 10.0
"""Seconds; the supervisor waits for a reconcile that is due within them, but not for one that is due later."""


class DataImportCronReconciler:
    """Reconciler of DataImportCrons; it follows their polls and boot proofs."""

    def __init__(
        self,
        home: Home,
        observed: Observed,
        applier: PlanApplier,
        tasks: Tasks,
        processes: ProcessMonitor,
        setting: Setting,
    ) -> None:
        self._home = home
        self._observed = observed
        self._lister = LocalCronLister(observed, tasks)
        self._applier = applier
        self._tasks = tasks
        self._processes = processes
        self._setting = setting

    def requests_for(self, changes: Changes) -> Iterable[Key]:
        """Return the changed DataImportCrons, and those of changed objects, which carry the label of theirs."""
        keys = changes.keys("dataimportcrons")
        for change in changes.changes:
            if cron := (change.body["metadata"].get("labels") or {}).get(LABEL_DATA_IMPORT_CRON):
                keys.add(Key("dataimportcrons", change.key.namespace, str(cron)))
        return {*keys, *self._observed.keys("dataimportcrons")} if changes.affects_all else keys

    def reconcile(self, key: Key) -> Result:
        cron, body = self._observed.model(key, DataImportCron), self._observed.body(key)
        if cron is None or body is None:
            self._delete_versions(key)
            return Result()
        now = self._setting.now()
        context = cron_context(self._home, cron, self._lister, self._observed.config(), now)
        plan = reconcile_cron(context)
        self._applier.apply(plan, body, now)
        for claim in self._lister.claims_of(key.namespace, key.name):
            if self._tasks.running("proof", claim.uid):
                self._processes.add("proof", claim.uid, key)
        if self._tasks.running("poll", context.uid):
            self._processes.add("poll", context.uid, key)
        delay = plan.requeue_after
        return Result(requeue_after=delay, keeps_running=delay is not None and delay <= _SOON)

    def _delete_versions(self, key: Key) -> None:
        """Delete the dependents of a DataImportCron that was deleted, perhaps while no supervisor was running."""
        plan = plan_deletion(self._lister, key.namespace, key.name, cluster=False)
        metadata = {"namespace": key.namespace, "name": key.name}
        body = {"apiVersion": key.kind.api_version, "kind": key.kind.kind, "metadata": metadata}
        self._applier.apply(plan, body, self._setting.now())
