"""Whether a volume of another namespace may be cloned: somebody who may has said so, in a token.

Within one namespace everybody may.  The admission webhook asks the API server whether the user may, and signs what was
allowed; that token is good for minutes.  Once it was verified, one that lasts is kept on the claim.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from cdi.api.errors import CloneUnauthorised, ClusterUnavailable
from cdi.api.names import ANN_CLONE_TOKEN, ANN_EXTENDED_CLONE_TOKEN
from cdi.reconcile.clone.facts import Grant
from cdi.reconcile.clone.source import facts
from cdi.reconcile.origin import Clone, Refuse, Wait

if TYPE_CHECKING:
    from cdi.reconcile.world import Claim, World


def allowed(world: World, origin: Clone, claim: Claim | None) -> Grant | Refuse | Wait | None:
    """The grant that allows it, None where none is needed."""
    metadata = world.datavolume.metadata
    namespace, name = metadata.namespace or "", metadata.name or ""
    if origin.namespace == namespace:
        return None
    wanted = Grant(
        kind=origin.kind,
        namespace=origin.namespace,
        name=origin.name,
        target_namespace=namespace,
        target_name=name,
    )
    kept = replace(wanted, target_uid=metadata.uid or "")
    noted = {**(metadata.annotations or {}), **(claim.annotations if claim is not None else {})}
    moments = {ANN_EXTENDED_CLONE_TOKEN: world.now}
    if not world.synthetic:
        # A claim that somebody annotated by hand has passed no webhook that asks for rights.
        moments[ANN_CLONE_TOKEN] = _created(world)
    shown = [(token, moment) for annotation, moment in moments.items() if (token := noted.get(annotation))]
    for token, moment in shown:
        try:
            found = facts(world).grant(token, moment)
        except ClusterUnavailable as error:
            return Wait(reason=error.code, message=error.message)
        # One that lasts is for this DataVolume alone: whoever copied it to another of the same name has no leave.
        if found in (wanted, kept):
            return kept
    place = f"{origin.namespace}/{origin.name}"
    return Refuse.because(
        CloneUnauthorised(
            f"nobody who may has allowed {place} to be cloned into {namespace}/{name}"
            if not shown
            else f"the token does not allow {place} to be cloned into {namespace}/{name}, or has expired",
            where="metadata.annotations",
        )
    )


def _created(world: World) -> float:
    """When a token must have been good: however long nobody looked at it since."""
    text = world.datavolume.metadata.creation_timestamp
    if text is None:
        return world.now
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return world.now
