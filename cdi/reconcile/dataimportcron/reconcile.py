"""Reconciler of DataImportCrons: composes polls, imports, proofs, offers and retention into one plan.

A version is verified by its import, then proven where asked for, then kept in the format of its storage class, and
only then offered: the DataSource changes last, by one patch. Every step is derived from objects, so that the
reconciler can be stopped between any two actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from cdi.api.annotations import DESIRED_DIGEST, LAST_POLL, LAST_USE
from cdi.api.dataimportcron import GoldenVersion, VersionState
from cdi.api.image_facts import ImageFacts
from cdi.api.names import digest_problem
from cdi.api.phases import ConditionType, Reason
from cdi.api.timestamps import parse_timestamp, timestamp
from cdi.reconcile.actions import (
    Action,
    CreateObject,
    DeleteObject,
    Event,
    MirrorObject,
    ObjectEvent,
    PatchObject,
    Plan,
)
from cdi.reconcile.dataimportcron import conditions
from cdi.reconcile.dataimportcron.architectures import (
    architectures_problem,
    delete_children,
    reconcile_architectures,
)
from cdi.reconcile.dataimportcron.commands import apply_commands
from cdi.reconcile.dataimportcron.context import CronContext
from cdi.reconcile.dataimportcron.data_source import already_managed, present_source
from cdi.reconcile.dataimportcron.deletion import plan_deletion
from cdi.reconcile.dataimportcron.deprecation import plan_annotations
from cdi.reconcile.dataimportcron.formats import plan_cleanup, plan_format
from cdi.reconcile.dataimportcron.importing import (
    DELETION_INTERVAL,
    ImportStep,
    mark_current,
    may_create,
    plan_import,
    plan_requested,
)
from cdi.reconcile.dataimportcron.objects import objects_of
from cdi.reconcile.dataimportcron.offers import OfferPlanner
from cdi.reconcile.dataimportcron.origin import plan_records
from cdi.reconcile.dataimportcron.poll import Trouble, plan_poll
from cdi.reconcile.dataimportcron.proof import plan_proof
from cdi.reconcile.dataimportcron.retention import plan_retention
from cdi.reconcile.dataimportcron.storage_class import ClassStep, Storage, plan_storage_class, storage_in_force
from cdi.reconcile.dataimportcron.versions import BAD, History
from cdi.reconcile.datavolume.status import ConditionValue
from cdi.reconcile.pods.types import PodBlocker

OPTIONAL: Final = (ConditionType.POLLED, ConditionType.GOLDEN_SETTINGS)
"""Conditions that are present only while there is something to say."""


@dataclass(slots=True)
class _Draft:
    """Parts of the plan, collected in the order in which they are carried out."""

    actions: list[Action] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    object_events: list[ObjectEvent] = field(default_factory=list)
    annotations: dict[str, str | None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    proofs: dict[str, PodBlocker] = field(default_factory=dict)
    """What the proofs of versions are waiting for."""

    def wait(self, seconds: float | None) -> None:
        if seconds is not None:
            self.waits.append(seconds)


def reconcile_cron(context: CronContext) -> Plan:
    """Return the next steps of a DataImportCron."""
    if context.cron.metadata.deletion_timestamp is not None:
        return plan_deletion(context.objects, context.namespace, context.name, cluster=context.platform.cluster)
    conflict = already_managed(context)
    if conflict is not None:
        return _stopped(context, conflict)
    return reconcile_architectures(context) or _reconcile(context)


def _stopped(context: CronContext, conflict: Event) -> Plan:
    """Return the plan of a DataImportCron whose DataSource belongs to another one."""
    before = context.cron.status.to_dict() if context.cron.status is not None else {}
    old = (context.cron.status.conditions if context.cron.status is not None else None) or []
    remedy = "Delete one of the two, or create this one with another managedDataSource"
    aspect = conditions.settings([f"{conflict.message}. {remedy}"], conflict.reason)
    status = {
        **before,
        "conditions": conditions.render(old, {ConditionType.GOLDEN_SETTINGS: aspect}, OPTIONAL[1:], context.now),
    }
    return Plan(events=(conflict,), status=None if status == before else status)


def _reconcile(context: CronContext) -> Plan:
    draft = _Draft()
    recorded = _recorded(context)
    commands = apply_commands(context, recorded)
    draft.actions += commands.actions
    draft.events += commands.events
    draft.problems += commands.problems
    draft.annotations |= commands.annotations
    if context.settings_problem:
        draft.problems.append(context.settings_problem)
    if problem := architectures_problem(context):
        draft.problems.append(problem)
    draft.actions += delete_children(context)

    poll = plan_poll(context)
    draft.actions += poll.actions
    draft.annotations |= poll.annotations
    draft.events += poll.events
    draft.wait(poll.requeue_after)
    desired = poll.desired_digest or ""
    facts = poll.source_facts

    if desired and (problem := digest_problem(desired)):
        draft.problems.append(f"annotation {DESIRED_DIGEST.key}: {problem}")
    history = commands.history.without_volumes(_present(context, commands.history), context.now)
    storage = storage_in_force(context)
    class_step = _storage_class(context, history, storage, desired, poll.trouble)
    draft.actions += class_step.actions
    draft.annotations |= class_step.annotations
    if class_step.in_progress:
        draft.wait(DELETION_INTERVAL)

    step = plan_import(context, history, desired, storage, facts, paused=class_step.in_progress)
    history, requested, failures = plan_requested(context, step, desired, storage)
    draft.actions += (*step.actions, *requested)
    draft.events += (*step.events, *failures)
    draft.wait(step.requeue_after)

    history = _succeeded(context, history)
    history = _proofs(context, recorded, history, draft)
    records = plan_records(context, recorded, history)
    draft.actions += records.actions
    draft.events += records.events
    draft.wait(records.requeue_after)
    objects = step.objects if step.current is not None and step.succeeded else None
    current = history.get(objects.name) if objects is not None else None
    if objects is not None and not class_step.in_progress:
        draft.actions += mark_current(context, objects)
        if current is not None and current.state == VersionState.AVAILABLE:
            converted = plan_format(context, objects, storage)
            draft.actions += converted.actions
            draft.object_events += converted.events

    offers = OfferPlanner(context, storage, objects, records.waiting).plan(history, commands.channels)
    history, channels = offers.history, offers.channels
    draft.actions += offers.actions
    draft.events += offers.events
    draft.problems += offers.problems
    draft.wait(channels.requeue_after)
    if objects is not None and current is not None and current.state == VersionState.AVAILABLE:
        names = (context.data_source_name, *(one.name for one in channels.channels))
        draft.actions += plan_cleanup(context, objects, storage, [present_source(context, name) for name in names])

    if not class_step.in_progress:
        draft.actions += plan_annotations(context, history, draft.actions)
        retention = plan_retention(context, history, offers.version, channels.channels)
        history = retention.history
        draft.actions += retention.actions
        draft.events += retention.events
        draft.wait(retention.requeue_after)

    actions = _without_refused(context, draft)
    newest = history.get(desired) if desired else None
    up_to_date = conditions.up_to_date(step, newest or current, objects, storage, desired, draft.proofs)
    draft.events += conditions.obstacle_events(context, step, up_to_date)
    aspects = {
        ConditionType.PROGRESSING: step.progressing,
        ConditionType.UP_TO_DATE: up_to_date,
        ConditionType.POLLED: conditions.polled(poll.trouble),
        ConditionType.GOLDEN_SETTINGS: conditions.settings(
            draft.problems, Reason.COMMAND_REFUSED if commands.refused else Reason.NOT_FOLLOWED
        ),
    }
    status = _status(context, step, history, current, aspects, draft.annotations)
    if channels.channels:
        status["channels"] = channels.to_status()
    before = context.cron.status.to_dict() if context.cron.status is not None else None
    return Plan(
        actions=actions,
        events=tuple(draft.events),
        object_events=tuple(draft.object_events),
        status=None if status == before else status,
        annotations=_changed(context, draft.annotations),
        requeue_after=min(draft.waits, default=None),
    )


def _without_refused(context: CronContext, draft: _Draft) -> tuple[Action, ...]:
    """Return the actions without the one that the API server rejected before, which is reported instead."""
    if context.refusal is None:
        return tuple(draft.actions)
    target = _target(context.refusal.action)
    kept = tuple(action for action in draft.actions if _target(action) != target)
    if len(kept) < len(draft.actions):
        failure = context.refusal.failure
        text = f"{target[1]} {target[-1]} cannot be {target[0]}: {failure.message}"
        draft.problems.append(text)
        draft.events.append(Event(type="Warning", reason=failure.code, message=text))
    return kept


def _target(action: Action) -> tuple[str, str, str, str]:
    """Return what an action does, with the kind, namespace and name of the object."""
    if isinstance(action, CreateObject):
        metadata = action.body["metadata"]
        return "created", action.body["kind"], metadata.get("namespace") or "", metadata["name"]
    if isinstance(action, PatchObject | DeleteObject):
        done = "changed" if isinstance(action, PatchObject) else "deleted"
        return done, action.plural, action.namespace, action.name
    if isinstance(action, MirrorObject):
        return "copied", action.copy.kind, action.copy.namespace, action.copy.name
    return "carried out", type(action).__name__, "", ""


# --- versions ---------------------------------------------------------------------------------------------------


def _recorded(context: CronContext) -> History:
    """Return the history in the status, to which volumes of another controller are added once."""
    history = History.of(context.cron)
    if context.cron.status is not None and context.cron.status.versions is not None:
        return history
    found: dict[str, str] = {}
    for claim in context.objects.claims_of(context.namespace, context.name):
        found[claim.name] = LAST_USE.read(claim.annotations) or ""
    if context.platform.cluster:
        for snapshot in context.objects.snapshots_of(context.namespace, context.name):
            found.setdefault(snapshot.name, LAST_USE.read(snapshot.annotations) or "")
    complete = [name for name in found if objects_of(context, name).succeeded]
    return history.adopted(sorted(complete, key=lambda name: found[name], reverse=True), context.now)


def _present(context: CronContext, history: History) -> frozenset[str]:
    return frozenset(one.name for one in history.versions if objects_of(context, one.name).exist)


def _storage_class(
    context: CronContext, history: History, storage: Storage, desired: str, trouble: Trouble | None
) -> ClassStep:
    version = history.get(desired) if desired else None
    if version is None:
        return plan_storage_class(context, storage, None)
    keep = ""
    if version.state in BAD and not _is_retried(context, version):
        keep = f"it is {version.state}, so it would not be imported again"
    elif not may_create(context, version):
        keep = "it must not be imported again now"
    elif context.settings.hold:
        keep = "it is held"
    elif context.settings.pin is not None:
        keep = "a version is pinned"
    elif trouble is not None:
        keep = "the source cannot be reached, so it might be impossible to import it again"
    elif clones := context.objects.clones_in_progress(context.namespace, version.name):
        keep = f"it is being cloned to {clones[0]}"
    return plan_storage_class(context, storage, objects_of(context, version.name), keep=keep)


def _is_retried(context: CronContext, version: GoldenVersion) -> bool:
    """Return whether a version is imported again once its objects are deleted, although it is not good."""
    current = (context.cron.status.current_imports if context.cron.status is not None else None) or ()
    # The storage may be why it failed.
    return version.state == VersionState.FAILED and any(one.data_volume_name == version.name for one in current)


def _succeeded(context: CronContext, history: History) -> History:
    """Return the history with the imports that have succeeded.

    While the settings are invalid, it is unknown whether a version must be proven, so none becomes available.
    """
    if context.settings_problem:
        return history
    for version in history.versions:
        if version.state != VersionState.IMPORTING:
            continue
        objects = objects_of(context, version.name)
        if not objects.succeeded:
            continue
        claim = objects.complete_claim
        history = history.succeeded(
            version.name,
            context.now,
            proof=context.settings.proof == "boot" and claim is not None,
            verified_by=list(ImageFacts.read(claim.annotations).verified_by) if claim is not None else [],
        )
    return history


def _proofs(context: CronContext, recorded: History, history: History, draft: _Draft) -> History:
    """Return the history with the boot proofs that have ended.

    Proofs are planned from the versions as they are in the status: the pod with a result is deleted only once the
    result is written.
    """
    required = context.settings.proof == "boot" or bool(context.settings_problem)
    for version in recorded.versions:
        if not required:
            history = history.proof_not_required(version.name)
        objects = objects_of(context, version.name)
        claim = objects.claim if objects.claim is not None and objects.claim.deleting else objects.complete_claim
        if claim is None:
            continue
        proof = plan_proof(context, version, claim, required=required)
        draft.actions += proof.actions
        draft.events += proof.events
        draft.wait(proof.requeue_after)
        if proof.blocker is not None:
            draft.proofs[version.name] = proof.blocker
        if proof.result is None:
            continue
        if proof.result.booted:
            history = history.proven(version.name, proof.result)
        else:
            history = history.unproven(version.name, proof.result, proof.reason, proof.message)
    return history


# --- status -----------------------------------------------------------------------------------------------------


def _status(
    context: CronContext,
    step: ImportStep,
    history: History,
    current: GoldenVersion | None,
    aspects: Mapping[ConditionType, ConditionValue | None],
    annotations: Mapping[str, str | None],
) -> dict[str, Any]:
    old = context.cron.status
    status: dict[str, Any] = dict(old.to_dict()) if old is not None else {}
    for name in ("currentImports", "channels"):
        status.pop(name, None)
    if step.current is not None:
        status["currentImports"] = [step.current.to_dict()]
    imported = current is not None and step.succeeded and current.state == VersionState.AVAILABLE
    if imported and current is not None:
        place = {"namespace": context.namespace, "name": current.name}
        if status.get("lastImportedPVC") != place:
            status["lastImportedPVC"] = place
            status["lastImportTimestamp"] = timestamp(datetime.fromtimestamp(context.now, UTC))
    executed = parse_timestamp(annotations.get(LAST_POLL.key)) or LAST_POLL.read(context.annotations)
    if executed is not None:
        status["lastExecutionTimestamp"] = timestamp(executed)
    if imported and not step.outdated:
        status["sourceFormat"] = str(storage_in_force(context).format)
    status["conditions"] = conditions.render(
        (old.conditions if old is not None else None) or (), aspects, OPTIONAL, context.now
    )
    status["versions"] = history.to_status()
    return status


def _changed(context: CronContext, annotations: Mapping[str, str | None]) -> dict[str, str | None]:
    return {name: text for name, text in annotations.items() if context.annotations.get(name) != text}
