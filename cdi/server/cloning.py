"""Who may clone a volume of another namespace: the user is asked about when the DataVolume is made, and a token tells.

The controller makes clones with rights of its own, and the DataVolume does not say who made it; so what the user may is
found out here, while the API server says who it is, and signed for the controller (`cdi.reconcile.clone.authority`).

A token counts only where this put it: one that a DataVolume brings along is taken away, and none can be added later.
So whoever gets one in another way, by asking for it in an API server's stead, has nothing to use it on.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Protocol

from cdi.api.datasource import DataSource
from cdi.api.datavolume import DataVolume
from cdi.api.errors import InvalidManifest
from cdi.api.names import ANN_CLONE_TOKEN
from cdi.api.rules.problems import Problem
from cdi.api.sources import SourcePvc, SourceSnapshot
from cdi.api.validation import parse
from cdi.controller.clones import claims_of
from cdi.kube.tokens import Claims
from cdi.reconcile.clone.authority import sufficient
from cdi.reconcile.clone.facts import Grant
from cdi.server.aggregated_access import User
from cdi.server.hooks import Operation
from cdi.server.review import Allowed, Refused, Review, Verdict

_SUFFIX = 5
_ALPHABET = string.ascii_lowercase + string.digits


class Access(Protocol):
    """What is asked of the cluster; raises a `CdiError` where that does not answer."""

    async def data_source(self, namespace: str, name: str) -> DataSource | None: ...

    async def may(self, user: User, attributes: Mapping[str, str]) -> bool: ...

    def sign(self, claims: Claims) -> str:
        """A token.  Raises `ClusterUnavailable` while there is no key."""


async def authorise(review: Review, access: Access, labels: Mapping[str, str] | None = None) -> Verdict:
    """A DataVolume that is being made: with a token where its source is in another namespace and the user may, else
    without one.  One that is changed keeps the token that it was made with, or loses it.

    `labels` are those of the DataVolumes that this is asked about, where that is not all.  Raises what `access` does.
    """
    if review.operation is Operation.UPDATE:
        return _changed(review, labels or {})
    try:
        dv = parse(review.object)
    except InvalidManifest:
        return _without_token(review)  # the other webhook says better what is wrong
    source = await _source(dv, review.namespace, access) if isinstance(dv, DataVolume) else None
    if source is None or source.namespace == review.namespace:
        return _without_token(review)
    grant = Grant(
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
        # The answer is printed, compared, and kept in logs; a right is good for whoever reads it there.
        return _without_token(review)
    metadata: Mapping[str, Any] = review.object.get("metadata") or {}
    patch: list[dict[str, Any]] = []
    name = review.name or str(metadata.get("name") or "")
    if not name:
        # The API server makes the name up later; the token is for one name.
        name = f"{metadata.get('generateName') or ''}{''.join(secrets.choice(_ALPHABET) for _ in range(_SUFFIX))}"
        patch.append({"op": "add", "path": "/metadata/name", "value": name})
    token = access.sign(claims_of(replace(grant, target_name=name)))
    annotations = {**(metadata.get("annotations") or {}), ANN_CLONE_TOKEN: token}
    patch.append({"op": "add", "path": "/metadata/annotations", "value": annotations})
    return Allowed(patch=tuple(patch))


def _token(body: Mapping[str, Any]) -> object:
    """The one that an object carries, if any; an object that is sent to us may be anything."""
    metadata = body.get("metadata")
    annotations = metadata.get("annotations") if isinstance(metadata, dict) else None
    return annotations.get(ANN_CLONE_TOKEN) if isinstance(annotations, dict) else None


def _without_token(review: Review) -> Allowed:
    if _token(review.object) is None:
        return Allowed()
    return Allowed(patch=({"op": "remove", "path": f"/metadata/annotations/{ANN_CLONE_TOKEN.replace('/', '~1')}"},))


def _changed(review: Review, labels: Mapping[str, str]) -> Verdict:
    if _token(review.object) not in (None, _token(review.old)):
        message = "is written when a DataVolume is made, and cannot be added or changed"
        return Refused(problems=(Problem(field=f"metadata.annotations[{ANN_CLONE_TOKEN}]", message=message),))
    metadata = review.old.get("metadata")
    had = metadata.get("labels") if isinstance(metadata, dict) else None
    if labels.items() <= (had if isinstance(had, dict) else {}).items():
        return Allowed()
    # It was none of ours when it was made: nobody took away what it brought along.
    return _without_token(review)


async def _source(dv: DataVolume, namespace: str, access: Access) -> SourcePvc | SourceSnapshot | None:
    """What is cloned; None where that is nothing, or is not known yet."""
    if dv.spec.source is not None:
        return dv.spec.source.pvc if dv.spec.source.pvc is not None else dv.spec.source.snapshot
    if dv.spec.source_ref is None:
        return None
    found = await access.data_source(dv.spec.source_ref.namespace or namespace, dv.spec.source_ref.name)
    reference = found.spec.source.data_source if found is not None else None
    if reference is not None and found is not None and reference.namespace == found.metadata.namespace:
        found = await access.data_source(reference.namespace, reference.name)
    if found is None:
        return None
    return found.spec.source.pvc if found.spec.source.pvc is not None else found.spec.source.snapshot


async def _may(user: User, grant: Grant, access: Access) -> bool:
    for way in sufficient(grant.kind, grant.namespace, grant.name):
        for right in way:
            if not await access.may(user, right):
                break
        else:
            return True
    return False
