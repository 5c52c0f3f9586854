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
            yield (
                f"a temporary volume restored from the snapshot, PVC {record.namespace}/{record.restored}, "
                "until it has been read"
            )
        most = "" if record.size is None else f", at most {human(record.size)} ({record.size} bytes)"
        yield (
            "two pods: one reads the source for all clones of it that run now and sends its data"
            f"{most}, the other one writes the target"
        )
        return
    if record.snapshot:
        yield (
            f"VolumeSnapshot {record.namespace}/{record.snapshot}, shared by all clones that are requested "
            "while it exists"
        )
    made = "cloned by the storage" if record.strategy is CloneStrategy.CSI_CLONE else "restored from it by the storage"
    if record.strategy is CloneStrategy.SNAPSHOT and not record.snapshot:
        made = "restored from the snapshot by the storage"
    yield f"a volume {made}; no pod reads or writes its content"
    if record.size is not None and asked is not None and asked > record.size:
        yield (
            f"the volume is expanded from {human(record.size)} to {human(asked)}; a pod mounts it once to "
            "expand a filesystem"
        )
