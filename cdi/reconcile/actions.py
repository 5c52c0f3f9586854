"""Actions that a reconciler returns.

Actions are idempotent, and any of them may be lost: the next reconcile repeats what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from cdi.api.datavolume import DataVolume
from cdi.api.decode import JsonJob
from cdi.api.job import Job
from cdi.api.meta import ObjectMeta
from cdi.api.peer import PeerSourceSpec
from cdi.api.poll import PollJob
from cdi.api.proof import ProofJob
from cdi.reconcile.types import PVC


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneJob(JsonJob):
    """The worker's input for copying a volume to another volume, as `Job` is for an image from outside."""

    title: ClassVar = "clone job"

    id: str
    """UID of the target PVC."""
    source: str
    """Path of a disk image, or of a directory if `content` is ``archive``."""
    target: str
    """Path of the same kind; a disk is written under a temporary name and renamed when it is complete."""
    content: Literal["kubevirt", "archive"] = "kubevirt"
    size: int | None = None
    """Size in bytes of the new disk, not less than the source's; None for the same size."""
    preallocation: bool = False


Work = Job | CloneJob


def is_peer_import(work: Work | None) -> bool:
    """Return whether a worker fills a volume from another worker: the target of a host-assisted clone."""
    return isinstance(work, Job) and isinstance(work.source, PeerSourceSpec)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ObjectRef:
    """A reference to a Secret or ConfigMap."""

    kind: Literal["Secret", "ConfigMap"]
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A projected volume: every key of these objects is a file in `directory`.

    If several objects share a directory, file names are prefixed with the object's name.
    """

    directory: str
    inputs: tuple[ObjectRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateObject:
    """Create an object (a PVC, a VolumeImportSource); an existing object of that name is left unchanged."""

    body: Mapping[str, Any]
    """The whole manifest with apiVersion, kind and metadata."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorObject:
    """Create or update a copy of a Secret or ConfigMap in the namespace of the pods."""

    source: ObjectRef
    copy: ObjectRef
    """A reference of the same kind."""
    owner: Mapping[str, Any]
    """The owner reference of the copy, with which it is garbage-collected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchObject:
    """Set labels, annotations, fields of the spec and a controlling owner on an object that still has this UID.

    The status is never changed. The owner is added only if the object has no other controller.
    """

    plural: str
    namespace: str
    """Empty for cluster-scoped objects."""
    name: str
    uid: str
    annotations: Mapping[str, str | None] = field(default_factory=dict)
    """None removes one."""
    labels: Mapping[str, str] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    """Merge patch (RFC 7396) of the spec."""
    owner: Mapping[str, Any] | None = None
    version: str = ""
    """The expected resourceVersion; a mismatch is a `Conflict`.

    Set if acting on stale data would do harm, otherwise empty.
    """

    @classmethod
    def of_claim(cls, claim: PVC, annotations: Mapping[str, str | None], *, version: str = "") -> Self:
        """Return the patch that sets annotations on a PVC."""
        return cls(
            plural="persistentvolumeclaims",
            namespace=claim.namespace,
            name=claim.name,
            uid=claim.uid,
            annotations=annotations,
            version=version,
        )

    @classmethod
    def of_data_volume(
        cls,
        dv: DataVolume,
        *,
        annotations: Mapping[str, str | None] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Self:
        """Return the patch that sets annotations and labels on a DataVolume."""
        return cls(
            plural="datavolumes",
            namespace=dv.metadata.namespace or "",
            name=dv.metadata.name or "",
            uid=dv.metadata.uid or "",
            annotations=annotations or {},
            labels=labels or {},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteObject:
    """Delete an object if it still has this UID; an object that is already deleted is not an error."""

    plural: str
    namespace: str
    name: str
    uid: str

    @classmethod
    def of_claim(cls, claim: PVC) -> Self:
        return cls(plural="persistentvolumeclaims", namespace=claim.namespace, name=claim.name, uid=claim.uid)


@dataclass(frozen=True, slots=True, kw_only=True)
class RebindVolume:
    """Rebind a PersistentVolume from the prime PVC to the target by replacing its claimRef.

    The volume is read first, then both PVCs by UID; the claimRef is then replaced under the resourceVersion that was
    read. This is done only while the volume is neither Released nor Failed, its claimRef has the UID `prime_uid`, and
    the prime PVC still exists. (Once the prime PVC is deleted, the volume becomes Released, which changes its
    resourceVersion before anything deletes its content.) Whether the prime PVC is already bound to the volume does not
    matter.

    The annotation `cdi.api.annotations.FILLED_FOR` on the volume records the target. A claimRef that already names the
    target counts as done. Anything else is a `Conflict`.
    """

    volume: str
    """The PersistentVolume's name."""
    volume_uid: str
    namespace: str
    """The target's namespace."""
    prime: str
    prime_uid: str
    target: str
    target_uid: str
    prime_namespace: str = ""
    """Empty for the target's namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetReclaimPolicy:
    """Set the reclaim policy of a PersistentVolume.

    ``Retain`` is always set. Any other policy may cause the volume to be deleted, so it is set only while the volume is
    Bound, its claimRef has the UID `claim_uid`, and that PVC exists and is not being deleted. All of this is read when
    the action is applied, and the policy is written under the volume's resourceVersion; otherwise it is a `Conflict`.
    """

    volume: str
    """The PersistentVolume's name."""
    volume_uid: str
    policy: str
    """Delete, Retain or Recycle."""
    namespace: str
    """The PVC's namespace."""
    claim: str
    claim_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFinalizer:
    """Add or remove a finalizer on an object that has this UID.

    Adding one to an object that is being deleted is a `Conflict`.
    """

    plural: str
    namespace: str
    """Empty for cluster-scoped objects."""
    name: str
    uid: str
    finalizer: str
    present: bool
    version: str = ""
    """The expected resourceVersion, of which a mismatch is a `Conflict`; empty if it does not matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequireVersion:
    """Stop the plan with a `Conflict` unless an object still has the resourceVersion that the plan is based on.

    The object is read from the API server. It protects the actions that follow from a decision that is based on an
    outdated state of another object than the one they change, or on the absence of one.
    """

    plural: str
    namespace: str
    """Empty for cluster-scoped objects."""
    name: str
    uid: str
    """Empty if no object of this name may exist, whichever it is."""
    version: str
    """Empty if the object must not exist."""

    @classmethod
    def of_claim(cls, claim: PVC) -> Self:
        return cls(
            plural="persistentvolumeclaims",
            namespace=claim.namespace,
            name=claim.name,
            uid=claim.uid,
            version=claim.version,
        )

    @classmethod
    def of_absent_claim(cls, namespace: str, name: str) -> Self:
        return cls(plural="persistentvolumeclaims", namespace=namespace, name=name, uid="", version="")

    @classmethod
    def of_object(cls, plural: str, metadata: ObjectMeta) -> Self:
        return cls(
            plural=plural,
            namespace=metadata.namespace or "",
            name=metadata.name or "",
            uid=metadata.uid or "",
            version=metadata.resource_version or "",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteUnboundClaim:
    """Delete an unbound PVC that carries `mark` and may have been created without being observed yet.

    It is looked up by name when the action is applied; if no such PVC exists, the action is done.
    """

    namespace: str
    name: str
    mark: tuple[str, str]
    """An annotation and its value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpandClaim:
    """Expand a PVC that still has this UID and requests less."""

    namespace: str
    name: str
    uid: str
    size: int
    """Size in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsureCertificate:
    """Create or renew a certificate in a Secret: ``tls.crt``, ``tls.key`` and, as ``ca.crt``, the CA of the peers.

    Server and client certificates are signed by the installation's two upload CAs.
    """

    namespace: str
    secret: str
    name: str
    """The subject's common name; servers identify a client by it."""
    hosts: tuple[str, ...]
    """DNS names of a server."""
    usage: Literal["server", "client"]
    owner: Mapping[str, Any]
    """The owner reference of the Secret, with which it is garbage-collected."""
    entry: str = ""
    """Key prefix in a Secret with several certificates: the files are ``<entry>.crt`` and ``<entry>.key``."""
    beside: tuple[str, ...] = ()
    """Other entries to keep; entries that are not listed are removed in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartWorker:
    """Start an attempt, unless it or a later one was already started.

    In a cluster this creates `pod`; an existing pod of that name is left unchanged.
    """

    claim: str
    """UID of the PVC being filled."""
    attempt: int
    """Number of the attempt, from 1."""
    work: Work
    namespace: str = ""
    """The PVC's namespace."""
    mounts: tuple[Mount, ...] = ()
    fingerprint: str = ""
    """Digest of all inputs that the work depends on."""
    upload: str = ""
    """Id of the upload request that it serves."""
    pod: Mapping[str, Any] | None = None
    """The whole manifest, where workers are pods."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopWorker:
    """Stop an attempt, or clean up one that has ended.

    In a cluster this deletes the pod if it still has this UID.
    """

    claim: str
    """UID of the PVC being filled."""
    namespace: str = ""
    pod: str = ""
    """The pod's name."""
    pod_uid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignRecord:
    """Sign a record of origin and write the envelope into an annotation; on one machine only.

    In a cluster a pod signs, so that the controller never holds the key.
    """

    key: ObjectRef
    """The Secret with the private key."""
    statement: str
    """The in-toto statement."""
    plural: str
    namespace: str
    name: str
    uid: str
    annotation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTask:
    """Start a poll or proof as a process of this machine, unless one of the same object is running.

    On one machine only: in a cluster, polls are Jobs and pods, and proofs are pods. Its state is
    `cdi.reconcile.dataimportcron.context.CronLister.local_task`.
    """

    uid: str
    """UID of the DataImportCron for a poll, of the PVC for a proof."""
    work: PollJob | ProofJob
    mounts: tuple[Mount, ...] = ()
    """Secrets and ConfigMaps; the paths in `work` are below their directories."""

    @property
    def task(self) -> Literal["poll", "proof"]:
        return "poll" if isinstance(self.work, PollJob) else "proof"


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTask:
    """Stop the poll of a DataImportCron or the proof of a PVC, if one is running on this machine."""

    task: Literal["poll", "proof"]
    uid: str


Action = (
    CreateObject
    | MirrorObject
    | PatchObject
    | DeleteObject
    | RebindVolume
    | SetReclaimPolicy
    | SetFinalizer
    | RequireVersion
    | DeleteUnboundClaim
    | ExpandClaim
    | EnsureCertificate
    | StartWorker
    | StopWorker
    | SignRecord
    | StartTask
    | StopTask
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A Kubernetes Event to be recorded once."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectEvent:
    """An event of another object than the reconciled one."""

    plural: str
    namespace: str
    name: str
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The result of `reconcile`: actions to apply in order, then events to record, then the status to write.

    Events and status belong to the reconciled object; if that was synthesized (`ReconcileContext.synthetic`), the
    events belong to its PVC and there is no status. If an action fails, nothing after it is done.
    """

    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    claim_events: tuple[Event, ...] = ()
    """Events of the PVC, in addition to those of the DataVolume; in a cluster only."""
    object_events: tuple[ObjectEvent, ...] = ()
    """Events of other objects; in a cluster only."""
    status: Mapping[str, Any] | None = None
    """The complete new status; None if it is unchanged."""
    annotations: Mapping[str, str | None] = field(default_factory=dict)
    """Annotations of the reconciled object, written by the same request as the status; None removes one.

    Only for kinds without a status subresource.
    """
    requeue_after: float | None = None
    """Seconds after which to reconcile again even if nothing changes."""
    wants_worker: bool = False
    """Whether only a worker slot is missing (`ReconcileContext.has_worker_slot`)."""
