"""Clones whose target does not fit its source, or requests what does not exist.

They wait, since another source, another PVC or an annotation can correct that. The reasons, messages and the moment of
the check equal those of KubeVirt's CDI: with ``pvc``, and from a block device, no PVC is created; with ``storage`` the
size of a file system includes an overhead, so the PVC is created and reports the problem.
"""

from __future__ import annotations

from typing import Final

from cdi.api.datavolume import DataVolume
from cdi.api.errors import InvalidManifest
from cdi.api.job import Failure
from cdi.api.names import ANN_CLONE_TYPE
from cdi.api.phases import EventReason, Phase, Reason
from cdi.api.rules.problems import truncate
from cdi.api.storageprofile import CloneStrategy
from cdi.reconcile.actions import Event
from cdi.reconcile.clone.plan_annotation import requested_strategy
from cdi.reconcile.clone.source import target_too_small
from cdi.reconcile.clone.types import CloneSource
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.datavolume.result import Result, bound_condition
from cdi.reconcile.datavolume.status import DataVolumeState, false
from cdi.reconcile.types import PVC, Pending

INVALID: Final = "The clone doesn't meet the validation requirements"
"""Message of the event ``CloneValidationFailed``, letter for letter that of KubeVirt's CDI."""


def is_validated_first(dv: DataVolume, found: CloneSource) -> bool:
    """Return whether a target that is too small gets no PVC."""
    return dv.spec.pvc is not None or found.volume_mode == "Block"


def invalid(failure: Failure) -> Pending:
    """Return what a DataVolume without a PVC waits for."""
    message = f"{INVALID}: {failure.message}"
    return Pending(reason=failure.code, message=message, event=EventReason.CLONE_VALIDATION_FAILED)


def is_known_strategy(requested: str) -> bool:
    """Return whether the text of the annotation ``cloneType`` names a strategy, or none is requested."""
    return not requested or requested in set(CloneStrategy)


def refusal(context: ReconcileContext, claim: PVC, found: CloneSource) -> Result | None:
    """Return the state of a target PVC that cannot be cloned as it is; None if it can."""
    requested = requested_strategy(claim)
    if not is_known_strategy(requested):
        unknown = InvalidManifest(
            f"unknown strategy/source {truncate(requested)}",
            where=f"PVC {claim.namespace}/{claim.name}, metadata.annotations[{ANN_CLONE_TYPE}]",
            remedy=f"set it to {', '.join(CloneStrategy)}, or remove it from the PVC",
        )
        failure = Failure.from_error(unknown)
        return _refused(claim, failure, _warning(EventReason.ERR_UNABLE_TO_CLONE, failure.message))
    small = target_too_small(context, found, claim.requested, claim.volume_mode, claim.storage_class, claim.annotations)
    if small is None:
        return None
    why = _warning(EventReason.ERR_INCOMPATIBLE_PVC, small.failure.message)
    return _refused(claim, small.failure, why, _warning(EventReason.CLONE_VALIDATION_FAILED, INVALID))


def _refused(claim: PVC, failure: Failure, *events: Event) -> Result:
    state = DataVolumeState(
        phase=Phase.CLONE_SCHEDULED,
        bound=bound_condition(claim),
        running=false(Reason.ERROR, failure.message),
        ready=false(failure.code, failure.message),
        claim_name=claim.name,
    )
    return Result(state=state, events=events)


def _warning(reason: EventReason, message: str) -> Event:
    return Event(type="Warning", reason=reason, message=message)
