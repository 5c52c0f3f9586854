"""Validation at admission: the checks of `cdi.api.validation`, and those that need other objects."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from cdi.api.errors import InvalidManifest
from cdi.api.installation import UninstallStrategy
from cdi.api.kinds import kind_of
from cdi.api.meta import KubeObject
from cdi.api.model import unknown_fields
from cdi.api.names import (
    ANN_ALLOW_CLAIM_ADOPTION,
    ANN_POPULATED_FOR,
    ANN_PRE_POPULATED,
    means_true,
)
from cdi.api.rules.problems import Cause, Problem, truncate
from cdi.api.transfer import ObjectTransfer
from cdi.api.validation import examine
from cdi.server.hooks import Operation
from cdi.server.review import Allowed, Refused, Review, Verdict

_NOT_INSTALLED = ("", "Error")


class Cluster(Protocol):
    """The other objects; methods that query the API server raise a `CdiError` if that fails."""

    async def claim(self, namespace: str, name: str) -> dict[str, Any] | None:
        """Return a PersistentVolumeClaim, bypassing any cache."""

    async def data_volume(self, namespace: str, name: str) -> dict[str, Any] | None:
        """Return a DataVolume, bypassing any cache."""

    async def has_data_volumes(self) -> bool: ...

    def adopts_claims(self) -> bool:
        """Return whether DataVolumes adopt existing PVCs without requesting it (a feature gate)."""


async def validate(review: Review, cluster: Cluster, *, apart: bool = False) -> Verdict:
    """Return the problems of an object that is created or changed, or the reason why it must not be deleted.

    Args:
        review: The request.
        cluster: The other objects; its errors are raised.
        apart: Whether the object is so large that it has to be examined in another thread.

    Raises:
        InvalidManifest: The object is not of the kind that the request names.
    """
    if review.operation is Operation.DELETE:
        return await _uninstall(review, cluster)
    _check_kind(review)
    old = review.old or None
    model, problems = await asyncio.to_thread(examine, review.object, old) if apart else examine(review.object, old)
    found = list(problems)
    if review.operation is Operation.CREATE and review.plural == "datavolumes":
        found += await _destination(review, model, cluster)
    if review.operation is Operation.CREATE and isinstance(model, ObjectTransfer) and not found:
        found += await _transfer_target(model, cluster)
    warnings = tuple(_warnings(model))
    if found:
        return Refused(problems=tuple(found), warnings=warnings)
    return Allowed(warnings=warnings)


def _check_kind(review: Review) -> None:
    kind = kind_of(str(review.object.get("apiVersion") or ""), str(review.object.get("kind") or ""))
    if kind.plural != review.plural:
        raise InvalidManifest(f"the object is a {kind.kind}, not one of {review.plural}", remedy="")


def _warnings(model: KubeObject | None) -> list[str]:
    """Return a warning for each unknown field; the API server itself drops those missing in the definition."""
    if model is None:
        return []
    skipped = ("metadata.", "status.", "apiVersion", "kind")
    return [f'unknown field "{truncate(path)}"' for path in unknown_fields(model) if not path.startswith(skipped)]


async def _destination(review: Review, model: KubeObject | None, cluster: Cluster) -> list[Problem]:
    """Return the problem that a PVC with the DataVolume's name exists and is not meant for it."""
    meta = model.metadata if model is not None else None
    name, namespace = (meta.name if meta is not None else None) or review.name, review.namespace
    if not name or not namespace:
        return []
    try:
        claim = await cluster.claim(namespace, name)
    except InvalidManifest:
        return []  # an invalid PVC name, which has been reported already
    annotations = (meta.annotations if meta is not None else None) or {}
    if claim is None or may_exist(claim, name, annotations, adopts=cluster.adopts_claims()):
        return []
    owner = _controller(claim)
    whose = f", controlled by {owner.get('kind')} {owner.get('name')}" if owner else ""
    advice = "" if owner else f'; to adopt it, set the annotation {ANN_ALLOW_CLAIM_ADOPTION}: "true"'
    message = f"Destination PVC {namespace}/{name} already exists{whose}{advice}"
    return [Problem(field="metadata.name", message=message, cause=Cause.DUPLICATE)]


async def _transfer_target(transfer: ObjectTransfer, cluster: Cluster) -> list[Problem]:
    """Return the problem that an object of the transferred kind has the target's name."""
    source, target = transfer.spec.source, transfer.spec.target
    namespace, name = target.namespace or source.namespace, target.name or source.name
    read = cluster.data_volume if source.kind == "DataVolume" else cluster.claim
    if await read(namespace, name) is None:
        return []
    message = f'ObjectTransfer target "{namespace}/{name}" already exists'
    advice = f"delete that {source.kind}, or choose another target"
    return [Problem(field="spec.target", message=f"{message}: {advice}", cause=Cause.DUPLICATE)]


def may_exist(claim: dict[str, Any], name: str, annotations: dict[str, str], *, adopts: bool) -> bool:
    """Return whether an existing PVC does not prevent the DataVolume `name` with these annotations.

    This is so if it was populated for the DataVolume, is declared as pre-populated, is adopted, belongs to an earlier
    DataVolume of the same name and is deleted with it, or is being deleted anyway.
    """
    metadata = claim.get("metadata") or {}
    noted = metadata.get("annotations") or {}
    owner = _controller(claim)
    if noted.get(ANN_POPULATED_FOR) == name or annotations.get(ANN_PRE_POPULATED) == name:
        return True
    if "deletionTimestamp" in metadata or (owner.get("kind") == "DataVolume" and owner.get("name") == name):
        return True
    if owner:
        return False
    asked = annotations.get(ANN_ALLOW_CLAIM_ADOPTION)
    return adopts if asked is None else means_true(asked)


def _controller(claim: dict[str, Any]) -> dict[str, Any]:
    owners = (claim.get("metadata") or {}).get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), {})


async def _uninstall(review: Review, cluster: Cluster) -> Verdict:
    """Deny the deletion of the CDI object while it protects DataVolumes."""
    spec, status = review.old.get("spec"), review.old.get("status")
    strategy = spec.get("uninstallStrategy") if isinstance(spec, dict) else None
    phase = (status.get("phase") or "") if isinstance(status, dict) else ""
    if strategy != UninstallStrategy.BLOCK_IF_WORKLOADS_EXIST or phase in _NOT_INSTALLED:
        return Allowed()
    if not await cluster.has_data_volumes():
        return Allowed()
    return Refused(
        problems=(
            Problem(
                field="spec.uninstallStrategy",
                message="Rejecting the uninstall request, since there are still DataVolumes present. Either delete all "
                "DataVolumes or change the uninstall strategy before uninstalling CDI. "
                f"The strategy {UninstallStrategy.REMOVE_WORKLOADS} permits it",
            ),
        ),
    )
