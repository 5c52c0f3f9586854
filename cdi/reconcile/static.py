"""Volumes that somebody made for a DataVolume's claim, with its content: a backup that was restored, say.

Who sets ``storage.checkStaticVolume`` asks that they be looked for before anything is imported.  A claim is made that
names no source, and is bound to one of them.  Which they were is kept in an annotation of it: Kubernetes may have bound
it to another volume by then, which is empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cdi.api.names import ANN_CHECK_STATIC_VOLUME, ANN_PERSISTENT_VOLUMES, ANN_POPULATED_FOR, ANN_USE_POPULATOR
from cdi.api.phases import Reason
from cdi.api.quantity import Quantity
from cdi.reconcile.actions import DeleteObject
from cdi.reconcile.decision import Decision, pending
from cdi.reconcile.filling import there_already
from cdi.reconcile.origin import Wait
from cdi.reconcile.world import Claim, Volume, World

_FREE = ("", "Pending", "Available")
"""Phases of a volume that no claim has yet.

One that was made a moment ago is Pending until Kubernetes has looked at it, which then binds it to the claim that it
names, whatever source that claim has.
"""


def static_claim(world: World, body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The claim `body` as it is to be bound to a volume that is there; None where there is none, or nobody asks."""
    dv = world.datavolume
    if not world.platform.cluster or ANN_CHECK_STATIC_VOLUME not in (dv.metadata.annotations or {}):
        return None
    spec, metadata = body["spec"], body["metadata"]
    known = world.objects.volumes_for(metadata["namespace"], metadata["name"])
    names = sorted(volume.name for volume in known if _satisfies(volume, spec))
    if not names:
        return None
    annotations = {**metadata["annotations"], ANN_PERSISTENT_VOLUMES: json.dumps(names), ANN_USE_POPULATOR: "false"}
    return {
        **body,
        "metadata": {**metadata, "annotations": annotations},
        "spec": {name: part for name, part in spec.items() if name not in ("dataSource", "dataSourceRef")},
    }


def until_static(world: World, claim: Claim) -> Decision | None:
    """What becomes of a claim that is to be bound to a volume with its content; None of any other."""
    text = claim.annotations.get(ANN_PERSISTENT_VOLUMES)
    if text is None or not world.platform.cluster:
        return None
    names = _names(text)
    if claim.phase != "Bound":
        message = claim.why_pending or f"waits for its volume, which is there: {', '.join(names)}"
        return pending(claim, Wait(reason=Reason.PENDING, message=message))
    if claim.volume_name in names:
        marks = {ANN_POPULATED_FOR: world.datavolume.metadata.name, ANN_PERSISTENT_VOLUMES: None}
        return replace(there_already(world, claim), marks=marks)
    message = f"it was bound to volume {claim.volume_name}, not to {' or '.join(names)}, and is made anew"
    again = DeleteObject(plural="persistentvolumeclaims", namespace=claim.namespace, name=claim.name, uid=claim.uid)
    return replace(pending(claim, Wait(reason=Reason.PENDING, message=message)), actions=(again,))


def _satisfies(volume: Volume, spec: Mapping[str, Any]) -> bool:
    """Whether Kubernetes would bind a claim to a volume that is kept for it."""
    asked = Quantity.parse(str(spec["resources"]["requests"]["storage"])).bytes
    return (
        volume.phase in _FREE
        and not volume.claim_uid
        and not volume.deleting
        and volume.capacity is not None
        and volume.capacity >= asked
        and volume.storage_class == (spec.get("storageClassName") or "")
        and volume.volume_mode == (spec.get("volumeMode") or "Filesystem")
        and set(spec.get("accessModes") or ()) <= set(volume.access_modes)
    )


def _names(text: str) -> list[str]:
    """A list that somebody altered beyond reading is empty."""
    try:
        found = json.loads(text)
    except ValueError:
        return []
    return [str(one) for one in found] if isinstance(found, list) else []
