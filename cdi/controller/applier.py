"""Plan execution against the API server.

Every action is idempotent and may be interrupted at any point.

The object returned by a write goes into the watch caches at once (`InformerSet.record_write`), so that the next
reconcile does not use an outdated state: it would start another worker for an attempt whose end was just recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard, assert_never

from cdi.api.annotation_types import annotations_of
from cdi.api.errors import (
    AlreadyExists,
    ClusterForbidden,
    ClusterRefused,
    Conflict,
    InternalError,
    InvalidManifest,
    NotFound,
    QuotaExceeded,
)
from cdi.api.kinds import (
    CLAIMS,
    PODS,
    Object,
    resource_named,
    resource_of,
)
from cdi.controller.certificates import CertificateManager
from cdi.controller.event_recorder import EventRecorder
from cdi.controller.informers import InformerSet
from cdi.controller.object_writer import ObjectWriter
from cdi.kube.client import Client
from cdi.reconcile.actions import (
    Action,
    CreateObject,
    DeleteObject,
    DeleteUnboundClaim,
    EnsureCertificate,
    ExpandClaim,
    MirrorObject,
    PatchObject,
    Plan,
    RebindVolume,
    RequireVersion,
    SetFinalizer,
    SetReclaimPolicy,
    SignRecord,
    StartTask,
    StartWorker,
    StopTask,
    StopWorker,
)
from cdi.reconcile.context import Rejection
from cdi.reconcile.datavolume.rejection import refusal_of
from cdi.reconcile.merge_patch import merge_patch

REJECTION_ERRORS = (InvalidManifest, QuotaExceeded, ClusterForbidden, ClusterRefused, AlreadyExists)
"""Errors that concern a single object; they are reported in its conditions instead of being retried."""


class PlanApplier:
    """Applier of plans."""

    def __init__(
        self,
        client: Client,
        watches: InformerSet,
        certifier: CertificateManager,
        recorder: EventRecorder | None = None,
    ) -> None:
        self._writer = ObjectWriter(client, watches)
        self._recorder = recorder or EventRecorder(client)
        self._watches = watches
        self._certifier = certifier

    async def apply(self, plan: Plan, involved_object: Object, now: float) -> Rejection | None:
        """Apply a plan: its actions, then its events, and last its status, which describes the completed actions.

        Args:
            plan: The plan to apply.
            involved_object: The object to which the plan's events and status belong.
            now: Current time in seconds since the epoch.

        Returns:
            The rejection of the action that the API server refused, in which case the rest of the plan is not applied;
            None otherwise.

        Raises:
            Conflict: The plan is based on an outdated state.
            CdiError: Any other error of the client, for instance that the API server cannot be reached.

        """
        for action in plan.actions:
            try:
                await self._apply_action(action)
            except NotFound as error:
                if _is_namespaced_elsewhere(action, involved_object):
                    namespace = action.body["metadata"]["namespace"]
                    remedy = "create it; the missing objects are created automatically afterwards"
                    return refusal_of(action, NotFound(f"namespace {namespace} does not exist", remedy=remedy))
                # What was deleted may still be cached for as long as its watch is behind. The plan, which would then be
                # made again, may ask for that at once.
                raise Conflict(f"an object of the plan was deleted in the meantime: {error.message}") from error
            except REJECTION_ERRORS as error:
                return refusal_of(action, error)
        for fact in plan.events:
            await self._recorder.record(involved_object, fact, now)
        if plan.claim_events:
            await self._record_claim_event(plan, involved_object, now)
        for other in plan.object_events:
            body = self._watches.get(resource_named(other.plural), other.namespace, other.name)
            if body is not None:
                await self._recorder.record(body, other.event, now)
        if plan.status is not None or plan.annotations:
            try:
                await self.write_status(involved_object, plan.status, plan.annotations)
            except NotFound:
                # What this plan has created for it is garbage-collected, which must not have it created again.
                resource = resource_of(involved_object["apiVersion"], involved_object["kind"])
                self._watches.record_deletion(resource, involved_object["metadata"])
        return None

    async def _record_claim_event(self, plan: Plan, involved_object: Object, now: float) -> None:
        """Emit the plan's events for the PVC as well, which has the DataVolume's name, if it exists."""
        claim = self._watches.get(CLAIMS, involved_object["metadata"]["namespace"], involved_object["metadata"]["name"])
        if claim is not None:
            for fact in plan.claim_events:
                await self._recorder.record(claim, fact, now)

    async def write_status(
        self,
        involved_object: Object,
        status: Mapping[str, Any] | None,
        annotations: Mapping[str, str | None] | None = None,
    ) -> None:
        """Replace the object's status, and change its annotations by the same request.

        Args:
            involved_object: The object as the plan saw it.
            status: The complete new status; None to leave it unchanged.
            annotations: Annotations to set, or to remove if None; only for kinds without a status subresource.

        Raises:
            Conflict: The status has changed since it was read.
            NotFound: The object has been recreated under its name.

        """
        resource = resource_of(involved_object["apiVersion"], involved_object["kind"])
        metadata = involved_object["metadata"]
        namespace, name = metadata.get("namespace") or "", metadata["name"]
        # An action of this plan may have patched the object and so changed its resourceVersion.
        newest = self._watches.get(resource, namespace, name) or involved_object
        if newest["metadata"]["uid"] != metadata["uid"]:
            raise NotFound(f"{resource} {namespace}/{name} was replaced by another object of that name")
        before = involved_object.get("status")
        if newest.get("status") != before:
            raise Conflict(f"the status of {resource} {namespace}/{name} changed in the meantime")
        body: Object = {"metadata": {"uid": metadata["uid"], "resourceVersion": newest["metadata"]["resourceVersion"]}}
        if annotations:
            assert not resource.status_subresource
            # A command that a user gave in the meantime must not be removed as if it had been carried out.
            seen, current = (annotations_of(one) for one in (involved_object, newest))
            if any(seen.get(key) != current.get(key) for key in annotations):
                raise Conflict(f"the annotations of {resource} {namespace}/{name} changed in the meantime")
            body["metadata"]["annotations"] = dict(annotations)
        if status is not None and ((patch := merge_patch(before or {}, status)) or before is None):
            body["status"] = patch
        if annotations or "status" in body:
            subresource = "status" if resource.status_subresource else ""
            await self._writer.patch(resource, namespace or None, name, body, subresource=subresource)

    async def _apply_action(self, action: Action) -> None:
        match action:
            case CreateObject():
                await self._writer.create(dict(action.body))
            case MirrorObject():
                await self._writer.mirror(action)
            case PatchObject():
                await self._writer.amend(action)
            case DeleteObject():
                await self._writer.delete(resource_named(action.plural), action.namespace, action.name, action.uid)
            case RebindVolume():
                await self._writer.rebind(action)
            case SetReclaimPolicy():
                await self._writer.set_reclaim_policy(action)
            case SetFinalizer():
                await self._writer.set_finalizer(action)
            case RequireVersion():
                await self._writer.require_version(action)
            case DeleteUnboundClaim():
                await self._writer.delete_unbound(action)
            case ExpandClaim():
                await self._writer.expand(action)
            case EnsureCertificate():
                await self._certifier.ensure(action)
            case StartWorker():
                assert action.pod is not None
                await self._writer.create(dict(action.pod))
            case StopWorker():
                await self._writer.delete(PODS, action.namespace, action.pod, action.pod_uid)
            case SignRecord() | StartTask() | StopTask():
                raise InternalError(f"{type(action).__name__} is supported only on one machine")
            case _:
                assert_never(action)


def _is_namespaced_elsewhere(action: Action, involved_object: Object) -> TypeGuard[CreateObject]:
    """Return whether the action creates a namespaced object for a cluster-scoped one.

    Then NotFound can only mean that the namespace does not exist.
    """
    if not isinstance(action, CreateObject) or not action.body["metadata"].get("namespace"):
        return False
    return "metadata" in involved_object and not involved_object["metadata"].get("namespace")
