"""Annotations that hold the state of this implementation, each with a typed accessor (`cdi.api.annotation_types`).

The table on ``docs/reference/state.md`` is generated from the descriptions here: who writes a value, who reads it, and
what happens if it is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cdi.api.annotation_types import (
    Annotation,
    DiskSizeAnnotation,
    FlagAnnotation,
    NumberAnnotation,
    ObjectAnnotation,
    RecordAnnotation,
    ReferenceAnnotation,
    TextAnnotation,
    TicketAnnotations,
    TimeAnnotation,
    annotations_of,
)
from cdi.api.copy import TICKET_PREFIX
from cdi.api.golden import Origin
from cdi.api.names import ANN_OWNER_UID, GROUP

# --- on PVCs, volumes and DataVolumes ---------------------------------------------------------------------------

ATTEMPTS: Final = RecordAnnotation(
    key=f"{GROUP}/storage.attempts",
    on="PVC",
    written_by="controller",
    read_by="controller",
    content="attempt history, JSON: number, result, error, backoff, furthest offset, uid of the prime PVC and name of "
    "the volume. Written before anything follows from it",
    recovery="a bound PVC that is marked as complete counts as filled; any other is filled again by a new attempt",
)
STORED_JOURNAL: Final = TextAnnotation(
    key=f"{GROUP}/storage.journal",
    on="filled PVC",
    written_by="controller",
    read_by="controller, for the next pod",
    content="newest journal of a block volume, which cannot hold its own",
    recovery="the next attempt starts at the beginning of the source",
)
LEARNED_SETS: Final = TextAnnotation(
    key=f"{GROUP}/learnedClaimPropertySets",
    on="StorageProfile",
    written_by="controller",
    read_by="controller, webhook",
    content="what bound volumes of an unknown provisioner have shown, in the order in which it was seen: "
    "`ReadWriteOnce Filesystem, ReadWriteMany Block`",
    recovery="learned again from the volumes that exist",
)
FILLED_FOR: Final = TextAnnotation(
    key=f"{GROUP}/storage.filledFor",
    on="PersistentVolume",
    written_by="controller",
    read_by="controller",
    content="uid of the PVC that the volume was filled for; marks it as complete",
    recovery="the volume does not count as complete, and the PVC is filled again",
)
IMPORT_STATUS: Final = ObjectAnnotation(
    key=f"{GROUP}/storage.import.status",
    on="PVC without a DataVolume",
    written_by="controller",
    read_by="controller",
    content="the status that its DataVolume would have, JSON",
    recovery="computed again from the PVC and its pod; conditions get new times",
    max_size=32 << 10,
)
CLONE_PLAN: Final = RecordAnnotation(
    key=f"{GROUP}/storage.clone.record",
    on="target PVC",
    written_by="controller",
    read_by="controller, command line",
    content="the clone plan: source, strategy, fallback reasons, temporary snapshot and PVC",
    recovery="planned again; temporary objects of the lost plan are garbage-collected",
)
CLONE_SNAPSHOT_REQUEST: Final = ReferenceAnnotation(
    key=f"{GROUP}/storage.clone.snapshotRequest",
    on="target PVC",
    written_by="controller",
    read_by="controller",
    content="`namespace/name` of the VolumeSnapshot that is cloned",
    recovery="the DataVolume still names the source; a PVC without a DataVolume waits for a source",
)
CLONE_TARGET: Final = ReferenceAnnotation(
    key=f"{GROUP}/storage.clone.target",
    on="temporary snapshots and PVCs, pods",
    written_by="controller",
    read_by="controller",
    content="`namespace/name` of the target, where it cannot be the owner",
    recovery="the garbage collection leaves the object alone; delete it by hand",
)
CLONE_SOURCE_UID: Final = TextAnnotation(
    key=f"{GROUP}/storage.clone.sourceUID",
    on="temporary snapshot, temporary PVC",
    written_by="controller",
    read_by="controller",
    content="uid of the PVC or snapshot it was made from",
    recovery="the object is not used for the clone and is created again",
)
SOURCE_DISK_SIZE: Final = DiskSizeAnnotation(
    key=f"{GROUP}/storage.clone.sourceDiskSize",
    on="DataVolume of a clone",
    written_by="controller",
    read_by="controller",
    content="virtual size of the disk in the source, and the source's uid; found by a size-detection pod",
    recovery="detected again by another pod",
)
PROOF_ATTEMPTS: Final = RecordAnnotation(
    key=f"{GROUP}/golden.proofAttempts",
    on="PVC of a golden image's version",
    written_by="controller",
    read_by="controller",
    content="boot proofs that ended without a result, JSON: number, error, end, whether to do without KVM; removed "
    "with the result",
    recovery="the proof is attempted again, without delay and counted from the first attempt",
)
UPLOAD_REQUEST: Final = RecordAnnotation(
    key=f"{GROUP}/storage.upload.request",
    on="PVC, one machine only",
    written_by="command line",
    read_by="controller",
    content="the upload that attempts belong to: id, file or length",
    recovery="the PVC waits for the next upload",
)
TRANSFER_UID: Final = TextAnnotation(
    key=f"{GROUP}/objectTransferUID",
    on="PVC and DataVolume that a transfer creates",
    written_by="controller",
    read_by="controller",
    content="uid of the ObjectTransfer",
    recovery="the target counts as another object of the same name, and the transfer stops with that cause",
)
MANAGED_CERTIFICATE: Final = FlagAnnotation(
    key=f"{GROUP}/managedCertificate",
    on="Secret, ConfigMap",
    written_by="controller, webhook",
    read_by="controller, webhook",
    content="marks certificates and CA bundles that `cdi` renews; others are not changed",
    recovery="the certificate is no longer renewed; delete the object to have it created again",
)
APPLIED: Final = ObjectAnnotation(
    key=f"{GROUP}/applied",
    on="every object, one machine only",
    written_by="command line",
    read_by="command line",
    content="names of the labels and annotations that the last applied manifest set, JSON, to compute what an apply "
    "removes",
    recovery="the next apply removes nothing",
    sort_keys=False,
)
INTERNAL: Final[tuple[Annotation, ...]] = (
    ATTEMPTS,
    STORED_JOURNAL,
    LEARNED_SETS,
    FILLED_FOR,
    IMPORT_STATUS,
    CLONE_PLAN,
    CLONE_SNAPSHOT_REQUEST,
    CLONE_TARGET,
    CLONE_SOURCE_UID,
    SOURCE_DISK_SIZE,
    PROOF_ATTEMPTS,
    UPLOAD_REQUEST,
    TRANSFER_UID,
    MANAGED_CERTIFICATE,
    APPLIED,
)

# --- on worker pods ---------------------------------------------------------------------------------------------

JOB: Final = TextAnnotation(
    key=f"{GROUP}/job",
    on="pod",
    written_by="controller",
    read_by="worker",
    content="the `Job`, JSON",
    recovery="the worker ends with an error, and the next attempt's pod has the job again",
)
LIMITS: Final = TextAnnotation(
    key=f"{GROUP}/limits",
    on="pod",
    written_by="controller, `cdi limit`",
    read_by="worker, while it runs",
    content="bandwidth and connections",
    recovery="the worker keeps its limits; the controller writes those of the DataVolume again",
)
JOURNAL: Final = TextAnnotation(
    key=f"{GROUP}/journal",
    on="pod",
    written_by="controller",
    read_by="worker",
    content="where an earlier pod stopped",
    recovery="the worker starts at the beginning of the source",
)
ATTEMPT: Final = NumberAnnotation(
    key=f"{GROUP}/attempt",
    on="pod",
    written_by="controller",
    read_by="controller",
    content="number of the attempt",
    recovery="the pod does not count as a worker of the PVC",
)
FINGERPRINT: Final = TextAnnotation(
    key=f"{GROUP}/fingerprint",
    on="pod",
    written_by="controller",
    read_by="controller",
    content="digest of what the attempt was started with; a change starts a new history",
    recovery="the pod counts as started with other input",
)
UPLOAD: Final = TextAnnotation(
    key=f"{GROUP}/upload",
    on="pod",
    written_by="controller",
    read_by="controller",
    content="the upload that the pod serves",
    recovery="the pod counts as one for another upload",
)
SPEC_DIGEST: Final = TextAnnotation(
    key=f"{GROUP}/specDigest",
    on="pod",
    written_by="controller",
    read_by="controller",
    content="digest of the pod's specification; a pod that would be created differently now is replaced",
    recovery="the pod is replaced while it waits to start",
)
TICKETS: Final = TicketAnnotations(
    key=TICKET_PREFIX,
    on="source pod of a clone",
    written_by="controller",
    read_by="worker that reads a clone's source",
    content="a ticket: address, PVC and certificate name of one target",
    recovery="the controller writes the ticket of every target that waits again",
)
OWNER_UID: Final = TextAnnotation(
    key=ANN_OWNER_UID,
    on="pod, temporary objects",
    written_by="controller",
    read_by="controller, the pod's metric",
    content="uid of the PVC",
    recovery="the object counts as one of another clone; a temporary PVC is deleted and created again",
)
PODS: Final[tuple[Annotation, ...]] = (
    JOB,
    LIMITS,
    JOURNAL,
    ATTEMPT,
    FINGERPRINT,
    UPLOAD,
    SPEC_DIGEST,
    TICKETS,
    OWNER_UID,
)

# --- of golden images -------------------------------------------------------------------------------------------

_VERSION_OBJECTS = "DataVolume, PVC and VolumeSnapshot of a version"
_FROM_STATUS = "written again from the DataImportCron's status"

DESIRED_DIGEST: Final = TextAnnotation(
    key=f"{GROUP}/storage.import.sourceDesiredDigest",
    on="DataImportCron",
    written_by="controller",
    read_by="controller, clients",
    content="digest that the last successful poll found; a client may set it instead",
    recovery="found again by the next poll",
)
IMAGE_STREAM_REFERENCE: Final = TextAnnotation(
    key=f"{GROUP}/storage.import.imageStreamDockerRef",
    on="DataImportCron",
    written_by="controller",
    read_by="controller",
    content="the image that the ImageStream names",
    recovery="found again by the next poll",
)
NEXT_POLL: Final = TimeAnnotation(
    key=f"{GROUP}/storage.import.nextCronTime",
    on="DataImportCron; Job or pod of a poll",
    written_by="controller",
    read_by="controller",
    content="time of the next poll; set to now, it polls at once, or as soon as a running poll has ended; on a poll's "
    "Job or pod: the time by which it was started",
    recovery="computed again from the schedule",
)
LAST_POLL: Final = TimeAnnotation(
    key=f"{GROUP}/storage.import.lastCronTime",
    on="DataImportCron",
    written_by="controller",
    read_by="clients",
    content="time of the last poll",
    recovery="written again by the next poll",
)
POLL_RECORD: Final = RecordAnnotation(
    key=f"{GROUP}/storage.import.poll",
    on="DataImportCron",
    written_by="controller",
    read_by="controller, command line",
    content="results of polls, JSON",
    recovery="the next poll runs as if it was the first; the number of failures starts at 0",
    max_size=16 << 10,
)
STORAGE_CLASS: Final = TextAnnotation(
    key=f"{GROUP}/storage.import.storageClass",
    on="DataImportCron",
    written_by="controller",
    read_by="controller",
    content="StorageClass in force",
    recovery="written again; a change of the class in between is not noticed",
)
LAST_USE: Final = TextAnnotation(
    key=f"{GROUP}/storage.import.lastUseTime",
    on=_VERSION_OBJECTS,
    written_by="controller",
    read_by="controller",
    content="when it was last wanted; outdated versions are deleted in this order",
    recovery="the version counts as the one that was wanted longest ago, until it is wanted again",
)
GOLDEN_LAST_CLONED: Final = TimeAnnotation(
    key=f"{GROUP}/golden.lastCloned",
    on="PVC or VolumeSnapshot of a version",
    written_by="controller",
    read_by="controller",
    content="when a clone of it last began",
    recovery="written again by the next clone; until then the version counts as never cloned",
)
GOLDEN_ORIGIN: Final = RecordAnnotation(
    key=f"{GROUP}/golden.origin",
    on="PVC, VolumeSnapshot of a version",
    written_by="controller",
    read_by="controller, command line",
    content="the golden version from which the volume descends, JSON; it survives the version",
    recovery=f"{_FROM_STATUS} on the objects of a version; lost on a clone",
    max_size=2 << 10,
)
GOLDEN_RECORD: Final = TextAnnotation(
    key=f"{GROUP}/golden.record",
    on="PVC or VolumeSnapshot of a version",
    written_by="controller",
    read_by="command line",
    content="its record of origin: an in-toto statement, in a DSSE envelope if it is signed",
    recovery="written, and signed if a key is set, again while the version is in the history",
)
GOLDEN_DEPRECATED: Final = TimeAnnotation(
    key=f"{GROUP}/golden.deprecated",
    on=_VERSION_OBJECTS,
    written_by="controller",
    read_by="controller, clients",
    content="when its deprecation begins, RFC 3339; clones are warned from then on",
    recovery=_FROM_STATUS,
)
GOLDEN_END_OF_LIFE: Final = TimeAnnotation(
    key=f"{GROUP}/golden.endOfLife",
    on=_VERSION_OBJECTS,
    written_by="controller",
    read_by="controller, clients",
    content="when its support ends, RFC 3339; clones are warned from then on",
    recovery=_FROM_STATUS,
)
GOLDEN_REVOKED: Final = TextAnnotation(
    key=f"{GROUP}/golden.revoked",
    on=_VERSION_OBJECTS,
    written_by="controller",
    read_by="controller, clients",
    content="why it was revoked; clones are warned",
    recovery=_FROM_STATUS,
)
GOLDEN_BUNDLE_DIGEST: Final = TextAnnotation(
    key=f"{GROUP}/golden.bundleDigest",
    on="DataVolume of an uploaded bundle",
    written_by="command line",
    read_by="command line",
    content="digest of the image in the bundle; a repeated `cdi bundle import` uses the volume only if it agrees",
    recovery="a repeated `cdi bundle import` refuses the volume; delete it first",
)
GOLDEN_STATEMENT: Final = TextAnnotation(
    key=f"{GROUP}/golden.statement",
    on="pod that signs a record",
    written_by="controller",
    read_by="the pod, controller",
    content="the in-toto statement to be signed",
    recovery="the pod is replaced",
)
GOLDEN: Final[tuple[Annotation, ...]] = (
    DESIRED_DIGEST,
    IMAGE_STREAM_REFERENCE,
    NEXT_POLL,
    LAST_POLL,
    POLL_RECORD,
    STORAGE_CLASS,
    LAST_USE,
    GOLDEN_LAST_CLONED,
    GOLDEN_ORIGIN,
    GOLDEN_RECORD,
    GOLDEN_DEPRECATED,
    GOLDEN_END_OF_LIFE,
    GOLDEN_REVOKED,
    GOLDEN_BUNDLE_DIGEST,
    GOLDEN_STATEMENT,
)


def read_origin(body: Mapping[str, Any] | None) -> Origin | None:
    """Return the golden version from which a PVC descends; None if it is unknown or recorded in an invalid way."""
    return GOLDEN_ORIGIN.read(Origin, annotations_of(body))
