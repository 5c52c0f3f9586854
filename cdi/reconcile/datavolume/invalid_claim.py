"""State of a DataVolume whose PVC cannot be completed."""

from __future__ import annotations

from dataclasses import replace

from cdi.api.errors import CdiError
from cdi.api.names import LABEL_APPLY_STORAGE_PROFILE
from cdi.api.phases import EventReason, Reason
from cdi.reconcile.actions import Event
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.datavolume.result import Result, pending
from cdi.reconcile.datavolume.status import false
from cdi.reconcile.types import Pending


def claim_not_valid(context: ReconcileContext, error: CdiError) -> Result:
    """Return the state of waiting until the PVC can be completed.

    A DataVolume with the label applyStorageProfile leaves that to the webhook for PVCs in KubeVirt's CDI, so its PVC is
    missing, and events and conditions say no more. The controller completes every PVC itself, and its event about the
    cause follows the one that programs look for.
    """
    wait = Pending(reason=Reason.ERR_CLAIM_NOT_VALID, message=error.message, event=EventReason.ERR_CLAIM_NOT_VALID)
    result = replace(pending(None, wait), requeue_after=context.retries.patience)
    labels = context.datavolume.metadata.labels or {}
    if not context.config.renders_claims or labels.get(LABEL_APPLY_STORAGE_PROFILE) != "true":
        return result
    missing = false(Reason.NOT_FOUND, "No PVC found")
    return replace(
        result,
        state=replace(result.state, bound=missing),
        events=(Event(type="Normal", reason=missing.reason, message=missing.message), *result.events),
    )
