"""A volume is copied by two pods: one reads the source and sends it, the other fills the target's volume with it.

The pod that fills is a worker like any other: its attempts are in the ledger, and it says when the clone is done.  The
reader is only there to serve it: it is made once the other one can be reached, made anew whenever it is lost or the
other one is another, and goes with the clone.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from cdi.api.copy import PORT, CopySourceJob, CopyTargetJob
from cdi.api.datavolume import ContentType
from cdi.api.job import BlockTargetSpec, DirectoryTargetSpec, FileTargetSpec, Policy
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
from cdi.api.storageprofile import CloneStrategy
from cdi.reconcile.actions import Action, CreateObject, DeleteObject, ProvideCertificate
from cdi.reconcile.clone.authority import allowed
from cdi.reconcile.clone.copy_pods import DEVICE, SOURCE, build_reader, certificate_of, with_certificate
from cdi.reconcile.clone.facts import Reader
from cdi.reconcile.clone.record import CloneRecord
from cdi.reconcile.clone.restored import readable
from cdi.reconcile.clone.source import facts, in_use
from cdi.reconcile.job import Prepared, file_size
from cdi.reconcile.origin import Clone, Refuse, Wait
from cdi.reconcile.pod import claim_owner, retains
from cdi.reconcile.policy import read_knobs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cdi.reconcile.clone.source import Found
    from cdi.reconcile.decision import Decision
    from cdi.reconcile.ledger import Ledger
    from cdi.reconcile.world import Claim, Layout, Worker, World

PAUSE: Final = 5.0
"""Seconds before a reader that failed is made anew."""


def is_copied(claim: Claim) -> CloneRecord | None:
    """The record of a clone that pods make."""
    record = CloneRecord.read(claim)
    return record if record is not None and record.strategy is CloneStrategy.COPY else None


def client_name(claim: Claim) -> str:
    """The one name by which the pod that fills knows its reader."""
    return f"clone.{claim.uid}"


def prepare_copy(world: World, claim: Claim, filled: Claim, origin: Clone, layout: Layout) -> Prepared | Wait | Refuse:
    """The work of the pod that fills.  Raises `InvalidManifest` where the annotations cannot be followed."""
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
    """An importer's pod as that of the pod that fills a clone."""
    return with_certificate(pod, upload_pod(filled.name))


def before_target(filled: Claim) -> tuple[Action, ...]:
    """What must be there before that pod is: its certificate."""
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
    """What its certificate says."""
    return f"{upload_service(filled.name)}.{filled.namespace}.svc"


# --- the reader ---------------------------------------------------------------------------------------------------


def served(world: World, claim: Claim, filled: Claim, origin: Clone, worker: Worker) -> tuple[tuple[Action, ...], str]:
    """What the pod that fills needs of a reader now, and what the reader waits for, for people."""
    pod = worker.pod
    if pod is None or pod.deleting:
        return (), ""
    # Whose claim is filled in place stays, and a certificate that nobody has any use for is not to stay with it.
    own = _certificate(filled, {"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid})
    if not pod.started or not pod.address:
        return (own,), ""
    reader = _reader(world, claim, origin)
    address = f"[{pod.address}]:{PORT}" if ":" in pod.address else f"{pod.address}:{PORT}"
    if reader is None:
        return _make(world, claim, filled, origin, address)
    if reader.deleting:
        return (), f"Pod {clone_source_pod(claim.uid)} is being deleted; another follows by itself"
    if reader.address != address or (reader.ended is not None and world.now - reader.ended >= PAUSE):
        return (_gone(claim, origin, reader),), reader.message
    if not reader.running:
        return (own, certificate_of(reader, origin.namespace, claim, client_name(claim))), reader.message
    return (), ""


def cleared_reader(world: World, claim: Claim, ledger: Ledger, *, final: bool) -> tuple[Action, ...]:
    """The reader goes with the clone; it stays, ended, where pods are to be retained."""
    record = CloneRecord.read(claim)
    if record is None or not (final or ledger.done):
        return ()
    reader = facts(world).reader(record.namespace, clone_source_pod(claim.uid))
    if reader is None or reader.deleting or reader.target != claim.uid:
        return ()
    # One that read a snapshot does not stay: it would hold the claim that was made for it.
    if retains(world.datavolume, claim) and reader.ended is not None and not record.restored:
        return ()
    return (DeleteObject(plural="pods", namespace=record.namespace, name=clone_source_pod(claim.uid), uid=reader.uid),)


def reader_marks(world: World, claim: Claim) -> dict[str, str | None]:
    """Annotations of the target."""
    record = is_copied(claim)
    reader = facts(world).reader(record.namespace, clone_source_pod(claim.uid)) if record is not None else None
    if reader is None:
        return {}
    return {
        ANN_SOURCE_CLONE_POD: clone_source_pod(claim.uid),
        ANN_SOURCE_RUNNING_CONDITION: "true" if reader.running else "false",
        ANN_SOURCE_RUNNING_CONDITION_REASON: reader.reason,
        ANN_SOURCE_RUNNING_CONDITION_MESSAGE: reader.message,
    }


def with_reader(decision: Decision, message: str) -> Decision:
    """What keeps the reader, where the pod that fills has nothing to say itself."""
    if not message or decision.state.running.message:
        return decision
    state = decision.state
    return replace(
        decision,
        state=replace(
            state, running=replace(state.running, message=message), ready=replace(state.ready, message=message)
        ),
        requeue_after=PAUSE,
    )


def _reader(world: World, claim: Claim, origin: Clone) -> Reader | None:
    reader = facts(world).reader(origin.namespace, clone_source_pod(claim.uid))
    return reader if reader is not None and reader.target == claim.uid else None


def _make(world: World, claim: Claim, filled: Claim, origin: Clone, address: str) -> tuple[tuple[Action, ...], str]:
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
    users = in_use(world, found)
    if users is not None:
        return (), users.message
    content = _content(found)
    path = DEVICE if found.volume_mode == "Block" else SOURCE if content == "archive" else f"{SOURCE}/disk.img"
    knobs = read_knobs(world.datavolume.metadata.annotations)
    job = CopySourceJob(
        id=filled.uid,
        path=path,
        address=address,
        content_type=content,
        identity=found.uid,
        server_name=server_name(filled),
        policy=Policy(bandwidth=knobs.bandwidth),
    )
    return (CreateObject(body=build_reader(world, claim, found, job)),), ""


def _gone(claim: Claim, origin: Clone, reader: Reader) -> DeleteObject:
    return DeleteObject(plural="pods", namespace=origin.namespace, name=clone_source_pod(claim.uid), uid=reader.uid)


def _content(found: Found) -> Any:
    archive = found.annotations.get(ANN_CONTENT_TYPE) == ContentType.ARCHIVE and found.volume_mode != "Block"
    return "archive" if archive else "kubevirt"
