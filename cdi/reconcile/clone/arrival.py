"""Creation of a clone's target PVC."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cdi.api.errors import CdiError, InvalidManifest, Retry
from cdi.api.names import (
    ANN_CLONE_REQUEST,
    ANN_CONTENT_TYPE,
    ANN_EXTENDED_CLONE_TOKEN,
    ANN_PERMISSIVE_CLONE,
    ANN_USE_POPULATOR,
    propagates,
)
from cdi.api.phases import EventReason, Phase, Reason
from cdi.api.quantity import Quantity
from cdi.api.storageprofile import CloneStrategy
from cdi.reconcile.actions import Action, CreateObject
from cdi.reconcile.binding import class_of, for_machines, provisioner_marks, standstill, wants_population
from cdi.reconcile.claim import build_claim
from cdi.reconcile.clone.authority import allowed
from cdi.reconcile.clone.flow import plan, shared_snapshot
from cdi.reconcile.clone.manifests import build_clone_source, clone_source_ref
from cdi.reconcile.clone.measuring import depends_on_disk, disk_of
from cdi.reconcile.clone.record import ANN_SNAPSHOT_REQUEST, ANNOTATION, CloneRecord
from cdi.reconcile.clone.source import Found, facts, find, in_use, size_for, too_small
from cdi.reconcile.decision import Decision, failed, pending
from cdi.reconcile.failure import as_failure
from cdi.reconcile.origin import Clone, Refuse, Wait
from cdi.reconcile.sizing import LEAST, complete_size
from cdi.reconcile.status import State, no
from cdi.reconcile.world import Claim, DataRef

if TYPE_CHECKING:
    from cdi.reconcile.world import World


def arrive(world: World, origin: Clone) -> Decision:
    """Create the target PVC once the source exists and its properties are known."""
    dv = world.datavolume
    grant = allowed(world, origin, None)
    if isinstance(grant, Refuse):
        return failed(None, grant.failure)
    if isinstance(grant, Wait):
        return replace(pending(None, grant), requeue_after=world.retries.base)
    found = find(world, origin)
    if isinstance(found, Refuse):
        return failed(None, found.failure)
    if isinstance(found, Wait):
        return pending(None, found)
    try:
        body = _body(world, origin, found)
        if isinstance(body, Decision):
            return body
        record = _recorded(world, body, found)
        if record is not None:
            body["metadata"]["annotations"][ANNOTATION] = record.write()
        if grant is not None:
            body["metadata"]["annotations"][ANN_EXTENDED_CLONE_TOKEN] = facts(world).extend(grant)
    except CdiError as error:
        if error.retry is Retry.NEVER:
            return failed(None, as_failure(error))
        wait = Wait(reason=Reason.ERR_CLAIM_NOT_VALID, message=error.message, event=EventReason.ERR_CLAIM_NOT_VALID)
        return replace(pending(None, wait), requeue_after=world.retries.patience)
    spec = body["spec"]
    size = Quantity.parse(str(spec["resources"]["requests"]["storage"])).bytes
    small = too_small(world, found, size, spec.get("volumeMode") or "Filesystem", spec.get("storageClassName"))
    if small is not None:
        return failed(None, small.failure)
    actions: tuple[Action, ...] = (CreateObject(body=body),)
    # A provisioner only checks the reference in the PVC. No VolumeCloneSource can name a source in another namespace.
    if "dataSourceRef" in spec and origin.namespace == dv.metadata.namespace:
        actions = (CreateObject(body=build_clone_source(dv, origin)), *actions)
    state = State(
        phase=Phase.PENDING,
        bound=no(Reason.PENDING, f"PVC {dv.metadata.name} Pending"),
        running=no(),
        ready=no(),
        claim_name=dv.metadata.name,
    )
    return Decision(state=state, actions=actions)


def _body(world: World, origin: Clone, found: Found) -> dict[str, Any] | Decision:
    """Return the PVC's manifest, or the decision that applies until its size is known.

    Raises:
        CdiError: Any error of `cdi.reconcile.claim.build_claim`.
        InvalidManifest: The size is neither given nor known from the source.

    """
    dv = world.datavolume
    body = build_claim(world, origin, None)
    spec, metadata = body["spec"], body["metadata"]
    annotations, labels = metadata["annotations"], metadata["labels"]
    mode, storage_class = spec.get("volumeMode") or "Filesystem", spec.get("storageClassName")
    if dv.spec.claim is None or dv.spec.claim.size is None:
        size = _size(world, found, mode, storage_class)
        if isinstance(size, Decision):
            return size
        if size is None:
            raise InvalidManifest(
                f"the source {found.place} does not report its size",
                where="spec.storage.resources.requests.storage",
            )
        resources = dict(spec.get("resources") or {})
        resources["requests"] = {**(resources.get("requests") or {}), "storage": Quantity.of_bytes(size).text}
        spec["resources"] = resources
    request = f"{origin.namespace}/{origin.name}"
    if found.kind == "VolumeSnapshot":
        annotations.pop(ANN_CLONE_REQUEST, None)
        annotations[ANN_SNAPSHOT_REQUEST] = request
    else:
        annotations[ANN_CLONE_REQUEST] = request
    made_of = class_of(dv, world.objects)
    populated = wants_population(dv, made_of, world.objects)
    annotations[ANN_USE_POPULATOR] = "true" if populated else "false"
    spec.pop("dataSource", None)
    spec.pop("dataSourceRef", None)
    if populated:
        spec["dataSourceRef"] = clone_source_ref(dv)
        annotations |= provisioner_marks(made_of, world.objects)
    permissive = (dv.metadata.annotations or {}).get(ANN_PERMISSIVE_CLONE)
    if permissive is not None:
        annotations[ANN_PERMISSIVE_CLONE] = permissive
    labels |= {name: text for name, text in found.labels.items() if propagates(name) and name not in labels}
    if ANN_CONTENT_TYPE in found.annotations:
        annotations[ANN_CONTENT_TYPE] = found.annotations[ANN_CONTENT_TYPE]
    return body


def _recorded(world: World, body: dict[str, Any], found: Found) -> CloneRecord | None:
    """Return the plan for a PVC that is yet to be created, if it can be cloned at once by the preferred strategy.

    In all other cases return None: the plan is then made, and reported, once the PVC exists.
    """
    spec, metadata = body["spec"], body["metadata"]
    ref = spec.get("dataSourceRef")
    if ref is None:
        return None
    claim = Claim(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid="",
        phase="Pending",
        annotations=metadata["annotations"],
        volume_mode=spec.get("volumeMode") or "Filesystem",
        storage_class=spec.get("storageClassName"),
        requested=Quantity.parse(str(spec["resources"]["requests"]["storage"])).bytes,
        data_ref=DataRef(group=ref["apiGroup"], kind=ref["kind"], name=ref["name"]),
    )
    if standstill(world, claim) is not None or in_use(world, found) is not None:
        return None
    choice = plan(world, claim, found)
    shared = shared_snapshot(world, found) if choice.snapshot_class is not None else ""
    if choice.strategy is CloneStrategy.COPY or choice.obstacles or shared is None:
        return None
    return CloneRecord.of(choice, found, snapshot=shared, restored="", now=world.now)


def _size(world: World, found: Found, volume_mode: str, storage_class: str | None) -> int | Decision | None:
    """Return the size in bytes for a clone without a requested size; None if the source's size is unknown."""
    if depends_on_disk(world, found, volume_mode, storage_class):
        disk = disk_of(world, found)
        if isinstance(disk, Decision):
            return disk
        if disk is not None:
            offered = world.objects.offer(storage_class, virtualization=for_machines(world.datavolume))
            return complete_size(max(disk, LEAST), volume_mode, offered)
    return size_for(world, found, volume_mode, storage_class)
