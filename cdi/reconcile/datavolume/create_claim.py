"""Creation and adoption of a DataVolume's PVC."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from cdi.api.datavolume import DataVolume
from cdi.api.errors import AlreadyExists, CdiError, InvalidManifest, Retry
from cdi.api.job import Failure
from cdi.api.names import (
    ANN_ALLOW_CLAIM_ADOPTION,
    ANN_POPULATED_FOR,
    ANN_PRE_POPULATED,
    means_true,
)
from cdi.api.phases import Reason
from cdi.api.policy import parse_policy_annotations
from cdi.reconcile.actions import Action, CreateObject, PatchObject
from cdi.reconcile.clone.target import create_target
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.datavolume.claim_builder import build_claim, build_source, owner_reference, populated_for
from cdi.reconcile.datavolume.lineage import mark_clone, source_warnings
from cdi.reconcile.datavolume.populate import already_populated, mark_prepopulated
from cdi.reconcile.datavolume.result import Result, claim_not_valid, claim_requested, failed, pending, was_populated
from cdi.reconcile.datavolume.static_volume import build_static_claim
from cdi.reconcile.datavolume.status import false
from cdi.reconcile.source import check_copied_source
from cdi.reconcile.types import PVC, Clone, ExternalPopulator, Import, Origin, Pending, Rejected, ResolvedSource, Upload

RECREATION_DELAY: Final = 1.0
"""Seconds from the status to the new PVC of a DataVolume that had its volume.

If the DataVolume was deleted too and its watch is interrupted, writing the status has no effect: without a delay, it
would be tried over and over.
"""


def ensure_claim(context: ReconcileContext, origin: ResolvedSource) -> Result:
    """Create the PVC if everything that it depends on exists."""
    dv = context.datavolume
    if ANN_PRE_POPULATED in (dv.metadata.annotations or {}):
        return pending(None, _restored_later(dv))
    if was_populated(dv):
        # The status is written before the PVC is created: a new PVC of a DataVolume that is Succeeded would be taken
        # for one that another importer has filled.
        return replace(claim_requested(dv, ()), requeue_after=RECREATION_DELAY)
    try:
        parse_policy_annotations(dv.metadata.annotations)
    except InvalidManifest as error:
        return failed(None, Failure.from_error(error))
    if isinstance(origin, Rejected):
        return failed(None, origin.failure)
    static = _static(context, origin)
    if static is not None:
        return static
    source: PVC | None = None
    if isinstance(origin, Clone) and context.platform.cluster:
        return create_target(context, origin)
    if isinstance(origin, Clone):
        found = check_copied_source(context, origin)
        if isinstance(found, Rejected):
            return failed(None, found.failure)
        if isinstance(found, Pending):
            return pending(None, found)
        source = found
    if isinstance(origin, Pending):
        return pending(None, origin)
    try:
        body = build_claim(context, origin, source)
    except CdiError as error:
        if error.retry is Retry.NEVER:
            return failed(None, Failure.from_error(error))
        return claim_not_valid(context, error)
    actions: tuple[Action, ...] = (CreateObject(body=body),)
    if isinstance(origin, Import | Upload) and origin.kept_in is None and dv.spec.source is not None:
        made = build_source(dv, origin)
        if body["spec"].get("dataSourceRef", {}).get("name") == made["metadata"]["name"]:
            actions = (CreateObject(body=made), *actions)
    if source is None:
        return claim_requested(dv, actions)
    place = f"{source.namespace}/{source.name}"
    warnings = tuple(source_warnings(source.annotations, place, context.now))
    return claim_requested(dv, (*actions, *mark_clone(source, context.now)), warnings)


def _static(context: ReconcileContext, origin: Origin | Pending) -> Result | None:
    """Return the result for a PVC whose volume exists with its content; None otherwise.

    The source need not exist.
    """
    if isinstance(origin, ExternalPopulator | Pending):
        return None
    try:
        body = build_static_claim(context, build_claim(context, origin, None))
    except CdiError:
        return None  # The regular path reports the error.
    return None if body is None else claim_requested(context.datavolume, (CreateObject(body=body),))


def _restored_later(dv: DataVolume) -> Pending:
    return Pending(
        reason=Reason.PENDING,
        message=f"waiting for PVC {dv.metadata.name}, which already has its content according to the annotation "
        f"{ANN_PRE_POPULATED}. Try: restore the PVC, or remove the annotation to fill a new one",
    )


def adopt_or_conflict(context: ReconcileContext, claim: PVC) -> Result:
    """Adopt an existing PVC of the DataVolume's name if that is requested; otherwise report a conflict."""
    dv = context.datavolume
    annotations = dv.metadata.annotations or {}
    meant = (
        means_true(annotations.get(ANN_ALLOW_CLAIM_ADOPTION, "true" if context.config.adopts else ""))
        or annotations.get(ANN_PRE_POPULATED) == claim.name
        or populated_for(claim, dv)
    )
    if meant and not claim.controller_uid and not claim.deleting:
        adopt = replace(PatchObject.of_claim(claim, {ANN_POPULATED_FOR: dv.metadata.name}), owner=owner_reference(dv))
        result = already_populated(context, claim)
        marks = mark_prepopulated(dv, claim) if populated_for(claim, dv) else ()
        return replace(result, actions=(*marks, adopt), pod=None, attempts=None)
    predecessor = claim.controller_kind == dv.kind_name() and claim.controller_name == dv.metadata.name
    if claim.deleting or predecessor:
        return pending(None, Pending(reason=Reason.PENDING, message=f"an earlier PVC {claim.name} is being removed"))
    owner = f", controlled by {claim.controller_kind} {claim.controller_name}" if claim.controller_uid else ""
    error = AlreadyExists(
        f"Destination PVC {claim.namespace}/{claim.name} already exists{owner}",
        remedy="delete it, choose another name"
        + ("" if owner else f', or adopt it with the annotation {ANN_ALLOW_CLAIM_ADOPTION}: "true"'),
    )
    result = failed(None, Failure.from_error(error))
    return replace(result, state=replace(result.state, bound=false(error.code, error.message)))
