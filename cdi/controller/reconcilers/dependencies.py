"""What reconcilers share: caches, views of them, writers, and the settings of the installation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cdi.api.errors import InvalidManifest
from cdi.api.installation import CDI
from cdi.api.kinds import CLAIMS, DATA_VOLUMES, Object
from cdi.api.names import INSTALLATION
from cdi.controller.applier import PlanApplier
from cdi.controller.clone_lister import InformerCloneLister
from cdi.controller.components import ComponentHealth
from cdi.controller.event_recorder import EventRecorder
from cdi.controller.informers import InformerSet
from cdi.controller.lister import ClusterLister
from cdi.controller.ownership import Ownership
from cdi.controller.referenced_objects import ReferencedObjects
from cdi.controller.request import Request, Scope
from cdi.controller.transfer_lister import TransferLister
from cdi.controller.upload_certificates import UploadCertificateRotator
from cdi.kube.client import Client
from cdi.logs import fields
from cdi.reconcile.actions import Plan, StartWorker
from cdi.reconcile.cdi.config import active_cdi
from cdi.reconcile.context import ReconcileContext, Rejection
from cdi.reconcile.context_builder import build_context
from cdi.reconcile.invalid_object import report_invalid
from cdi.reconcile.settings import CLUSTER_RETRIES, Platform, Retries

PLATFORM = Platform(cluster=True)
MAX_INPUT_ROUNDS = 3
"""Maximum number of rounds in which a plan's Secrets and ConfigMaps are read: one may refer to another."""

log = logging.getLogger("cdi.controller")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependencies:
    """Collaborators of all reconcilers."""

    client: Client
    caches: InformerSet
    lister: ClusterLister
    inputs: ReferencedObjects
    clones: InformerCloneLister
    transfers: TransferLister
    applier: PlanApplier
    recorder: EventRecorder
    uploads: UploadCertificateRotator
    components: ComponentHealth
    scope: Scope
    ownership: Ownership
    install_namespace: str
    prefix: str = INSTALLATION
    """First part of the names of the installation's objects."""
    retries: Retries = CLUSTER_RETRIES
    now: Callable[[], float]
    """Returns the current time in seconds since the epoch."""

    async def apply(self, request: Request, plan: Plan, involved_object: Object | None) -> Rejection | None:
        """Apply a plan and log what it has changed; return the rejection of an action, if there was one.

        Raises:
            CdiError: Any error of the client that is no rejection.

        """
        body = involved_object or {}
        rejection = await self.applier.apply(plan, body, self.now())
        if rejection is not None:
            kind, failure = type(rejection.action).__name__, rejection.failure
            details = fields(key=request, action=kind, reason=failure.code, text=failure.message)
            log.warning("action refused", extra=details)
            return rejection
        for action in plan.actions:
            if isinstance(action, StartWorker):
                log.info("attempt started", extra=fields(key=request, attempt=action.attempt))
        if plan.status is not None:
            before = body.get("status") or {}
            phase, reason = plan.status.get("phase"), _reason(plan.status)
            if (before.get("phase"), _reason(before)) != (phase, reason):
                log.info("phase changed", extra=fields(key=request, phase=phase, reason=reason))
        return None

    async def report_invalid(self, body: Object, error: InvalidManifest) -> None:
        """Report in an object's status and Events that it, or an object that it depends on, is invalid.

        Raises:
            CdiError: Any error of the API server when the status is written.

        """
        now = self.now()
        await self.applier.apply(report_invalid(body, error, now), body, now)

    def volume_object(self, request: Request) -> Object | None:
        """Return the DataVolume of a volume, or its PVC if there is no DataVolume; None without either."""
        found = self.caches.get(DATA_VOLUMES, request.namespace, request.name)
        return found if found is not None else self.caches.get(CLAIMS, request.namespace, request.name)

    def volume_context(self, request: Request, rejection: Rejection | None = None) -> ReconcileContext | None:
        """Return the context in which a volume is reconciled; None if there is nothing to reconcile."""
        return build_context(
            self.lister,
            request.namespace,
            request.name,
            now=self.now(),
            config=self.lister.config(),
            retries=self.retries,
            platform=PLATFORM,
            refusal=rejection,
            clones=self.clones,
        )

    def owner_reference(self) -> Object | None:
        """Return an owner reference to the CDI object; None if there is none."""
        cdi = active_cdi(self.lister.cdis())
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
    candidates = (conditions.get(name) or {} for name in ("Running", "Bound", "Complete"))
    return str(next((one["reason"] for one in candidates if one.get("reason")), ""))
