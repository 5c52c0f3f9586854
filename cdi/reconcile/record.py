"""What is recorded on a claim: for clients that read its annotations, and for later reconciles."""

from __future__ import annotations

from cdi.api.job import Outcome
from cdi.api.names import (
    ANN_POD_PHASE,
    ANN_POD_READY,
    ANN_POD_RESTARTS,
    ANN_PREALLOCATION_APPLIED,
    ANN_RUNNING_CONDITION,
    ANN_RUNNING_CONDITION_MESSAGE,
    ANN_RUNNING_CONDITION_REASON,
    GROUP,
    propagates,
)
from cdi.api.phases import Phase
from cdi.reconcile.actions import PatchObject
from cdi.reconcile.ledger import ANNOTATION, Ledger
from cdi.reconcile.status import State
from cdi.reconcile.world import Claim

IMAGE = f"{GROUP}/image."
"""What is known of a finished import, as annotations of its claim: ``image.digest`` and so on."""
_VERIFIED_BY = f"{IMAGE}verifiedBy"


def claim_patch(
    claim: Claim, *, state: State, pod: str | None, ledger: Ledger | None, outcome: Outcome | None
) -> PatchObject | None:
    """What of the claim's annotations and labels is not yet as it shall be.

    `pod` is the value of ``storage.pod.phase``, None leaves it and its kin; `ledger` is written where it is new;
    `outcome` is that of an import that has just succeeded.
    """
    wanted: dict[str, str | None] = {}
    if pod is not None:
        wanted |= {
            ANN_POD_PHASE: pod,
            ANN_POD_RESTARTS: str(state.restarts),
            ANN_POD_READY: "true" if state.phase is Phase.UPLOAD_READY else "false",
            ANN_RUNNING_CONDITION: state.running.status.value.lower(),
            ANN_RUNNING_CONDITION_REASON: state.running.reason,
            ANN_RUNNING_CONDITION_MESSAGE: state.running.message,
        }
    if ledger is not None:
        wanted[ANNOTATION] = ledger.write()
    labels: dict[str, str] = {}
    if outcome is not None:
        wanted |= _image(outcome)
        # A containerDisk's own labels, such as the instance type that suits it.
        labels = {name: text for name, text in outcome.labels.items() if propagates(name)}
    changed = {name: text for name, text in wanted.items() if claim.annotations.get(name) != text}
    labels = {name: text for name, text in labels.items() if claim.labels.get(name) != text}
    if not changed and not labels:
        return None
    return PatchObject(
        plural="persistentvolumeclaims",
        namespace=claim.namespace,
        name=claim.name,
        uid=claim.uid,
        annotations=changed,
        labels=labels,
    )


def verified_by(claim: Claim, outcome: Outcome | None) -> str:
    """What vouches for the volume's content, a list in words; empty where nothing does."""
    return ", ".join(outcome.verified_by) if outcome is not None else claim.annotations.get(_VERIFIED_BY, "")


def _image(outcome: Outcome) -> dict[str, str]:
    facts = {
        f"{IMAGE}format": outcome.format,
        f"{IMAGE}wrappers": ",".join(outcome.wrappers),
        f"{IMAGE}digest": outcome.digest,
        f"{IMAGE}virtualSize": None if outcome.virtual_size is None else str(outcome.virtual_size),
        _VERIFIED_BY: ", ".join(outcome.verified_by),
        f"{IMAGE}validator": outcome.validator,
        f"{IMAGE}path": outcome.path,
        ANN_PREALLOCATION_APPLIED: "true" if outcome.preallocated else None,
    }
    return {name: text for name, text in facts.items() if text}
