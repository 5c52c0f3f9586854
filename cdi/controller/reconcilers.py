"""Reconcilers of all kinds of keys: observe, compute a plan with the pure reconciler, apply the plan."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, tzinfo
from typing import Any, assert_never

from cdi.api.configuration import CONFIG_NAME, CDIConfig
from cdi.api.dataimportcron import DataImportCron
from cdi.api.datasource import DataSource
from cdi.api.errors import InvalidManifest, NotFound
from cdi.api.installation import CDI
from cdi.api.kinds import (
    CDI_CONFIGS,
    CDIS,
    CLAIMS,
    DATA_IMPORT_CRONS,
    DATA_SOURCES,
    DATA_VOLUMES,
    JOBS,
    OBJECT_TRANSFERS,
    PODS,
    STORAGE_CLASSES,
    STORAGE_PROFILES,
    VOLUME_SNAPSHOTS,
    Object,
    Resource,
)
from cdi.api.names import INSTALLATION, POLL_ACCOUNT, prefixed_name
from cdi.api.storageprofile import StorageProfile
from cdi.api.transfer import ObjectTransfer
from cdi.controller.applier import PlanApplier
from cdi.controller.certificates import CertificateManager
from cdi.controller.clone_gc import CloneGarbageCollector
from cdi.controller.clone_lister import InformerCloneLister
from cdi.controller.components import ComponentHealth
from cdi.controller.cron_lister import InformerCronLister
from cdi.controller.cron_reads import CronReads
from cdi.controller.event_recorder import EventRecorder
from cdi.controller.informers import InformerSet
from cdi.controller.lister import ClusterLister
from cdi.controller.referenced_objects import ReferencedObjects
from cdi.controller.request import Kind, Request, Scope, datavolume
from cdi.controller.status_throttle import StatusThrottle
from cdi.controller.transfer_lister import TransferLister, endpoints, locks_of_others
from cdi.controller.upload_certificates import UploadCertificateRotator
from cdi.kube.client import Client
from cdi.logs import fields
from cdi.program_versions import program_versions
from cdi.reconcile.actions import CreateObject, Plan, SetFinalizer, StartWorker
from cdi.reconcile.cdi.config import ConfigFacts, active_cdi, problems, reconcile_config
from cdi.reconcile.cdi.installation import reconcile_installation
from cdi.reconcile.context import ReconcileContext, Rejection
from cdi.reconcile.context_builder import build_context
from cdi.reconcile.dataimportcron.context import CronContext, settings_of
from cdi.reconcile.dataimportcron.deletion import plan_deletion
from cdi.reconcile.dataimportcron.reconcile import reconcile_cron
from cdi.reconcile.datasource import reconcile_data_source
from cdi.reconcile.datavolume.reconcile import reconcile
from cdi.reconcile.invalid_object import report_invalid
from cdi.reconcile.objecttransfer.context import TransferWorld
from cdi.reconcile.objecttransfer.reconcile import reconcile_transfer
from cdi.reconcile.settings import CLUSTER_RETRIES, Platform, ResolvedConfig, Retries
from cdi.reconcile.storage.profiles import ProfileFacts, reconcile_orphan, reconcile_storage_profile

PLATFORM = Platform(cluster=True)
CRON_PLATFORM = replace(PLATFORM, image_streams=True)
"""DataImportCrons resolve image streams; their DataVolumes get the image's own reference."""
MAX_INPUT_ROUNDS = 3
"""Maximum number of rounds in which a plan's Secrets and ConfigMaps are read: one may refer to another."""
_RESOURCES: Mapping[Kind, Resource] = {
    "volume": DATA_VOLUMES,
    "snapshot": VOLUME_SNAPSHOTS,
    "reader": PODS,
    "source": DATA_SOURCES,
    "cron": DATA_IMPORT_CRONS,
    "transfer": OBJECT_TRANSFERS,
    "profile": STORAGE_PROFILES,
    "config": CDI_CONFIGS,
    "installation": CDIS,
}

log = logging.getLogger("cdi.controller")


class Reconcilers:
    """Dispatcher with one reconciler for each kind of key."""

    def __init__(
        self,
        client: Client,
        watches: InformerSet,
        observed: ClusterLister,
        inputs: ReferencedObjects,
        clones: InformerCloneLister,
        transfers: TransferLister,
        certifier: CertificateManager,
        uploads: UploadCertificateRotator,
        *,
        scope: Scope,
        components: ComponentHealth,
        install_namespace: str,
        prefix: str = INSTALLATION,
        retries: Retries | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._watches = watches
        self._observed = observed
        self._inputs = inputs
        self._clones = clones
        self._transfers = transfers
        self._recorder = EventRecorder(client)
        self._applier = PlanApplier(client, watches, certifier, self._recorder)
        self._uploads = uploads
        self._scope = scope
        self._install_namespace = install_namespace
        self._versions = program_versions()
        self._poll_account = prefixed_name(POLL_ACCOUNT, prefix)
        self._components = components
        self._retries = retries or CLUSTER_RETRIES
        self._throttle = StatusThrottle(now)
        self._starts_lock = asyncio.Lock()
        self._temporaries = CloneGarbageCollector(watches, observed, clones, scope=scope, now=now)
        self.now = now

    async def reconcile(self, key: Request) -> float | None:
        """Reconcile a key once.

        Returns:
            Seconds until the next reconcile if no change triggers it before; None if none is needed.

        Raises:
            Conflict: The plan was based on an outdated state.
            InvalidManifest: The object is invalid.
            CdiError: Any other error of the client.

        """
        match key.kind:
            case "volume":
                return await self._reconcile_datavolume(key)
            case "snapshot" | "reader":
                return await self._reconcile_temporary(key)
            case "source":
                await self._reconcile_datasource(key)
            case "cron":
                return await self._reconcile_dataimportcron(key)
            case "transfer":
                return await self._reconcile_objecttransfer(key)
            case "profile":
                await self._reconcile_storageprofile(key)
            case "config":
                await self._reconcile_cdiconfig()
            case "installation":
                return await self._reconcile_cdi(key)
            case _:
                assert_never(key.kind)
        return None

    def get_object(self, key: Request) -> Object | None:
        """Return the object in which errors of a key are reported; None if it does not exist."""
        found = self._watches.get(_RESOURCES[key.kind], key.namespace, key.name)
        return self._watches.get(CLAIMS, key.namespace, key.name) if found is None and key.kind == "volume" else found

    async def report_invalid(self, key: Request, error: InvalidManifest) -> None:
        """Report an object that is invalid, or that depends on an invalid one, in its status and events.

        Raises:
            CdiError: Any error of the API server when the status is written.

        """
        involved_object = self.get_object(key)
        if involved_object is None:
            return
        ours = self._is_ours(key, involved_object) if key.kind == "volume" else self._acts_on(key, involved_object)
        if ours:
            plan = report_invalid(involved_object, error, self.now())
            await self._applier.apply(plan, involved_object, self.now())

    def owns(self, body: Object) -> bool:
        """Return whether an object created for a PVC belongs to this installation."""
        return self._is_ours(datavolume(body["metadata"]["namespace"], body["metadata"]["name"]), body)

    # --- volumes --------------------------------------------------------------------------------------------------

    async def _reconcile_datavolume(self, key: Request) -> float | None:
        involved_object = self.get_object(key)
        await self._reconcile_temporary(key)
        await self._release_locks(key)
        if involved_object is None or not self._is_ours(key, involved_object):
            self._inputs.forget(key)
            return None
        plan = await self._plan(key, None)
        if plan is None:
            return None
        plan = self._throttle.filter(key, plan, involved_object)
        refusal = await self._carry_out(key, plan, involved_object)
        if refusal is None:
            # No watch reports a change of a Secret or ConfigMap, so the volume is reconciled again when its next read
            # is due.
            pauses = (plan.requeue_after, self._inputs.pause(key))
            return min((pause for pause in pauses if pause is not None), default=None)
        self._report_rejected(key, refusal)
        fallback_plan = await self._plan(key, refusal)
        involved_object = self.get_object(key)
        if fallback_plan is not None and involved_object is not None:
            await self._carry_out(key, fallback_plan, involved_object)
        pause = fallback_plan.requeue_after if fallback_plan is not None else None
        return self._retries.patience if pause is None else pause

    def _is_ours(self, key: Request, involved_object: Object) -> bool:
        """Return whether this installation handles a volume: its scope selects the object or one of its owners."""
        if not self._scope.includes_namespace(key.namespace):
            return False
        for _ in range(3):
            if self._scope.matches(involved_object):
                return True
            owner = next(
                (one for one in involved_object["metadata"].get("ownerReferences") or () if one.get("controller")), None
            )
            if owner is None or owner.get("kind") not in (CLAIMS.kind, DATA_VOLUMES.kind):
                return False
            resource = CLAIMS if owner["kind"] == CLAIMS.kind else DATA_VOLUMES
            above = self._watches.get(resource, key.namespace, owner["name"])
            if above is None:
                return False
            involved_object = above
        return False

    async def _plan(self, key: Request, refusal: Rejection | None) -> Plan | None:
        """Return the plan after reading the objects that it refers to; None if there is nothing to reconcile."""
        reads = 0
        while True:
            with self._inputs.track(key):
                context = self._context(key, refusal)
                plan = reconcile(context) if context is not None else None
            if reads == MAX_INPUT_ROUNDS or not await self._inputs.read(key):
                return plan
            reads += 1

    def _context(self, key: Request, refusal: Rejection | None) -> ReconcileContext | None:
        return build_context(
            self._observed,
            key.namespace,
            key.name,
            now=self.now(),
            config=self._observed.config(),
            retries=self._retries,
            platform=PLATFORM,
            refusal=refusal,
            clones=self._clones,
        )

    async def _reconcile_temporary(self, key: Request) -> float | None:
        """Reconcile a temporary object of a clone."""
        plan = self._temporaries.plan(key)
        if plan is None:
            return None
        await self._simple(key, plan, self.get_object(key))
        return plan.requeue_after

    async def _release_locks(self, key: Request) -> None:
        """Remove from a PVC the finalizers of ObjectTransfers that no longer exist.

        A transfer removes its own, unless its finalizer was removed by another client.
        """
        claim = self._watches.get(CLAIMS, key.namespace, key.name)
        if claim is None or not self._scope.includes_namespace(key.namespace):
            return
        if not locks_of_others(claim, self._watches.values(OBJECT_TRANSFERS)):
            return
        # A transfer may have been created, and have locked the PVC, after the cache was filled.
        current = await self._client.list(OBJECT_TRANSFERS)
        actions = tuple(
            SetFinalizer(
                plural=CLAIMS.plural,
                namespace=key.namespace,
                name=key.name,
                uid=claim["metadata"]["uid"],
                finalizer=finalizer,
                present=False,
            )
            for finalizer in locks_of_others(claim, current.items)
        )
        if actions:
            log.info("releasing a PVC from a deleted ObjectTransfer", extra=fields(key=key))
            await self._simple(key, Plan(actions=actions), claim)

    async def _carry_out(self, key: Request, plan: Plan, involved_object: Object) -> Rejection | None:
        refusal = await self._applier.apply(plan, involved_object, self.now())
        if refusal is not None:
            return refusal
        for action in plan.actions:
            if isinstance(action, StartWorker):
                log.info("attempt", extra=fields(key=key, attempt=action.attempt))
        if plan.status is not None:
            before = involved_object.get("status") or {}
            phase, reason = plan.status.get("phase"), _reason(plan.status)
            if (before.get("phase"), _reason(before)) != (phase, reason):
                log.info("phase", extra=fields(key=key, phase=phase, reason=reason))
        return None

    # --- other kinds ------------------------------------------------------------------------------------------------

    async def _reconcile_datasource(self, key: Request) -> None:
        body = self._watches.get(DATA_SOURCES, key.namespace, key.name)
        model = self._observed.model(DATA_SOURCES, key.namespace, key.name, DataSource)
        if body is not None and model is not None and self._acts_on(key, body):
            plan = reconcile_data_source(model, self._observed, PLATFORM, self.now(), self._clones)
            await self._simple(key, plan, body)

    async def _reconcile_dataimportcron(self, key: Request) -> float | None:
        body = self._watches.get(DATA_IMPORT_CRONS, key.namespace, key.name)
        if body is None:
            if self._scope.includes_namespace(key.namespace):
                await self._clean_up_dataimportcron(key)
            self._inputs.forget(key)
            return None
        if not self._acts_on(key, body):
            return None
        plan = await self._cron_plan(key, None)
        if plan is None:
            return None
        if _starts_pod(plan):
            # The limits of polls and proofs count objects in the cache, so between planning and creating one no other
            # may be created.
            async with self._starts_lock:
                body = self._watches.get(DATA_IMPORT_CRONS, key.namespace, key.name)
                plan = await self._cron_plan(key, None)
                if plan is None or body is None:
                    return None
                refusal = await self._carry_out(key, plan, body)
        else:
            refusal = await self._carry_out(key, plan, body)
        if refusal is not None:
            self._report_rejected(key, refusal)
            plan = await self._cron_plan(key, refusal)
            body = self._watches.get(DATA_IMPORT_CRONS, key.namespace, key.name)
            if plan is None or body is None:
                return None
            await self._carry_out(key, plan, body)
        pauses = (
            plan.requeue_after,
            self._inputs.pause(key),
            # No watch reports that a quota was raised or a permission granted.
            self._retries.patience if refusal is not None else None,
        )
        return min((pause for pause in pauses if pause is not None), default=None)

    async def _clean_up_dataimportcron(self, key: Request) -> None:
        """Delete what a deleted DataImportCron has left.

        The cache may not contain one that has just been created, so the API server is asked.
        """
        plan = plan_deletion(self._crons(CronReads(self._client)), key.namespace, key.name)
        if not plan.actions:
            return
        with contextlib.suppress(NotFound):
            await self._client.get(DATA_IMPORT_CRONS, key.namespace, key.name)
            return
        log.info("cleaning up after a deleted DataImportCron", extra=fields(key=key))
        await self._simple(key, plan, None)

    async def _cron_plan(self, key: Request, refusal: Rejection | None) -> Plan | None:
        """Return the plan after asking what it depends on; None if the DataImportCron does not exist any more."""
        reads = CronReads(self._client)
        rounds = 0
        while True:
            with self._inputs.track(key):
                model = self._observed.model(DATA_IMPORT_CRONS, key.namespace, key.name, DataImportCron)
                if model is None:
                    return None
                plan = reconcile_cron(self._cron_context(model, reads, refusal))
            answered = await reads.answer()
            changed = await self._inputs.read(key)
            if rounds == MAX_INPUT_ROUNDS or not (answered or changed):
                return plan
            rounds += 1

    def _cron_context(self, model: DataImportCron, reads: CronReads, refusal: Rejection | None) -> CronContext:
        settings, problem = settings_of(model.metadata.annotations)
        return CronContext(
            now=self.now(),
            cron=model,
            objects=self._crons(reads),
            settings=settings,
            settings_problem=problem,
            config=self._cron_config(),
            platform=CRON_PLATFORM,
            install_namespace=self._install_namespace,
            owner=self._owner(),
            poll_account=self._poll_account,
            versions=self._versions,
            zone=local_zone(),
            refusal=refusal,
        )

    def _cron_config(self) -> ResolvedConfig:
        """Return the configuration with the labels without which this controller would not handle the DataVolumes."""
        config = self._observed.config()
        return replace(config, labels={**config.labels, **self._scope.selector})

    def _crons(self, reads: CronReads) -> InformerCronLister:
        return InformerCronLister(
            self._watches,
            self._observed,
            self._clones,
            reads,
            scope=self._scope,
            install_namespace=self._install_namespace,
            volume_context=self._own_context,
        )

    def _own_context(self, key: Request) -> ReconcileContext | None:
        """Return the context of a volume; None if this installation does not handle it."""
        body = self.get_object(key)
        return self._context(key, None) if body is not None and self._is_ours(key, body) else None

    def _acts_on(self, key: Request, body: Object) -> bool:
        return self._scope.includes_namespace(key.namespace) and self._scope.matches(body)

    async def _reconcile_objecttransfer(self, key: Request) -> float | None:
        """Reconcile an ObjectTransfer if this installation handles both its namespaces."""
        body = self._watches.get(OBJECT_TRANSFERS, "", key.name)
        model = self._observed.model(OBJECT_TRANSFERS, "", key.name, ObjectTransfer)
        if body is None or model is None or not self._scope.matches(body):
            return None
        if not all(self._scope.includes_namespace(namespace) for namespace, _ in endpoints(body)):
            return None
        context = TransferWorld(now=self.now(), transfer=model, objects=self._observed, facts=self._transfers)
        plan = reconcile_transfer(context)
        refusal = await self._carry_out(key, plan, body)
        if refusal is None:
            return plan.requeue_after
        self._report_rejected(key, refusal)
        fallback_plan = reconcile_transfer(replace(context, now=self.now(), refusal=refusal))
        # Actions before the rejected one may have changed its version.
        await self._carry_out(key, fallback_plan, self._watches.get(OBJECT_TRANSFERS, "", key.name) or body)
        return fallback_plan.requeue_after

    async def _reconcile_storageprofile(self, key: Request) -> None:
        """Reconcile a StorageProfile unless another controller handles the cluster-scoped objects."""
        if self._scope.is_restricted:
            return
        profile = self._observed.model(STORAGE_PROFILES, "", key.name, StorageProfile)
        body = self._watches.get(STORAGE_PROFILES, "", key.name)
        storage_class = self._observed.storage_class(key.name)
        if storage_class is not None:
            facts = ProfileFacts(
                volumes=tuple(self._observed.provisioned_volumes(key.name)),
                snapshot_classes=self._observed.snapshot_classes(),
                owner=self._owner(),
            )
            plan = reconcile_storage_profile(storage_class, profile, facts, self.now())
        elif profile is not None:
            plan = reconcile_orphan(profile)
        else:
            return
        await self._simple(key, plan, body or self._watches.get(STORAGE_CLASSES, "", key.name))

    async def _reconcile_cdiconfig(self) -> None:
        if self._scope.is_restricted:
            return
        facts = ConfigFacts(
            storage_classes=self._observed.storage_classes(),
            upload_proxy_known=self._uploads.known,
            upload_proxy_url=self._uploads.host or None,
            upload_proxy_ca=self._uploads.authorities or None,
            owner=self._owner(),
        )
        config = self._observed.model(CDI_CONFIGS, "", CONFIG_NAME, CDIConfig)
        plan = reconcile_config(active_cdi(self._observed.cdis()), config, facts)
        if plan.create is not None:
            await self._applier.apply(Plan(actions=(CreateObject(body=plan.create),)), {}, self.now())
        if plan.update is not None:
            made = await self._client.update(CDI_CONFIGS, dict(plan.update))
            self._watches.record_write(CDI_CONFIGS, made)
            for fact in plan.events:
                await self._recorder.record(made, fact, self.now())

    async def _reconcile_cdi(self, key: Request) -> float | None:
        if self._scope.is_restricted:
            return None
        installed = await self._components.check()
        body = self._watches.get(CDIS, "", key.name)
        model = self._observed.model(CDIS, "", key.name, CDI)
        if body is None or model is None:
            return None
        active = active_cdi(self._observed.cdis())
        plan = reconcile_installation(
            model,
            active=active is not None and active.metadata.uid == model.metadata.uid,
            installed=installed,
            found=problems(active, self._observed.cdi_config(), self._observed.storage_classes()),
            now=self.now(),
        )
        await self._simple(key, plan, body)
        return self._components.pause

    def _report_rejected(self, key: Request, refusal: Rejection) -> None:
        action, failure = type(refusal.action).__name__, refusal.failure
        log.warning("action refused", extra=fields(key=key, action=action, reason=failure.code, text=failure.message))

    async def _simple(self, key: Request, plan: Plan, involved_object: Object | None) -> None:
        refusal = await self._applier.apply(plan, involved_object or {}, self.now())
        if refusal is not None:
            log.warning(
                "action refused", extra=fields(key=key, reason=refusal.failure.code, text=refusal.failure.message)
            )

    def _owner(self) -> Object | None:
        """Return an owner reference to the CDI object; None if there is none."""
        cdi = active_cdi(self._observed.cdis())
        if cdi is None:
            return None
        return {
            "apiVersion": CDI.group_version,
            "kind": CDI.kind_name(),
            "name": cdi.metadata.name or "",
            "uid": cdi.metadata.uid or "",
            "controller": True,
            "blockOwnerDeletion": True,
        }


def local_zone() -> tzinfo:
    """Return the time zone of schedules that name none: the controller's."""
    return datetime.now().astimezone().tzinfo or UTC


def _starts_pod(plan: Plan) -> bool:
    """Return whether a plan creates a Job or a pod."""
    return any(isinstance(one, CreateObject) and one.body["kind"] in (JOBS.kind, PODS.kind) for one in plan.actions)


def _reason(status: Mapping[str, Any]) -> str:
    """Return the reason for its current state from the first condition that has one; empty if none has."""
    conditions = {one.get("type"): one for one in status.get("conditions") or []}
    told = (conditions.get(name) or {} for name in ("Running", "Bound", "Complete"))
    return str(next((one["reason"] for one in told if one.get("reason")), ""))
