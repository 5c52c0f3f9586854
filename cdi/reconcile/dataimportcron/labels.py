"""Labels and last-use annotations of the objects of a DataImportCron."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final

from cdi.api.annotations import LAST_USE
from cdi.api.dataimportcron import RetentionPolicy
from cdi.api.names import (
    LABEL_DATA_IMPORT_CRON,
    LABEL_DATA_IMPORT_CRON_CLEANUP,
    propagates,
)
from cdi.reconcile.dataimportcron.context import CronContext

MANAGED_LABELS: Final = {
    "app.kubernetes.io/managed-by": "cdi-controller",
    "app.kubernetes.io/component": "storage",
}


def resource_labels(context: CronContext) -> dict[str, str]:
    """Return the labels of the DataVolumes, PVCs, VolumeSnapshots and DataSources of a DataImportCron."""
    labels = {**context.config.labels, **MANAGED_LABELS}
    labels |= {name: text for name, text in context.labels.items() if propagates(name)}
    labels[LABEL_DATA_IMPORT_CRON] = context.name
    if context.cron.spec.retention_policy == RetentionPolicy.NONE:
        labels[LABEL_DATA_IMPORT_CRON_CLEANUP] = "true"
    return labels


def missing(wanted: Mapping[str, str], present: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of `wanted` that `present` lacks or has with another value."""
    return {name: text for name, text in wanted.items() if present.get(name) != text}


def last_use(now: float) -> str:
    """Return a value of the annotation lastUseTime: RFC 3339 in UTC with nanoseconds, which sorts as text."""
    moment = datetime.fromtimestamp(now, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond * 1000:09d}Z"


def refreshed_last_use(context: CronContext, annotations: Mapping[str, str], others: Iterable[str]) -> dict[str, str]:
    """Return the annotation that makes the current version the one used last; empty if it already is.

    It is not written at every reconcile, since every write of a volume causes another reconcile.

    Args:
        context: The DataImportCron.
        annotations: Annotations of the current version's volume.
        others: Values of the annotation of its other versions.

    """
    own = LAST_USE.read(annotations)
    newest = max(others, default="")
    if own and own > newest:
        return {}
    # A clock that was set back must not make the current version the oldest.
    moment = last_use(context.now)
    return LAST_USE.write(moment if moment > newest else f"{newest}0")
