"""Phases of a clone in a cluster, until its content is in one volume.

    target ── record ── snapshot ── temporary PVC from it ── expanded ── rebound        (snapshot)
                    └── temporary PVC from the source ────── expanded ── rebound        (csi-clone)
                    └── pods that copy                                                  (copy)

The temporary PVC is filled in place of the target, and `cdi.reconcile.datavolume.rebind` rebinds its volume. The
source is never modified: it is only read, or named in a ``dataSource`` or snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from cdi.api.datavolume import DataVolume
from cdi.api.errors import ClaimMisbound
from cdi.api.job import Failure
from cdi.api.names import ANN_CLONE_TYPE, temporary_snapshot
from cdi.api.phases import TERMINAL_PHASES, EventReason, Phase, Reason
from cdi.api.policy import parse_policy_annotations
from cdi.api.storageprofile import CloneStrategy
from cdi.reconcile.actions import Action, CreateObject, DeleteObject, Event, ExpandClaim, PatchObject
from cdi.reconcile.clone.authorization import authorize
from cdi.reconcile.clone.manifests import (
    build_prep_pod,
    build_snapshot,
    build_temporary_pvc,
    of_snapshot,
    preparation_pod,
    pvc_data_source,
)
from cdi.reconcile.clone.plan_annotation import (
    ANN_SOURCE_UID,
    ANNOTATION,
    ClonePlanRecord,
    by_storage,
    requested_strategy,
    temporary_pvc,
)
from cdi.reconcile.clone.planner import STRATEGY_FAILED, ClonePlan, Fallback, PreferredStrategy, Target, choose_strategy
from cdi.reconcile.clone.snapshot_restore import cannot_restore, is_known, restore_in_progress, temporary_name
from cdi.reconcile.clone.source import facts, find, planner_source, source_in_use
from cdi.reconcile.clone.status import clone_in_progress, clone_pending
from cdi.reconcile.clone.types import CloneSource, Snapshot
from cdi.reconcile.clone.validation import refusal
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.datavolume.attempts import AttemptHistory
from cdi.reconcile.datavolume.lineage import inherited_origin, mark_clone, source_warnings
from cdi.reconcile.datavolume.provisioning import is_populated, provisioning_blocker
from cdi.reconcile.datavolume.rebind import recreate_prime, volume_of
from cdi.reconcile.datavolume.result import Result, failed, pending
from cdi.reconcile.types import PVC, Clone, Pending, Rejected

PHASE_TIMEOUT: Final = 1800.0
"""Default timeout of a strategy in seconds; an annotation overrides it (`cdi.api.policy`)."""
SKEW: Final = 2.0
"""Maximum assumed clock skew in seconds."""


def mark_complete(context: ReconcileContext, claim: PVC, attempts: AttemptHistory) -> AttemptHistory:
    """Return the attempt history marked as done once the storage has created the volume in the target's size.

    The existence of the PersistentVolume is sufficient. That the temporary PVC is bound to it adds nothing, and takes
    longer than everything else if many volumes are provisioned at once (docs/explanation/performance.md).
    """
    record, prime, wanted = by_storage(claim), context.prime, claim.requested or 0
    if attempts.done or record is None or prime is None:
        return attempts
    if prime.deleting or prime.phase == "Lost" or _is_other(prime, record):
        return attempts
    volume = volume_of(context.objects, prime)
    if volume is None or volume.capacity is None or volume.capacity < wanted:
        return attempts
    if prime.phase == "Bound" and prime.volume_mode == "Filesystem" and (prime.capacity or 0) < wanted:
        return attempts
    pod = facts(context).prep_pod(prime.namespace, preparation_pod(prime.name))
    return attempts.completed_in(prime, volume.name) if pod is None or pod.phase in TERMINAL_PHASES else attempts


def unprepared(context: ReconcileContext) -> tuple[Action, ...]:
    """Delete the prep pod of a PVC that is being deleted, since even a finished pod delays the deletion."""
    metadata = context.datavolume.metadata
    namespace, name = metadata.namespace or "", preparation_pod(metadata.name or "")
    pod = context.clones.prep_pod(namespace, name) if context.clones is not None else None
    if pod is None or pod.deleting:
        return ()
    return (DeleteObject(plural="pods", namespace=namespace, name=name, uid=pod.uid),)


def cleared_preparation(
    context: ReconcileContext, claim: PVC, attempts: AttemptHistory, *, final: bool
) -> tuple[Action, ...]:
    """Delete the prep pod of a finished clone, since Kubernetes keeps the temporary PVC while the pod exists."""
    if by_storage(claim) is None or not (final or attempts.done):
        return ()
    namespace, prime = temporary_pvc(claim)
    pod = facts(context).prep_pod(namespace, preparation_pod(prime))
    if pod is None or pod.deleting:
        return ()
    return (DeleteObject(plural="pods", namespace=namespace, name=preparation_pod(prime), uid=pod.uid),)


def next_phase(context: ReconcileContext, claim: PVC, origin: Clone) -> Result | None:
    """Return the next phase of the clone; None if a worker that copies can be started."""
    populated, prime = is_populated(context.platform, claim), context.prime
    if populated and claim.phase == "Bound":
        error = ClaimMisbound(
            f"PVC {claim.name} was bound to volume {claim.volume_name} before its content was complete",
            where=f"{claim.namespace}/{claim.name}",
        )
        return failed(claim, Failure.from_error(error))
    denied = authorize(context, origin, claim)
    if isinstance(denied, Rejected):
        return failed(claim, denied.failure)
    if isinstance(denied, Pending):
        return replace(clone_pending(claim, denied), requeue_after=context.retries.base)
    if populated and prime is not None and (prime.deleting or prime.phase == "Lost"):
        wait = Pending(reason=Reason.PENDING, message=f"PVC {prime.name} lost its PersistentVolume; recreating it")
        return replace(clone_pending(claim, wait), actions=recreate_prime(prime))
    record = ClonePlanRecord.read(claim)
    if not populated or prime is None:
        still = provisioning_blocker(context, claim) if claim.phase != "Bound" else None
        if still is not None:
            return pending(claim, still.wait, still.phase)
    if record is None or record.namespace != origin.namespace:
        return _planned(context, claim, origin)
    if prime is not None and populated and _is_other(prime, record):
        message = f"PVC {prime.name} of the previously tried clone strategy is being deleted"
        return replace(
            clone_pending(claim, Pending(reason=Reason.PENDING, message=message)), actions=recreate_prime(prime)
        )
    if record.strategy is not CloneStrategy.COPY:
        return _made_by_storage(context, claim, origin, record)
    if not record.restored:
        return None
    if not is_known(context, origin, record):
        message = f"the source {origin.namespace}/{origin.name} was replaced by another object of that name"
        return replace(
            clone_pending(claim, Pending(reason=Reason.PENDING, message=message)), actions=(_written(claim, None),)
        )
    return restore_in_progress(context, claim, origin, record)


# --- the plan -----------------------------------------------------------------------------------------------------


def plan(context: ReconcileContext, claim: PVC, found: CloneSource, *, failed: tuple[str, ...] = ()) -> ClonePlan:
    """Return the plan for cloning the source to `claim`."""
    storage_class = context.objects.storage_class(claim.storage_class) if claim.storage_class else None
    target = Target(
        storage_class=claim.storage_class or "",
        provisioner=storage_class.provisioner if storage_class is not None else "",
        volume_mode=claim.volume_mode,
        size=claim.requested,
        populated=is_populated(context.platform, claim),
        expands=storage_class is not None and storage_class.allow_expansion,
    )
    requested = requested_strategy(claim)
    wish = PreferredStrategy.find(
        context.config.clone_strategy,
        facts(context).strategy(claim.storage_class),
        CloneStrategy(requested) if requested in set(CloneStrategy) else None,
    )
    return choose_strategy(planner_source(context, found, claim.storage_class), target, wish, failed=frozenset(failed))


def _planned(context: ReconcileContext, claim: PVC, origin: Clone) -> Result:
    found = find(context, origin)
    if isinstance(found, Rejected):
        return failed(claim, found.failure)
    if isinstance(found, Pending):
        return clone_pending(claim, found)
    refused = refusal(context, claim, found)
    if refused is not None:
        return replace(refused, requeue_after=context.retries.patience)
    users = source_in_use(context.objects, found)
    if users is not None:
        return clone_pending(claim, users)
    choice = plan(context, claim, found)
    unable = cannot_restore(context, claim, found) if choice.strategy is CloneStrategy.COPY else None
    if unable is not None:
        return failed(claim, unable.failure)
    record = ClonePlanRecord.of(
        choice,
        found,
        snapshot=shared_snapshot(context, found) or temporary_snapshot(claim.uid),
        restored=temporary_name(found.kind, found.uid),
        now=context.now,
        requested=requested_strategy(claim),
    )
    events = tuple(Event(type="Warning", reason=one.reason, message=one.text) for one in choice.fallback_reasons)
    result = clone_pending(
        claim, Pending(reason=Reason.PENDING, message=f"{found.place} is being cloned with {choice.sentence}")
    )
    first = _first(context, claim, origin, record) or result
    actions: tuple[Action, ...] = (_written(claim, record),)
    if context.synthetic:
        # The target PVC of a DataVolume got its origin when it was created.
        events += tuple(source_warnings(found.annotations, found.place, context.now))
        actions = (
            _written(claim, record, inherited_origin(found.annotations)),
            *mark_clone(found, context.now, snapshot=found.kind == "VolumeSnapshot"),
        )
    return replace(first, actions=(*actions, *first.actions), events=(*events, *first.events))


def _first(context: ReconcileContext, claim: PVC, origin: Clone, record: ClonePlanRecord) -> Result | None:
    """Return the first request to the storage, made in the same reconcile as the record, which is written before it.

    It is also shown at once, because fast storage may complete it before the next reconcile.
    """
    if record.strategy is CloneStrategy.COPY or context.prime is not None:
        return None
    recorded = replace(claim, annotations={**claim.annotations, ANNOTATION: record.write()})
    result = _start_phase(context, recorded, origin, record)
    asked = tuple(action for action in result.actions if isinstance(action, CreateObject))
    return replace(result, actions=asked) if asked else None


def shared_snapshot(context: ReconcileContext, found: CloneSource) -> str | None:
    """Return the name of the snapshot that all concurrent clones of a source share, whether or not it exists yet.

    Return None if the source may have been written to since the snapshot was taken.
    """
    shared = temporary_snapshot(found.uid)
    snapshot = facts(context).snapshot(found.namespace, shared)
    return shared if snapshot is None or _serves(context, snapshot, found) else None


def _serves(context: ReconcileContext, snapshot: Snapshot, found: CloneSource) -> bool:
    if snapshot.deleting or snapshot.error or snapshot.annotations.get(ANN_SOURCE_UID) != found.uid:
        return False
    if not snapshot.taken:
        return True
    since = facts(context).unmounted_since(found.namespace, found.name)
    return since is not None and snapshot.begun >= since + SKEW


def _written(claim: PVC, record: ClonePlanRecord | None, others: Mapping[str, str] | None = None) -> PatchObject:
    """Return the patch that stores a plan with its strategy; without one, the PVC has the requested strategy again."""
    strategy = record.strategy.value if record is not None else requested_strategy(claim) or None
    return PatchObject(
        plural="persistentvolumeclaims",
        namespace=claim.namespace,
        name=claim.name,
        uid=claim.uid,
        annotations={
            ANNOTATION: record.write() if record is not None else None,
            ANN_CLONE_TYPE: strategy,
            **(others or {}),
        },
        version=claim.version,
    )


# --- clones by the storage ----------------------------------------------------------------------------------------


def _made_by_storage(context: ReconcileContext, claim: PVC, origin: Clone, record: ClonePlanRecord) -> Result:
    prime = context.prime
    left = record.begun + _timeout(context.datavolume) - context.now
    if prime is None:
        result = _start_phase(context, claim, origin, record)
    elif prime.phase != "Bound":
        result = _made(context, claim, record, prime)
    else:
        result = _expand(context, claim, record, prime)
    begun = prime is not None or (
        bool(record.snapshot) and facts(context).snapshot(record.namespace, record.snapshot) is not None
    )
    if not begun:
        return result
    if left <= 0:
        return _fall_back_to_host_assisted(context, claim, origin, record, result)
    return replace(result, requeue_after=left)


def _fall_back_to_host_assisted(
    context: ReconcileContext, claim: PVC, origin: Clone, record: ClonePlanRecord, result: Result
) -> Result:
    """Fall back to a host-assisted clone, which requires nothing of the storage but volumes."""
    message = f"{record.strategy} took longer than {_timeout(context.datavolume):.0f} s: {result.state.ready.message}"
    why = Fallback(reason=STRATEGY_FAILED, message=message)
    after = record.fell_back(why, restored=temporary_name(origin.kind, record.source), now=context.now)
    actions: tuple[Action, ...] = (_written(claim, after),)
    if context.prime is not None:
        actions += recreate_prime(context.prime)
    told = Event(type="Warning", reason=why.reason, message=why.text)
    return replace(
        clone_pending(claim, Pending(reason=Reason.PENDING, message=after.message)), actions=actions, events=(told,)
    )


def _start_phase(context: ReconcileContext, claim: PVC, origin: Clone, record: ClonePlanRecord) -> Result:
    found = find(context, origin)
    if isinstance(found, Rejected):
        return failed(claim, found.failure)
    if isinstance(found, Pending):
        return clone_pending(claim, found)
    if found.uid != record.source:
        message = f"the source {found.place} was replaced by another object of that name"
        return replace(
            clone_pending(claim, Pending(reason=Reason.PENDING, message=message)), actions=(_written(claim, None),)
        )
    if record.snapshot:
        return _from_snapshot_of(context, claim, record, found)
    if found.kind == "VolumeSnapshot":
        return _make_prime(context, claim, record, found, of_snapshot(found.name))
    users = source_in_use(context.objects, found)
    if users is not None:
        return replace(clone_pending(claim, users), actions=(_written(claim, None),))
    return _make_prime(context, claim, record, found, pvc_data_source(found.name))


def _from_snapshot_of(context: ReconcileContext, claim: PVC, record: ClonePlanRecord, found: CloneSource) -> Result:
    """Create the temporary PVC of a PVC's clone from a snapshot, which is taken now or shared with other clones."""
    snapshot = facts(context).snapshot(record.namespace, record.snapshot)
    own = temporary_snapshot(claim.uid)
    if snapshot is not None and (snapshot.deleting or snapshot.annotations.get(ANN_SOURCE_UID) != found.uid):
        message = f"VolumeSnapshot {record.snapshot} is being deleted; another one will be taken"
        actions = (_written(claim, replace(record, snapshot=own)),) if record.snapshot != own else ()
        return replace(clone_pending(claim, Pending(reason=Reason.PENDING, message=message)), actions=actions)
    phase = Phase.SNAPSHOT_FOR_SMART_CLONE_IN_PROGRESS
    if snapshot is None:
        users = source_in_use(context.objects, found)
        if users is not None:
            return replace(clone_pending(claim, users), actions=(_written(claim, None),))
        snapshot_class = facts(context).snapshot_class(claim.storage_class, found.driver)
        if snapshot_class is None:
            message = "the VolumeSnapshotClass was deleted"
            return replace(
                clone_pending(claim, Pending(reason=Reason.PENDING, message=message)), actions=(_written(claim, None),)
            )
        create = CreateObject(body=build_snapshot(context.config, claim, found, record.snapshot, snapshot_class))
        return clone_in_progress(
            claim, phase, f"taking VolumeSnapshot {record.snapshot} of {found.place}", actions=(create,)
        )
    if not snapshot.ready:
        why = f"; {snapshot.error}" if snapshot.error else ""
        return clone_in_progress(claim, phase, f"VolumeSnapshot {snapshot.name} of {found.place} is being taken{why}")
    made = _make_prime(
        context, claim, record, replace(found, size=snapshot.size or found.size), of_snapshot(snapshot.name)
    )
    told = Event(
        type="Normal",
        reason=EventReason.SNAPSHOT_FOR_SMART_CLONE_CREATED,
        message=f"VolumeSnapshot {snapshot.name} of {found.place} is ready",
    )
    return replace(made, events=(told,))


def _make_prime(
    context: ReconcileContext, claim: PVC, record: ClonePlanRecord, found: CloneSource, reference: dict[str, str]
) -> Result:
    # The volume is created in the source's size and expanded later, which more storage supports than cloning to another
    # size.
    size = found.size if found.size is not None else claim.requested or 0
    body = build_temporary_pvc(context, claim, record, found, reference, size)
    message = f"creating PVC {body['metadata']['name']} from {found.place}"
    return clone_in_progress(claim, _cloning(record), message, actions=(CreateObject(body=body),))


def _cloning(record: ClonePlanRecord) -> Phase:
    if record.strategy is CloneStrategy.CSI_CLONE:
        return Phase.CSI_CLONE_IN_PROGRESS
    return Phase.CLONE_FROM_SNAPSHOT_SOURCE_IN_PROGRESS


def _made(context: ReconcileContext, claim: PVC, record: ClonePlanRecord, prime: PVC) -> Result:
    phase = _cloning(record)
    if record.snapshot and facts(context).snapshot(record.namespace, record.snapshot) is None:
        message = f"VolumeSnapshot {record.snapshot} was deleted before PVC {prime.name} was restored from it"
        return clone_in_progress(claim, phase, message, actions=recreate_prime(prime))
    storage_class = context.objects.storage_class(prime.storage_class) if prime.storage_class else None
    if storage_class is not None and storage_class.wait_for_first_consumer and not prime.selected_node:
        return _prepared(context, claim, prime, f"PVC {prime.name} is waiting for its first consumer")
    by = storage_class.provisioner if storage_class is not None else "the storage"
    return clone_in_progress(
        claim, phase, prime.provisioning_message or f"waiting for PVC {prime.name} to be provisioned by {by}"
    )


def _expand(context: ReconcileContext, claim: PVC, record: ClonePlanRecord, prime: PVC) -> Result:
    wanted = claim.requested or 0
    volume = context.objects.volume(prime.volume_name)
    if volume is None or volume.capacity is None:
        return clone_in_progress(claim, _cloning(record), f"PVC {prime.name} is bound")
    if volume.capacity < wanted:
        actions: tuple[Action, ...] = ()
        if (prime.requested or 0) < wanted:
            actions = (ExpandClaim(namespace=prime.namespace, name=prime.name, uid=prime.uid, size=wanted),)
        message = f"expanding the volume of PVC {prime.name} from {volume.capacity} to {wanted} bytes"
        return clone_in_progress(claim, Phase.EXPANSION_IN_PROGRESS, message, actions=actions)
    return _prepared(context, claim, prime, f"waiting for the filesystem of PVC {prime.name} to be expanded")


def _prepared(context: ReconcileContext, claim: PVC, prime: PVC, message: str) -> Result:
    """Mount the temporary PVC once, in a prep pod."""
    name = preparation_pod(prime.name)
    pod = facts(context).prep_pod(prime.namespace, name)
    actions: tuple[Action, ...] = ()
    if pod is None:
        actions = (CreateObject(body=build_prep_pod(context.config, claim, prime)),)
    elif pod.phase in TERMINAL_PHASES and not pod.deleting:
        # The pod ended without effect. Delete it for another one: some filesystems are expanded only while unused.
        actions = (DeleteObject(plural="pods", namespace=prime.namespace, name=name, uid=pod.uid),)
    elif pod.message:
        message = f"{message}; {pod.message}"
    return clone_in_progress(claim, Phase.PREP_CLAIM_IN_PROGRESS, message, actions=actions)


def _is_other(prime: PVC, record: ClonePlanRecord) -> bool:
    """Return whether the PVC was created for a strategy that is no longer used."""
    made_for = prime.annotations.get(ANN_CLONE_TYPE, CloneStrategy.COPY.value)
    return made_for != record.strategy


def _timeout(dv: DataVolume) -> float:
    return parse_policy_annotations(dv.metadata.annotations).clone_timeout or PHASE_TIMEOUT
