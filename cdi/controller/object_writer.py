"""Writes of single objects to the API server.

Each is idempotent, and conditional on the UID of the object: an object that was created again under the same name is
not touched. What the server returns goes into the watch caches at once (`InformerSet.record_write`).
"""

from __future__ import annotations

from typing import Any

from cdi.api.annotations import FILLED_FOR
from cdi.api.errors import AlreadyExists, Conflict, InvalidManifest, NotFound
from cdi.api.kinds import (
    CLAIMS,
    CONFIG_MAPS,
    SECRETS,
    SERVICES,
    VOLUMES,
    Object,
    Resource,
    resource_named,
    resource_of,
)
from cdi.api.quantity import Quantity
from cdi.controller.informers import InformerSet
from cdi.kube.client import Client
from cdi.reconcile.actions import (
    DeleteUnboundClaim,
    ExpandClaim,
    MirrorObject,
    PatchObject,
    RebindVolume,
    RequireVersion,
    SetFinalizer,
    SetReclaimPolicy,
)
from cdi.reconcile.types import WITHOUT_CLAIM


class ObjectWriter:
    """Writer of the objects that the actions of plans are about."""

    def __init__(self, client: Client, watches: InformerSet) -> None:
        self._client = client
        self._watches = watches

    async def create(self, body: Object) -> None:
        """Create an object unless it exists."""
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

    async def amend(self, action: PatchObject) -> None:
        """Change annotations, labels, spec or owner of an object."""
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
        await self.patch(resource, action.namespace or None, action.name, body)

    async def patch(
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

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        """Delete an object, and its dependents in the background, unless it is gone already."""
        try:
            left = await self._client.delete(resource, namespace or None, name, uid=uid, propagation="Background")
        except (NotFound, Conflict):
            return  # deleted already; an object that has its name now is not ours
        if left is not None:
            self._watches.record_write(resource, left)

    async def delete_unbound(self, action: DeleteUnboundClaim) -> None:
        """Delete a PVC that has the mark and no volume."""
        try:
            claim = await self._client.get(CLAIMS, action.namespace, action.name)
        except NotFound:
            return
        metadata = claim["metadata"]
        annotation, value = action.mark
        marked = (metadata.get("annotations") or {}).get(annotation) == value
        if marked and (claim.get("status") or {}).get("phase") == "Pending":
            await self.delete(CLAIMS, action.namespace, action.name, metadata["uid"])

    async def rebind(self, action: RebindVolume) -> None:
        """Let a PersistentVolume refer to the target PVC instead of the temporary one.

        Raises:
            NotFound: One of the three was replaced.
            Conflict: The volume has no PVC any more.

        """
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
        await self.patch(VOLUMES, None, action.volume, body)

    async def set_reclaim_policy(self, action: SetReclaimPolicy) -> None:
        """Set the reclaim policy of a PersistentVolume.

        Raises:
            NotFound: It was replaced.
            Conflict: It is not bound to the PVC, and its content could be deleted.

        """
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
        await self.patch(VOLUMES, None, action.volume, body)

    async def _current(self, action: SetFinalizer | RequireVersion) -> tuple[Resource, Object]:
        """Read an object from the API server; raise `NotFound` if its name belongs to another object now."""
        resource = resource_named(action.plural)
        body = await self._client.get(resource, action.namespace or None, action.name)
        if action.uid and body["metadata"]["uid"] != action.uid:
            raise NotFound(f"{resource} {action.namespace}/{action.name} was replaced by another object of that name")
        return resource, body

    async def set_finalizer(self, action: SetFinalizer) -> None:
        """Add or remove a finalizer; an object that no longer exists has none to remove."""
        try:
            resource, body = await self._current(action)
        except NotFound:
            if action.present:
                raise
            return
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
        await self.patch(resource, action.namespace or None, action.name, {"metadata": wanted})

    async def require_version(self, action: RequireVersion) -> None:
        """Raise `Conflict` unless the object has the version, or is as absent, as the plan is based on."""
        try:
            resource, body = await self._current(action)
        except NotFound:
            if action.version:
                raise
            return
        if body["metadata"]["resourceVersion"] != action.version:
            self._watches.record_write(resource, body)
            raise Conflict(f"{resource} {action.namespace}/{action.name} changed in the meantime")

    async def expand(self, action: ExpandClaim) -> None:
        """Request a larger volume."""
        size = Quantity.of_bytes(action.size).text
        body = {"metadata": {"uid": action.uid}, "spec": {"resources": {"requests": {"storage": size}}}}
        await self.patch(CLAIMS, action.namespace, action.name, body)

    async def mirror(self, action: MirrorObject) -> None:
        """Copy a Secret or ConfigMap, or update the copy; raise `AlreadyExists` for an object of the user."""
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


def _content(body: Object) -> Object:
    return {name: body[name] for name in ("type", "data", "binaryData") if name in body}
