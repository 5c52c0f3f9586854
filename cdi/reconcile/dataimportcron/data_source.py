"""DataSources of a DataImportCron: the managed one, and those of its channels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from cdi.api.dataimportcron import DataImportCron
from cdi.api.datasource import DataSource
from cdi.api.names import LABEL_DATA_IMPORT_CRON, propagates
from cdi.reconcile.actions import Action, CreateObject, Event, PatchObject
from cdi.reconcile.dataimportcron.context import CronContext
from cdi.reconcile.dataimportcron.formats import Source
from cdi.reconcile.dataimportcron.labels import missing, resource_labels
from cdi.reconcile.dataimportcron.objects import VersionObjects

ALREADY_MANAGED: Final = "ErrDataSourceAlreadyManaged"


def already_managed(context: CronContext) -> Event | None:
    """Return the event that the DataSource belongs to another DataImportCron; None if it does not."""
    found = context.objects.data_source(context.namespace, context.data_source_name)
    if found is None:
        return None
    label = (found.metadata.labels or {}).get(LABEL_DATA_IMPORT_CRON)
    if not label or label == context.name:
        return None
    other = context.objects.cron(context.namespace, label)
    if other is None or not _manages(other, context.data_source_name):
        return None
    text = f"DataSource {context.data_source_name} is already managed by DataImportCron {label}"
    return Event(type="Warning", reason=ALREADY_MANAGED, message=text)


def _manages(cron: DataImportCron, data_source: str) -> bool:
    return cron.metadata.deletion_timestamp is None and cron.spec.managed_data_source == data_source


def is_managed(context: CronContext, found: DataSource) -> bool:
    """Return whether a DataSource changes with the versions: its label names the DataImportCron."""
    return (found.metadata.labels or {}).get(LABEL_DATA_IMPORT_CRON) == context.name


def present_source(context: CronContext, name: str) -> Source:
    """Return ``spec.source`` of a DataSource; empty if it does not exist."""
    found = context.objects.data_source(context.namespace, name)
    return found.spec.source.to_dict() if found is not None else {}


def offered_version(context: CronContext, name: str) -> str | None:
    """Return the name of the volume in the namespace that a DataSource refers to; None if it refers to none."""
    source = present_source(context, name)
    place = source.get("pvc") or source.get("snapshot") or {}
    return str(place["name"]) if place.get("namespace") == context.namespace else None


def plan_data_source(
    context: CronContext, name: str, source: Source | None, objects: VersionObjects | None = None
) -> tuple[Action, ...]:
    """Create a DataSource, or change its labels and its source by one patch.

    A DataSource without the label of the DataImportCron is left unchanged.

    Args:
        context: The DataImportCron.
        name: The DataSource.
        source: What it refers to from now on, empty for nothing; None to leave that unchanged.
        objects: Objects of the version that it offers, whose labels it takes over.

    """
    found = context.objects.data_source(context.namespace, name)
    labels = dict(_carried_labels(objects)) | resource_labels(context)
    if found is None:
        return (CreateObject(body=_body(context, name, labels, source)),)
    if not is_managed(context, found) or found.metadata.deletion_timestamp is not None:
        return ()
    present = found.metadata.labels or {}
    changed = missing(labels, present)
    spec = _source_patch(found.spec.source.to_dict(), source) if source is not None else {}
    if not changed and not spec:
        return ()
    patch = PatchObject(
        plural="datasources",
        namespace=context.namespace,
        name=name,
        uid=found.metadata.uid or "",
        labels=changed,
        spec=spec,
    )
    return (patch,)


def _body(context: CronContext, name: str, labels: Mapping[str, str], source: Source | None) -> dict[str, Any]:
    return {
        "apiVersion": DataSource.group_version,
        "kind": DataSource.kind_name(),
        "metadata": {"name": name, "namespace": context.namespace, "labels": dict(labels)},
        "spec": {"source": dict(source or {})},
    }


def _source_patch(before: Mapping[str, Any], after: Source) -> dict[str, Any]:
    """Return the merge patch of the spec with which the source becomes exactly `after`."""
    if before == after:
        return {}
    return {"source": {**{form: None for form in before if form not in after}, **after}}


def _carried_labels(objects: VersionObjects | None) -> Iterator[tuple[str, str]]:
    """Yield the labels of a version's volume that its DataSource has as well, such as those of instance types."""
    if objects is None:
        return
    volume = objects.claim if objects.claim is not None else objects.snapshot
    for name, text in (volume.labels if volume is not None else {}).items():
        if propagates(name):
            yield name, text
