"""Conditions of a DataImportCron.

Progressing and UpToDate are those of KubeVirt's CDI to the letter, as consoles and tests compare their reasons and
messages. What else is to be said has conditions of its own, which are present only while there is something to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cdi.api.conditions import find_condition
from cdi.api.dataimportcron import GoldenVersion, VersionState
from cdi.api.meta import Condition
from cdi.api.phases import ConditionType, Reason
from cdi.api.storageprofile import CronSourceFormat
from cdi.reconcile.actions import Event
from cdi.reconcile.dataimportcron.context import CronContext
from cdi.reconcile.dataimportcron.importing import MAX_EVENT, ImportStep, not_retried
from cdi.reconcile.dataimportcron.objects import VersionObjects
from cdi.reconcile.dataimportcron.poll import Trouble
from cdi.reconcile.dataimportcron.proof_result import REGULAR
from cdi.reconcile.dataimportcron.storage_class import Storage
from cdi.reconcile.datavolume.status import ConditionValue, conditions, false, true
from cdi.reconcile.pods.types import PodBlocker

UP_TO_DATE: Final = true(Reason.UP_TO_DATE, "Latest import is up to date")
OUTDATED: Final = false(Reason.OUTDATED, "Source digest updated since last import")
NO_DIGEST: Final = false(Reason.NO_DIGEST, "No source digest")
PROGRESSING: Final = false(Reason.IMPORT_PROGRESSING, "Import is progressing")
SNAPSHOT_PROGRESSING: Final = false(Reason.IMPORT_PROGRESSING, "Snapshot of imported data is progressing")
PROOF_PROGRESSING: Final = "Boot proof of imported data is progressing"


def up_to_date(
    step: ImportStep,
    version: GoldenVersion | None,
    objects: VersionObjects | None,
    storage: Storage,
    desired: str,
    proofs: Mapping[str, PodBlocker],
) -> ConditionValue | None:
    """Return the condition UpToDate; None to leave it as it is.

    Args:
        step: The state of the import.
        version: The version with the desired digest, or else the current one; None if it is unknown.
        objects: Objects of the version that was current before; None if there was none.
        storage: The storage class in force.
        desired: The desired digest; empty if there is none.
        proofs: What the boot proofs of versions are waiting for, by name.

    """
    if version is not None and version.state == VersionState.REVOKED:
        return false(Reason.REVOKED, version.message or "The newest version was revoked")
    if version is not None and version.state == VersionState.UNPROVEN:
        return false(Reason.UNPROVEN, version.message or "The newest version did not boot")
    if version is not None and version.state == VersionState.FAILED and step.outdated and version.digest == desired:
        return false(Reason.FAILED, not_retried(version))
    if step.outdated or step.deleted:
        return OUTDATED if desired else NO_DIGEST
    if step.succeeded:
        if version is not None and version.state == VersionState.PROVING:
            return _proving(proofs.get(version.name))
        return _converted(objects, storage)
    if step.current is None:
        return NO_DIGEST
    obstacle = step.objects.obstacle if step.objects is not None else None
    return PROGRESSING if obstacle is None else false(obstacle[0], f"{PROGRESSING.message}: {obstacle[1]}")


def obstacle_events(context: CronContext, step: ImportStep, aspect: ConditionValue | None) -> tuple[Event, ...]:
    """Return the event about what keeps the import from going on, unless the condition UpToDate already says so."""
    obstacle = step.objects.obstacle if step.objects is not None else None
    if obstacle is None or aspect is None or aspect.reason != obstacle[0]:
        return ()
    status = context.cron.status
    before = find_condition(status.conditions if status is not None else None, ConditionType.UP_TO_DATE)
    if before is not None and (before.reason, before.message) == (aspect.reason, aspect.message):
        return ()
    return (Event(type="Warning", reason=obstacle[0], message=aspect.message[:MAX_EVENT]),)


def _proving(blocker: PodBlocker | None) -> ConditionValue:
    """Return the condition of a version whose proof has not ended, with what the proof is waiting for."""
    if blocker is None:
        return false(Reason.IMPORT_PROGRESSING, PROOF_PROGRESSING)
    reason = Reason.IMPORT_PROGRESSING if blocker.reason in REGULAR else blocker.reason
    return false(reason, f"{PROOF_PROGRESSING}: {blocker.message}")


def _converted(objects: VersionObjects | None, storage: Storage) -> ConditionValue | None:
    """Return the condition of a version that is imported and, if necessary, proven."""
    if objects is None or storage.format != CronSourceFormat.SNAPSHOT:
        return UP_TO_DATE
    if objects.snapshot is None:
        # A PVC of which no snapshot is taken stays as it is.
        claim = objects.claim
        expected = claim is not None and storage.storage_class is not None
        return None if expected and claim is not None and claim.storage_class in (None, storage.name) else UP_TO_DATE
    return UP_TO_DATE if objects.snapshot.ready else SNAPSHOT_PROGRESSING


def polled(trouble: Trouble | None) -> ConditionValue | None:
    """Return the condition Polled: reason and message of the last poll's failure; None if it did not fail."""
    return false(trouble.reason, trouble.message) if trouble is not None else None


def settings(problems: Sequence[str], reason: str = Reason.NOT_FOLLOWED) -> ConditionValue | None:
    """Return the condition GoldenSettings for settings and commands that are not followed; None if all are."""
    return false(reason, "; ".join(dict.fromkeys(problems))) if problems else None


def render(
    before: Sequence[Condition],
    aspects: Mapping[ConditionType, ConditionValue | None],
    optional: Sequence[str],
    now: float,
) -> list[dict[str, Any]]:
    """Return all conditions as API objects.

    Args:
        before: The present conditions.
        aspects: The intended values; None leaves a condition as it is, or removes it if it is optional.
        optional: Types of the conditions that are present only while there is something to say.
        now: Seconds since the epoch.

    """
    kept = [one for one in before if one.type not in optional or aspects.get(ConditionType(one.type)) is not None]
    return conditions(kept, {kind: value for kind, value in aspects.items() if value is not None}, now)
