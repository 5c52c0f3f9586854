"""Defaults that admission fills in, as JSON patches."""

from __future__ import annotations

from typing import Any, Protocol

from cdi.api.annotation_types import annotations_of
from cdi.api.claims import VolumeMode
from cdi.api.errors import CdiError, InvalidManifest
from cdi.api.names import ANN_CLONE_TYPE
from cdi.api.overhead import NO_OVERHEAD
from cdi.api.quantity import Quantity
from cdi.api.rules.problems import Problem
from cdi.api.validation import parse
from cdi.reconcile.storage.claim_defaults import default_claim, is_archive, needs_defaults
from cdi.reconcile.types import StorageDefaults
from cdi.server.clone_size import CloneSources, clone_source_name, requested_size, source_size
from cdi.server.review import Allowed, Refused, Review, Verdict


class Storage(CloneSources, Protocol):
    """Information about storage classes and about the sources of clones."""

    def renders_claims(self) -> bool:
        """Return whether PVCs with the label are completed (CDIConfig's webhookPvcRendering)."""

    async def storage_defaults(self, storage_class: str | None, *, archive: bool) -> StorageDefaults:
        """Return the defaults for a PVC that names this class, or none.

        Raises a `CdiError` while they are not known, or if the API server cannot be reached.
        """


async def mutate_claim(review: Review, storage: Storage) -> Verdict:
    """Complete class, access modes, volume mode and size of a PVC with the label applyStorageProfile.

    Raises the errors of `storage`.
    """
    try:
        parse(review.object)
    except InvalidManifest as error:
        return Refused(problems=(Problem(field=error.where or "", message=error.what),))
    if not needs_defaults(review.object, enabled=storage.renders_claims()):
        return Allowed()
    spec: dict[str, Any] = review.object["spec"]
    archive = is_archive(review.object)
    given = await storage.storage_defaults(spec.get("storageClassName"), archive=archive)
    annotations = annotations_of(review.object)
    populated = bool(clone_source_name(spec))
    # The size that is set for a clone of a VolumeCloneSource was chosen for its volume, and is kept.
    asked = {name: value for name, value in spec.items() if not (populated and name == "resources")}
    try:
        completed = default_claim(
            asked, given, archive=archive, sized=not (populated or annotations.get(ANN_CLONE_TYPE))
        )
        unsized = populated and not requested_size(spec)
    except CdiError as error:
        message = f"{error.what}; {error.remedy}" if error.remedy else error.what
        return Refused(problems=(Problem(field=f"spec.{error.where}" if error.where else "spec", message=message),))
    if unsized:
        mode = completed["volumeMode"]
        overhead = given.overhead if mode == VolumeMode.FILESYSTEM else NO_OVERHEAD
        size = await source_size(review.object, review.namespace, mode, overhead, storage)
        completed |= _sized(spec, size) if size is not None else {}
    return Allowed(patch=tuple(_patch(spec, completed)))


def _sized(spec: dict[str, Any], size: int) -> dict[str, Any]:
    """Return the ``resources`` of a spec with a size in bytes."""
    resources = spec.get("resources") or {}
    requests = {**(resources.get("requests") or {}), "storage": Quantity.of_bytes(size).text}
    return {"resources": {**resources, "requests": requests}}


def _patch(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the JSON patch from one spec to the other; ``add`` also replaces (RFC 6902, section 4.1)."""
    return [
        {"op": "add", "path": f"/spec/{name}", "value": value}
        for name, value in after.items()
        if before.get(name) != value
    ]
