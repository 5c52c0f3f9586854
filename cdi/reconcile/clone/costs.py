"""Descriptions of what a clone costs, for users."""

from __future__ import annotations

from collections.abc import Iterator

from cdi.api.quantity import human
from cdi.api.storageprofile import CloneStrategy
from cdi.reconcile.clone.record import CloneRecord


def costs(record: CloneRecord, asked: int | None) -> tuple[str, ...]:
    """Return the costs of a clone to a target of `asked` bytes."""
    return tuple(_costs(record, asked))


def _costs(record: CloneRecord, asked: int | None) -> Iterator[str]:
    if record.strategy is CloneStrategy.COPY:
        if record.restored:
            yield f"a volume of the snapshot, PVC {record.namespace}/{record.restored}, for as long as it is read"
        most = "" if record.size is None else f", at most {human(record.size)} ({record.size} bytes)"
        yield (
            "two pods: one reads the source, for all that are copied from it now, and sends what data it has"
            f"{most}, the other one writes it"
        )
        return
    if record.snapshot:
        yield f"VolumeSnapshot {record.namespace}/{record.snapshot}, shared by all clones that are asked for meanwhile"
    made = "cloned by the storage" if record.strategy is CloneStrategy.CSI_CLONE else "that the storage makes of it"
    if record.strategy is CloneStrategy.SNAPSHOT and not record.snapshot:
        made = "that the storage makes of the snapshot"
    yield f"a volume {made}; no pod reads or writes its content"
    if record.size is not None and asked is not None and asked > record.size:
        yield f"the volume grows from {human(record.size)} to {human(asked)}, a file system in a pod that has it once"
