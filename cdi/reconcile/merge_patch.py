"""Merge patches (RFC 7396), and the patches of plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cdi.api.kinds import Object
from cdi.reconcile.actions import PatchObject


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the merge patch (RFC 7396) that turns `before` into `after`; empty if they are equal."""
    patch: dict[str, Any] = {name: None for name in before if name not in after}
    for name, value in after.items():
        old = before.get(name)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            if inner := merge_patch(old, value):
                patch[name] = inner
        elif name not in before or old != value:
            patch[name] = value
    return patch


def apply_merge_patch(before: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Return `before` with a merge patch applied to it."""
    after = dict(before)
    for name, value in patch.items():
        if value is None:
            after.pop(name, None)
        elif isinstance(value, Mapping):
            old = before.get(name)
            after[name] = apply_merge_patch(old if isinstance(old, Mapping) else {}, value)
        else:
            after[name] = value
    return after


def apply_patch(body: Object, action: PatchObject) -> None:
    """Apply a patch to an object in place, without its conditions (`uid`, `version`)."""
    metadata = body["metadata"]
    annotations = dict(metadata.get("annotations") or {})
    for name, text in action.annotations.items():
        if text is None:
            annotations.pop(name, None)
        else:
            annotations[name] = text
    metadata.pop("annotations", None)
    if annotations:
        metadata["annotations"] = annotations
    if action.labels:
        metadata["labels"] = {**(metadata.get("labels") or {}), **action.labels}
    if action.spec:
        body["spec"] = apply_merge_patch(body.get("spec") or {}, action.spec)
    if action.owner is not None:
        owners = [owner for owner in metadata.get("ownerReferences") or [] if owner.get("uid") != action.owner["uid"]]
        if not any(owner.get("controller") for owner in owners):
            metadata["ownerReferences"] = [*owners, dict(action.owner)]
