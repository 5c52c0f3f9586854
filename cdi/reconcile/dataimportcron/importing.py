"""Imports of a DataImportCron: when one begins, its DataVolume, and how it ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from cdi.api.annotations import DESIRED_DIGEST, IMAGE_STREAM_REFERENCE, LAST_USE
from cdi.api.claims import AccessMode
from cdi.api.conditions import find_condition
from cdi.api.dataimportcron import GoldenVersion, ImportStatus, VersionState
from cdi.api.datavolume import DataVolume
from cdi.api.golden import RETRY
from cdi.api.names import (
    ANN_IMMEDIATE_BINDING,
    ANN_POD_RETAIN,
    digest_problem,
)
from cdi.api.phases import ConditionType, Phase, Reason
from cdi.api.policy import CHECKSUM
from cdi.api.policy import PREFIX as POLICY_PREFIX
from cdi.api.poll import PollResult
from cdi.api.storageprofile import CronSourceFormat
from cdi.reconcile.actions import Action, CreateObject, Event
from cdi.reconcile.clone.types import Snapshot
from cdi.reconcile.dataimportcron.context import CloneRight, CronContext
from cdi.reconcile.dataimportcron.labels import last_use, missing, refreshed_last_use, resource_labels
from cdi.reconcile.dataimportcron.objects import VersionObjects, delete_data_volume, objects_of, patch_volume
from cdi.reconcile.dataimportcron.pinning import follows_image_stream, image_reference, pin_source, provides
from cdi.reconcile.dataimportcron.storage_class import Storage
from cdi.reconcile.dataimportcron.versions import History
from cdi.reconcile.datavolume.status import ConditionValue, false, true
from cdi.reconcile.types import PVC

DELETION_INTERVAL: Final = 1.0
"""Seconds until it is checked again whether a deleted volume is gone."""
DEFAULT_SERVICE_ACCOUNT: Final = "default"
IMPORT_FAILED: Final = "ImportFailed"
"""Reason of the event about a version whose import failed."""
MAX_EVENT: Final = 1024
"""Characters of the message of an event."""

SUPERSEDED: Final = ("Superseded", "Its import was ended before it succeeded, as the source offers a newer version")
"""Reason and message of a version that was never imported completely; it is imported once its digest returns."""

NO_IMPORT: Final = false(Reason.NO_IMPORT, "No current import")
NO_REFERENCE: Final = false(
    "ImageReferenceUnknown",
    "The image stream's Docker reference is unknown, so the image cannot be pinned to its digest. Set a schedule, or "
    f"annotation {IMAGE_STREAM_REFERENCE.key} together with the digest",
)
NOT_AUTHORIZED: Final = false(Reason.NOT_AUTHORIZED, "Not authorized to create DataVolume")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportStep:
    """What becomes of the current import, and whether another one begins."""

    history: History
    current: ImportStatus | None
    """The newest wanted import, for ``status.currentImports``."""
    objects: VersionObjects | None
    """Objects of the version that was current before this step; None if there was none."""
    progressing: ConditionValue = NO_IMPORT
    succeeded: bool = False
    """Whether the import that was current before this step has succeeded."""
    outdated: bool = False
    """Whether the desired digest differs from that of the import that was current before this step."""
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    deleted: str = ""
    """Name of the version that was current and whose objects were deleted; empty if that is not so."""
    requeue_after: float | None = None


def plan_import(
    context: CronContext,
    history: History,
    desired: str,
    storage: Storage,
    facts: PollResult | None = None,
    *,
    paused: bool = False,
) -> ImportStep:
    """Follow the current import, and begin that of the desired digest once no other one runs.

    Args:
        context: The DataImportCron.
        history: Its versions, after commands.
        desired: The digest to import; empty if there is none.
        storage: The storage class in force.
        facts: What the poll that found the desired digest reported; None if it was found by another program.
        paused: Whether volumes have to be deleted before anything is imported.

    """
    step = _follow(context, history)
    outdated = bool(desired) and (step.current is None or step.current.digest != desired)
    step = replace(step, outdated=outdated)
    current = step.current
    if paused or context.settings.hold or (desired and digest_problem(desired)):
        return step
    if not _is_recorded(context, desired):
        # The digest is written together with the reference of its image, which this pass does not have yet. And a
        # controller that ended before the digest was recorded would not know the import, or import a failed one again.
        return replace(step, requeue_after=DELETION_INTERVAL)
    if not outdated:
        return _imported_again(context, step, desired, storage, facts) if current is not None else step
    objects = step.objects
    if current is not None and not step.succeeded and objects is not None:
        if objects.deleting:
            return replace(step, requeue_after=DELETION_INTERVAL)
        if not objects.replaceable:
            return step
        step = replace(
            step,
            history=step.history.failed(current.data_volume_name, *(objects.failure or _superseded(objects))),
            actions=delete_data_volume(objects),
            current=None,
        )
    return _begin(context, step, desired, storage, facts)


def _is_recorded(context: CronContext, desired: str) -> bool:
    """Return whether the desired digest, if there is one, was already recorded before this pass."""
    return not desired or DESIRED_DIGEST.read(context.annotations) == desired


def _follow(context: CronContext, history: History) -> ImportStep:
    """Return the state of the current import."""
    status = context.cron.status
    current = next(iter((status.current_imports if status is not None else None) or ()), None)
    if current is None:
        return ImportStep(history=history, current=None, objects=None)
    if history.get(current.digest) is None and not digest_problem(current.digest):
        history = history.found(current.digest, context.now)
    objects = objects_of(context, current.data_volume_name)
    step = ImportStep(history=history, current=current, objects=objects)
    if objects.succeeded:
        return replace(step, succeeded=True)
    if objects.data_volume is not None:
        failure = objects.failure
        version = history.get(current.data_volume_name)
        if failure is not None and version is not None and version.state == VersionState.IMPORTING:
            events = (_failed_event(version.name, failure[1]),)
            step = replace(step, history=history.failed(version.name, *failure), events=events)
        elif version is not None and version.state == VersionState.FAILED and objects.unfinished:
            # It was created again, and the controller ended before it recorded that.
            step = replace(step, history=history.retried(version.name))
        return replace(step, progressing=_progress(objects.phase))
    if objects.claim is not None or objects.deleting:
        waits = DELETION_INTERVAL if objects.deleting else None
        return replace(step, progressing=_progress(objects.phase or Phase.PENDING), requeue_after=waits)
    # The import was deleted; while its digest is desired, it is imported again.
    return replace(step, current=None, deleted=current.data_volume_name)


def _progress(phase: str) -> ConditionValue:
    match phase:
        case Phase.IMPORT_SCHEDULED:
            return false(Reason.IMPORT_SCHEDULED, "Import is scheduled")
        case Phase.IMPORT_IN_PROGRESS:
            return true(Reason.IMPORT_PROGRESSING, "Import is progressing")
        case _:
            return false(phase, f"Import DataVolume phase {phase}")


def _imported_again(
    context: CronContext, step: ImportStep, desired: str, storage: Storage, facts: PollResult | None
) -> ImportStep:
    """Import the current version into a PVC again where only a snapshot is left and PVCs are wanted now.

    The snapshot is offered until then, and stays if the version must not, or cannot, be imported again.
    """
    objects = step.objects
    if (
        step.current is None
        or objects is None
        or storage.format != CronSourceFormat.PVC
        or storage.storage_class is None
        or objects.data_volume is not None
        or objects.claim is not None
        or objects.ready_snapshot is None
        or not step.history.may_import(step.current.digest)
        or not provides(context, step.current.digest, desired)
    ):
        return step
    return _create(context, step, step.current, storage, facts)


def _begin(
    context: CronContext, step: ImportStep, desired: str, storage: Storage, facts: PollResult | None
) -> ImportStep:
    history = step.history.found(
        desired,
        context.now,
        source=facts.resolved if facts is not None else None,
        architecture=_architecture(context, facts),
    )
    version = history.get(desired)
    assert version is not None
    if step.deleted and step.deleted != version.name:
        history = history.failed(step.deleted, *SUPERSEDED)
    objects = objects_of(context, version.name)
    if objects.deleting:
        return replace(step, requeue_after=DELETION_INTERVAL)
    if version.state == VersionState.FAILED and (
        version.name == step.deleted or version.reason == SUPERSEDED[0] or objects.unfinished
    ):
        # A user deleted its DataVolume, or it has not failed: its import was ended, or was created again.
        history = history.retried(version.name)
    elif not history.may_import(desired):
        return replace(step, history=history, events=(*step.events, *_not_retried_event(context, version)))
    elif version.removed is not None or (version.state != VersionState.IMPORTING and not objects.exist):
        history = history.importing(version.name)
    current = ImportStatus(data_volume_name=version.name, digest=desired)
    step = replace(step, history=history)
    if objects.claim is not None or objects.snapshot is not None or objects.data_volume is not None:
        # It was imported before; nothing is downloaded.
        return replace(step, current=current)
    return _create(context, step, current, storage, facts)


def _create(
    context: CronContext, step: ImportStep, current: ImportStatus, storage: Storage, facts: PollResult | None
) -> ImportStep:
    if not _is_authorized(context):
        return replace(step, progressing=NOT_AUTHORIZED)
    refusal = context.refusal
    if (
        refusal is not None
        and isinstance(refusal.action, CreateObject)
        and refusal.action.body["metadata"]["name"] == current.data_volume_name
    ):
        failure = refusal.failure
        event = Event(type="Warning", reason=failure.code, message=failure.message)
        return replace(step, progressing=false(failure.code, failure.message), events=(*step.events, event))
    version = step.history.get(current.data_volume_name)
    resolved = version.source if version is not None else None
    if follows_image_stream(context) and not image_reference(context, current.digest, resolved):
        # A node would pull whatever the stream names by then.
        return replace(step, progressing=NO_REFERENCE)
    checksum = facts.checksum if facts is not None else None
    body = data_volume_body(
        context, current.data_volume_name, current.digest, storage, resolved=resolved, checksum=checksum
    )
    return replace(step, current=current, actions=(*step.actions, CreateObject(body=body)))


def plan_requested(
    context: CronContext, step: ImportStep, desired: str, storage: Storage
) -> tuple[History, tuple[Action, ...], tuple[Event, ...]]:
    """Follow the imports of versions that are not the newest, which a rollback or another command asks for.

    They begin one after the other, while no newer version is being imported.
    """
    history, events = step.history, step.events[:0]
    actions: tuple[Action, ...] = ()
    busy = context.settings.hold or not (step.succeeded or step.current is None) or bool(step.actions)
    busy = busy or not _is_recorded(context, desired)
    for version in step.history.versions:
        current = step.current is not None and version.name == step.current.data_volume_name
        if current or version.digest == desired or version.state != VersionState.IMPORTING:
            continue
        objects = objects_of(context, version.name)
        if objects.succeeded:
            continue
        if (failure := objects.failure) is not None:
            history = history.failed(version.name, *failure)
            events = (*events, _failed_event(version.name, failure[1]))
        elif not objects.exist and not provides(context, version.digest, desired):
            # Importing it would store the source's current content under an older digest.
            if desired and not context.settings.hold:
                history = history.failed(version.name, *SUPERSEDED)
            continue
        elif not objects.exist and not busy and may_create(context, version):
            body = data_volume_body(context, version.name, version.digest, storage, resolved=version.source)
            actions = (CreateObject(body=body),)
        busy = True
    return history, actions, events


def may_create(context: CronContext, version: GoldenVersion) -> bool:
    """Return whether a version's DataVolume can name its content, and may be created."""
    known = not follows_image_stream(context) or bool(image_reference(context, version.digest, version.source))
    return known and not digest_problem(version.digest) and _is_authorized(context)


def _superseded(objects: VersionObjects) -> tuple[str, str]:
    """Return reason and message of a version whose import was still being retried when it was ended."""
    reason, message = SUPERSEDED
    return reason, f"{message}; it was failing: {objects.trouble[1]}" if objects.trouble is not None else message


def not_retried(version: GoldenVersion) -> str:
    """Return why a failed version is not imported although the source offers it, with the remedy."""
    reason = version.message or version.reason
    return f"It failed before and is not imported again until annotation {RETRY} names it: {reason}"


def _not_retried_event(context: CronContext, version: GoldenVersion) -> tuple[Event, ...]:
    """Return the event about a failed version that the source offers again, unless the condition already says so."""
    status = context.cron.status
    condition = find_condition(status.conditions if status is not None else None, ConditionType.UP_TO_DATE)
    text = not_retried(version)
    known = condition is not None and (condition.reason, condition.message) == (Reason.FAILED, text)
    if version.state != VersionState.FAILED or known:
        return ()
    message = f'The source offers version "{version.name}" again. {text}'
    return (Event(type="Warning", reason=IMPORT_FAILED, message=message[:MAX_EVENT]),)


def _failed_event(name: str, message: str) -> Event:
    return Event(type="Warning", reason=IMPORT_FAILED, message=f'Version "{name}" could not be imported: {message}')


def _architecture(context: CronContext, facts: PollResult | None) -> str | None:
    """Return the architecture of the image, if the template names one or the source has only one."""
    source = context.cron.spec.template.spec.source
    registry = source.registry if source is not None else None
    if registry is not None and registry.platform is not None and registry.platform.architecture:
        return registry.platform.architecture
    return facts.architectures[0] if facts is not None and len(facts.architectures) == 1 else None


def _is_authorized(context: CronContext) -> bool:
    """Return whether the service account may clone a source of another namespace; false while that is unknown."""
    source = context.cron.spec.template.spec.source
    pvc = source.pvc if source is not None else None
    if pvc is None or (pvc.namespace or context.namespace) == context.namespace or not context.platform.cluster:
        return True
    right = CloneRight(
        namespace=context.namespace,
        service_account=context.cron.spec.service_account_name or DEFAULT_SERVICE_ACCOUNT,
        source_namespace=pvc.namespace,
        source_name=pvc.name,
    )
    return context.objects.may_clone(right) is True


def mark_current(context: CronContext, objects: VersionObjects) -> tuple[Action, ...]:
    """Return the patches that give the current version's volume its labels and make it the one used last."""
    actions: list[Action] = []
    if objects.claim is not None:
        actions += _mark(context, objects.claim, context.objects.claims_of(context.namespace, context.name))
    if objects.snapshot is not None:
        actions += _mark(context, objects.snapshot, context.objects.snapshots_of(context.namespace, context.name))
    return tuple(actions)


def _mark(context: CronContext, volume: PVC | Snapshot, siblings: Iterable[PVC | Snapshot]) -> tuple[Action, ...]:
    """Return the patch of a volume; `siblings` are the volumes of its kind of all versions."""
    if volume.deleting:
        return ()
    used = ((LAST_USE.read(one.annotations) or "") for one in siblings if one.name != volume.name)
    annotations = refreshed_last_use(context, volume.annotations, used)
    return patch_volume(volume, annotations=annotations, labels=missing(resource_labels(context), volume.labels))


# --- the DataVolume ---------------------------------------------------------------------------------------------


def data_volume_body(
    context: CronContext,
    name: str,
    digest: str,
    storage: Storage,
    *,
    resolved: str | None = None,
    checksum: str | None = None,
) -> dict[str, Any]:
    """Return the DataVolume that imports a digest.

    Args:
        context: The DataImportCron.
        name: The name of the version.
        digest: Its digest.
        storage: The storage class in force.
        resolved: The reference that the poll found together with the digest.
        checksum: The checksum that the poll found; None if there is none.

    """
    annotations = {
        **{key: text for key, text in context.annotations.items() if key.startswith(POLICY_PREFIX)},
        ANN_IMMEDIATE_BINDING: "true",
        **LAST_USE.write(last_use(context.now)),
    }
    if retain := context.annotations.get(ANN_POD_RETAIN):
        annotations[ANN_POD_RETAIN] = retain
    spec = context.cron.spec.template.spec.to_dict()
    pin_source(context, spec, digest, resolved)
    source = context.cron.spec.template.spec.source
    if checksum is not None and not (source is not None and source.http is not None and source.http.checksum):
        # The content may change between the poll and the import.
        annotations.setdefault(CHECKSUM, checksum)
    if storage.read_write_once and "storage" in spec and not spec["storage"].get("accessModes"):
        spec["storage"] = {**spec["storage"], "accessModes": [AccessMode.READ_WRITE_ONCE.value]}
    return {
        "apiVersion": DataVolume.group_version,
        "kind": DataVolume.kind_name(),
        "metadata": {
            "name": name,
            "namespace": context.namespace,
            "labels": resource_labels(context),
            "annotations": annotations,
        },
        "spec": spec,
    }
