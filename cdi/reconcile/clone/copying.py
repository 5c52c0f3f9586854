"""Host-assisted clones: a source pod reads the volume and sends it to target pods, which write it.

The target pod is a normal worker: its attempts are in the ledger, and its result completes the clone. The source pod
only serves it, together with all other targets that are cloned from the same source. A target pod that has an address
but no source pod gets an assignment (a ticket, which is an annotation of the source pod) to an existing source pod, or
else a new source pod. The ticket is removed with the clone, and the source pod with its last ticket
(`cdi.reconcile.clone.temporaries.reconcile_reader`).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from cdi.api.copy import PORT, TARGETS_MOST, TICKET_PREFIX, CopySourceJob, CopyTargetJob, Ticket
from cdi.api.datavolume import ContentType
from cdi.api.job import BlockTargetSpec, DirectoryTargetSpec, FileTargetSpec
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
from cdi.api.policy import read_knobs
from cdi.api.storageprofile import CloneStrategy
from cdi.reconcile.actions import Action, CreateObject, DeleteObject, PatchObject, ProvideCertificate
from cdi.reconcile.clone.authority import allowed
from cdi.reconcile.clone.copy_pods import DEVICE, SOURCE, build_reader, certificate_of, with_certificate
from cdi.reconcile.clone.facts import Reader
from cdi.reconcile.clone.record import ANNOTATION as RECORD
from cdi.reconcile.clone.record import CloneRecord
from cdi.reconcile.clone.restored import readable
from cdi.reconcile.clone.source import facts, in_use
from cdi.reconcile.clone.temporaries import without_tickets
from cdi.reconcile.job import Prepared, file_size
from cdi.reconcile.origin import Clone, Refuse, Wait
from cdi.reconcile.pod import claim_owner, retains

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cdi.reconcile.clone.source import Found
    from cdi.reconcile.decision import Decision
    from cdi.reconcile.ledger import Ledger
    from cdi.reconcile.world import Claim, Layout, Worker, World

PAUSE: Final = 5.0
"""Seconds before a failed source pod is recreated."""
LINGER: Final = 15.0
"""Seconds that a source pod waits for further targets after the last one is complete, unless it is deleted before."""
READERS_MOST: Final = 16
"""Maximum number of source pods for one source at a time."""


def is_copied(claim: Claim) -> CloneRecord | None:
    """Return the record of a host-assisted clone; None for any other."""
    record = CloneRecord.read(claim)
    return record if record is not None and record.strategy is CloneStrategy.COPY else None


def client_name(claim: Claim) -> str:
    """Return the certificate name by which the target pod identifies its source pod."""
    return f"clone.{claim.uid}"


def prepare_copy(world: World, claim: Claim, filled: Claim, origin: Clone, layout: Layout) -> Prepared | Wait | Refuse:
    """Return the work of the target pod.

    Raises:
        InvalidManifest: An annotation is invalid.

    """
    found = readable(world, claim, origin)
    if isinstance(found, Wait | Refuse):
        return found
    knobs = read_knobs(world.datavolume.metadata.annotations)
    content = _content(found)
    block = filled.volume_mode == "Block"
    target: BlockTargetSpec | FileTargetSpec | DirectoryTargetSpec
    if block:
        target = BlockTargetSpec(path=layout.disk)
    elif content == "archive":
        target = DirectoryTargetSpec(path=layout.directory)
    else:
        target = FileTargetSpec(path=layout.disk)
    asked = world.datavolume.spec.preallocation
    work = CopyTargetJob(
        id=filled.uid,
        target=target,
        content_type=content,
        size=None if block or content == "archive" else file_size(filled, world.config),
        journal=layout.journal,
        client_name=client_name(claim),
        policy=knobs.policy(preallocation=world.config.preallocation if asked is None else asked, keyring=None),
    )
    text = f"{work.to_json()}\n{found.uid}"
    return Prepared(work=work, fingerprint=hashlib.sha256(text.encode()).hexdigest()[:32])


def target_pod(filled: Claim, pod: dict[str, Any]) -> dict[str, Any]:
    """Convert an importer pod to the target pod of a clone."""
    return with_certificate(pod, upload_pod(filled.name))


def before_target(filled: Claim) -> tuple[Action, ...]:
    """Return the action required before the target pod is created: its certificate."""
    return (_certificate(filled, claim_owner(filled)),)


def _certificate(filled: Claim, owner: Mapping[str, Any]) -> ProvideCertificate:
    name = upload_pod(filled.name)
    return ProvideCertificate(
        namespace=filled.namespace,
        secret=name,
        name=name[:64],
        hosts=(server_name(filled),),
        usage="server",
        owner=owner,
    )


def server_name(filled: Claim) -> str:
    """Return the DNS name in the target pod's certificate."""
    return f"{upload_service(filled.name)}.{filled.namespace}.svc"


# --- source pods --------------------------------------------------------------------------------------------------


def served(world: World, claim: Claim, filled: Claim, origin: Clone, worker: Worker) -> tuple[tuple[Action, ...], str]:
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
        bandwidth=read_knobs(world.datavolume.metadata.annotations).bandwidth,
        claim=f"{claim.namespace}/{claim.name}",
    )
    mine = [one for one in _readers_of(world, record) if claim.uid in one[1].tickets]
    for name, reader in mine:
        if reader.deleting:
            return (), f"Pod {name} is being deleted; it will be recreated automatically"
    for name, reader in mine:
        if reader.ended is not None:
            message = reader.message or f"Pod {name} ended before all data was sent"
            again = world.now - reader.ended >= PAUSE
            return (_gone(record.namespace, name, reader),) if again else (), message
        if reader.running and reader.tickets[claim.uid] == ticket:
            return (), ""
        return (own, *_given(claim, record, name, reader, ticket)), reader.message
    return _begun(world, claim, record, origin, ticket)


def cleared_reader(world: World, claim: Claim, ledger: Ledger, *, final: bool) -> tuple[Action, ...]:
    """Remove the ticket of a finished clone; the source pod ends with its last ticket.

    Both stay if pods are to be retained after completion.
    """
    record = CloneRecord.read(claim)
    if record is None or not (final or ledger.done):
        return ()
    # A source pod that reads a restored snapshot is not retained, because it would keep the temporary PVC in use.
    if retains(world.datavolume, claim) and not record.restored:
        return ()
    return tuple(
        without_tickets(record.namespace, name, reader, [claim.uid])
        for name, reader in _readers_of(world, record)
        if claim.uid in reader.tickets and not reader.deleting
    )


def reader_marks(world: World, claim: Claim) -> dict[str, str | None]:
    """Return the target's annotations about its source pod."""
    record = is_copied(claim)
    for name, reader in _readers_of(world, record) if record is not None else ():
        if claim.uid in reader.tickets:
            return {
                ANN_SOURCE_CLONE_POD: name,
                ANN_SOURCE_RUNNING_CONDITION: "true" if reader.running else "false",
                ANN_SOURCE_RUNNING_CONDITION_REASON: reader.reason,
                ANN_SOURCE_RUNNING_CONDITION_MESSAGE: reader.message,
            }
    return {}


def with_reader(decision: Decision, message: str) -> Decision:
    """Add the source pod's message to the decision if the target pod has none."""
    if not message:
        return decision
    # No event announces the end of a source pod's retry delay, so poll.
    decision = replace(decision, requeue_after=PAUSE)
    state = decision.state
    if state.running.message:
        return decision
    return replace(
        decision,
        state=replace(
            state, running=replace(state.running, message=message), ready=replace(state.ready, message=message)
        ),
    )


def _readers_of(world: World, record: CloneRecord) -> Iterator[tuple[str, Reader]]:
    """Yield the existing source pods with their names."""
    for archive in (False, True):
        for number in range(READERS_MOST):
            name = clone_source_pod(record.source, number, archive=archive)
            reader = facts(world).reader(record.namespace, name)
            if reader is not None and reader.source == record.source:
                yield name, reader


def _given(claim: Claim, record: CloneRecord, name: str, reader: Reader, ticket: Ticket) -> tuple[Action, ...]:
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
        annotations={f"{TICKET_PREFIX}{claim.uid}": ticket.to_json()},
    )
    return certificate, given


def _begun(
    world: World, claim: Claim, record: CloneRecord, origin: Clone, ticket: Ticket
) -> tuple[tuple[Action, ...], str]:
    """Assign the target to a source pod with a free place, or create a source pod."""
    denied = allowed(world, origin, claim)
    if isinstance(denied, Refuse):
        return (), denied.failure.message
    if isinstance(denied, Wait):
        return (), denied.message
    found = readable(world, claim, origin)
    if isinstance(found, Refuse):
        return (), found.failure.message
    if isinstance(found, Wait):
        return (), found.message
    if found.uid != record.source:
        # The record was made for another volume; source pods are identified by the UID of their source.
        written = replace(record, source=found.uid).write()
        renewed = PatchObject(
            plural="persistentvolumeclaims",
            namespace=claim.namespace,
            name=claim.name,
            uid=claim.uid,
            annotations={RECORD: written},
        )
        return (renewed,), f"the source {found.place} was replaced by another object of that name"
    users = in_use(world, found)
    if users is not None:
        return (), users.message
    archive = _content(found) == "archive"
    for number in range(READERS_MOST):
        name = clone_source_pod(found.uid, number, archive=archive)
        reader = facts(world).reader(record.namespace, name)
        if reader is None:
            # The first target is assigned at creation, but its ticket gets an address only with its certificate, as for
            # all targets; the first certificate lets the pod start.
            place = replace(ticket, address="", attempt="")
            return (CreateObject(body=_made(world, claim, found, name, place)),), ""
        idle = reader.source == found.uid and not reader.deleting and reader.ended is None
        if idle and len(reader.tickets) < TARGETS_MOST:
            return _given(claim, record, name, reader, ticket), reader.message
    return (), f"{READERS_MOST} pods are reading {found.place} for other clones; this one starts when one of them ends"


def _made(world: World, claim: Claim, found: Found, name: str, ticket: Ticket) -> dict[str, Any]:
    content = _content(found)
    job = CopySourceJob(
        id=found.uid,
        path=DEVICE if found.volume_mode == "Block" else SOURCE if content == "archive" else f"{SOURCE}/disk.img",
        content_type=content,
        identity=found.uid,
        expected=max(1, min(TARGETS_MOST, facts(world).copies(found.uid))),
        linger=LINGER,
    )
    return build_reader(world, claim, found, job, name, ticket)


def _gone(namespace: str, name: str, reader: Reader) -> DeleteObject:
    return DeleteObject(plural="pods", namespace=namespace, name=name, uid=reader.uid)


def _content(found: Found) -> Any:
    archive = found.annotations.get(ANN_CONTENT_TYPE) == ContentType.ARCHIVE and found.volume_mode != "Block"
    return "archive" if archive else "kubevirt"
