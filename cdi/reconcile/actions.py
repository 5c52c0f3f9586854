"""What a reconciler wants done.  Every action may be lost, or done twice, and the next reconcile heals it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from cdi.api.copy import CopyTargetJob
from cdi.api.decode import DecodeError, decode
from cdi.api.errors import InvalidManifest
from cdi.api.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneJob:
    """A volume's content is copied to another volume: the worker's input, as `Job` is for an image from outside."""

    id: str
    """The target claim's uid."""
    source: str
    """A disk image, or a directory where `content` is ``archive``."""
    target: str
    """Of the same kind; a disk is written beside its name and moved there when it is complete."""
    content: Literal["kubevirt", "archive"] = "kubevirt"
    size: int | None = None
    """Of the new disk, bytes: not less than the source's; None for the same."""
    preallocation: bool = False

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises `InvalidManifest` naming every field that is wrong."""
        try:
            return decode(cls, text)
        except DecodeError as error:
            raise InvalidManifest(f"not a clone job: {error}") from error

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))


Work = Job | CloneJob | CopyTargetJob


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class InputRef:
    """A Secret or ConfigMap."""

    kind: Literal["Secret", "ConfigMap"]
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """Every key of these objects is a file in `directory`, as a projected volume shows them.

    Where several objects share a directory, a file is called after its object as well.
    """

    directory: str
    inputs: tuple[InputRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateObject:
    """Make an object (a claim, a VolumeImportSource); one of that name that exists is left alone."""

    body: Mapping[str, Any]
    """A whole manifest with apiVersion, kind and metadata."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyInput:
    """Make a copy of a Secret or ConfigMap where pods can use it, or bring that copy up to date."""

    source: InputRef
    copy: InputRef
    """Of the same kind."""
    owner: Mapping[str, Any]
    """The owner reference that the copy goes with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchObject:
    """Set labels, annotations (None removes one) and a controlling owner on an object, if it still has this uid.

    The status is never touched.  An owner is added only where no other controls the object.
    """

    plural: str
    namespace: str
    """Empty for what belongs to no namespace."""
    name: str
    uid: str
    annotations: Mapping[str, str | None] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    owner: Mapping[str, Any] | None = None
    version: str = ""
    """The resourceVersion that it must still have, or it is a `Conflict`: what was observed may be out of date, and
    what follows would do harm then.  Empty where that does not matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteObject:
    """Delete an object if it still has this uid; one that is gone already is no failure."""

    plural: str
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebind:
    """Give a PersistentVolume from the prime claim to the target: replace its claimRef.

    First read the volume, then the two claims by their uids, then replace the claimRef under the volume's
    resourceVersion that was read: done only while the volume is neither Released nor Failed, its claimRef's uid is
    `prime_uid`, and the prime claim still exists.  (Once it does not, the volume is Released, which changes its
    resourceVersion, before anybody deletes what is in it.)  Whether the prime claim is bound to it yet does not matter.
    An annotation of the volume says for whom it was filled (`cdi.api.names.ANN_FILLED_FOR`).  A claimRef that names
    the target already is done.  Anything else is a `Conflict`.
    """

    volume: str
    """The PersistentVolume's name."""
    volume_uid: str
    namespace: str
    """The target's."""
    prime: str
    prime_uid: str
    target: str
    target_uid: str
    prime_namespace: str = ""
    """Empty for the target's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetReclaimPolicy:
    """Say what becomes of a PersistentVolume when its claim goes.

    ``Retain`` is set in any case.  Anything else may cost the volume, so it is set only while the volume is Bound, its
    claimRef's uid is `claim_uid`, and that claim is there and not being deleted: all of it read now, and written under
    the resourceVersion of the volume that was read; else it is a `Conflict`.
    """

    volume: str
    """The PersistentVolume's name."""
    volume_uid: str
    policy: str
    """Delete, Retain or Recycle."""
    namespace: str
    """The claim's."""
    claim: str
    claim_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFinalizer:
    """Keep an object that has this uid from going, or let it go.

    None is added to an object that is being deleted: that is a `Conflict`.
    """

    plural: str
    namespace: str
    """Empty for what belongs to no namespace."""
    name: str
    uid: str
    finalizer: str
    present: bool
    version: str = ""
    """The resourceVersion that it must still have, or it is a `Conflict`; empty where that does not matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WithdrawClaim:
    """Delete a claim that may have been made and not been seen yet: one that carries `mark`, and is not bound.

    It is looked up by its name when this is carried out; no such claim is as good as one that was deleted.
    """

    namespace: str
    name: str
    mark: tuple[str, str]
    """An annotation and its value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enlarge:
    """Ask for a larger volume of a claim, if it still has this uid and asks for less."""

    namespace: str
    name: str
    uid: str
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvideCertificate:
    """Make or renew a certificate in a Secret: ``tls.crt``, ``tls.key``, and as ``ca.crt`` who signed the other end's.

    Servers' and clients' certificates are signed by the installation's two authorities for uploads.
    """

    namespace: str
    secret: str
    name: str
    """Whom it is for; of a client, the name that servers know it by."""
    hosts: tuple[str, ...]
    """A server's DNS names."""
    usage: Literal["server", "client"]
    owner: Mapping[str, Any]
    """The owner reference that the Secret goes with."""
    entry: str = ""
    """Of a Secret that holds several: the own files are ``<entry>.crt`` and ``<entry>.key``."""
    beside: tuple[str, ...] = ()
    """Entries that are needed; others go in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartWorker:
    """Begin an attempt, unless that attempt or a later one was begun already.

    In a cluster that is: create `pod`; a pod of this name that exists is left alone.
    """

    claim: str
    """The uid of the claim that is filled."""
    attempt: int
    """Counts from 1."""
    work: Work
    namespace: str = ""
    """The claim's."""
    mounts: tuple[Mount, ...] = ()
    fingerprint: str = ""
    """Changes whenever anything does that the work depends on."""
    upload: str = ""
    """The upload request that it serves."""
    pod: Mapping[str, Any] | None = None
    """The whole manifest, where workers are pods."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopWorker:
    """End an attempt, or clear away one that has ended.  In a cluster: delete the pod if it still has this uid."""

    claim: str
    """The uid of the claim that is filled."""
    namespace: str = ""
    pod: str = ""
    """The pod's name."""
    pod_uid: str = ""


Action = (
    CreateObject
    | CopyInput
    | PatchObject
    | DeleteObject
    | Rebind
    | SetReclaimPolicy
    | SetFinalizer
    | WithdrawClaim
    | Enlarge
    | ProvideCertificate
    | StartWorker
    | StopWorker
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFact:
    """Something that happened, told once."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `reconcile` found: carry the actions out in order, tell the events, then write the status.

    Events and status belong to the object that was reconciled; where that was synthesised (`World.synthetic`) the
    events belong to its claim and there is no status.  Where an action fails, what comes after it is not done.
    """

    actions: tuple[Action, ...] = ()
    events: tuple[EventFact, ...] = ()
    claim_events: tuple[EventFact, ...] = ()
    """Told of the claim beside what is told of the DataVolume; in a cluster only."""
    status: Mapping[str, Any] | None = None
    """The whole status as it shall stand; None where it stands so already."""
    requeue_after: float | None = None
    """Look again after so many seconds, even if nothing changes."""
    wants_worker: bool = False
    """Everything is there for a worker but the permission to run one (`World.admitted`)."""
