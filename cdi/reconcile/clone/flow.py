"""Phases of a clone in a cluster, until its content is in one volume.

    target ── record ── snapshot ── temporary PVC from it ── expanded ── rebound        (snapshot)
                    └── temporary PVC from the source ────── expanded ── rebound        (csi-clone)
                    └── pods that copy                                                  (copy)

The temporary PVC is filled in place of the target, and `cdi.reconcile.population` rebinds its volume. The source is
never modified: it is only read, or named in a ``dataSource`` or snapshot.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from cdi.api.errors import ClaimMisbound
from cdi.api.names import ANN_CLONE_TYPE, temporary_snapshot
from cdi.api.phases import EventReason, Phase, Reason
from cdi.api.policy import read_knobs
from cdi.api.storageprofile import CloneStrategy
from cdi.reconcile.actions import Action, CreateObject, DeleteObject, Enlarge, EventFact, PatchObject
from cdi.reconcile.binding import is_populated, standstill
from cdi.reconcile.clone.authority import allowed
from cdi.reconcile.clone.facts import Snapshot
from cdi.reconcile.clone.manifests import (
    build_preparation,
    build_snapshot,
    build_stand_in,
    of_claim,
    of_snapshot,
    preparation_pod,
)
from cdi.reconcile.clone.plan import STRATEGY_FAILED, Choice, Fallback, Target, Wish, choose
from cdi.reconcile.clone.record import ANN_SOURCE_UID, ANNOTATION, CloneRecord, by_storage, stand_in
from cdi.reconcile.clone.restored import is_known, restored_name, restoring, unreadable
from cdi.reconcile.clone.source import Found, facts, find, in_use, too_small
from cdi.reconcile.clone.states import underway, waiting
from cdi.reconcile.decision import Decision, failed, pending
from cdi.reconcile.failure import as_failure
from cdi.reconcile.origin import Clone, Refuse, Wait
from cdi.reconcile.population import replaced, volume_of

if TYPE_CHECKING:
    from cdi.reconcile.ledger import Ledger
    from cdi.reconcile.world import Claim, World

PATIENCE: Final = 1800.0
"""Default timeout of a strategy in seconds; an annotation overrides it (`cdi.api.policy`)."""
SKEW: Final = 2.0
"""Maximum assumed clock skew in seconds."""
_ENDED: Final = ("Succeeded", "Failed")


def made(world: World, claim: Claim, ledger: Ledger) -> Ledger:
    """Return the ledger marked as done once the storage has created the volume in the target's size.

    The existence of the PersistentVolume is sufficient. That the temporary PVC is bound to it adds nothing, and takes
    longer than everything else if many volumes are provisioned at once (docs/explanation/performance.md).
    """
    record, prime, wanted = by_storage(claim), world.prime, claim.requested or 0
    if ledger.done or record is None or prime is None:
        return ledger
    if prime.deleting or prime.phase == "Lost" or _is_other(prime, record):
        return ledger
    volume = volume_of(world, prime)
    if volume is None or volume.capacity is None or volume.capacity < wanted:
        return ledger
    if prime.phase == "Bound" and prime.volume_mode == "Filesystem" and (prime.capacity or 0) < wanted:
        return ledger
    pod = facts(world).preparation(prime.namespace, preparation_pod(prime.name))
    return ledger.held_by(prime, volume.name) if pod is None or pod.phase in _ENDED else ledger


def unprepared(world: World) -> tuple[Action, ...]:
    """Delete the prep pod of a PVC that is being deleted, since even a finished pod delays the deletion."""
    metadata = world.datavolume.metadata
    namespace, name = metadata.namespace or "", preparation_pod(metadata.name or "")
    pod = world.clones.preparation(namespace, name) if world.clones is not None else None
    if pod is None or pod.deleting:
        return ()
    return (DeleteObject(plural="pods", namespace=namespace, name=name, uid=pod.uid),)


def cleared_preparation(world: World, claim: Claim, ledger: Ledger, *, final: bool) -> tuple[Action, ...]:
    """Delete the prep pod of a finished clone, since Kubernetes keeps the temporary PVC while the pod exists."""
    if by_storage(claim) is None or not (final or ledger.done):
        return ()
    namespace, prime = stand_in(claim)
    pod = facts(world).preparation(namespace, preparation_pod(prime))
    if pod is None or pod.deleting:
        return ()
    return (DeleteObject(plural="pods", namespace=namespace, name=preparation_pod(prime), uid=pod.uid),)


def advance(world: World, claim: Claim, origin: Clone) -> Decision | None:
    """Return the next phase of the clone; None if a worker that copies can be started."""
    populated, prime = is_populated(world, claim), world.prime
    if populated and claim.phase == "Bound":
        error = ClaimMisbound(
            f"PVC {claim.name} was bound to volume {claim.volume_name} before its content was complete",
            where=f"{claim.namespace}/{claim.name}",
        )
        return failed(claim, as_failure(error))
    denied = allowed(world, origin, claim)
    if isinstance(denied, Refuse):
        return failed(claim, denied.failure)
    if isinstance(denied, Wait):
        return replace(waiting(claim, denied), requeue_after=world.retries.base)
    if populated and prime is not None and (prime.deleting or prime.phase == "Lost"):
        wait = Wait(reason=Reason.PENDING, message=f"PVC {prime.name} lost its PersistentVolume; recreating it")
        return replace(waiting(claim, wait), actions=replaced(prime))
    record = CloneRecord.read(claim)
    if not populated or prime is None:
        still = standstill(world, claim) if claim.phase != "Bound" else None
        if still is not None:
            return pending(claim, still.wait, still.phase)
    if record is None or record.namespace != origin.namespace:
        return _planned(world, claim, origin)
    if prime is not None and populated and _is_other(prime, record):
        message = f"PVC {prime.name} of the previously tried clone strategy is being deleted"
        return replace(waiting(claim, Wait(reason=Reason.PENDING, message=message)), actions=replaced(prime))
    if record.strategy is not CloneStrategy.COPY:
        return _made_by_storage(world, claim, origin, record)
    if not record.restored:
        return None
    if not is_known(world, origin, record):
        message = f"the source {origin.namespace}/{origin.name} was replaced by another object of that name"
        return replace(waiting(claim, Wait(reason=Reason.PENDING, message=message)), actions=(_written(claim, None),))
    return restoring(world, claim, origin, record)


# --- the plan -----------------------------------------------------------------------------------------------------


def plan(world: World, claim: Claim, found: Found, *, failed: tuple[str, ...] = ()) -> Choice:
    """Return the plan for cloning the source to `claim`."""
    storage_class = world.objects.storage_class(claim.storage_class) if claim.storage_class else None
    target = Target(
        storage_class=claim.storage_class or "",
        provisioner=storage_class.provisioner if storage_class is not None else "",
        volume_mode=claim.volume_mode,
        size=claim.requested,
        populated=is_populated(world, claim),
        expands=storage_class is not None and storage_class.expands,
    )
    wish = Wish.find(world.config.clone_strategy, facts(world).strategy(claim.storage_class))
    return choose(found.for_plan(world, claim.storage_class), target, wish, failed=frozenset(failed))


def _planned(world: World, claim: Claim, origin: Clone) -> Decision:
    found = find(world, origin)
    if isinstance(found, Refuse):
        return failed(claim, found.failure)
    if isinstance(found, Wait):
        return waiting(claim, found)
    small = too_small(world, found, claim.requested, claim.volume_mode, claim.storage_class)
    if small is not None:
        return failed(claim, small.failure)
    users = in_use(world, found)
    if users is not None:
        return waiting(claim, users)
    choice = plan(world, claim, found)
    unable = unreadable(world, claim, found) if choice.strategy is CloneStrategy.COPY else None
    if unable is not None:
        return failed(claim, unable.failure)
    record = CloneRecord.of(
        choice,
        found,
        snapshot=shared_snapshot(world, found) or temporary_snapshot(claim.uid),
        restored=restored_name(found.kind, found.uid),
        now=world.now,
    )
    events = tuple(EventFact(type="Warning", reason=one.reason, message=one.message) for one in choice.obstacles)
    decision = waiting(
        claim, Wait(reason=Reason.PENDING, message=f"{found.place} is being cloned with {choice.sentence}")
    )
    first = _first(world, claim, origin, record) or decision
    return replace(first, actions=(_written(claim, record), *first.actions), events=(*events, *first.events))


def _first(world: World, claim: Claim, origin: Clone, record: CloneRecord) -> Decision | None:
    """Return the first request to the storage, made in the same reconcile as the record, which is written before it.

    It is also shown at once, because fast storage may complete it before the next reconcile.
    """
    if record.strategy is CloneStrategy.COPY or world.prime is not None:
        return None
    recorded = replace(claim, annotations={**claim.annotations, ANNOTATION: record.write()})
    decision = _begin(world, recorded, origin, record)
    asked = tuple(action for action in decision.actions if isinstance(action, CreateObject))
    return replace(decision, actions=asked) if asked else None


def shared_snapshot(world: World, found: Found) -> str | None:
    """Return the name of the snapshot that all concurrent clones of a source share, whether or not it exists yet.

    Return None if the source may have been written to since the snapshot was taken.
    """
    shared = temporary_snapshot(found.uid)
    snapshot = facts(world).snapshot(found.namespace, shared)
    return shared if snapshot is None or _serves(world, snapshot, found) else None


def _serves(world: World, snapshot: Snapshot, found: Found) -> bool:
    if snapshot.deleting or snapshot.error or snapshot.annotations.get(ANN_SOURCE_UID) != found.uid:
        return False
    if not snapshot.taken:
        return True
    since = facts(world).undisturbed(found.namespace, found.name)
    return since is not None and snapshot.begun >= since + SKEW


def _written(claim: Claim, record: CloneRecord | None) -> PatchObject:
    return PatchObject(
        plural="persistentvolumeclaims",
        namespace=claim.namespace,
        name=claim.name,
        uid=claim.uid,
        annotations={ANNOTATION: record.write() if record is not None else None},
        version=claim.version,
    )


# --- clones by the storage ----------------------------------------------------------------------------------------


def _made_by_storage(world: World, claim: Claim, origin: Clone, record: CloneRecord) -> Decision:
    prime = world.prime
    left = record.begun + _patience(world) - world.now
    if prime is None:
        decision = _begin(world, claim, origin, record)
    elif prime.phase != "Bound":
        decision = _made(world, claim, record, prime)
    else:
        decision = _grown(world, claim, record, prime)
    begun = prime is not None or (
        bool(record.snapshot) and facts(world).snapshot(record.namespace, record.snapshot) is not None
    )
    if not begun:
        return decision
    if left <= 0:
        return _given_up(world, claim, origin, record, decision)
    return replace(decision, requeue_after=left)


def _given_up(world: World, claim: Claim, origin: Clone, record: CloneRecord, decision: Decision) -> Decision:
    """Fall back to a host-assisted clone, which requires nothing of the storage but volumes."""
    message = f"{record.strategy} took longer than {_patience(world):.0f} s: {decision.state.ready.message}"
    why = Fallback(reason=STRATEGY_FAILED, message=message)
    after = record.gave_up(why, restored=restored_name(origin.kind, record.source), now=world.now)
    actions: tuple[Action, ...] = (_written(claim, after),)
    if world.prime is not None:
        actions += replaced(world.prime)
    told = EventFact(type="Warning", reason=why.reason, message=why.message)
    return replace(waiting(claim, Wait(reason=Reason.PENDING, message=after.message)), actions=actions, events=(told,))


def _begin(world: World, claim: Claim, origin: Clone, record: CloneRecord) -> Decision:
    found = find(world, origin)
    if isinstance(found, Refuse):
        return failed(claim, found.failure)
    if isinstance(found, Wait):
        return waiting(claim, found)
    if found.uid != record.source:
        message = f"the source {found.place} was replaced by another object of that name"
        return replace(waiting(claim, Wait(reason=Reason.PENDING, message=message)), actions=(_written(claim, None),))
    if record.snapshot:
        return _from_snapshot_of(world, claim, record, found)
    if found.kind == "VolumeSnapshot":
        return _make_prime(world, claim, record, found, of_snapshot(found.name))
    users = in_use(world, found)
    if users is not None:
        return replace(waiting(claim, users), actions=(_written(claim, None),))
    return _make_prime(world, claim, record, found, of_claim(found.name))


def _from_snapshot_of(world: World, claim: Claim, record: CloneRecord, found: Found) -> Decision:
    """Create the temporary PVC of a PVC's clone from a snapshot, which is taken now or shared with other clones."""
    snapshot = facts(world).snapshot(record.namespace, record.snapshot)
    own = temporary_snapshot(claim.uid)
    if snapshot is not None and (snapshot.deleting or snapshot.annotations.get(ANN_SOURCE_UID) != found.uid):
        message = f"VolumeSnapshot {record.snapshot} is being deleted; another one will be taken"
        actions = (_written(claim, replace(record, snapshot=own)),) if record.snapshot != own else ()
        return replace(waiting(claim, Wait(reason=Reason.PENDING, message=message)), actions=actions)
    phase = Phase.SNAPSHOT_FOR_SMART_CLONE_IN_PROGRESS
    if snapshot is None:
        users = in_use(world, found)
        if users is not None:
            return replace(waiting(claim, users), actions=(_written(claim, None),))
        snapshot_class = facts(world).snapshot_class(claim.storage_class, found.driver)
        if snapshot_class is None:
            message = "the VolumeSnapshotClass was deleted"
            return replace(
                waiting(claim, Wait(reason=Reason.PENDING, message=message)), actions=(_written(claim, None),)
            )
        create = CreateObject(body=build_snapshot(world, claim, found, record.snapshot, snapshot_class))
        return underway(claim, phase, f"taking VolumeSnapshot {record.snapshot} of {found.place}", actions=(create,))
    if not snapshot.ready:
        why = f"; {snapshot.error}" if snapshot.error else ""
        return underway(claim, phase, f"VolumeSnapshot {snapshot.name} of {found.place} is being taken{why}")
    made = _make_prime(
        world, claim, record, replace(found, size=snapshot.size or found.size), of_snapshot(snapshot.name)
    )
    told = EventFact(
        type="Normal",
        reason=EventReason.SNAPSHOT_FOR_SMART_CLONE_CREATED,
        message=f"VolumeSnapshot {snapshot.name} of {found.place} is ready",
    )
    return replace(made, events=(told,))


def _make_prime(world: World, claim: Claim, record: CloneRecord, found: Found, reference: dict[str, str]) -> Decision:
    # The volume is created in the source's size and expanded later, which more storage supports than cloning to another
    # size.
    size = found.size if found.size is not None else claim.requested or 0
    body = build_stand_in(world, claim, record, reference, size)
    message = f"creating PVC {body['metadata']['name']} from {found.place}"
    return underway(
        claim, _cloning(record, snapshot=found.kind == "VolumeSnapshot"), message, actions=(CreateObject(body=body),)
    )


def _cloning(record: CloneRecord, *, snapshot: bool) -> Phase:
    if record.strategy is CloneStrategy.CSI_CLONE:
        return Phase.CSI_CLONE_IN_PROGRESS
    return Phase.CLONE_FROM_SNAPSHOT_SOURCE_IN_PROGRESS if snapshot else Phase.SMART_CLONE_PVC_IN_PROGRESS


def _made(world: World, claim: Claim, record: CloneRecord, prime: Claim) -> Decision:
    phase = _cloning(record, snapshot=not record.snapshot)
    if record.snapshot and facts(world).snapshot(record.namespace, record.snapshot) is None:
        message = f"VolumeSnapshot {record.snapshot} was deleted before PVC {prime.name} was restored from it"
        return underway(claim, phase, message, actions=replaced(prime))
    storage_class = world.objects.storage_class(prime.storage_class) if prime.storage_class else None
    if storage_class is not None and storage_class.waits and not prime.selected_node:
        return _prepared(world, claim, prime, f"PVC {prime.name} is waiting for its first consumer")
    by = storage_class.provisioner if storage_class is not None else "the storage"
    return underway(claim, phase, prime.why_pending or f"waiting for PVC {prime.name} to be provisioned by {by}")


def _grown(world: World, claim: Claim, record: CloneRecord, prime: Claim) -> Decision:
    wanted = claim.requested or 0
    volume = world.objects.volume(prime.volume_name)
    if volume is None or volume.capacity is None:
        return underway(claim, _cloning(record, snapshot=not record.snapshot), f"PVC {prime.name} is bound")
    if volume.capacity < wanted:
        actions: tuple[Action, ...] = ()
        if (prime.requested or 0) < wanted:
            actions = (Enlarge(namespace=prime.namespace, name=prime.name, uid=prime.uid, size=wanted),)
        message = f"expanding the volume of PVC {prime.name} from {volume.capacity} to {wanted} bytes"
        return underway(claim, Phase.EXPANSION_IN_PROGRESS, message, actions=actions)
    return _prepared(world, claim, prime, f"waiting for the filesystem of PVC {prime.name} to be expanded")


def _prepared(world: World, claim: Claim, prime: Claim, message: str) -> Decision:
    """Mount the temporary PVC once, in a prep pod."""
    name = preparation_pod(prime.name)
    pod = facts(world).preparation(prime.namespace, name)
    actions: tuple[Action, ...] = ()
    if pod is None:
        actions = (CreateObject(body=build_preparation(world, claim, prime)),)
    elif pod.phase in _ENDED and not pod.deleting:
        # The pod ended without effect. Delete it for another one: some filesystems are expanded only while unused.
        actions = (DeleteObject(plural="pods", namespace=prime.namespace, name=name, uid=pod.uid),)
    elif pod.message:
        message = f"{message}; {pod.message}"
    return underway(claim, Phase.PREP_CLAIM_IN_PROGRESS, message, actions=actions)


def _is_other(prime: Claim, record: CloneRecord) -> bool:
    """Return whether the PVC was created for a strategy that is no longer used."""
    made_for = prime.annotations.get(ANN_CLONE_TYPE, CloneStrategy.COPY.value)
    return made_for != record.strategy


def _patience(world: World) -> float:
    return read_knobs(world.datavolume.metadata.annotations).clone_timeout or PATIENCE
