"""Diagnosis of a DataVolume in a cluster that makes no progress, from its objects and without I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cdi.api import names
from cdi.api.annotation_types import annotations_of
from cdi.api.job import Failure
from cdi.api.kinds import Object
from cdi.api.phases import ConditionType, Phase, Reason
from cdi.api.status_detail import status_detail
from cdi.client.status_view import failure_of, phase_of
from cdi.reconcile.pods.status import container_status, last_termination, pending_reason
from cdi.reconcile.pods.types import PodBlocker
from cdi.remote.worker_lookup import Filling

_BEGINNING = frozenset({Reason.CONTAINER_CREATING, Reason.PENDING})
"""Reasons that resolve automatically."""
CLONING = frozenset(
    {
        Phase.SNAPSHOT_FOR_SMART_CLONE_IN_PROGRESS,
        Phase.SMART_CLONE_PVC_IN_PROGRESS,
        Phase.CLONE_FROM_SNAPSHOT_SOURCE_IN_PROGRESS,
        Phase.CSI_CLONE_IN_PROGRESS,
        Phase.CLONE_IN_PROGRESS,
        Phase.EXPANSION_IN_PROGRESS,
        Phase.PREP_CLAIM_IN_PROGRESS,
    }
)
"""Phases of clones while the storage or pods copy data."""
_CLAIM_TROUBLE = ("ProvisioningFailed", "FailedBinding", "ErrClaimNotValid", "FailedMount", "FailedAttachVolume")
_UNDER_WAY = frozenset({Phase.IMPORT_IN_PROGRESS, Phase.REBIND_IN_PROGRESS, Phase.SUCCEEDED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocker:
    """The reason why a DataVolume waits."""

    reason: str
    message: str
    remedy: str = ""

    @property
    def passes(self) -> bool:
        """Return whether it is expected to resolve automatically."""
        return self.reason in _BEGINNING

    def __str__(self) -> str:
        text = f"{self.message.rstrip('.')} [{self.reason}]"
        return f"{text}. Try: {self.remedy}" if self.remedy else text


def pod_facts(pod: Object) -> Iterator[tuple[str, str]]:
    """Yield labels and values that describe a pod."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    yield "Pod", metadata["name"]
    yield "Phase", "Terminating" if "deletionTimestamp" in metadata else str(status.get("phase") or "Pending")
    yield "Node", str((pod.get("spec") or {}).get("nodeName") or "")
    hold = pending_reason(pod)
    yield "Held up", "" if hold is None else hold.message
    ended = last_termination(container_status(pod)) or {}
    if ended:
        yield "Ended", f"{ended.get('reason') or ''} (exit status {ended.get('exitCode')})".strip()


def blocker_of(body: Object, filling: Filling, events: Iterable[Object], *, immediate: bool = False) -> Blocker | None:
    """Return what blocks a DataVolume, or None if it is making progress or done.

    The most specific cause is returned: a pod that cannot be scheduled says more than the DataVolume that waits for it.

    Args:
        body: The DataVolume.
        filling: Its PVCs and pod.
        events: The events of its PVCs.
        immediate: Whether immediate binding was requested.
    """
    failure = failure_of(body)
    if failure is not None:
        return _failed(failure)
    phase = phase_of(body)
    if phase in _UNDER_WAY:
        return None
    pod = filling.pod
    hold = pending_reason(pod) if pod is not None else None
    if hold is not None and hold.reason not in _BEGINNING:
        return _blocker(hold)
    trouble = _trouble(events)
    if trouble is not None:
        return trouble
    if not (body.get("status") or {}).get("phase"):
        return Blocker(
            reason="NoController",
            message="no controller has reconciled it yet",
            remedy=(
                "check whether the controller runs (kubectl get deployments -A | grep cdi) and watches this namespace"
            ),
        )
    return _waits(phase, filling, immediate=immediate) or _told(body) or (_blocker(hold) if hold is not None else None)


def _failed(failure: Failure) -> Blocker:
    return _split(failure.code, failure.message)


def _blocker(hold: PodBlocker) -> Blocker:
    return _split(hold.reason, hold.message)


def _split(reason: str, text: str) -> Blocker:
    message, _, remedy = text.partition(". Try: ")
    return Blocker(reason=reason, message=message, remedy=remedy)


def _trouble(events: Iterable[Object]) -> Blocker | None:
    """Return the newest warning of a PVC."""
    warnings = [each for each in events if each.get("type") == "Warning" and each.get("reason") in _CLAIM_TROUBLE]
    if not warnings:
        return None
    last = warnings[-1]
    kind, name = (str((last.get("involvedObject") or {}).get(field) or "") for field in ("kind", "name"))
    return Blocker(
        reason=str(last["reason"]),
        message=f"{kind} {name}: {last.get('message') or 'no reason given'}",
        remedy="check the storage's provisioner and what the PVC requests",
    )


def _waits(phase: Phase, filling: Filling, *, immediate: bool) -> Blocker | None:
    if phase not in (Phase.WAIT_FOR_FIRST_CONSUMER, Phase.PENDING_POPULATION):
        return None
    if immediate or names.ANN_SELECTED_NODE in annotations_of(filling.claim):
        return None
    return Blocker(
        reason=phase.value,
        message="its StorageClass has volumeBindingMode WaitForFirstConsumer, and no pod uses the volume",
        remedy=f"start the virtual machine or pod that uses it, or annotate it with {names.ANN_IMMEDIATE_BINDING}",
    )


def _told(body: Object) -> Blocker | None:
    """Return the reason in the DataVolume's own conditions."""
    conditions: dict[str, dict[str, Any]] = {
        str(each.get("type")): each for each in (body.get("status") or {}).get("conditions") or []
    }
    reason, message = status_detail(body)
    if message:
        return _split(reason or ConditionType.READY, message)
    for kind in ("Bound", "Running"):
        condition = conditions.get(kind) or {}
        if condition.get("status") != "True" and condition.get("message"):
            return _split(str(condition.get("reason") or kind), str(condition["message"]))
    return None
