"""Facts about a clone in a cluster, from the annotations of its PVC and without I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdi.api.quantity import Quantity
from cdi.explain.image import CloneFacts
from cdi.reconcile.clone.plan_annotation import ANNOTATION, ClonePlanRecord, requested_source
from cdi.reconcile.clone.status import costs
from cdi.remote.worker_lookup import notes_of

if TYPE_CHECKING:
    from cdi.api.kinds import Object


def clone_facts(claim: Object | None) -> CloneFacts | None:
    """Return the facts, or None if the PVC is no clone or nothing has been decided yet."""
    notes = notes_of(claim)
    record, source = ClonePlanRecord.parse(notes.get(ANNOTATION)), requested_source(notes)
    if claim is None or record is None or source is None:
        return None
    namespace, name, snapshot = source
    asked = ((claim["spec"].get("resources") or {}).get("requests") or {}).get("storage")
    return CloneFacts(
        source=f"{'VolumeSnapshot' if snapshot else 'PVC'} {namespace}/{name}",
        size=record.size,
        allocated=None,
        reflink=False,
        strategy=record.strategy.value,
        why=record.message,
        fallbacks=record.fallbacks,
        costs=costs(record, None if asked is None else Quantity.parse(str(asked)).bytes),
    )
