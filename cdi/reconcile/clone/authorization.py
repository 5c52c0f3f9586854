"""Authorization of clones from another namespace, by a signed token.

Clones within a namespace need no authorization. For others, the admission webhook asks the API server whether the user
has permission, and signs a token; it is valid for minutes, and only on the DataVolume on which the webhook stored it.
After verification a long-lived token, bound to the DataVolume's UID, is stored on the PVC; only the controller signs
such tokens.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from cdi.api.errors import CloneUnauthorised, ClusterUnavailable
from cdi.api.names import ANN_CLONE_TOKEN, ANN_EXTENDED_CLONE_TOKEN, GROUP
from cdi.reconcile.clone.source import facts
from cdi.reconcile.clone.types import CloneAuthorization, SourceKind
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.types import PVC, Clone, Pending, Rejected


def has_permission(kind: SourceKind, namespace: str, name: str) -> tuple[tuple[dict[str, str], ...], ...]:
    """Return the sets of rights of which any one, held completely, permits cloning a source.

    These are the right that exists for cloning, and the rights with which the source could be read anyway: a user who
    may create pods can mount a PVC, and who may create PVCs as well can restore a snapshot into one. KubeVirt's CDI
    asks for ``pvcs`` instead, which is no resource of any API: only a role written for it (or ``*``) grants that, so it
    permits what its author meant. A pod's name is not asked about, because a role cannot limit creation to names.

    Each right is the ``resourceAttributes`` of an access review.
    """
    created = {"namespace": namespace, "verb": "create", "version": "*"}
    pods = {**created, "group": "", "resource": "pods"}
    own = {**created, "group": GROUP, "resource": "datavolumes", "subresource": "source", "name": name}
    if kind != "VolumeSnapshot":
        return (own,), (pods,)
    restores = ({**created, "group": "", "resource": resource} for resource in ("persistentvolumeclaims", "pvcs"))
    return (own,), *((pods, restore) for restore in restores)


def authorize(
    context: ReconcileContext, origin: Clone, claim: PVC | None
) -> CloneAuthorization | Rejected | Pending | None:
    """Return the grant that authorizes the clone, None if none is needed, or why it cannot proceed."""
    metadata = context.datavolume.metadata
    namespace, name = metadata.namespace or "", metadata.name or ""
    if origin.namespace == namespace:
        return None
    wanted = CloneAuthorization(
        kind=origin.kind,
        namespace=origin.namespace,
        name=origin.name,
        target_namespace=namespace,
        target_name=name,
    )
    kept = replace(wanted, target_uid=metadata.uid or "")
    own = metadata.annotations or {}
    lasting = {**own, **(claim.annotations if claim is not None else {})}.get(ANN_EXTENDED_CLONE_TOKEN)
    # The annotations of a PVC have not passed a webhook that checks permissions.
    fresh = own.get(ANN_CLONE_TOKEN) if not context.synthetic else None
    signed: CloneAuthorization | None = None
    try:
        # A long-lived token is valid for this DataVolume only, not for another one of the same name that it was copied
        # to.
        if lasting and facts(context).verify_token(lasting, context.now) == kept:
            return kept
        if fresh:
            signed = facts(context).verify_token(fresh, _created(context))
    except ClusterUnavailable as error:
        return Pending(reason=error.code, message=error.message)
    return kept if signed == wanted else Rejected.because(_refusal(wanted, signed, shown=bool(lasting or fresh)))


def _refusal(wanted: CloneAuthorization, signed: CloneAuthorization | None, *, shown: bool) -> CloneUnauthorised:
    place, target = f"{wanted.namespace}/{wanted.name}", f"{wanted.target_namespace}/{wanted.target_name}"
    if signed is not None and (signed.target_namespace, signed.target_name) == (
        wanted.target_namespace,
        wanted.target_name,
    ):
        return CloneUnauthorised(
            f"{signed.namespace}/{signed.name} was authorized to be cloned into {target}, but its source is now "
            f"{place}",
            where="metadata.annotations",
            remedy="delete the DataVolume and apply it again to authorize the new source",
        )
    return CloneUnauthorised(
        f"the token does not allow {place} to be cloned into {target}, or has expired"
        if shown
        else f"no authorized user has allowed {place} to be cloned into {target}",
        where="metadata.annotations",
    )


def _created(context: ReconcileContext) -> float:
    """Return when the token must have been valid: at the DataVolume's creation, however late that is reconciled."""
    text = context.datavolume.metadata.creation_timestamp
    if text is None:
        return context.now
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return context.now
