"""Plan execution against the API server.

Every action is idempotent and may be interrupted at any point.

The object returned by a write goes into the watch caches at once (`InformerSet.record_write`), so that the next
reconcile does not use an outdated state: it would start another worker for an attempt whose end was just recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, TypeGuard, assert_never

from cdi.api.annotations import FILLED_FOR
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
    CONFIG_MAPS,
    PODS,
    SECRETS,
    SERVICES,
    VOLUMES,
    Object,
    Resource,
    resource_named,
    resource_of,
)
from cdi.api.quantity import Quantity
from cdi.controller.certificates import CertificateManager
from cdi.controller.event_recorder import EventRecorder
from cdi.controller.informers import InformerSet
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
from cdi.reconcile.types import WITHOUT_CLAIM

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
        self._client = client
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
            except NotFound:
                if _is_namespaced_elsewhere(action, involved_object):
                    namespace = action.body["metadata"]["namespace"]
                    remedy = "create it; the missing objects are created automatically afterwards"
                    return refusal_of(action, NotFound(f"namespace {namespace} does not exist", remedy=remedy))
                # The object that the plan is about was deleted, so the rest is void; its deletion triggers another
                # reconcile.
                return None
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
            with contextlib.suppress(NotFound):
                await self.write_status(involved_object, plan.status, plan.annotations)
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
            seen, current = (one["metadata"].get("annotations") or {} for one in (involved_object, newest))
            if any(seen.get(key) != current.get(key) for key in annotations):
                raise Conflict(f"the annotations of {resource} {namespace}/{name} changed in the meantime")
            body["metadata"]["annotations"] = dict(annotations)
        if status is not None and ((patch := merge_patch(before or {}, status)) or before is None):
            body["status"] = patch
        if annotations or "status" in body:
            subresource = "status" if resource.status_subresource else ""
            await self._patch(resource, namespace or None, name, body, subresource=subresource)

    async def _apply_action(self, action: Action) -> None:
        match action:
            case CreateObject():
                await self._create(dict(action.body))
            case MirrorObject():
                await self._copy(action)
            case PatchObject():
                await self._amend(action)
            case DeleteObject():
                await self._delete(resource_named(action.plural), action.namespace, action.name, action.uid)
            case RebindVolume():
                await self._rebind(action)
            case SetReclaimPolicy():
                await self._set_reclaim_policy(action)
            case SetFinalizer():
                await self._set_finalizer(action)
            case RequireVersion():
                await self._require_version(action)
            case DeleteUnboundClaim():
                await self._withdraw(action)
            case ExpandClaim():
                await self._enlarge(action)
            case EnsureCertificate():
                await self._certifier.ensure(action)
            case StartWorker():
                await self._start(action)
            case StopWorker():
                await self._delete(PODS, action.namespace, action.pod, action.pod_uid)
            case SignRecord() | StartTask() | StopTask():
                raise InternalError(f"{type(action).__name__} is supported only on one machine")
            case _:
                assert_never(action)

    async def _create(self, body: Object) -> None:
        resource = resource_of(body["apiVersion"], body["kind"])
        try:
            made = await self._client.create(resource, body)
        except AlreadyExists:
            if resource != SERVICES:
                return
            # The watch only selects Services with our label; one without it blocks the name and must be known too.
            metadata = body["metadata"]
            made = await self._client.get(resource, metadata["namespace"], metadata["name"])
        self._watches.record_write(resource, made)

    async def _amend(self, action: PatchObject) -> None:
        metadata: dict[str, Any] = {"uid": action.uid}
        if action.version:
            metadata["resourceVersion"] = action.version
        if action.annotations:
            metadata["annotations"] = dict(action.annotations)
        if action.labels:
            metadata["labels"] = dict(action.labels)
        body: Object = {"metadata": metadata}
        if action.spec:
            body["spec"] = dict(action.spec)
        resource = resource_named(action.plural)
        if action.owner is not None:
            current = await self._client.get(resource, action.namespace or None, action.name)
            owners = [
                one for one in current["metadata"].get("ownerReferences") or [] if one["uid"] != action.owner["uid"]
            ]
            if not any(one.get("controller") for one in owners):
                metadata["ownerReferences"] = [*owners, dict(action.owner)]
                # A merge patch replaces the whole list, so a concurrent change must cause a conflict.
                metadata["resourceVersion"] = current["metadata"]["resourceVersion"]
        await self._patch(resource, action.namespace or None, action.name, body)

    async def _patch(
        self, resource: Resource, namespace: str | None, name: str, body: Object, *, subresource: str = ""
    ) -> None:
        """Send a merge patch that includes the object's UID.

        Raises:
            NotFound: The object has been recreated with another UID.

        """
        try:
            made = await self._client.patch(resource, namespace, name, body, subresource=subresource)
        except InvalidManifest as error:
            if error.where == "metadata.uid":
                raise NotFound(f"{resource} {namespace}/{name} was replaced by another object of that name") from error
            raise
        self._watches.record_write(resource, made)

    async def _delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        try:
            left = await self._client.delete(resource, namespace or None, name, uid=uid, propagation="Background")
        except (NotFound, Conflict):
            return  # deleted already; an object that has its name now is not ours
        if left is not None:
            self._watches.record_write(resource, left)

    async def _withdraw(self, action: DeleteUnboundClaim) -> None:
        try:
            claim = await self._client.get(CLAIMS, action.namespace, action.name)
        except NotFound:
            return
        metadata = claim["metadata"]
        annotation, value = action.mark
        marked = (metadata.get("annotations") or {}).get(annotation) == value
        if marked and (claim.get("status") or {}).get("phase") == "Pending":
            await self._delete(CLAIMS, action.namespace, action.name, metadata["uid"])

    async def _start(self, action: StartWorker) -> None:
        """Create the pod unless the PVC has changed since the plan was made.

        Raises:
            Conflict: The PVC differs from the cached one.

        """
        assert action.pod is not None
        pod = dict(action.pod)
        name = next(owner["name"] for owner in pod["metadata"]["ownerReferences"] if owner["uid"] == action.claim)
        known = self._watches.get(CLAIMS, action.namespace, name)
        claim = await self._client.get(CLAIMS, action.namespace, name)
        if known is None or known["metadata"]["resourceVersion"] != claim["metadata"]["resourceVersion"]:
            # The end of the previous attempt may have been recorded in it.
            self._watches.record_write(CLAIMS, claim)
            raise Conflict(f"PVC {action.namespace}/{name} changed in the meantime")
        await self._create(pod)

    async def _rebind(self, action: RebindVolume) -> None:
        volume = await self._client.get(VOLUMES, None, action.volume)
        ref = (volume.get("spec") or {}).get("claimRef") or {}
        if ref.get("uid") == action.target_uid:
            self._watches.record_write(VOLUMES, volume)
            return
        target = await self._client.get(CLAIMS, action.namespace, action.target)
        if (volume["metadata"]["uid"], ref.get("uid"), target["metadata"]["uid"]) != (
            action.volume_uid,
            action.prime_uid,
            action.target_uid,
        ):
            raise NotFound(f"PersistentVolume {action.volume} is no longer bound to the temporary PVC")
        phase = (volume.get("status") or {}).get("phase")
        if phase in WITHOUT_CLAIM:
            raise Conflict(f"PersistentVolume {action.volume} is {phase}")
        # As long as the PVC that is bound to it exists, the volume is not released; and deleting that PVC changes the
        # volume's resourceVersion, so that the patch below would fail.
        beside = action.prime_namespace or action.namespace
        prime = await self._client.get(CLAIMS, beside, action.prime)
        if prime["metadata"]["uid"] != action.prime_uid:
            raise NotFound(f"PVC {beside}/{action.prime} was replaced by another object of that name")
        # A merge patch keeps fields that it does not name: set the old claimRef's other fields to null.
        new = {
            "apiVersion": "v1",
            "kind": CLAIMS.kind,
            "namespace": action.namespace,
            "name": action.target,
            "uid": action.target_uid,
            "resourceVersion": target["metadata"]["resourceVersion"],
        }
        body = {
            "metadata": {
                "uid": action.volume_uid,
                "resourceVersion": volume["metadata"]["resourceVersion"],
                "annotations": FILLED_FOR.write(action.target_uid),
            },
            "spec": {"claimRef": {**dict.fromkeys(ref), **new}},
        }
        await self._patch(VOLUMES, None, action.volume, body)

    async def _set_reclaim_policy(self, action: SetReclaimPolicy) -> None:
        volume = await self._client.get(VOLUMES, None, action.volume)
        metadata, spec = volume["metadata"], volume.get("spec") or {}
        if metadata["uid"] != action.volume_uid:
            raise NotFound(f"{VOLUMES} {action.volume} was replaced by another object of that name")
        if spec.get("persistentVolumeReclaimPolicy") == action.policy:
            self._watches.record_write(VOLUMES, volume)
            return
        body = {"metadata": {"uid": action.volume_uid}, "spec": {"persistentVolumeReclaimPolicy": action.policy}}
        if action.policy != "Retain":
            bound = (volume.get("status") or {}).get("phase") == "Bound"
            claim = await self._client.get(CLAIMS, action.namespace, action.claim)
            if (
                not bound
                or (spec.get("claimRef") or {}).get("uid") != action.claim_uid
                or claim["metadata"]["uid"] != action.claim_uid
                or "deletionTimestamp" in claim["metadata"]
            ):
                where = f"{action.namespace}/{action.claim}"
                raise Conflict(f"refusing to change PersistentVolume {action.volume}: it is not bound to PVC {where}")
            body["metadata"]["resourceVersion"] = metadata["resourceVersion"]
        await self._patch(VOLUMES, None, action.volume, body)

    async def _current(self, action: SetFinalizer | RequireVersion) -> tuple[Resource, Object]:
        """Read an object from the API server; raise `NotFound` if its name belongs to another object now."""
        resource = resource_named(action.plural)
        body = await self._client.get(resource, action.namespace or None, action.name)
        if body["metadata"]["uid"] != action.uid:
            raise NotFound(f"{resource} {action.namespace}/{action.name} was replaced by another object of that name")
        return resource, body

    async def _set_finalizer(self, action: SetFinalizer) -> None:
        resource, body = await self._current(action)
        metadata = body["metadata"]
        before = metadata.get("finalizers") or []
        if (action.finalizer in before) == action.present:
            self._watches.record_write(resource, body)
            return
        if action.version and action.version != metadata["resourceVersion"]:
            raise Conflict(f"{resource} {action.namespace}/{action.name} changed in the meantime")
        if action.present and "deletionTimestamp" in metadata:
            raise Conflict(f"{resource} {action.namespace}/{action.name} is being deleted")
        after = [one for one in before if one != action.finalizer] + [action.finalizer] * action.present
        # A merge patch replaces the whole list, so a concurrent change must cause a conflict.
        wanted = {"uid": action.uid, "resourceVersion": metadata["resourceVersion"], "finalizers": after}
        await self._patch(resource, action.namespace or None, action.name, {"metadata": wanted})

    async def _require_version(self, action: RequireVersion) -> None:
        resource, body = await self._current(action)
        if body["metadata"]["resourceVersion"] != action.version:
            self._watches.record_write(resource, body)
            raise Conflict(f"{resource} {action.namespace}/{action.name} changed in the meantime")

    async def _enlarge(self, action: ExpandClaim) -> None:
        size = Quantity.of_bytes(action.size).text
        body = {"metadata": {"uid": action.uid}, "spec": {"resources": {"requests": {"storage": size}}}}
        await self._patch(CLAIMS, action.namespace, action.name, body)

    async def _copy(self, action: MirrorObject) -> None:
        resource = SECRETS if action.source.kind == "Secret" else CONFIG_MAPS
        source = await self._client.get(resource, action.source.namespace, action.source.name)
        content = _content(source)
        wanted: Object = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {
                "namespace": action.copy.namespace,
                "name": action.copy.name,
                "ownerReferences": [dict(action.owner)],
            },
            **content,
        }
        try:
            await self._client.create(resource, wanted)
        except AlreadyExists:
            current = await self._client.get(resource, action.copy.namespace, action.copy.name)
            metadata = current["metadata"]
            if not any(owner["uid"] == action.owner["uid"] for owner in metadata.get("ownerReferences") or []):
                raise  # never overwrite an object of the user
            if _content(current) != content:
                wanted["metadata"]["resourceVersion"] = metadata["resourceVersion"]
                await self._client.update(resource, wanted)


def _is_namespaced_elsewhere(action: Action, involved_object: Object) -> TypeGuard[CreateObject]:
    """Return whether the action creates a namespaced object for a cluster-scoped one.

    Then NotFound can only mean that the namespace does not exist.
    """
    if not isinstance(action, CreateObject) or not action.body["metadata"].get("namespace"):
        return False
    return "metadata" in involved_object and not involved_object["metadata"].get("namespace")


def _content(body: Object) -> Object:
    return {name: body[name] for name in ("type", "data", "binaryData") if name in body}
