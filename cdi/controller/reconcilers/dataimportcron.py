"""Reconciler of DataImportCrons."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, tzinfo
from typing import ClassVar

from cdi.api.dataimportcron import DataImportCron
from cdi.api.errors import NotFound
from cdi.api.kinds import DATA_IMPORT_CRONS, JOBS, PODS
from cdi.api.names import POLL_ACCOUNT, prefixed_name
from cdi.controller.cron_lister import InformerCronLister
from cdi.controller.cron_reads import CronReads
from cdi.controller.informers import InformerSet
from cdi.controller.reconcilers import dataimportcron_events as events
from cdi.controller.reconcilers.base import KindReconciler, Watch
from cdi.controller.reconcilers.dependencies import MAX_INPUT_ROUNDS, PLATFORM, Dependencies
from cdi.controller.request import Request
from cdi.controller.result import Result, soonest
from cdi.logs import fields
from cdi.program_versions import program_versions
from cdi.reconcile.actions import CreateObject, Plan
from cdi.reconcile.context import ReconcileContext, Rejection
from cdi.reconcile.dataimportcron.context import CronContext, settings_of
from cdi.reconcile.dataimportcron.deletion import plan_deletion
from cdi.reconcile.dataimportcron.reconcile import reconcile_cron
from cdi.reconcile.settings import ResolvedConfig

CRON_PLATFORM = replace(PLATFORM, image_streams=True)
"""DataImportCrons resolve image streams; their DataVolumes get the image's own reference."""

log = logging.getLogger("cdi.controller")


class DataImportCronReconciler(KindReconciler):
    """Reconciler of DataImportCrons, and of what deleted ones have left."""

    name: ClassVar = "cron"
    resource: ClassVar = DATA_IMPORT_CRONS

    def __init__(self, dependencies: Dependencies) -> None:
        super().__init__(dependencies)
        self._versions = program_versions()
        self._poll_account = prefixed_name(POLL_ACCOUNT, dependencies.prefix)
        self._starts_lock = asyncio.Lock()

    @staticmethod
    def watches() -> tuple[Watch, ...]:
        return events.WATCHES

    @staticmethod
    def initial(caches: InformerSet) -> Iterable[Request]:
        return events.all_requests(caches)

    async def reconcile(self, request: Request) -> Result:
        body = self.get_object(request)
        if body is None:
            if self._d.scope.includes_namespace(request.namespace):
                await self._clean_up(request)
            self._d.inputs.forget(request)
            return Result()
        if not self.handles(request, body):
            return Result()
        plan = await self._plan(request, None)
        if plan is None:
            return Result()
        if _starts_pod(plan):
            # The limits of polls and proofs count objects in the cache, so between planning and creating one no other
            # may be created.
            async with self._starts_lock:
                body = self.get_object(request)
                plan = await self._plan(request, None)
                if plan is None or body is None:
                    return Result()
                rejection = await self._d.apply(request, plan, body)
        else:
            rejection = await self._d.apply(request, plan, body)
        if rejection is not None:
            plan = await self._plan(request, rejection)
            body = self.get_object(request)
            if plan is None or body is None:
                return Result()
            await self._d.apply(request, plan, body)
        # No watch reports that a quota was raised or a permission granted.
        patience = self._d.retries.patience if rejection is not None else None
        return soonest(plan.requeue_after, self._d.inputs.pause(request), patience)

    async def _clean_up(self, request: Request) -> None:
        """Delete what a deleted DataImportCron has left.

        The cache may not contain one that has just been created, so the API server is asked.
        """
        plan = plan_deletion(self.lister(CronReads(self._d.client)), request.namespace, request.name)
        if not plan.actions:
            return
        with contextlib.suppress(NotFound):
            await self._d.client.get(DATA_IMPORT_CRONS, request.namespace, request.name)
            return
        log.info("cleaning up after a deleted DataImportCron", extra=fields(key=request))
        await self._d.apply(request, plan, None)

    async def _plan(self, request: Request, rejection: Rejection | None) -> Plan | None:
        """Return the plan after asking what it depends on; None if the DataImportCron does not exist any more."""
        reads = CronReads(self._d.client)
        rounds = 0
        while True:
            with self._d.inputs.track(request):
                model = self._d.lister.model(DATA_IMPORT_CRONS, request.namespace, request.name, DataImportCron)
                if model is None:
                    return None
                plan = reconcile_cron(self._context(model, reads, rejection))
            answered = await reads.answer()
            changed = await self._d.inputs.read(request)
            if rounds == MAX_INPUT_ROUNDS or not (answered or changed):
                return plan
            rounds += 1

    def _context(self, model: DataImportCron, reads: CronReads, rejection: Rejection | None) -> CronContext:
        settings, problem = settings_of(model.metadata.annotations)
        return CronContext(
            now=self._d.now(),
            cron=model,
            objects=self.lister(reads),
            settings=settings,
            settings_problem=problem,
            config=self._config(),
            platform=CRON_PLATFORM,
            install_namespace=self._d.install_namespace,
            owner=self._d.owner_reference(),
            poll_account=self._poll_account,
            versions=self._versions,
            zone=local_zone(),
            refusal=rejection,
        )

    def _config(self) -> ResolvedConfig:
        """Return the configuration with the labels without which this controller would not handle the DataVolumes."""
        config = self._d.lister.config()
        return replace(config, labels={**config.labels, **self._d.scope.selector})

    def lister(self, reads: CronReads) -> InformerCronLister:
        """Return the view of golden images, with the answers that `reads` has got from the API server."""
        return InformerCronLister(
            self._d.caches,
            self._d.lister,
            self._d.clones,
            reads,
            scope=self._d.scope,
            install_namespace=self._d.install_namespace,
            volume_context=self._own_volume_context,
        )

    def _own_volume_context(self, request: Request) -> ReconcileContext | None:
        """Return the context of a volume; None if this installation does not handle it."""
        body = self._d.volume_object(request)
        ours = body is not None and self._d.ownership.handles_volume(body)
        return self._d.volume_context(request) if ours else None


def local_zone() -> tzinfo:
    """Return the time zone of schedules that name none: the controller's."""
    return datetime.now().astimezone().tzinfo or UTC


def _starts_pod(plan: Plan) -> bool:
    """Return whether a plan creates a Job or a pod."""
    return any(isinstance(one, CreateObject) and one.body["kind"] in (JOBS.kind, PODS.kind) for one in plan.actions)
