"""Defaults that admission fills in, as JSON patches."""

from __future__ import annotations

from typing import Any, Protocol

from cdi.api.errors import CdiError, InvalidManifest
from cdi.api.names import ANN_CLONE_TYPE, GROUP
from cdi.api.rules.problems import Problem
from cdi.api.validation import parse
from cdi.reconcile.claim_defaults import StorageDefaults, default_claim, is_archive, needs_defaults
from cdi.server.review import Allowed, Refused, Review, Verdict


class Storage(Protocol):
    """Information about storage classes."""

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
    try:
        completed = default_claim(spec, given, archive=archive, sized=not _is_clone(review.object))
    except CdiError as error:
        message = f"{error.what}; {error.remedy}" if error.remedy else error.what
        return Refused(problems=(Problem(field=f"spec.{error.where}" if error.where else "spec", message=message),))
    return Allowed(patch=tuple(_patch(spec, completed)))


def _is_clone(claim: dict[str, Any]) -> bool:
    """Return whether a PVC is cloned; its size is then that of the source."""
    annotations = claim["metadata"].get("annotations") or {}
    reference = claim["spec"].get("dataSourceRef") or {}
    return bool(annotations.get(ANN_CLONE_TYPE)) or (
        reference.get("apiGroup") == GROUP and reference.get("kind") == "VolumeCloneSource"
    )


def _patch(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the JSON patch from one spec to the other; ``add`` also replaces (RFC 6902, section 4.1)."""
    return [
        {"op": "add", "path": f"/spec/{name}", "value": value}
        for name, value in after.items()
        if before.get(name) != value
    ]
