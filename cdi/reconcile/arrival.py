"""Creation and adoption of a DataVolume's PVC."""

from __future__ import annotations

from dataclasses import replace

from cdi.api.datavolume import DataVolume
from cdi.api.errors import AlreadyExists, CdiError, InvalidManifest, Retry
from cdi.api.names import (
    ANN_ALLOW_CLAIM_ADOPTION,
    ANN_POPULATED_FOR,
    ANN_PRE_POPULATED,
    means_true,
)
from cdi.api.phases import EventReason, Phase, Reason
from cdi.api.policy import read_knobs
from cdi.reconcile.actions import Action, CreateObject, PatchObject
from cdi.reconcile.claim import build_claim, build_source, owner_reference, populated_for
from cdi.reconcile.clone.arrival import arrive
from cdi.reconcile.decision import Decision, claim_lost, failed, is_settled, pending
from cdi.reconcile.failure import as_failure
from cdi.reconcile.filling import there_already
from cdi.reconcile.origin import Clone, External, Import, Origin, Refuse, Upload, Wait, examine_clone, find_origin
from cdi.reconcile.static import static_claim
from cdi.reconcile.status import State, no
from cdi.reconcile.world import Claim, World


def without_claim(world: World) -> Decision:
    """Create the PVC if everything that it depends on exists."""
    dv = world.datavolume
    if is_settled(dv):
        return claim_lost(dv, dv.metadata.name or "")
    try:
        read_knobs(dv.metadata.annotations)
    except InvalidManifest as error:
        return failed(None, as_failure(error))
    origin = find_origin(world)
    if isinstance(origin, Refuse):
        return failed(None, origin.failure)
    static = _static(world, origin)
    if static is not None:
        return static
    source: Claim | None = None
    if isinstance(origin, Clone) and world.platform.cluster:
        return arrive(world, origin)
    if isinstance(origin, Clone):
        found = examine_clone(world, origin)
        if isinstance(found, Refuse):
            return failed(None, found.failure)
        if isinstance(found, Wait):
            return pending(None, found)
        source = found
    if isinstance(origin, Wait):
        return pending(None, origin)
    try:
        body = build_claim(world, origin, source)
    except CdiError as error:
        if error.retry is Retry.NEVER:
            return failed(None, as_failure(error))
        wait = Wait(reason=Reason.ERR_CLAIM_NOT_VALID, message=error.message, event=EventReason.ERR_CLAIM_NOT_VALID)
        return replace(pending(None, wait), requeue_after=world.retries.patience)
    actions: tuple[Action, ...] = (CreateObject(body=body),)
    if isinstance(origin, Import | Upload) and origin.kept_in is None and dv.spec.source is not None:
        made = build_source(dv, origin)
        if body["spec"].get("dataSourceRef", {}).get("name") == made["metadata"]["name"]:
            actions = (CreateObject(body=made), *actions)
    return _coming(dv, actions)


def _static(world: World, origin: Origin | Wait) -> Decision | None:
    """Return the decision for a PVC whose volume exists with its content; None otherwise.

    The source need not exist.
    """
    if isinstance(origin, External | Wait):
        return None
    try:
        body = static_claim(world, build_claim(world, origin, None))
    except CdiError:
        return None  # The regular path reports the error.
    return None if body is None else _coming(world.datavolume, (CreateObject(body=body),))


def _coming(dv: DataVolume, actions: tuple[Action, ...]) -> Decision:
    state = State(
        phase=Phase.PENDING,
        bound=no(Reason.PENDING, f"PVC {dv.metadata.name} Pending"),
        running=no(),
        ready=no(),
        claim_name=dv.metadata.name,
    )
    return Decision(state=state, actions=actions)


def foreign_claim(world: World, claim: Claim) -> Decision:
    """Adopt an existing PVC of the DataVolume's name if that is requested; otherwise report a conflict."""
    dv = world.datavolume
    annotations = dv.metadata.annotations or {}
    meant = (
        means_true(annotations.get(ANN_ALLOW_CLAIM_ADOPTION, "true" if world.config.adopts else ""))
        or annotations.get(ANN_PRE_POPULATED) == claim.name
        or populated_for(claim, dv)
    )
    if meant and not claim.controller_uid and not claim.deleting:
        adopt = PatchObject(
            plural="persistentvolumeclaims",
            namespace=claim.namespace,
            name=claim.name,
            uid=claim.uid,
            annotations={ANN_POPULATED_FOR: dv.metadata.name},
            owner=owner_reference(dv),
        )
        decision = there_already(world, claim)
        return replace(decision, actions=(adopt,), pod=None, ledger=None)
    predecessor = claim.controller_kind == dv.kind_name() and claim.controller_name == dv.metadata.name
    if claim.deleting or predecessor:
        return pending(None, Wait(reason=Reason.PENDING, message=f"an earlier PVC {claim.name} is being removed"))
    owner = f", controlled by {claim.controller_kind} {claim.controller_name}" if claim.controller_uid else ""
    error = AlreadyExists(
        f"Destination PVC {claim.namespace}/{claim.name} already exists{owner}",
        remedy="delete it, choose another name"
        + ("" if owner else f', or adopt it with the annotation {ANN_ALLOW_CLAIM_ADOPTION}: "true"'),
    )
    decision = failed(None, as_failure(error))
    return replace(decision, state=replace(decision.state, bound=no(error.code, error.message)))
