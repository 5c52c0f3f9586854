"""The planner of clones: the phases of each strategy, and what is deleted when.

    snapshot                 take_snapshot ── provision_volume ── expand_volume ── mount_volume ── (rebind)
    snapshot of a snapshot                    provision_volume ── expand_volume ── mount_volume ── (rebind)
    csi-clone                                 provision_volume ── expand_volume ── mount_volume ── (rebind)
    copy                                                                        ensure_prime ── pods ── (rebind)
    copy of a snapshot                                     restore_snapshot ── ensure_prime ── pods ── (rebind)

The plan is recorded on the target before its first phase. Each reconcile then runs the steps in order: the first one
that is not done gives the state and the actions. The pods that copy, the temporary PVC that is filled in place of the
target, and its rebinding are those of an import (`cdi.reconcile.datavolume`).

    object                            phase                             deleted
    VolumeSnapshot, PVC restored      take_snapshot, restore_snapshot   by `gc`, with the last clone that needs it
      from a snapshot
    prep pod                          provision_volume, mount_volume    once the clone is finished
    ticket of the source pod          pods                              once the clone is finished
    source pod                        pods                              by `gc`, with its last ticket
    temporary PVC                     provision_volume, ensure_prime    once its volume is the target's, or by `gc`

Objects that clones share or that no target can own are deleted by `cdi.reconcile.clone.gc`, whatever the phase.
The source is never modified: it is only read, or named in a ``dataSource`` or snapshot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from cdi.api.datavolume import DataVolume
from cdi.api.names import temporary_snapshot
from cdi.api.policy import parse_policy_annotations
from cdi.api.storageprofile import CloneStrategy
from cdi.reconcile.actions import Action, CreateObject, Event
from cdi.reconcile.clone.authorization import authorize
from cdi.reconcile.clone.host_assisted import release_source_pod
from cdi.reconcile.clone.phases import delete_prep_pod, expand_volume, mount_volume, provision_volume, take_snapshot
from cdi.reconcile.clone.plan_annotation import ANN_SOURCE_UID, ClonePlanRecord, requested_strategy, store_plan
from cdi.reconcile.clone.snapshot_restore import cannot_restore, restore_snapshot, temporary_name
from cdi.reconcile.clone.source import facts, find, planner_source, source_in_use
from cdi.reconcile.clone.status import clone_pending, clone_waiting
from cdi.reconcile.clone.strategy import (
    STRATEGY_FAILED,
    ClonePlan,
    Fallback,
    PreferredStrategy,
    Target,
    choose_strategy,
)
from cdi.reconcile.clone.types import CloneSource, Snapshot
from cdi.reconcile.clone.validation import refusal
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.datavolume.attempts import AttemptHistory
from cdi.reconcile.datavolume.lineage import inherited_origin, mark_clone, source_warnings
from cdi.reconcile.datavolume.populate import bound_without_content, ensure_prime
from cdi.reconcile.datavolume.provisioning import is_populated, provisioning_blocker
from cdi.reconcile.datavolume.rebind import recreate_prime
from cdi.reconcile.datavolume.result import Result, failed, pending
from cdi.reconcile.types import PVC, Clone, Pending, Rejected

PHASE_TIMEOUT: Final = 1800.0
"""Default timeout of a strategy in seconds; an annotation overrides it (`cdi.api.policy`)."""
SKEW: Final = 2.0
"""Maximum assumed clock skew in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClonePhase:
    """A phase of a clone."""

    step: Callable[[ReconcileContext, PVC, Clone, ClonePlanRecord], Result | None]
    """Return the state and the actions of the phase for a target PVC; None once the phase is done."""
    clean_up: Callable[[ReconcileContext, PVC, ClonePlanRecord], tuple[Action, ...]] = lambda *_: ()
    """Return the actions that delete what the phase leaves, once the clone has succeeded or failed for good."""


_BY_STORAGE: Final = (
    ClonePhase(step=provision_volume),
    ClonePhase(step=expand_volume),
    ClonePhase(step=mount_volume, clean_up=delete_prep_pod),
)
_BY_PODS: Final = (
    ClonePhase(
        step=lambda context, claim, origin, _: ensure_prime(context, claim, origin), clean_up=release_source_pod
    ),
)


def phases_of(record: ClonePlanRecord) -> tuple[ClonePhase, ...]:
    """Return the phases of a plan, in order; a target pod is started after the last phase of a host-assisted clone."""
    if record.strategy is CloneStrategy.COPY:
        return (ClonePhase(step=restore_snapshot), *_BY_PODS) if record.restored else _BY_PODS
    return (ClonePhase(step=take_snapshot), *_BY_STORAGE) if record.snapshot else _BY_STORAGE


def next_step(context: ReconcileContext, claim: PVC, origin: Clone) -> Result | None:
    """Return the next step of the clone; None if a worker that copies can be started."""
    populated, prime = is_populated(context.platform, claim), context.prime
    if populated and claim.phase == "Bound":
        return bound_without_content(context, claim)
    denied = authorize(context, origin, claim)
    if isinstance(denied, Rejected):
        return failed(claim, denied.failure)
    if isinstance(denied, Pending):
        return replace(clone_pending(claim, denied), requeue_after=context.retries.base)
    if populated and prime is not None and (prime.deleting or prime.phase == "Lost"):
        return clone_waiting(
            claim, f"PVC {prime.name} lost its PersistentVolume; recreating it", *recreate_prime(prime)
        )
    record = ClonePlanRecord.read(claim)
    if not populated or prime is None:
        still = provisioning_blocker(context, claim) if claim.phase != "Bound" else None
        if still is not None:
            return pending(claim, still.wait, still.phase)
    if record is None or record.namespace != origin.namespace:
        return _make_plan(context, claim, origin)
    if prime is not None and populated and record.is_outdated(prime):
        message = f"PVC {prime.name} of the previously tried clone strategy is being deleted"
        return clone_waiting(claim, message, *recreate_prime(prime))
    result = _run(context, claim, origin, record)
    return result if record.strategy is CloneStrategy.COPY else _within_timeout(context, claim, origin, record, result)


def clean_up(context: ReconcileContext, claim: PVC, attempts: AttemptHistory, *, final: bool) -> tuple[Action, ...]:
    """Return the actions that delete what the phases of a finished clone leave."""
    record = ClonePlanRecord.read(claim)
    if record is None or context.clones is None or not (final or attempts.done):
        return ()
    return tuple(action for phase in phases_of(record) for action in phase.clean_up(context, claim, record))


def _run(context: ReconcileContext, claim: PVC, origin: Clone, record: ClonePlanRecord) -> Result | None:
    steps = (phase.step(context, claim, origin, record) for phase in phases_of(record))
    return next((result for result in steps if result is not None), None)


def _within_timeout(
    context: ReconcileContext, claim: PVC, origin: Clone, record: ClonePlanRecord, result: Result | None
) -> Result | None:
    """Return the result of a clone by the storage, or its fallback to pods, which require only volumes of it."""
    begun = context.prime is not None or (
        bool(record.snapshot) and facts(context).snapshot(record.namespace, record.snapshot) is not None
    )
    if result is None or not begun:
        return result
    timeout = _timeout(context.datavolume)
    left = record.begun + timeout - context.now
    if left > 0:
        return replace(result, requeue_after=left)
    message = f"{record.strategy} took longer than {timeout:.0f} s: {result.state.ready.message}"
    why = Fallback(reason=STRATEGY_FAILED, message=message)
    after = record.fell_back(why, restored=temporary_name(origin.kind, record.source), now=context.now)
    gone = recreate_prime(context.prime) if context.prime is not None else ()
    event = Event(type="Warning", reason=why.reason, message=why.text)
    return replace(clone_waiting(claim, after.message, store_plan(claim, after), *gone), events=(event,))


def _timeout(dv: DataVolume) -> float:
    return parse_policy_annotations(dv.metadata.annotations).clone_timeout or PHASE_TIMEOUT


# --- the plan -----------------------------------------------------------------------------------------------------


def plan(context: ReconcileContext, claim: PVC, found: CloneSource) -> ClonePlan:
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
    return choose_strategy(planner_source(context, found, claim.storage_class), target, wish)


def _make_plan(context: ReconcileContext, claim: PVC, origin: Clone) -> Result:
    """Record a plan, and make its first request to the storage, if the source can be cloned now."""
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
    first = _first_request(context, claim, origin, record)
    result = first or clone_waiting(claim, f"{found.place} is being cloned with {choice.sentence}")
    actions: tuple[Action, ...] = (store_plan(claim, record),)
    if context.synthetic:
        # The target PVC of a DataVolume got its origin when it was created.
        events += tuple(source_warnings(found.annotations, found.place, context.now))
        actions = (
            store_plan(claim, record, inherited_origin(found.annotations)),
            *mark_clone(found, context.now, snapshot=found.kind == "VolumeSnapshot"),
        )
    return replace(result, actions=(*actions, *result.actions), events=(*events, *result.events))


def _first_request(context: ReconcileContext, claim: PVC, origin: Clone, record: ClonePlanRecord) -> Result | None:
    """Return the first request to the storage, made in the same reconcile as the record, which is written before it.

    It is also shown at once, because fast storage may complete it before the next reconcile.
    """
    if record.strategy is CloneStrategy.COPY or context.prime is not None:
        return None
    recorded = replace(claim, annotations={**claim.annotations, **record.annotations()})
    result = _run(context, recorded, origin, record)
    asked = tuple(action for action in result.actions if isinstance(action, CreateObject)) if result else ()
    return replace(result, actions=asked) if result is not None and asked else None


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
