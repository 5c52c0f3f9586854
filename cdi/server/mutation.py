"""What is filled in where an object leaves it open, as JSON patches."""

from __future__ import annotations

from typing import Any, Protocol

from cdi.api.errors import CdiError, InvalidManifest
from cdi.api.names import ANN_CLONE_TYPE, GROUP
from cdi.api.rules.problems import Problem
from cdi.api.validation import parse
from cdi.reconcile.sizing import Offer, complete_claim, is_archive, wants_completion
from cdi.server.review import Allowed, Refused, Review, Verdict


class Storage(Protocol):
    """What is known of storage classes."""

    def renders_claims(self) -> bool:
        """Claims that ask for it are completed (CDIConfig's webhookPvcRendering)."""

    async def offer(self, storage_class: str | None, *, archive: bool) -> Offer:
        """What a claim that names this class, or none, can be completed from.

        Raises a `CdiError` while that is not known, or the API server does not say.
        """


async def mutate_claim(review: Review, storage: Storage) -> Verdict:
    """A claim with the label applyStorageProfile gets class, access modes, volume mode and size.

    Raises what `storage` raises.
    """
    try:
        parse(review.object)
    except InvalidManifest as error:
        return Refused(problems=(Problem(field=error.where or "", message=error.what),))
    if not wants_completion(review.object, enabled=storage.renders_claims()):
        return Allowed()
    spec: dict[str, Any] = review.object["spec"]
    archive = is_archive(review.object)
    given = await storage.offer(spec.get("storageClassName"), archive=archive)
    try:
        completed = complete_claim(spec, given, archive=archive, sized=not _is_clone(review.object))
    except CdiError as error:
        message = f"{error.what}; {error.remedy}" if error.remedy else error.what
        return Refused(problems=(Problem(field=f"spec.{error.where}" if error.where else "spec", message=message),))
    return Allowed(patch=tuple(_patch(spec, completed)))


def _is_clone(claim: dict[str, Any]) -> bool:
    """Its size is that of what it is cloned from."""
    annotations = claim["metadata"].get("annotations") or {}
    reference = claim["spec"].get("dataSourceRef") or {}
    return bool(annotations.get(ANN_CLONE_TYPE)) or (
        reference.get("apiGroup") == GROUP and reference.get("kind") == "VolumeCloneSource"
    )


def _patch(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """From one spec to the other; ``add`` also replaces (RFC 6902, section 4.1)."""
    return [
        {"op": "add", "path": f"/spec/{name}", "value": value}
        for name, value in after.items()
        if before.get(name) != value
    ]
