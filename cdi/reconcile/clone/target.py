"""Creation of a clone's target PVC."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cdi.api.errors import CdiError, InvalidManifest, Retry
from cdi.api.job import Failure
from cdi.api.names import (
    ANN_CLONE_REQUEST,
    ANN_CLONE_TYPE,
    ANN_CONTENT_TYPE,
    ANN_DATA_SOURCE_NAMESPACE,
    ANN_EXTENDED_CLONE_TOKEN,
    ANN_PERMISSIVE_CLONE,
    ANN_USE_POPULATOR,
    labels_for_clone,
)
from cdi.api.quantity import Quantity
from cdi.api.storageprofile import CloneStrategy
from cdi.reconcile.actions import Action, CreateObject
from cdi.reconcile.clone.authorization import authorize
from cdi.reconcile.clone.manifests import build_clone_source, clone_source_ref
from cdi.reconcile.clone.plan_annotation import ANN_SNAPSHOT_REQUEST, ClonePlanRecord, requested_strategy
from cdi.reconcile.clone.planner import plan, shared_snapshot
from cdi.reconcile.clone.size_detection import depends_on_disk, detect_size
from cdi.reconcile.clone.source import facts, find, size_for, source_in_use, target_too_small
from cdi.reconcile.clone.types import CloneSource
from cdi.reconcile.clone.validation import invalid, is_known_strategy, is_validated_first
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.datavolume.claim_builder import build_claim
from cdi.reconcile.datavolume.lineage import inherited_origin, mark_clone, source_warnings
from cdi.reconcile.datavolume.provisioning import (
    class_of,
    provisioner_annotations,
    provisioning_blocker,
    uses_populator,
    uses_virt_default_class,
)
from cdi.reconcile.datavolume.result import Result, claim_not_valid, claim_requested, failed, pending
from cdi.reconcile.storage.claim_defaults import MIN_CLAIM_SIZE, default_size
from cdi.reconcile.types import PVC, Clone, DataRef, Pending, Rejected


def create_target(context: ReconcileContext, origin: Clone) -> Result:
    """Create the target PVC once the source exists and its properties are known."""
    dv = context.datavolume
    grant = authorize(context, origin, None)
    if isinstance(grant, Rejected):
        return failed(None, grant.failure)
    if isinstance(grant, Pending):
        return replace(pending(None, grant), requeue_after=context.retries.base)
    found = find(context, origin)
    if isinstance(found, Rejected):
        return failed(None, found.failure)
    if isinstance(found, Pending):
        return pending(None, found)
    try:
        body = _body(context, origin, found)
        if isinstance(body, Result):
            return body
        record = _recorded(context, body, found)
        if record is not None:
            body["metadata"]["annotations"] |= record.annotations()
        if grant is not None:
            body["metadata"]["annotations"][ANN_EXTENDED_CLONE_TOKEN] = facts(context).sign_long_lived_token(grant)
    except CdiError as error:
        if error.retry is Retry.NEVER:
            return failed(None, Failure.from_error(error))
        return claim_not_valid(context, error)
    spec = body["spec"]
    small = _too_small(context, body, found)
    if small is not None and is_validated_first(context.datavolume, found):
        return replace(pending(None, invalid(small.failure)), requeue_after=context.retries.patience)
    actions: tuple[Action, ...] = (CreateObject(body=body),)
    # A provisioner only checks the reference in the PVC. No VolumeCloneSource can name a source in another namespace.
    if "dataSourceRef" in spec and origin.namespace == dv.metadata.namespace:
        actions = (CreateObject(body=build_clone_source(dv, origin)), *actions)
    warnings = tuple(source_warnings(found.annotations, found.place, context.now))
    actions += mark_clone(found, context.now, snapshot=found.kind == "VolumeSnapshot")
    return claim_requested(dv, actions, warnings)


def _too_small(context: ReconcileContext, body: dict[str, Any], found: CloneSource) -> Rejected | None:
    spec = body["spec"]
    size = Quantity.parse(str(spec["resources"]["requests"]["storage"])).bytes
    mode, storage_class = spec.get("volumeMode") or "Filesystem", spec.get("storageClassName")
    return target_too_small(context, found, size, mode, storage_class, body["metadata"]["annotations"])


def _body(context: ReconcileContext, origin: Clone, found: CloneSource) -> dict[str, Any] | Result:
    """Return the PVC's manifest, or the result that applies until its size is known.

    Raises:
        CdiError: Any error of `cdi.reconcile.datavolume.claim_builder.build_claim`.
        InvalidManifest: The size is neither given nor known from the source.

    """
    dv = context.datavolume
    body = build_claim(context, origin, None)
    spec, metadata = body["spec"], body["metadata"]
    annotations, labels = metadata["annotations"], metadata["labels"]
    mode, storage_class = spec.get("volumeMode") or "Filesystem", spec.get("storageClassName")
    if dv.spec.claim is None or dv.spec.claim.size is None:
        size = _size(context, found, mode, storage_class)
        if isinstance(size, Result):
            return size
        if size is None:
            raise InvalidManifest(
                f"the source {found.place} does not report its size",
                where="spec.storage.resources.requests.storage",
            )
        resources = dict(spec.get("resources") or {})
        resources["requests"] = {**(resources.get("requests") or {}), "storage": Quantity.of_bytes(size).text}
        spec["resources"] = resources
    request = f"{origin.namespace}/{origin.name}"
    if found.kind == "VolumeSnapshot":
        annotations.pop(ANN_CLONE_REQUEST, None)
        annotations[ANN_SNAPSHOT_REQUEST] = request
    else:
        annotations[ANN_CLONE_REQUEST] = request
    made_of = class_of(dv, context.objects)
    populated = uses_populator(dv, made_of, context.objects)
    annotations[ANN_USE_POPULATOR] = "true" if populated else "false"
    spec.pop("dataSource", None)
    spec.pop("dataSourceRef", None)
    if populated:
        spec["dataSourceRef"] = clone_source_ref(dv)
        annotations |= provisioner_annotations(made_of, context.objects)
    own = dv.metadata.annotations or {}
    annotations |= {name: own[name] for name in (ANN_PERMISSIVE_CLONE, ANN_CLONE_TYPE) if own.get(name)}
    if origin.namespace != dv.metadata.namespace:
        annotations[ANN_DATA_SOURCE_NAMESPACE] = origin.namespace
    labels |= labels_for_clone(found.labels, labels)
    if ANN_CONTENT_TYPE in found.annotations:
        annotations[ANN_CONTENT_TYPE] = found.annotations[ANN_CONTENT_TYPE]
    annotations |= inherited_origin(found.annotations)
    return body


def _recorded(context: ReconcileContext, body: dict[str, Any], found: CloneSource) -> ClonePlanRecord | None:
    """Return the plan for a PVC that is yet to be created, if it can be cloned at once by the preferred strategy.

    In all other cases return None: the plan is then made, and reported, once the PVC exists.
    """
    spec, metadata = body["spec"], body["metadata"]
    ref = spec.get("dataSourceRef")
    if ref is None:
        return None
    claim = PVC(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid="",
        phase="Pending",
        annotations=metadata["annotations"],
        volume_mode=spec.get("volumeMode") or "Filesystem",
        storage_class=spec.get("storageClassName"),
        requested=Quantity.parse(str(spec["resources"]["requests"]["storage"])).bytes,
        data_ref=DataRef(group=ref["apiGroup"], kind=ref["kind"], name=ref["name"]),
    )
    if provisioning_blocker(context, claim) is not None or source_in_use(context.objects, found) is not None:
        return None
    if not is_known_strategy(requested_strategy(claim)) or _too_small(context, body, found) is not None:
        return None
    choice = plan(context, claim, found)
    shared = shared_snapshot(context, found) if choice.snapshot_class is not None else ""
    if choice.strategy is CloneStrategy.COPY or choice.fallback_reasons or shared is None:
        return None
    return ClonePlanRecord.of(
        choice, found, snapshot=shared, restored="", now=context.now, requested=requested_strategy(claim)
    )


def _size(
    context: ReconcileContext, found: CloneSource, volume_mode: str, storage_class: str | None
) -> int | Result | None:
    """Return the size in bytes for a clone without a requested size; None if the source's size is unknown."""
    offered = context.objects.storage_defaults(
        storage_class, virtualization=uses_virt_default_class(context.datavolume)
    )
    if depends_on_disk(context.config, found, volume_mode, storage_class):
        disk = detect_size(context, found)
        if isinstance(disk, Result):
            return disk
        if disk is not None:
            return default_size(max(disk, MIN_CLAIM_SIZE), volume_mode, offered)
    size = size_for(context.config, found, volume_mode, storage_class)
    return None if size is None else max(size, offered.minimum)
