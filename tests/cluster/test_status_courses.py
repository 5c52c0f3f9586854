"""Phase, conditions, events and annotations of DataVolumes of every kind, compared with the documented table.

All of them are created at once with tiny images, and nothing is booted. Each row waits for its own DataVolume.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from cdi.api import names
from cdi.api.errors import Retry, SourceNotFound
from cdi.api.phases import Phase
from cdi.reconcile.datavolume.status_cases import CASES, Case
from cdi.reconcile.datavolume.status_table import COMPLETE, EVENTS, OPERATIONS, Course
from tests.cluster.cdi import controller
from tests.cluster.event_log import following
from tests.cluster.objects import claim, snapshot
from tests.cluster.servers import serving
from tests.cluster.volumes import IMMEDIATE, MIB, data_volume, disk, sha256, wait_phase
from tests.status_texts import has_conditions

Document = dict[str, Any]
TIMEOUT = 300.0  # seconds, for what takes one minute on an idle machine
SIZE = 1 * MIB
FILES, BLOCK = "Filesystem", "Block"
CLONING, FULL = "status-cloning", "status-full"
"""StorageClasses: one that clones PVCs, and one of which the quota allows no PVC."""
NO_POPULATOR = {names.ANN_USE_POPULATOR: "false"}
AT_ONCE = {IMMEDIATE: ""}
RETRIED = "an attempt has failed, and is repeated"
HOPELESS = "only another source or another manifest can help, and there is a PVC"
NOT_FOUND = (Phase.FAILED, HOPELESS) if SourceNotFound.retry is Retry.NEVER else (Phase.IMPORT_IN_PROGRESS, RETRIED)
DONE = (Phase.SUCCEEDED, "the content is complete")
NO_SOURCE = (Phase.PENDING, "the source does not exist")
NO_CONSUMER = (Phase.PENDING_POPULATION, "with a populator: no pod uses the PVC yet")
NO_CONSUMER_DIRECT = (Phase.WAIT_FOR_FIRST_CONSUMER, "without a populator: no pod uses the PVC yet")
SERVING = (Phase.UPLOAD_READY, "the pod runs")
QUOTA = (Phase.PENDING, "a quota does not allow the PVC")
INVALID = (Phase.PENDING, "the PVC is incomplete or invalid")
WAITING = (Phase.PENDING, "it waits for something else before its PVC is created")
EXISTS = (Phase.SUCCEEDED, "at once")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One DataVolume, and where its course ends or stays."""

    name: str
    course: Course
    source: str
    storage_class: str = "csi"
    mode: str = FILES
    annotations: dict[str, str] = field(default_factory=dict)
    end: tuple[Phase, str] = DONE
    events: tuple[str, ...] = ()
    """Reasons of further events."""
    notes: dict[str, str] = field(default_factory=dict)
    """Further annotations of the PVC."""
    running: str = ""
    """Reason of Running where the table leaves it open."""
    message: str = ""
    """Part of Running's message where the table leaves it open."""
    size: str = "24Mi"

    @property
    def case(self) -> Case:
        phase, when = self.end
        (found,) = (one for one in CASES if self.course in one.courses and (one.phase, one.when) == (phase, when))
        return found

    @property
    def populator(self) -> bool:
        return self.storage_class in ("csi", "csi-wait", CLONING) and not self.annotations.keys() & NO_POPULATOR.keys()


def imported(name: str, source: str, storage_class: str = "csi", mode: str = FILES, **more: Any) -> Row:
    return Row(name=name, course=Course.IMPORT, source=source, storage_class=storage_class, mode=mode, **more)


def uploaded(name: str, storage_class: str = "csi", mode: str = FILES, **more: Any) -> Row:
    row = {"end": SERVING, **more}
    return Row(name=name, course=Course.UPLOAD, source="upload", storage_class=storage_class, mode=mode, **row)


def cloned(name: str, kind: str, storage_class: str = "csi", mode: str = FILES, **more: Any) -> Row:
    """Return a row whose clone has `kind` as its ``cloneType``."""
    return Row(
        name=name, course=Course.CLONE, source=f"golden-{mode.lower()}", storage_class=storage_class, mode=mode,
        notes={names.ANN_CLONE_TYPE: kind, names.ANN_CLONE_PHASE: "Succeeded", names.ANN_CLONE_OF: "true"}, **more,
    )  # fmt: skip


def unclonable(name: str, source: str, storage_class: str = "csi", **more: Any) -> Row:
    return Row(
        name=name, course=Course.CLONE, source=source, storage_class=storage_class, end=NO_SOURCE,
        events=("CloneWithoutSource",), **more,
    )  # fmt: skip


SNAPSHOT = ("SnapshotForSmartCloneInProgress", "CloneFromSnapshotSourceInProgress")
FAILED = {"notes": {names.ANN_POD_PHASE: "Failed"}, "end": (Phase.FAILED, HOPELESS)}
ROWS = (
    imported("http-files", "http"),
    imported("http-block", "http", mode=BLOCK),
    imported("http-wait", "http", "csi-wait", annotations=AT_ONCE),
    imported("http-wait-block", "http", "csi-wait", BLOCK, annotations=AT_ONCE),
    imported("http-local", "http", "local"),
    imported("http-local-block", "http", "local", BLOCK),
    imported("http-local-wait", "http", "local-wait", annotations=AT_ONCE),
    imported("http-direct", "http", annotations=NO_POPULATOR),
    imported("http-direct-block", "http", mode=BLOCK, annotations=NO_POPULATOR),
    imported("registry-files", "registry"),
    imported("registry-block", "registry", mode=BLOCK),
    imported("registry-direct", "registry", "local"),
    imported("s3-files", "s3"),
    imported("s3-direct", "s3", "local"),
    imported("blank-files", "blank"),
    imported("blank-block", "blank", mode=BLOCK),
    imported("blank-local", "blank", "local"),
    imported("blank-direct", "blank", annotations=NO_POPULATOR),
    imported("no-consumer", "http", "csi-wait", end=NO_CONSUMER),
    imported("no-consumer-block", "http", "csi-wait", BLOCK, end=NO_CONSUMER),
    imported("no-consumer-blank", "blank", "csi-wait", end=NO_CONSUMER),
    imported("no-consumer-local", "http", "local-wait", end=NO_CONSUMER_DIRECT),
    imported("no-consumer-direct", "http", "csi-wait", end=NO_CONSUMER_DIRECT, annotations=NO_POPULATOR),
    uploaded("upload-no-consumer", "csi-wait", end=NO_CONSUMER),
    uploaded("upload-no-consumer-local", "local-wait", end=NO_CONSUMER_DIRECT),
    uploaded("upload-files"),
    uploaded("upload-block", mode=BLOCK),
    uploaded("upload-local", "local"),
    uploaded("upload-direct", annotations=NO_POPULATOR),
    cloned("snapshot-files", "snapshot", events=SNAPSHOT),
    cloned("snapshot-block", "snapshot", mode=BLOCK, events=SNAPSHOT),
    cloned("csi-clone-files", "csi-clone", CLONING, events=("CSICloneInProgress",)),
    cloned("csi-clone-block", "csi-clone", CLONING, BLOCK, events=("CSICloneInProgress",)),
    cloned("copy-local", "copy", "local", events=("CloneInProgress",)),
    cloned("copy-direct", "copy", annotations=NO_POPULATOR, events=("CloneInProgress",)),
    unclonable("no-pvc", "nothing"),
    unclonable("no-pvc-local", "nothing", "local"),
    unclonable("no-pvc-block", "nothing", mode=BLOCK),
    unclonable("no-snapshot", "no snapshot"),
    Row(name="external", course=Course.EXTERNAL, source="reference", end=(Phase.SUCCEEDED, "the PVC is bound"),
        notes={names.ANN_EXTERNAL_POPULATION: "true"}),
    Row(name="adopted", course=Course.EXISTING, source="http", storage_class="local", end=EXISTS,
        annotations={names.ANN_ALLOW_CLAIM_ADOPTION: "true"}, notes={names.ANN_POPULATED_FOR: "adopted"}),
    Row(name="populated", course=Course.EXISTING, source="http", storage_class="local", end=EXISTS),
    Row(name="static", course=Course.EXISTING, source="http", storage_class="local", end=EXISTS,
        annotations={names.ANN_CHECK_STATIC_VOLUME: ""}),
    imported("restored", "http", end=WAITING, annotations={names.ANN_PRE_POPULATED: "restored"}),
    imported("missing", "missing", end=NOT_FOUND, running="Error", message="Unable to connect to http data source"),
    imported("missing-block", "missing", "local", BLOCK, end=NOT_FOUND, running="Error",
             message="Unable to connect to http data source"),
    imported("mismatch", "mismatch", running="ChecksumError", message="checksum validation failed",
             events=("ImportFailed",), **FAILED),
    imported("mismatch-direct", "mismatch", "local", running="ChecksumError", message="checksum validation failed",
             events=("ImportFailed",), **FAILED),
    imported("small", "large", mode=BLOCK, running="Error", message="DataVolume too small to contain image",
             events=("ImportFailed",), **FAILED),
    imported("small-direct", "large", "local", BLOCK, running="Error", events=("ImportFailed",),
             message="DataVolume too small to contain image", **FAILED),
    imported("quota", "http", FULL, end=QUOTA, events=("ErrExceededQuota",)),
    imported("quota-blank", "blank", FULL, BLOCK, end=QUOTA, events=("ErrExceededQuota",)),
    uploaded("quota-upload", FULL, end=QUOTA, events=("ErrExceededQuota",)),
    imported("invalid", "http", "status-nothing", end=INVALID, events=("ErrClaimNotValid",)),
    uploaded("invalid-upload", "status-nothing", end=INVALID, events=("ErrClaimNotValid",)),
)  # fmt: skip


def storage_class(name: str, provisioner: str, **annotations: str) -> Document:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": name,
            "annotations": {f"cdi.kubevirt.io/{key}": text for key, text in annotations.items()},
        },
        "provisioner": provisioner,
    }


CLASSES = (
    storage_class(CLONING, "csi.cdi.test", **{"clone-strategy": "csi-clone"}),
    storage_class(FULL, "local.cdi.test"),
)


def document_of(row: Row, sources: dict[str, Document], namespace: str) -> Document:
    form = "storage" if row.end == INVALID else "pvc"
    source = sources.get(row.source, {})
    made = data_volume(
        row.name, source, row.storage_class, mode=row.mode, size=row.size, form=form, annotations=row.annotations
    )
    if row.end == INVALID:
        del made["spec"][form]["accessModes"]
    if row.source == "reference":
        del made["spec"]["source"]
        reference = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "kept"}
        made["spec"][form]["dataSource"] = reference
    return made


def volume_for(name: str, namespace: str) -> Document:
    """Return a PersistentVolume for the PVC `name`, which no pod of these tests mounts."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{namespace}-{name}"},
        "spec": {
            "capacity": {"storage": "24Mi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "local",
            "hostPath": {"path": f"/tmp/{namespace}-{name}"},
            "claimRef": {"namespace": namespace, "name": name},
        },
    }


def existing(namespace: str) -> tuple[Document, ...]:
    """Return what is there before the DataVolumes: PVCs, a snapshot, a volume, and a quota."""
    populated = claim("populated", "local", size="24Mi")
    populated["metadata"]["annotations"] = {names.ANN_POPULATED_FOR: "populated"}
    quota = {f"{FULL}.storageclass.storage.k8s.io/persistentvolumeclaims": "0"}
    return (
        claim("adopted", "local", size="24Mi"),
        populated,
        volume_for("static", namespace),
        snapshot("kept", "golden-filesystem"),
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "full"}, "spec": {"hard": quota}},
    )


def without_data_volume(kind: str, name: str, source: Document) -> tuple[Document, Document]:
    """Return a populator's object, and a PVC that names it."""
    made = {"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": kind, "metadata": {"name": name}, "spec": source}
    reference = {"apiGroup": "cdi.kubevirt.io", "kind": kind, "name": name}
    return made, claim(name, "csi", size="24Mi", source=reference)


@pytest.fixture(scope="module")
def courses(cluster, tmp_path_factory):
    """Create all of it at once, and yield the log of what happens."""
    image, large = disk(SIZE), disk(64 * MIB)
    with (
        cluster.namespace("status") as place,
        controller(cluster, place),
        serving(tmp_path_factory.mktemp("servers"), cluster.host_address) as servers,
        following(place) as chronicle,
    ):
        namespace = place.namespace
        servers.nginx.put("disk.raw", image)
        servers.nginx.put("large.raw", large)
        http = {"http": {"url": servers.nginx.url("disk.raw")}}
        sources = {
            "http": http,
            "registry": servers.push_disk("tiny", image),
            "s3": servers.put_s3("disk.raw", image),
            "blank": {"blank": {}},
            "upload": {"upload": {}},
            "missing": {"http": {"url": servers.nginx.url("nothing.raw")}},
            "mismatch": {"http": {"url": servers.nginx.url("disk.raw"), "checksum": f"sha256:{sha256(b'')}"}},
            "large": {"http": {"url": servers.nginx.url("large.raw")}},
            "golden-filesystem": {"pvc": {"namespace": namespace, "name": "golden-filesystem"}},
            "golden-block": {"pvc": {"namespace": namespace, "name": "golden-block"}},
            "nothing": {"pvc": {"namespace": namespace, "name": "nothing"}},
            "no snapshot": {"snapshot": {"namespace": namespace, "name": "nothing"}},
        }
        try:
            place.create(*CLASSES, *servers.inputs())
            for mode in (FILES, BLOCK):
                place.create(data_volume(f"golden-{mode.lower()}", http, "csi", mode=mode))
            for mode in (FILES, BLOCK):
                wait_phase(place, f"golden-{mode.lower()}", "Succeeded")
            place.create(*existing(namespace))
            place.create(*(document_of(row, sources, namespace) for row in ROWS))
            place.create(*without_data_volume("VolumeImportSource", "claim-import", {"source": http}))
            place.create(*without_data_volume("VolumeUploadSource", "claim-upload", {}))
            yield chronicle
        finally:
            place.run("delete", "storageclass", "--ignore-not-found", CLONING, FULL)
            # Its PVC protects it until the namespace is deleted.
            place.run("delete", "persistentvolume", "--ignore-not-found", "--wait=false", f"{namespace}-static")


def notes_of(document: Document) -> dict[str, str]:
    return document["metadata"].get("annotations") or {}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_it_has_the_documented_status(courses, row):
    found = courses.wait(
        "datavolumes", row.name, f"{row.end}", lambda document: has_conditions(document["status"], row.case)
        if "status" in document else False, TIMEOUT,
    )  # fmt: skip
    told = {one["type"]: one for one in found["status"]["conditions"]}
    assert row.running in ("", told["Running"]["reason"])
    assert row.message in told["Running"].get("message", "")
    wanted = {*row.events}
    event = EVENTS.get((row.course, row.case.phase))
    if event is not None and row.course is not Course.EXISTING:
        wanted.add(event.reason)
    courses.until(
        f"{row.name} has {wanted}", lambda: wanted <= set(courses.event_reasons(row.name)), TIMEOUT
    )  # fmt: skip
    if not row.case.claim:
        return
    notes = annotations_of(row)
    courses.until(
        f"the PVC of {row.name} has {notes}",
        lambda: notes.items() <= notes_of(courses.present("persistentvolumeclaims")[row.name]).items(),
        TIMEOUT,
    )


def annotations_of(row: Row) -> dict[str, str]:
    """Return the annotations that the PVC is to have."""
    wanted = {**row.notes}
    if row.course not in OPERATIONS:
        return wanted
    phases = {Phase.SUCCEEDED: "Succeeded", Phase.UPLOAD_READY: "Running", Phase.IMPORT_IN_PROGRESS: "Running"}
    running = row.case.running
    wanted = {names.ANN_POD_PHASE: phases.get(row.case.phase, "Pending"), **wanted}
    wanted[names.ANN_USE_POPULATOR] = "true" if row.populator else "false"
    wanted[names.ANN_RUNNING_CONDITION] = running.status.lower()
    if "{" not in running.reason:
        wanted[names.ANN_RUNNING_CONDITION_REASON] = running.reason
    if row.case.phase is Phase.SUCCEEDED:
        assert running == COMPLETE[OPERATIONS[row.course]]
        wanted[names.ANN_RUNNING_CONDITION_MESSAGE] = running.message
    if row.running == "ChecksumError":
        wanted[names.ANN_IMPORT_FATAL_ERROR] = "true"
    return wanted


@pytest.mark.parametrize(("name", "phase", "ready"), [
    ("claim-import", "Succeeded", "false"), ("claim-upload", "Running", "true"),
])  # fmt: skip
def test_a_claim_without_a_data_volume_has_the_documented_annotations(courses, name, phase, ready):
    running = COMPLETE["Import"] if phase == "Succeeded" else None
    wanted = {names.ANN_POD_PHASE: phase, names.ANN_POD_READY: ready}
    if running is not None:
        wanted |= {
            names.ANN_RUNNING_CONDITION: "false",
            names.ANN_RUNNING_CONDITION_REASON: running.reason,
            names.ANN_RUNNING_CONDITION_MESSAGE: running.message,
        }
    courses.wait(
        "persistentvolumeclaims", name, f"with {wanted}",
        lambda document: wanted.items() <= notes_of(document).items(), TIMEOUT,
    )  # fmt: skip


def test_changes_of_bound_are_told(courses):
    reasons = courses.event_reasons("http-files")
    assert {"Pending", "Bound"} <= set(reasons)
