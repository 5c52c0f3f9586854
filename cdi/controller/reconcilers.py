"""Reconcilers of all kinds of keys: observe, compute a plan with the pure reconciler, apply the plan."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, assert_never

from cdi.api.configuration import CONFIG_NAME, CDIConfig
from cdi.api.dataimportcron import DataImportCron
from cdi.api.datasource import DataSource
from cdi.api.errors import InvalidManifest
from cdi.api.installation import CDI
from cdi.api.storageprofile import StorageProfile
from cdi.api.transfer import ObjectTransfer
from cdi.controller.certifier import Certifier
from cdi.controller.clones import ObservedClones
from cdi.controller.executor import Executor
from cdi.controller.inputs import Inputs
from cdi.controller.keys import Key, Kind, Scope, volume
from cdi.controller.logs import fields
from cdi.controller.observe import Observed
from cdi.controller.pacing import Pacing
from cdi.controller.parts import Parts
from cdi.controller.telling import tell
from cdi.controller.temporaries import Temporaries
from cdi.controller.transfers import ObservedTransfers, places
from cdi.controller.upload_certificates import UploadCertificates
from cdi.controller.watches import Watches
from cdi.kube.client import Client
from cdi.kube.resources import (
    CDI_CONFIGS,
    CDIS,
    CLAIMS,
    DATA_IMPORT_CRONS,
    DATA_SOURCES,
    DATA_VOLUMES,
    OBJECT_TRANSFERS,
    PODS,
    STORAGE_CLASSES,
    STORAGE_PROFILES,
    VOLUME_SNAPSHOTS,
    Object,
    Resource,
)
from cdi.reconcile.actions import CreateObject, Plan, StartWorker
from cdi.reconcile.cluster import observe
from cdi.reconcile.configuration import (
    ConfigFacts,
    active_cdi,
    problems,
    reconcile_config,
    reconcile_installation,
)
from cdi.reconcile.dataimportcron import IN_A_CLUSTER, reconcile_unscheduled
from cdi.reconcile.datasource import reconcile_data_source
from cdi.reconcile.datavolume import reconcile
from cdi.reconcile.storageprofile import ProfileFacts, reconcile_orphan, reconcile_storage_profile
from cdi.reconcile.transfer.flow import reconcile_transfer
from cdi.reconcile.transfer.world import TransferWorld
from cdi.reconcile.unreadable import complain
from cdi.reconcile.world import CLUSTER_RETRIES, Platform, Refusal, Retries, World

PLATFORM = Platform(cluster=True)
_READS = 3
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
        watches: Watches,
        observed: Observed,
        inputs: Inputs,
        clones: ObservedClones,
        transfers: ObservedTransfers,
        certifier: Certifier,
        uploads: UploadCertificates,
        *,
        scope: Scope,
        parts: Parts,
        retries: Retries | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._watches = watches
        self._observed = observed
        self._inputs = inputs
        self._clones = clones
        self._transfers = transfers
        self._executor = Executor(client, watches, certifier)
        self._uploads = uploads
        self._scope = scope
        self._parts = parts
        self._retries = retries or CLUSTER_RETRIES
        self._pacing = Pacing(now)
        self._temporaries = Temporaries(watches, observed, clones, scope=scope, now=now)
        self.now = now

    async def reconcile(self, key: Key) -> float | None:
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
                return await self._volume(key)
            case "snapshot" | "reader":
                return await self._temporary(key)
            case "source":
                await self._source(key)
            case "cron":
                await self._cron(key)
            case "transfer":
                return await self._transfer(key)
            case "profile":
                await self._profile(key)
            case "config":
                await self._config()
            case "installation":
                return await self._installation(key)
            case _:
                assert_never(key.kind)
        return None

    def about(self, key: Key) -> Object | None:
        """Return the object in which errors of a key are reported; None if it does not exist."""
        found = self._watches.get(_RESOURCES[key.kind], key.namespace, key.name)
        return self._watches.get(CLAIMS, key.namespace, key.name) if found is None and key.kind == "volume" else found

    async def complain(self, key: Key, error: InvalidManifest) -> None:
        """Report an object that is invalid, or that depends on an invalid one, in its status and events.

        Raises:
            CdiError: Any error of the API server when the status is written.

        """
        about = self.about(key)
        if about is None:
            return
        ours = self._is_ours(key, about) if key.kind == "volume" else self._acts_on(key, about)
        if ours:
            plan = complain(about, error, self.now())
            await self._executor.carry_out(plan, about, self.now())

    def acts_for(self, body: Object) -> bool:
        """Return whether an object created for a PVC belongs to this installation."""
        return self._is_ours(volume(body["metadata"]["namespace"], body["metadata"]["name"]), body)

    # --- volumes --------------------------------------------------------------------------------------------------

    async def _volume(self, key: Key) -> float | None:
        about = self.about(key)
        await self._temporary(key)
        if about is None or not self._is_ours(key, about):
            self._inputs.forget(key)
            return None
        plan = await self._planned(key, None)
        if plan is None:
            return None
        plan = self._pacing.paced(key, plan, about)
        refusal = await self._carry_out(key, plan, about)
        if refusal is None:
            # No watch reports a change of a Secret or ConfigMap, so the volume is reconciled again when its next read
            # is due.
            pauses = (plan.requeue_after, self._inputs.pause(key))
            return min((pause for pause in pauses if pause is not None), default=None)
        self._tell_refused(key, refusal)
        excuse = await self._planned(key, refusal)
        about = self.about(key)
        if excuse is not None and about is not None:
            await self._carry_out(key, excuse, about)
        pause = excuse.requeue_after if excuse is not None else None
        return self._retries.patience if pause is None else pause

    def _is_ours(self, key: Key, about: Object) -> bool:
        """Return whether this installation handles a volume: its scope selects the object or one of its owners."""
        if not self._scope.covers(key.namespace):
            return False
        for _ in range(3):
            if self._scope.selects(about):
                return True
            owner = next((one for one in about["metadata"].get("ownerReferences") or () if one.get("controller")), None)
            if owner is None or owner.get("kind") not in (CLAIMS.kind, DATA_VOLUMES.kind):
                return False
            resource = CLAIMS if owner["kind"] == CLAIMS.kind else DATA_VOLUMES
            above = self._watches.get(resource, key.namespace, owner["name"])
            if above is None:
                return False
            about = above
        return False

    async def _planned(self, key: Key, refusal: Refusal | None) -> Plan | None:
        """Return the plan after reading the objects that it refers to; None if there is nothing to reconcile."""
        reads = 0
        while True:
            with self._inputs.asking(key):
                world = self._world(key, refusal)
                plan = reconcile(world) if world is not None else None
            if reads == _READS or not await self._inputs.read(key):
                return plan
            reads += 1

    def _world(self, key: Key, refusal: Refusal | None) -> World | None:
        return observe(
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

    async def _temporary(self, key: Key) -> float | None:
        """Reconcile a temporary object of a clone."""
        plan = self._temporaries.plan(key)
        if plan is None:
            return None
        await self._simple(key, plan, self.about(key))
        return plan.requeue_after

    async def _carry_out(self, key: Key, plan: Plan, about: Object) -> Refusal | None:
        refusal = await self._executor.carry_out(plan, about, self.now())
        if refusal is not None:
            return refusal
        for action in plan.actions:
            if isinstance(action, StartWorker):
                log.info("attempt", extra=fields(key=key, attempt=action.attempt))
        if plan.status is not None:
            before = about.get("status") or {}
            phase, reason = plan.status.get("phase"), _reason(plan.status)
            if (before.get("phase"), _reason(before)) != (phase, reason):
                log.info("phase", extra=fields(key=key, phase=phase, reason=reason))
        return None

    # --- other kinds ------------------------------------------------------------------------------------------------

    async def _source(self, key: Key) -> None:
        body = self._watches.get(DATA_SOURCES, key.namespace, key.name)
        model = self._observed.model(DATA_SOURCES, key.namespace, key.name, DataSource)
        if body is not None and model is not None and self._acts_on(key, body):
            plan = reconcile_data_source(model, self._observed, PLATFORM, self.now(), self._clones)
            await self._simple(key, plan, body)

    async def _cron(self, key: Key) -> None:
        body = self._watches.get(DATA_IMPORT_CRONS, key.namespace, key.name)
        model = self._observed.model(DATA_IMPORT_CRONS, key.namespace, key.name, DataImportCron)
        if body is not None and model is not None and self._acts_on(key, body):
            await self._simple(key, reconcile_unscheduled(model, self.now(), IN_A_CLUSTER), body)

    def _acts_on(self, key: Key, body: Object) -> bool:
        return self._scope.covers(key.namespace) and self._scope.selects(body)

    async def _transfer(self, key: Key) -> float | None:
        """Reconcile an ObjectTransfer if this installation handles both its namespaces."""
        body = self._watches.get(OBJECT_TRANSFERS, "", key.name)
        model = self._observed.model(OBJECT_TRANSFERS, "", key.name, ObjectTransfer)
        if body is None or model is None or not self._scope.selects(body):
            return None
        if not all(self._scope.covers(namespace) for namespace, _ in places(body)):
            return None
        world = TransferWorld(now=self.now(), transfer=model, objects=self._observed, facts=self._transfers)
        plan = reconcile_transfer(world)
        refusal = await self._carry_out(key, plan, body)
        if refusal is None:
            return plan.requeue_after
        self._tell_refused(key, refusal)
        excuse = reconcile_transfer(replace(world, now=self.now(), refusal=refusal))
        # Actions before the rejected one may have changed its version.
        await self._carry_out(key, excuse, self._watches.get(OBJECT_TRANSFERS, "", key.name) or body)
        return excuse.requeue_after

    async def _profile(self, key: Key) -> None:
        """Reconcile a StorageProfile unless another controller handles the cluster-scoped objects."""
        if self._scope.alongside:
            return
        profile = self._observed.model(STORAGE_PROFILES, "", key.name, StorageProfile)
        body = self._watches.get(STORAGE_PROFILES, "", key.name)
        storage_class = self._observed.storage_class(key.name)
        if storage_class is not None:
            facts = ProfileFacts(
                volumes=tuple(self._observed.evidence(key.name)),
                snapshot_classes=self._observed.snapshot_classes(),
                owner=self._owner(),
            )
            plan = reconcile_storage_profile(storage_class, profile, facts, self.now())
        elif profile is not None:
            plan = reconcile_orphan(profile)
        else:
            return
        await self._simple(key, plan, body or self._watches.get(STORAGE_CLASSES, "", key.name))

    async def _config(self) -> None:
        if self._scope.alongside:
            return
        facts = ConfigFacts(
            storage_classes=self._observed.storage_classes(),
            upload_proxy_known=self._uploads.known,
            upload_proxy_url=self._uploads.host or None,
            upload_proxy_ca=self._uploads.authorities or None,
            owner=self._owner(),
        )
        config = self._observed.model(CDI_CONFIGS, "", CONFIG_NAME, CDIConfig)
        plan = reconcile_config(active_cdi(self._observed.installations()), config, facts)
        if plan.create is not None:
            await self._executor.carry_out(Plan(actions=(CreateObject(body=plan.create),)), {}, self.now())
        if plan.update is not None:
            made = await self._client.update(CDI_CONFIGS, dict(plan.update))
            self._watches.note(CDI_CONFIGS, made)
            for fact in plan.events:
                await tell(self._client, made, fact, self.now())

    async def _installation(self, key: Key) -> float | None:
        if self._scope.alongside:
            return None
        installed = await self._parts.look()
        body = self._watches.get(CDIS, "", key.name)
        model = self._observed.model(CDIS, "", key.name, CDI)
        if body is None or model is None:
            return None
        active = active_cdi(self._observed.installations())
        plan = reconcile_installation(
            model,
            active=active is not None and active.metadata.uid == model.metadata.uid,
            installed=installed,
            found=problems(active, self._observed.cdi_config(), self._observed.storage_classes()),
            now=self.now(),
        )
        await self._simple(key, plan, body)
        return self._parts.pause

    def _tell_refused(self, key: Key, refusal: Refusal) -> None:
        action, failure = type(refusal.action).__name__, refusal.failure
        log.warning("action refused", extra=fields(key=key, action=action, reason=failure.code, text=failure.message))

    async def _simple(self, key: Key, plan: Plan, about: Object | None) -> None:
        refusal = await self._executor.carry_out(plan, about or {}, self.now())
        if refusal is not None:
            log.warning(
                "action refused", extra=fields(key=key, reason=refusal.failure.code, text=refusal.failure.message)
            )

    def _owner(self) -> Object | None:
        """Return an owner reference to the CDI object; None if there is none."""
        cdi = active_cdi(self._observed.installations())
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


def _reason(status: Mapping[str, Any]) -> str:
    """Return the reason for its current state from the first condition that has one; empty if none has."""
    conditions = {one.get("type"): one for one in status.get("conditions") or []}
    told = (conditions.get(name) or {} for name in ("Running", "Bound", "Complete"))
    return str(next((one["reason"] for one in told if one.get("reason")), ""))
