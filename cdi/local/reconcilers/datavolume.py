"""Reconciler of DataVolumes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from cdi.api.annotations import UPLOAD_REQUEST
from cdi.api.datavolume import DataVolume
from cdi.api.errors import CdiError
from cdi.client.status_view import phase_of
from cdi.local.applier import PlanApplier
from cdi.local.launcher import Launcher
from cdi.local.lister import Observed, Setting
from cdi.local.reconcilers.reconciler import Changes, Request, Result
from cdi.local.worker_slots import ProcessMonitor, WorkerSlots
from cdi.reconcile.actions import Plan, StartWorker
from cdi.reconcile.datavolume.reconcile import reconcile
from cdi.reconcile.datavolume.upload import UploadRequest
from cdi.reconcile.invalid_object import report_invalid
from cdi.reconcile.pods.types import Worker
from cdi.store.base import Key

_POLL_INTERVAL = 0.5
"""Seconds between two reads of a worker's progress."""

log = logging.getLogger("cdi.supervisor")


class DataVolumeReconciler:
    """Reconciler of DataVolumes; it starts and follows their workers."""

    def __init__(
        self,
        observed: Observed,
        applier: PlanApplier,
        launcher: Launcher,
        processes: ProcessMonitor,
        slots: WorkerSlots,
        setting: Setting,
        errors: Mapping[Request, CdiError],
    ) -> None:
        """Wire up the reconciler; `errors` has the objects whose last reconcile failed."""
        self._observed = observed
        self._applier = applier
        self._launcher = launcher
        self._processes = processes
        self._slots = slots
        self._setting = setting
        self._errors = errors

    def requests_for(self, changes: Changes) -> Iterable[Key]:
        """Return the changed DataVolumes, those of changed PVCs, and unfinished ones that depend on other changes."""
        keys = changes.keys("datavolumes")
        keys |= {Key("datavolumes", key.namespace, key.name) for key in changes.keys("persistentvolumeclaims")}
        if changes.affects_all or changes.affects_references:
            for key in self._observed.keys("datavolumes"):
                if (changes.affects_all or self._refers(key)) and not phase_of(self._observed.body(key) or {}).final:
                    keys.add(key)
        return keys

    def _refers(self, key: Key) -> bool:
        spec = (self._observed.body(key) or {}).get("spec") or {}
        source = spec.get("source")
        return bool(spec.get("sourceRef") or (isinstance(source, dict) and source.get("pvc")))

    def reconcile(self, key: Key) -> Result:
        dv, body = self._observed.model(key, DataVolume), self._observed.body(key)
        if dv is None or body is None:
            self._slots.leave(key)
            return Result()
        now = self._setting.now()
        claim = self._observed.claim(key.namespace, key.name)
        worker = self._launcher.observe(claim.uid) if claim is not None else None
        if claim is not None and worker is not None and worker.running:
            self._processes.add("worker", claim.uid, key)
        plan = self._plan(key, dv, worker)
        if (error := self._errors.get(Key("persistentvolumeclaims", key.namespace, key.name))) is not None:
            self._slots.leave(key)
            plan = report_invalid(body, error, now)
        self._applier.apply(plan, body, now)
        for action in plan.actions:
            if isinstance(action, StartWorker):
                self._processes.add("worker", action.claim, key)
                log.info("%s: attempt %d started", key, action.attempt)
        if plan.status is not None:
            log.info("%s: %s %s", key, plan.status["phase"], plan.status["progress"])
            if claim is not None and phase_of({"status": plan.status}).final:
                self._launcher.tidy(claim.uid)
        if plan.requeue_after is None and worker is not None and worker.running:
            return Result(requeue_after=_POLL_INTERVAL)
        return Result(requeue_after=plan.requeue_after)

    def _plan(self, key: Key, dv: DataVolume, worker: Worker | None) -> Plan:
        """Compute the plan, which starts a worker only in its turn."""
        claim = self._observed.claim(key.namespace, key.name)
        request = UPLOAD_REQUEST.read(UploadRequest, claim.annotations) if claim is not None else None
        if request is not None and request.path is None:
            # The client starts the worker, as it is the client that has the stream.
            self._slots.leave(key)
            turn = "waiting for the client that sends it"
            return reconcile(self._observed.context(dv, worker, self._setting, admitted=False, turn=turn))
        turn = f"waiting for one of {self._slots.limit} workers to become free"
        admitted = self._slots.has_slot(key)
        plan = reconcile(self._observed.context(dv, worker, self._setting, admitted=admitted, turn=turn))
        if plan.wants_worker:
            self._slots.wait(key)
        else:
            self._slots.leave(key)
        return plan
