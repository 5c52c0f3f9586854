"""Event handlers of golden images: from a changed object to the DataImportCrons to reconcile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cdi.api.kinds import (
    CDI_CONFIGS,
    CDIS,
    CLAIMS,
    DATA_IMPORT_CRONS,
    DATA_SOURCES,
    DATA_VOLUMES,
    JOBS,
    PODS,
    STORAGE_CLASSES,
    STORAGE_PROFILES,
    VOLUME_SNAPSHOT_CLASSES,
    VOLUME_SNAPSHOTS,
    Object,
    Resource,
)
from cdi.controller.clone_index import pending_source
from cdi.controller.cron_index import JOB_NAME, OWNED, cron_of
from cdi.controller.informers import InformerSet
from cdi.controller.request import Request
from cdi.kube.reflector import WatchEvent
from cdi.reconcile.datavolume.lineage import parse_origin
from cdi.reconcile.storage.classes import StorageClass

_RELEVANT_TO_ALL: Final = frozenset({STORAGE_CLASSES, STORAGE_PROFILES, VOLUME_SNAPSHOT_CLASSES, CDIS, CDI_CONFIGS})


def requests_for(resource: Resource, change: WatchEvent, watches: InformerSet) -> Iterator[Request]:
    """Yield the DataImportCrons that depend on a changed object."""
    body = change.object
    if resource == DATA_IMPORT_CRONS:
        yield _request(body)
        yield from _parent(body)
        if change.type == "DELETED":
            yield from _sharing(body, watches)
    elif resource in OWNED:
        if resource in (CLAIMS, DATA_VOLUMES):
            yield from _released_by(resource, change, watches)
        facts = _FACTS.get(resource)
        if facts is not None and facts(change.old) == facts(change.new):
            return  # the progress of an import, for instance
        for state in (change.old, change.new):
            if (cron := cron_of(state)) is not None:
                yield cron
        if resource == PODS:
            yield from _polled_by(body, watches)
        elif resource == DATA_SOURCES:
            # Without its label it may still be the managed one: one that a user has deleted is created again.
            yield from _managing(body, watches)
        elif resource == DATA_VOLUMES and change.type != "MODIFIED":
            yield from _named_by(body, watches)
        elif resource == CLAIMS:
            yield from _cloned_by(change, watches)
    elif resource in _RELEVANT_TO_ALL and _class_facts(resource, change.old) != _class_facts(resource, change.new):
        yield from all_crons(watches)


def all_requests(watches: InformerSet) -> Iterator[Request]:
    """Yield every DataImportCron, and those that no longer exist but left objects behind."""
    yield from all_crons(watches)
    yield from watches.crons.orphaned()


def all_crons(watches: InformerSet) -> Iterator[Request]:
    for body in watches.values(DATA_IMPORT_CRONS):
        yield _request(body)


def _request(body: Object) -> Request:
    return Request(kind="cron", namespace=body["metadata"]["namespace"], name=body["metadata"]["name"])


def _parent(body: Object) -> Iterator[Request]:
    """Yield the DataImportCron of several architectures that one of a single architecture belongs to."""
    for reference in body["metadata"].get("ownerReferences") or ():
        if reference.get("kind") == DATA_IMPORT_CRONS.kind and reference.get("controller"):
            yield Request(kind="cron", namespace=body["metadata"]["namespace"], name=reference.get("name") or "")


def _sharing(body: Object, watches: InformerSet) -> Iterator[Request]:
    """Yield the DataImportCrons that waited for the DataSource of a deleted one."""
    name = (body.get("spec") or {}).get("managedDataSource")
    yield from _with_data_source(body["metadata"]["namespace"], name, watches)


def _managing(body: Object, watches: InformerSet) -> Iterator[Request]:
    yield from _with_data_source(body["metadata"]["namespace"], body["metadata"]["name"], watches)


def _with_data_source(namespace: str, name: str | None, watches: InformerSet) -> Iterator[Request]:
    for cron in watches.values(DATA_IMPORT_CRONS):
        if cron["metadata"]["namespace"] == namespace and (cron.get("spec") or {}).get("managedDataSource") == name:
            yield _request(cron)


def _polled_by(pod: Object, watches: InformerSet) -> Iterator[Request]:
    """Yield the DataImportCron that a poll pod belongs to, through its Job or as its owner."""
    metadata = pod["metadata"]
    job = (metadata.get("labels") or {}).get(JOB_NAME)
    owner = cron_of(watches.get(JOBS, metadata["namespace"], job)) if job else None
    if owner is not None:
        yield owner
    for reference in metadata.get("ownerReferences") or ():
        if reference.get("kind") == DATA_IMPORT_CRONS.kind:
            yield Request(kind="cron", namespace=metadata["namespace"], name=reference.get("name") or "")


def _named_by(body: Object, watches: InformerSet) -> Iterator[Request]:
    """Yield the DataImportCron whose current import a DataVolume without its label is."""
    metadata = body["metadata"]
    for cron in watches.values(DATA_IMPORT_CRONS):
        if cron["metadata"]["namespace"] == metadata["namespace"]:
            imports = (cron.get("status") or {}).get("currentImports") or ()
            if any(one.get("DataVolumeName") == metadata["name"] for one in imports):
                yield _request(cron)


def _cloned_by(change: WatchEvent, watches: InformerSet) -> Iterator[Request]:
    """Yield the DataImportCrons that poll a PVC: one of the same name is another version."""
    if change.type == "MODIFIED":
        return
    metadata = change.object["metadata"]
    for cron in watches.values(DATA_IMPORT_CRONS):
        template = ((cron.get("spec") or {}).get("template") or {}).get("spec") or {}
        source = (template.get("source") or {}).get("pvc") or {}
        place = source.get("namespace") or cron["metadata"]["namespace"], source.get("name")
        if place == (metadata["namespace"], metadata["name"]):
            yield _request(cron)


def _released_by(resource: Resource, change: WatchEvent, watches: InformerSet) -> Iterator[Request]:
    """Yield the DataImportCron of the version that a clone has just ended to need, since it may be removed now."""
    if change.old is None or (source := pending_source(resource, change.old)) is None:
        return
    if change.new is not None and pending_source(resource, change.new) is not None:
        return
    metadata = change.object["metadata"]
    space = metadata["namespace"]
    claim = change.object if resource == CLAIMS else watches.get(CLAIMS, space, metadata["name"])
    origin = parse_origin((claim or {}).get("metadata", {}).get("annotations") or {})
    if origin is not None:
        yield Request(kind="cron", namespace=origin.namespace, name=origin.cron)
        return
    # It ended before it took over the origin: the labels of its source name the DataImportCron.
    named, name, snapshot = source
    kind = VOLUME_SNAPSHOTS if snapshot else CLAIMS
    if reference := (change.object.get("spec") or {}).get("sourceRef") if resource == DATA_VOLUMES else None:
        kind, named, name = DATA_SOURCES, reference.get("namespace") or "", reference.get("name") or ""
    if (cron := cron_of(watches.get(kind, named or space, name))) is not None:
        yield cron


def _import_facts(body: Object | None) -> object:
    """Return the fields of a DataVolume that golden images depend on."""
    if body is None:
        return None
    metadata, status = body["metadata"], body.get("status") or {}
    running = [one.get("reason") for one in status.get("conditions") or () if one.get("type") == "Running"]
    return metadata["uid"], status.get("phase"), running, "deletionTimestamp" in metadata, metadata.get("labels")


def _claim_facts(body: Object | None) -> object:
    """Return the fields of a PVC that golden images depend on."""
    if body is None:
        return None
    metadata = body["metadata"]
    annotations = {
        name: text
        for name, text in (metadata.get("annotations") or {}).items()
        if "/golden." in name or name.endswith("/storage.import.lastUseTime")
    }
    phase = (body.get("status") or {}).get("phase")
    return metadata["uid"], phase, "deletionTimestamp" in metadata, metadata.get("labels"), annotations


_FACTS: Final = {CLAIMS: _claim_facts, DATA_VOLUMES: _import_facts}


def _class_facts(resource: Resource, body: Object | None) -> object:
    """Return the fields of a class, profile or configuration that golden images depend on."""
    if body is None or resource not in (STORAGE_CLASSES, STORAGE_PROFILES):
        return body
    if resource == STORAGE_CLASSES:
        found = StorageClass.read(body)
        return found.is_default, found.is_virt_default, found.created
    status = body.get("status") or {}
    annotations = body["metadata"].get("annotations") or {}
    relevant = {name: text for name, text in annotations.items() if name.endswith("ForDataImportCron")}
    return status.get("dataImportCronSourceFormat"), status.get("snapshotClass"), relevant
