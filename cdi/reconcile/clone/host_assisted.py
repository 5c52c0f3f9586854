"""Host-assisted clones: a source pod reads the volume and sends it to target pods, which write it.

The target pod is a normal worker: its attempts are in the attempt history, and its result completes the clone. The
source pod only serves it, together with all other targets that are cloned from the same source. A target pod that has
an address but no source pod gets an assignment (a ticket, which is an annotation of the source pod) to an existing
source pod, or else a new source pod. The ticket is removed with the clone, and the source pod with its last ticket
(`cdi.reconcile.clone.gc.reconcile_reader`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from cdi.api.annotations import TICKETS
from cdi.api.copy import MAX_TARGETS, CopySourceJob, Ticket
from cdi.api.datavolume import ContentType
from cdi.api.job import BlockTargetSpec, DirectoryTargetSpec, FileTargetSpec, Job, Policy
from cdi.api.names import (
    ANN_CONTENT_TYPE,
    ANN_SOURCE_CLONE_POD,
    ANN_SOURCE_RUNNING_CONDITION,
    ANN_SOURCE_RUNNING_CONDITION_MESSAGE,
    ANN_SOURCE_RUNNING_CONDITION_REASON,
    clone_source_pod,
    upload_pod,
    upload_service,
)
from cdi.api.peer import PORT, PeerSourceSpec
from cdi.api.policy import parse_policy_annotations
from cdi.api.storageprofile import CloneStrategy
from cdi.reconcile.actions import Action, CreateObject, DeleteObject, EnsureCertificate, PatchObject
from cdi.reconcile.clone.authorization import authorize
from cdi.reconcile.clone.copy_pods import DEVICE, SOURCE, build_reader, certificate_of, with_certificate
from cdi.reconcile.clone.gc import remove_assignments
from cdi.reconcile.clone.plan_annotation import ANNOTATION as RECORD
from cdi.reconcile.clone.plan_annotation import ClonePlanRecord
from cdi.reconcile.clone.snapshot_restore import resolve_restored
from cdi.reconcile.clone.source import facts, source_in_use
from cdi.reconcile.clone.types import CloneSource, SourcePod
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.datavolume.result import Result
from cdi.reconcile.pods.builder import claim_owner, retains_after_completion
from cdi.reconcile.pods.job import WorkerSpec, file_size
from cdi.reconcile.pods.roles import CLONE_TARGET
from cdi.reconcile.pods.types import VolumeLayout, Worker
from cdi.reconcile.types import PVC, Clone, Pending, Rejected

REQUEUE_DELAY: Final = 5.0
"""Seconds before a failed source pod is recreated."""
LINGER_TIME: Final = 15.0
"""Seconds that a source pod waits for further targets after the last one is complete, unless it is deleted before."""
MAX_SOURCE_PODS: Final = 16
"""Maximum number of source pods for one source at a time."""


def is_copied(claim: PVC) -> ClonePlanRecord | None:
    """Return the record of a host-assisted clone; None for any other."""
    record = ClonePlanRecord.read(claim)
    return record if record is not None and record.strategy is CloneStrategy.COPY else None


def client_name(claim: PVC) -> str:
    """Return the certificate name by which the target pod identifies its source pod."""
    return f"clone.{claim.uid}"


def prepare_copy(
    context: ReconcileContext, claim: PVC, filled: PVC, origin: Clone, layout: VolumeLayout
) -> WorkerSpec | Pending | Rejected:
    """Return the work of the target pod.

    Raises:
        InvalidManifest: An annotation is invalid.

    """
    found = resolve_restored(context, claim, origin)
    if isinstance(found, Pending | Rejected):
        return found
    policy_annotations = parse_policy_annotations(context.datavolume.metadata.annotations)
    content = _content(found)
    block = filled.volume_mode == "Block"
    target: BlockTargetSpec | FileTargetSpec | DirectoryTargetSpec
    if block:
        target = BlockTargetSpec(path=layout.disk)
    elif content == "archive":
        target = DirectoryTargetSpec(path=layout.directory)
    else:
        target = FileTargetSpec(path=layout.disk)
    asked = context.datavolume.spec.preallocation
    policy = policy_annotations.policy(
        preallocation=context.config.preallocation if asked is None else asked, keyring=None
    )
    work = Job(
        id=filled.uid,
        source=PeerSourceSpec(client_name=client_name(claim)),
        target=target,
        content_type=content,
        size=None if block or content == "archive" else file_size(filled, context.config),
        journal=layout.journal,
        # Other settings are about images. The source limits the bandwidth, as it knows what it compresses.
        policy=Policy(preallocation=policy.preallocation, stall_timeout=policy.stall_timeout, retries=policy.retries),
    )
    text = f"{work.to_json()}\n{found.uid}"
    return WorkerSpec(work=work, fingerprint=hashlib.sha256(text.encode()).hexdigest()[:32])


def target_pod(filled: PVC, pod: dict[str, Any]) -> dict[str, Any]:
    """Convert an importer pod to the target pod of a clone."""
    return with_certificate(pod, CLONE_TARGET, upload_pod(filled.name))


def before_target(filled: PVC) -> tuple[Action, ...]:
    """Return the action required before the target pod is created: its certificate."""
    return (_certificate(filled, claim_owner(filled)),)


def _certificate(filled: PVC, owner: Mapping[str, Any]) -> EnsureCertificate:
    name = upload_pod(filled.name)
    return EnsureCertificate(
        namespace=filled.namespace,
        secret=name,
        name=name[:64],
        hosts=(server_name(filled),),
        usage="server",
        owner=owner,
    )


def server_name(filled: PVC) -> str:
    """Return the DNS name in the target pod's certificate."""
    return f"{upload_service(filled.name)}.{filled.namespace}.svc"


# --- source pods --------------------------------------------------------------------------------------------------


def ensure_source_pod(
    context: ReconcileContext, claim: PVC, filled: PVC, origin: Clone, worker: Worker
) -> tuple[tuple[Action, ...], str]:
    """Return the actions that give the target pod its source pod, and a message about what the source pod waits for."""
    pod, record = worker.pod, is_copied(claim)
    if record is None or pod is None or pod.deleting:
        return (), ""
    # Owned by the pod: a PVC that is filled directly stays after the clone, but the certificate must not.
    own = _certificate(filled, {"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid})
    if not pod.started or not pod.address:
        return (own,), ""
    ticket = Ticket(
        id=filled.uid,
        address=f"[{pod.address}]:{PORT}" if ":" in pod.address else f"{pod.address}:{PORT}",
        server_name=server_name(filled),
        attempt=pod.uid,
        bandwidth=parse_policy_annotations(context.datavolume.metadata.annotations).bandwidth,
        claim=f"{claim.namespace}/{claim.name}",
    )
    mine = [one for one in _readers_of(context, record) if claim.uid in one[1].tickets]
    for name, reader in mine:
        if reader.deleting:
            return (), f"Pod {name} is being deleted; it will be recreated automatically"
    for name, reader in mine:
        if reader.ended is not None:
            message = reader.message or f"Pod {name} ended before all data was sent"
            again = context.now - reader.ended >= REQUEUE_DELAY
            return (_delete(record.namespace, name, reader),) if again else (), message
        if reader.running and reader.tickets[claim.uid] == ticket:
            return (), ""
        return (own, *_assign(claim, record, name, reader, ticket)), reader.message
    actions, message = _ensure(context, claim, record, origin, ticket)
    # The pod may run already when it is seen for the first time, so its certificate may still belong to the PVC.
    return ((own, *actions) if actions else ()), message


def release_source_pod(context: ReconcileContext, claim: PVC, record: ClonePlanRecord) -> tuple[Action, ...]:
    """Remove the ticket of a finished clone; the source pod ends with its last ticket.

    Both stay if pods are to be retained after completion.
    """
    # A source pod that reads a restored snapshot is not retained, because it would keep the temporary PVC in use.
    if retains_after_completion(context.datavolume, claim) and not record.restored:
        return ()
    return tuple(
        remove_assignments(record.namespace, name, reader, [claim.uid])
        for name, reader in _readers_of(context, record)
        if claim.uid in reader.tickets and not reader.deleting
    )


def source_pod_annotations(context: ReconcileContext, claim: PVC) -> dict[str, str | None]:
    """Return the target's annotations about its source pod."""
    record = is_copied(claim)
    for name, reader in _readers_of(context, record) if record is not None else ():
        if claim.uid in reader.tickets:
            return {
                ANN_SOURCE_CLONE_POD: name,
                ANN_SOURCE_RUNNING_CONDITION: "true" if reader.running else "false",
                ANN_SOURCE_RUNNING_CONDITION_REASON: reader.reason,
                ANN_SOURCE_RUNNING_CONDITION_MESSAGE: reader.message,
            }
    return {}


def merge_source_pod_status(result: Result, message: str) -> Result:
    """Add the source pod's message to the result if the target pod has none."""
    if not message:
        return result
    # No event announces the end of a source pod's retry delay, so poll.
    result = replace(result, requeue_after=REQUEUE_DELAY)
    state = result.state
    if state.running.message:
        return result
    return replace(
        result,
        state=replace(
            state, running=replace(state.running, message=message), ready=replace(state.ready, message=message)
        ),
    )


def _readers_of(context: ReconcileContext, record: ClonePlanRecord) -> Iterator[tuple[str, SourcePod]]:
    """Yield the existing source pods with their names."""
    for archive in (False, True):
        for number in range(MAX_SOURCE_PODS):
            name = clone_source_pod(record.source, number, archive=archive)
            reader = facts(context).source_pod(record.namespace, name)
            if reader is not None and reader.source == record.source:
                yield name, reader


def _assign(claim: PVC, record: ClonePlanRecord, name: str, reader: SourcePod, ticket: Ticket) -> tuple[Action, ...]:
    """Return the actions for a ticket and its certificate.

    The certificate comes first, so that it exists when the source pod reads the ticket.
    """
    certificate = certificate_of(name, reader, record.namespace, ticket, client_name(claim))
    if reader.tickets.get(claim.uid) == ticket:
        return (certificate,)
    given = PatchObject(
        plural="pods",
        namespace=record.namespace,
        name=name,
        uid=reader.uid,
        annotations=TICKETS.write(claim.uid, ticket),
    )
    return certificate, given


def _ensure(
    context: ReconcileContext, claim: PVC, record: ClonePlanRecord, origin: Clone, ticket: Ticket
) -> tuple[tuple[Action, ...], str]:
    """Assign the target to a source pod with a free place, or create a source pod."""
    denied = authorize(context, origin, claim)
    if isinstance(denied, Rejected):
        return (), denied.failure.message
    if isinstance(denied, Pending):
        return (), denied.message
    found = resolve_restored(context, claim, origin)
    if isinstance(found, Rejected):
        return (), found.failure.message
    if isinstance(found, Pending):
        return (), found.message
    if found.uid != record.source:
        # The record was made for another volume; source pods are identified by the UID of their source.
        written = replace(record, source=found.uid).write()
        renewed = PatchObject.of_claim(claim, {RECORD: written})
        return (renewed,), f"the source {found.place} was replaced by another object of that name"
    users = source_in_use(context.objects, found)
    if users is not None:
        return (), users.message
    archive = _content(found) == "archive"
    for number in range(MAX_SOURCE_PODS):
        name = clone_source_pod(found.uid, number, archive=archive)
        reader = facts(context).source_pod(record.namespace, name)
        if reader is None:
            # The first target is assigned at creation, but its ticket gets an address only with its certificate, as for
            # all targets; the first certificate lets the pod start.
            place = replace(ticket, address="", attempt="")
            return (CreateObject(body=_build(context, claim, found, name, place)),), ""
        idle = reader.source == found.uid and not reader.deleting and reader.ended is None
        if idle and len(reader.tickets) < MAX_TARGETS:
            return _assign(claim, record, name, reader, ticket), reader.message
    return (
        (),
        f"{MAX_SOURCE_PODS} pods are reading {found.place} for other clones; this one starts when one of them ends",
    )


def _build(context: ReconcileContext, claim: PVC, found: CloneSource, name: str, ticket: Ticket) -> dict[str, Any]:
    content = _content(found)
    job = CopySourceJob(
        id=found.uid,
        path=DEVICE if found.volume_mode == "Block" else SOURCE if content == "archive" else f"{SOURCE}/disk.img",
        content_type=content,
        identity=found.uid,
        expected=max(1, min(MAX_TARGETS, facts(context).active_copies(found.uid))),
        linger=LINGER_TIME,
    )
    return build_reader(context, claim, found, job, name, ticket)


def _delete(namespace: str, name: str, reader: SourcePod) -> DeleteObject:
    return DeleteObject(plural="pods", namespace=namespace, name=name, uid=reader.uid)


def _content(found: CloneSource) -> Any:
    archive = found.annotations.get(ANN_CONTENT_TYPE) == ContentType.ARCHIVE and found.volume_mode != "Block"
    return "archive" if archive else "kubevirt"
