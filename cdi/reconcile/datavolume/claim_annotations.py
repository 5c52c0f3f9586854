"""Annotations written to PVCs, for other clients and for later reconciles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cdi.api.annotations import STORED_JOURNAL
from cdi.api.names import (
    ANN_IMPORT_POD,
    ANN_POD_PHASE,
    ANN_POD_READY,
    ANN_POD_RESTARTS,
    ANN_POD_SCHEDULABLE,
    ANN_PREALLOCATION_APPLIED,
    ANN_RUNNING_CONDITION,
    ANN_RUNNING_CONDITION_MESSAGE,
    ANN_RUNNING_CONDITION_REASON,
    ANN_UPLOAD_POD,
    is_label,
    propagates,
)
from cdi.api.phases import ConditionStatus, Phase
from cdi.reconcile.actions import Action, DeleteObject, PatchObject, RebindVolume
from cdi.reconcile.datavolume.attempts import ANNOTATION
from cdi.reconcile.datavolume.result import Result
from cdi.reconcile.datavolume.status import DataVolumeState
from cdi.reconcile.pods.types import Worker
from cdi.reconcile.types import PVC


def claim_patches(
    claim: PVC, filled: PVC | None, result: Result, worker: Worker | None
) -> tuple[tuple[PatchObject, ...], tuple[PatchObject, ...]]:
    """Return the patches of the PVC and the prime PVC to apply before and after the result's actions.

    The attempt history is written before the actions, since they depend on it. Annotations that only inform users and
    other programs are written afterwards, so that they do not delay a worker.
    """
    state = result.state
    shared: dict[str, str | None] = {}
    if result.pod is not None:
        shared |= {
            ANN_POD_PHASE: result.pod,
            ANN_POD_RESTARTS: str(state.restarts),
            ANN_POD_READY: "true" if _is_ready(state, worker) else "false",
            ANN_RUNNING_CONDITION: state.running.status.value.lower(),
            ANN_RUNNING_CONDITION_REASON: state.running.reason,
            ANN_RUNNING_CONDITION_MESSAGE: state.running.message,
        }
    if worker is not None and worker.pod is not None:
        shared[ANN_UPLOAD_POD if worker.pod.serves else ANN_IMPORT_POD] = worker.pod.name
        if worker.pod.scheduled is not None:
            shared[ANN_POD_SCHEDULABLE] = "true" if worker.pod.scheduled else "false"
    wanted = {**shared, **result.annotations}
    if result.attempts is not None:
        wanted[ANNOTATION] = result.attempts.write()
    labels: dict[str, str] = {}
    if result.outcome is not None:
        wanted |= result.outcome.to_annotations(claim.requested)
        if result.outcome.preallocated:
            wanted[ANN_PREALLOCATION_APPLIED] = "true"
        # Labels of the containerDisk, such as the recommended instance type.
        labels = {
            name: text
            for name, text in result.outcome.labels.items()
            if propagates(name) and is_label(name, text) and name not in claim.labels
        }
    prime = filled if filled is not None and filled.uid != claim.uid and not filled.deleting else None
    of_prime = dict(shared) if prime is not None else {}
    if of_prime and result.prime_pod_phase is not None:
        of_prime[ANN_POD_PHASE] = result.prime_pod_phase
    journal = STORED_JOURNAL.write(worker.journal) if worker is not None and worker.journal else {}
    if prime is None:
        wanted |= journal
    own = _patch(claim, wanted, labels)
    first = own if result.attempts is not None else None
    if first is not None:
        first = replace(first, version=claim.version)
    later = [None if result.attempts is not None else own]
    if prime is not None and not any(_ends(one, prime) for one in result.actions):
        later.append(_patch(prime, {**of_prime, **journal}, {}))
    return (() if first is None else (first,)), tuple(patch for patch in later if patch is not None)


def _ends(action: Action, prime: PVC) -> bool:
    """Return whether the action deletes the prime PVC or takes its volume, so that patching it is useless."""
    if isinstance(action, RebindVolume):
        return action.prime_uid == prime.uid
    return isinstance(action, DeleteObject) and action.uid == prime.uid


def _patch(claim: PVC, wanted: Mapping[str, str | None], labels: Mapping[str, str]) -> PatchObject | None:
    changed = {name: text for name, text in wanted.items() if claim.annotations.get(name) != text}
    labels = {name: text for name, text in labels.items() if claim.labels.get(name) != text}
    if not changed and not labels:
        return None
    return replace(PatchObject.of_claim(claim, changed), labels=labels)


def _is_ready(state: DataVolumeState, worker: Worker | None) -> bool:
    pod = worker.pod if worker is not None else None
    if worker is None or pod is None:
        return state.phase is Phase.UPLOAD_READY
    if not worker.running or not pod.started or pod.deleting:
        return False
    return pod.ready if pod.serves else state.running.status is ConditionStatus.TRUE
