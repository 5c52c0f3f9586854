"""Event handlers of golden images: from a changed object to the DataImportCrons to reconcile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cdi.api.annotation_types import annotations_of
from cdi.api.annotations import read_origin
from cdi.api.kinds import (
    CDI_CONFIGS,
    CDIS,
    CLAIMS,
    CRON_JOBS,
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
from cdi.controller.cron_index import JOB_NAME, cron_of
from cdi.controller.informers import InformerSet
from cdi.controller.reconcilers.base import Handler, Predicate, Watch, changed
from cdi.controller.request import Request
from cdi.kube.reflector import WatchEvent
from cdi.reconcile.storage.classes import StorageClass


def all_requests(caches: InformerSet) -> Iterator[Request]:
    """Yield every DataImportCron, and those that no longer exist but left objects behind."""
    yield from all_crons(caches)
    yield from caches.crons.orphaned()


def all_crons(caches: InformerSet) -> Iterator[Request]:
    """Yield every DataImportCron."""
    for body in caches.values(DATA_IMPORT_CRONS):
        yield _request(body)


# --- DataImportCrons themselves ---------------------------------------------------------------------------------


def _itself_and_parent(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:  # noqa: ARG001  signature of handlers
    yield _request(change.object)
    yield from _parent(change.object)


def _request(body: Object) -> Request:
    return Request(kind="cron", namespace=body["metadata"]["namespace"], name=body["metadata"]["name"])


def _parent(body: Object) -> Iterator[Request]:
    """Yield the DataImportCron of several architectures that one of a single architecture belongs to."""
    for reference in body["metadata"].get("ownerReferences") or ():
        if reference.get("kind") == DATA_IMPORT_CRONS.kind and reference.get("controller"):
            yield Request(kind="cron", namespace=body["metadata"]["namespace"], name=reference.get("name") or "")


def _sharing(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:
    """Yield the DataImportCrons that waited for the DataSource of a deleted one."""
    body = change.object
    name = (body.get("spec") or {}).get("managedDataSource")
    yield from _with_data_source(body["metadata"]["namespace"], name, caches)


# --- their objects ----------------------------------------------------------------------------------------------


def _labelled(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:  # noqa: ARG001  signature of handlers
    """Yield the DataImportCrons that the labels of an object named before the change and name after it."""
    for state in (change.old, change.new):
        if (cron := cron_of(state)) is not None:
            yield cron


def _managing(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:
    """Yield the DataImportCrons that manage a DataSource.

    Without its label it may still be the managed one: one that a user has deleted is created again.
    """
    metadata = change.object["metadata"]
    yield from _with_data_source(metadata["namespace"], metadata["name"], caches)


def _with_data_source(namespace: str, name: str | None, caches: InformerSet) -> Iterator[Request]:
    for cron in caches.values(DATA_IMPORT_CRONS):
        if cron["metadata"]["namespace"] == namespace and (cron.get("spec") or {}).get("managedDataSource") == name:
            yield _request(cron)


def _polled_by(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:
    """Yield the DataImportCron that a poll pod belongs to, through its Job or as its owner."""
    metadata = change.object["metadata"]
    job = (metadata.get("labels") or {}).get(JOB_NAME)
    owner = cron_of(caches.get(JOBS, metadata["namespace"], job)) if job else None
    if owner is not None:
        yield owner
    for reference in metadata.get("ownerReferences") or ():
        if reference.get("kind") == DATA_IMPORT_CRONS.kind:
            yield Request(kind="cron", namespace=metadata["namespace"], name=reference.get("name") or "")


def _named_by(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:
    """Yield the DataImportCron whose current import a DataVolume without its label is."""
    metadata = change.object["metadata"]
    for cron in caches.values(DATA_IMPORT_CRONS):
        if cron["metadata"]["namespace"] == metadata["namespace"]:
            imports = (cron.get("status") or {}).get("currentImports") or ()
            if any(one.get("DataVolumeName") == metadata["name"] for one in imports):
                yield _request(cron)


def _cloned_by(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:
    """Yield the DataImportCrons that poll a PVC: one of the same name is another version."""
    metadata = change.object["metadata"]
    for cron in caches.values(DATA_IMPORT_CRONS):
        template = ((cron.get("spec") or {}).get("template") or {}).get("spec") or {}
        source = (template.get("source") or {}).get("pvc") or {}
        place = source.get("namespace") or cron["metadata"]["namespace"], source.get("name")
        if place == (metadata["namespace"], metadata["name"]):
            yield _request(cron)


def _released_by(resource: Resource) -> Handler:
    """Return the handler of a clone that has just ended to need its source.

    It yields the DataImportCron of the version that the source is, since that may be removed now.
    """

    def handler(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:
        return _released(resource, change, caches)

    return handler


def _released(resource: Resource, change: WatchEvent, caches: InformerSet) -> Iterator[Request]:
    if change.old is None or (source := pending_source(resource, change.old)) is None:
        return
    if change.new is not None and pending_source(resource, change.new) is not None:
        return
    metadata = change.object["metadata"]
    space = metadata["namespace"]
    claim = change.object if resource == CLAIMS else caches.get(CLAIMS, space, metadata["name"])
    origin = read_origin(claim)
    if origin is not None:
        yield Request(kind="cron", namespace=origin.namespace, name=origin.cron)
        return
    # It ended before it took over the origin: the labels of its source name the DataImportCron.
    named, name, snapshot = source
    kind = VOLUME_SNAPSHOTS if snapshot else CLAIMS
    if reference := (change.object.get("spec") or {}).get("sourceRef") if resource == DATA_VOLUMES else None:
        kind, named, name = DATA_SOURCES, reference.get("namespace") or "", reference.get("name") or ""
    if (cron := cron_of(caches.get(kind, named or space, name))) is not None:
        yield cron


def _every_cron(change: WatchEvent, caches: InformerSet) -> Iterator[Request]:  # noqa: ARG001  signature of handlers
    return all_crons(caches)


# --- facts ------------------------------------------------------------------------------------------------------


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


def _class_facts(body: Object | None) -> object:
    """Return the fields of a StorageClass that golden images depend on."""
    if body is None:
        return None
    found = StorageClass.read(body)
    return found.is_default, found.is_virt_default, found.created


def _profile_facts(body: Object | None) -> object:
    """Return the fields of a StorageProfile that golden images depend on."""
    if body is None:
        return None
    status = body.get("status") or {}
    annotations = annotations_of(body)
    relevant = {name: text for name, text in annotations.items() if name.endswith("ForDataImportCron")}
    return status.get("dataImportCronSourceFormat"), status.get("snapshotClass"), relevant


def _whole(body: Object | None) -> object:
    return body


def _is_deleted(change: WatchEvent) -> bool:
    return change.type == "DELETED"


def _is_added_or_deleted(change: WatchEvent) -> bool:
    return change.type != "MODIFIED"


def _both(first: Predicate, second: Predicate) -> Predicate:
    return lambda change: first(change) and second(change)


_import_changed: Final = changed(_import_facts)
_claim_changed: Final = changed(_claim_facts)
WATCHES: Final = (
    Watch(resource=DATA_IMPORT_CRONS, handler=_itself_and_parent),
    Watch(resource=DATA_IMPORT_CRONS, handler=_sharing, predicate=_is_deleted),
    Watch(resource=DATA_VOLUMES, handler=_released_by(DATA_VOLUMES)),
    Watch(resource=DATA_VOLUMES, handler=_labelled, predicate=_import_changed),
    Watch(resource=DATA_VOLUMES, handler=_named_by, predicate=_both(_import_changed, _is_added_or_deleted)),
    Watch(resource=CLAIMS, handler=_released_by(CLAIMS)),
    Watch(resource=CLAIMS, handler=_labelled, predicate=_claim_changed),
    Watch(resource=CLAIMS, handler=_cloned_by, predicate=_both(_claim_changed, _is_added_or_deleted)),
    *(Watch(resource=one, handler=_labelled) for one in (CRON_JOBS, DATA_SOURCES, JOBS, PODS, VOLUME_SNAPSHOTS)),
    Watch(resource=PODS, handler=_polled_by),
    Watch(resource=DATA_SOURCES, handler=_managing),
    Watch(resource=STORAGE_CLASSES, handler=_every_cron, predicate=changed(_class_facts)),
    Watch(resource=STORAGE_PROFILES, handler=_every_cron, predicate=changed(_profile_facts)),
    *(
        Watch(resource=resource, handler=_every_cron, predicate=changed(_whole))
        for resource in (VOLUME_SNAPSHOT_CLASSES, CDIS, CDI_CONFIGS)
    ),
)
"""Changes that lead to reconciles of DataImportCrons."""
