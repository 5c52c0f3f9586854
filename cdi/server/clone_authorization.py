"""Authorization of clones across namespaces: checked when the DataVolume is created, and recorded in a token.

The controller clones with its own permissions, and a DataVolume does not record its creator. The user's permissions are
therefore checked at admission, where the API server names the user, and the result is signed for the controller
(`cdi.reconcile.clone.authorization`).

A token counts only where this webhook put it: a token in the submitted DataVolume is removed, and none can be added
later. A token obtained in another way, by impersonating an API server, is therefore useless.
"""

from __future__ import annotations

import contextlib
import secrets
import string
import time
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Protocol

from cdi.api.annotation_types import annotations_of
from cdi.api.datasource import DataSource
from cdi.api.datavolume import DataVolume
from cdi.api.errors import CdiError, InvalidManifest
from cdi.api.names import ANN_CLONE_TOKEN
from cdi.api.rules.problems import Problem
from cdi.api.sources import SourcePvc, SourceSnapshot
from cdi.api.validation import parse
from cdi.controller.clone_lister import claims_of
from cdi.kube.jwt import TokenClaims
from cdi.reconcile.clone.authorization import has_permission
from cdi.reconcile.clone.types import CloneAuthorization
from cdi.reconcile.datavolume.lineage import source_notice
from cdi.server.hooks import Operation
from cdi.server.review import Allowed, Refused, Review, Verdict
from cdi.server.uploadtoken_api.authentication import User

_SUFFIX = 5
_ALPHABET = string.ascii_lowercase + string.digits


class Access(Protocol):
    """Access to the cluster; methods raise a `CdiError` if the API server cannot be reached."""

    async def data_source(self, namespace: str, name: str) -> DataSource | None: ...

    async def may(self, user: User, attributes: Mapping[str, str]) -> bool: ...

    async def claim(self, namespace: str, name: str) -> dict[str, Any] | None: ...

    async def snapshot(self, namespace: str, name: str) -> dict[str, Any] | None: ...

    def sign(self, claims: TokenClaims) -> str:
        """Return a signed token; raise `ClusterUnavailable` while there is no key."""


async def authorise(review: Review, access: Access, labels: Mapping[str, str] | None = None) -> Verdict:
    """Decide on a DataVolume that is created or changed, and set or remove its clone token.

    On creation, the DataVolume gets a token if its source is in another namespace and the user may clone from there,
    and loses any other. On update, it keeps the token that it was created with, or loses it.

    Args:
        review: The request.
        access: The cluster; its errors are raised.
        labels: The labels of the DataVolumes that the webhook is called for; None if it is called for all.
    """
    if review.operation is Operation.UPDATE:
        return _changed(review, labels or {})
    try:
        dv = parse(review.object)
    except InvalidManifest:
        return _without_token(review)  # the validating webhook reports the problem
    source = await _source(dv, review.namespace, access) if isinstance(dv, DataVolume) else None
    if source is None:
        return _without_token(review)
    verdict = (
        _without_token(review) if source.namespace == review.namespace else await _authorise(review, source, access)
    )
    return replace(verdict, warnings=await _notices(source, access)) if isinstance(verdict, Allowed) else verdict


async def _authorise(review: Review, source: SourcePvc | SourceSnapshot, access: Access) -> Verdict:
    """Decide on a clone from another namespace."""
    grant = CloneAuthorization(
        kind="VolumeSnapshot" if isinstance(source, SourceSnapshot) else "PersistentVolumeClaim",
        namespace=source.namespace,
        name=source.name,
        target_namespace=review.namespace,
        target_name=review.name,
    )
    if not await _may(review.by, grant, access):
        message = f"User {review.by.name} has insufficient permissions in clone source namespace {source.namespace}"
        return Refused(
            problems=(Problem(field="spec.source", message=message),),
            status=HTTPStatus.FORBIDDEN,
            reason="Forbidden",
        )
    if review.dry_run:
        # A dry run's response is printed, compared and logged; a token in it would be valid for anybody who reads it.
        return _without_token(review)
    metadata: Mapping[str, Any] = review.object.get("metadata") or {}
    patch: list[dict[str, Any]] = []
    name = review.name or str(metadata.get("name") or "")
    if not name:
        # The API server generates the name after admission, but the token has to be for one name.
        name = f"{metadata.get('generateName') or ''}{''.join(secrets.choice(_ALPHABET) for _ in range(_SUFFIX))}"
        patch.append({"op": "add", "path": "/metadata/name", "value": name})
    token = access.sign(claims_of(replace(grant, target_name=name)))
    annotations = {**(metadata.get("annotations") or {}), ANN_CLONE_TOKEN: token}
    patch.append({"op": "add", "path": "/metadata/annotations", "value": annotations})
    return Allowed(patch=tuple(patch))


async def _notices(source: SourcePvc | SourceSnapshot, access: Access) -> tuple[str, ...]:
    """Return the warning that a source is deprecated, beyond its end of life, or revoked, if it is.

    The clone must not depend on it, so a source that cannot be read gives none.
    """
    read = access.snapshot if isinstance(source, SourceSnapshot) else access.claim
    with contextlib.suppress(CdiError):
        found = await read(source.namespace, source.name)
        annotations = annotations_of(found)
        notice = source_notice(annotations, time.time())
        # The version's name first, because the API server truncates a warning.
        return (f'"{source.name}" {notice[1]}',) if notice is not None else ()
    return ()


def _token(body: Mapping[str, Any]) -> object:
    """Return the token of an object, or None; the object is not validated yet."""
    metadata = body.get("metadata")
    annotations = metadata.get("annotations") if isinstance(metadata, dict) else None
    return annotations.get(ANN_CLONE_TOKEN) if isinstance(annotations, dict) else None


def _without_token(review: Review) -> Allowed:
    if _token(review.object) is None:
        return Allowed()
    return Allowed(patch=({"op": "remove", "path": f"/metadata/annotations/{ANN_CLONE_TOKEN.replace('/', '~1')}"},))


def _changed(review: Review, labels: Mapping[str, str]) -> Verdict:
    if _token(review.object) not in (None, _token(review.old)):
        message = "is set when a DataVolume is created and cannot be added or changed"
        return Refused(problems=(Problem(field=f"metadata.annotations[{ANN_CLONE_TOKEN}]", message=message),))
    metadata = review.old.get("metadata")
    had = metadata.get("labels") if isinstance(metadata, dict) else None
    if labels.items() <= (had if isinstance(had, dict) else {}).items():
        return Allowed()
    # The webhook was not called when it was created, so a token that was submitted then is still there.
    return _without_token(review)


async def _source(dv: DataVolume, namespace: str, access: Access) -> SourcePvc | SourceSnapshot | None:
    """Return the source to clone, or None if there is none or it is not known yet."""
    if dv.spec.source is not None:
        return dv.spec.source.pvc if dv.spec.source.pvc is not None else dv.spec.source.snapshot
    if dv.spec.source_ref is None:
        return None
    found = await access.data_source(dv.spec.source_ref.namespace or namespace, dv.spec.source_ref.name)
    reference = found.reference if found is not None else None
    if reference is not None and found is not None and reference.namespace == found.metadata.namespace:
        found = await access.data_source(reference.namespace, reference.name)
    return found.volume if found is not None else None


async def _may(user: User, grant: CloneAuthorization, access: Access) -> bool:
    held: dict[str, bool] = {}

    async def holds(right: Mapping[str, str]) -> bool:
        if (resource := right["resource"]) not in held:
            held[resource] = await access.may(user, right)
        return held[resource]

    for way in has_permission(grant.kind, grant.namespace, grant.name):
        for right in way:
            if not await holds(right):
                break
        else:
            return True
    return False
