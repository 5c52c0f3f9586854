"""Steps of the phases in which the storage clones, until the content is in one volume.

Each step gives the state and the actions of its phase, and None once the phase is done; `cdi.reconcile.clone.planner`
puts them in order.
"""

from __future__ import annotations

from dataclasses import replace

from cdi.api.names import temporary_snapshot
from cdi.api.phases import TERMINAL_PHASES, EventReason, Phase
from cdi.api.storageprofile import CloneStrategy
from cdi.reconcile.actions import Action, CreateObject, DeleteObject, Event, ExpandClaim
from cdi.reconcile.clone.manifests import (
    build_prep_pod,
    build_snapshot,
    build_temporary_pvc,
    of_snapshot,
    preparation_pod,
    pvc_data_source,
)
from cdi.reconcile.clone.plan_annotation import ANN_SOURCE_UID, ClonePlanRecord, by_storage, store_plan, temporary_pvc
from cdi.reconcile.clone.source import facts, find, source_in_use
from cdi.reconcile.clone.status import clone_in_progress, clone_pending, clone_waiting, discard_plan, source_replaced
from cdi.reconcile.clone.types import CloneSource
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.datavolume.attempts import AttemptHistory
from cdi.reconcile.datavolume.rebind import recreate_prime, volume_of
from cdi.reconcile.datavolume.result import Result, failed
from cdi.reconcile.types import PVC, Clone, Pending, Rejected


def mark_complete(context: ReconcileContext, claim: PVC, attempts: AttemptHistory) -> AttemptHistory:
    """Return the attempt history marked as done once the storage has created the volume in the target's size.

    The existence of the PersistentVolume is sufficient. That the temporary PVC is bound to it adds nothing, and takes
    longer than everything else if many volumes are provisioned at once (docs/explanation/performance.md).
    """
    record, prime, wanted = by_storage(claim), context.prime, claim.requested or 0
    if attempts.done or record is None or prime is None:
        return attempts
    if prime.deleting or prime.phase == "Lost" or record.is_outdated(prime):
        return attempts
    volume = volume_of(context.objects, prime)
    if volume is None or volume.capacity is None or volume.capacity < wanted:
        return attempts
    if prime.phase == "Bound" and prime.volume_mode == "Filesystem" and (prime.capacity or 0) < wanted:
        return attempts
    pod = facts(context).prep_pod(prime.namespace, preparation_pod(prime.name))
    return attempts.completed_in(prime, volume.name) if pod is None or pod.phase in TERMINAL_PHASES else attempts


def take_snapshot(context: ReconcileContext, claim: PVC, origin: Clone, record: ClonePlanRecord) -> Result | None:
    """Take a snapshot of the source, unless another clone has taken it."""
    if context.prime is not None:
        return None
    found = _source(context, claim, origin, record)
    if isinstance(found, Result):
        return found
    snapshot = facts(context).snapshot(record.namespace, record.snapshot)
    own = temporary_snapshot(claim.uid)
    if snapshot is not None and (snapshot.deleting or snapshot.annotations.get(ANN_SOURCE_UID) != found.uid):
        actions = (store_plan(claim, replace(record, snapshot=own)),) if record.snapshot != own else ()
        message = f"VolumeSnapshot {record.snapshot} is being deleted; another one will be taken"
        return clone_waiting(claim, message, *actions)
    phase = Phase.SNAPSHOT_FOR_SMART_CLONE_IN_PROGRESS
    if snapshot is None:
        users = source_in_use(context.objects, found)
        if users is not None:
            return discard_plan(clone_pending(claim, users), claim)
        snapshot_class = facts(context).snapshot_class(claim.storage_class, found.driver)
        if snapshot_class is None:
            return discard_plan(clone_waiting(claim, "the VolumeSnapshotClass was deleted"), claim)
        create = CreateObject(body=build_snapshot(context.config, claim, found, record.snapshot, snapshot_class))
        return clone_in_progress(
            claim, phase, f"taking VolumeSnapshot {record.snapshot} of {found.place}", actions=(create,)
        )
    if not snapshot.ready:
        why = f"; {snapshot.error}" if snapshot.error else ""
        return clone_in_progress(claim, phase, f"VolumeSnapshot {snapshot.name} of {found.place} is being taken{why}")
    return None


def provision_volume(context: ReconcileContext, claim: PVC, origin: Clone, record: ClonePlanRecord) -> Result | None:
    """Create the temporary PVC from the snapshot or the source, and wait until it is bound."""
    prime, phase = context.prime, _phase(record)
    if prime is None:
        found = _source(context, claim, origin, record)
        return found if isinstance(found, Result) else _create_prime(context, claim, record, found)
    if prime.phase == "Bound":
        return None
    if record.snapshot and facts(context).snapshot(record.namespace, record.snapshot) is None:
        message = f"VolumeSnapshot {record.snapshot} was deleted before PVC {prime.name} was restored from it"
        return clone_in_progress(claim, phase, message, actions=recreate_prime(prime))
    storage_class = context.objects.storage_class(prime.storage_class) if prime.storage_class else None
    if storage_class is not None and storage_class.wait_for_first_consumer and not prime.selected_node:
        return _ensure_prep_pod(context, claim, prime, f"PVC {prime.name} is waiting for its first consumer")
    by = storage_class.provisioner if storage_class is not None else "the storage"
    return clone_in_progress(
        claim, phase, prime.provisioning_message or f"waiting for PVC {prime.name} to be provisioned by {by}"
    )


def expand_volume(context: ReconcileContext, claim: PVC, _: Clone, record: ClonePlanRecord) -> Result | None:
    """Expand the volume to the target's size."""
    prime, wanted = _provisioned(context), claim.requested or 0
    volume = context.objects.volume(prime.volume_name)
    if volume is None or volume.capacity is None:
        return clone_in_progress(claim, _phase(record), f"PVC {prime.name} is bound")
    if volume.capacity >= wanted:
        return None
    actions: tuple[Action, ...] = ()
    if (prime.requested or 0) < wanted:
        actions = (ExpandClaim(namespace=prime.namespace, name=prime.name, uid=prime.uid, size=wanted),)
    message = f"expanding the volume of PVC {prime.name} from {volume.capacity} to {wanted} bytes"
    return clone_in_progress(claim, Phase.EXPANSION_IN_PROGRESS, message, actions=actions)


def mount_volume(context: ReconcileContext, claim: PVC, _: Clone, __: ClonePlanRecord) -> Result:
    """Mount the volume once, so that its filesystem is expanded; `mark_complete` tells when that is done."""
    prime = _provisioned(context)
    return _ensure_prep_pod(context, claim, prime, f"waiting for the filesystem of PVC {prime.name} to be expanded")


def delete_prep_pod(context: ReconcileContext, claim: PVC, _: ClonePlanRecord) -> tuple[Action, ...]:
    """Delete the prep pod of a finished clone, since Kubernetes keeps the temporary PVC while the pod exists."""
    return _delete_prep_pod(context, *temporary_pvc(claim))


def release_prep_pod(context: ReconcileContext) -> tuple[Action, ...]:
    """Delete the prep pod of a PVC that is being deleted, since even a finished pod delays the deletion."""
    metadata = context.datavolume.metadata
    return _delete_prep_pod(context, metadata.namespace or "", metadata.name or "")


def _delete_prep_pod(context: ReconcileContext, namespace: str, prime: str) -> tuple[Action, ...]:
    name = preparation_pod(prime)
    pod = context.clones.prep_pod(namespace, name) if context.clones is not None else None
    if pod is None or pod.deleting:
        return ()
    return (DeleteObject(plural="pods", namespace=namespace, name=name, uid=pod.uid),)


def _source(context: ReconcileContext, claim: PVC, origin: Clone, record: ClonePlanRecord) -> CloneSource | Result:
    """Return the source of the plan, or the state if it is missing or another one."""
    found = find(context, origin)
    if isinstance(found, Rejected):
        return failed(claim, found.failure)
    if isinstance(found, Pending):
        return clone_pending(claim, found)
    return found if found.uid == record.source else source_replaced(claim, found.place)


def _create_prime(context: ReconcileContext, claim: PVC, record: ClonePlanRecord, found: CloneSource) -> Result:
    snapshot = facts(context).snapshot(record.namespace, record.snapshot) if record.snapshot else None
    if snapshot is None and found.kind == "PersistentVolumeClaim":
        users = source_in_use(context.objects, found)
        if users is not None:
            return discard_plan(clone_pending(claim, users), claim)
        reference = pvc_data_source(found.name)
    else:
        reference = of_snapshot(snapshot.name if snapshot is not None else found.name)
    # The volume is created in the source's size and expanded later, which more storage supports than cloning to another
    # size.
    size = (snapshot.size if snapshot is not None else None) or found.size
    body = build_temporary_pvc(
        context, claim, record, found, reference, size if size is not None else claim.requested or 0
    )
    message = f"creating PVC {body['metadata']['name']} from {found.place}"
    result = clone_in_progress(claim, _phase(record), message, actions=(CreateObject(body=body),))
    if snapshot is None:
        return result
    ready = Event(
        type="Normal",
        reason=EventReason.SNAPSHOT_FOR_SMART_CLONE_CREATED,
        message=f"VolumeSnapshot {snapshot.name} of {found.place} is ready",
    )
    return replace(result, events=(ready,))


def _provisioned(context: ReconcileContext) -> PVC:
    assert context.prime is not None, "provision_volume is done only once there is a temporary PVC"
    return context.prime


def _phase(record: ClonePlanRecord) -> Phase:
    if record.strategy is CloneStrategy.CSI_CLONE:
        return Phase.CSI_CLONE_IN_PROGRESS
    return Phase.CLONE_FROM_SNAPSHOT_SOURCE_IN_PROGRESS


def _ensure_prep_pod(context: ReconcileContext, claim: PVC, prime: PVC, message: str) -> Result:
    """Mount the temporary PVC once, in a prep pod."""
    pod = facts(context).prep_pod(prime.namespace, preparation_pod(prime.name))
    actions: tuple[Action, ...] = ()
    if pod is None:
        actions = (CreateObject(body=build_prep_pod(context.config, claim, prime)),)
    elif pod.phase in TERMINAL_PHASES and not pod.deleting:
        # The pod ended without effect. Delete it for another one: some filesystems are expanded only while unused.
        actions = _delete_prep_pod(context, prime.namespace, prime.name)
    elif pod.message:
        message = f"{message}; {pod.message}"
    return clone_in_progress(claim, Phase.PREP_CLAIM_IN_PROGRESS, message, actions=actions)
