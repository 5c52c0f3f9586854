"""What a reconciler sees: facts that were observed before it was called, and the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from cdi.api.datasource import DataSource
from cdi.api.datavolume import DataVolume
from cdi.api.job import Failure, Outcome, Progress, Proxy
from cdi.api.overhead import NO_OVERHEAD
from cdi.api.populators import VolumeImportSource, VolumeUploadSource
from cdi.reconcile.actions import Action, InputRef
from cdi.reconcile.storageclass import StorageClass

if TYPE_CHECKING:
    from cdi.reconcile.clone.facts import CloneFacts
    from cdi.reconcile.sizing import Offer  # which needs `Config`


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRef:
    """What a claim's ``dataSourceRef`` (or ``dataSource``) names."""

    group: str
    """The API group; empty for the core group."""
    kind: str
    name: str
    namespace: str | None = None
    """None for the claim's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A PersistentVolumeClaim."""

    namespace: str
    name: str
    uid: str
    phase: str
    """Pending, Bound or Lost."""
    why_pending: str = ""
    """What keeps it from being bound, a sentence; empty while nothing is wrong."""
    capacity: int | None = None
    """Bytes, once it is bound."""
    controller_kind: str = ""
    controller_name: str = ""
    controller_uid: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    volume_mode: str = "Filesystem"
    access_modes: tuple[str, ...] = ()
    storage_class: str | None = None
    """``spec.storageClassName``: None where nobody said, empty for none at all."""
    requested: int | None = None
    """Bytes that it asks for (``spec.resources.requests.storage``)."""
    volume_name: str = ""
    """The PersistentVolume that it is bound to, or asks for."""
    data_ref: DataRef | None = None
    selected_node: str = ""
    """Where its first consumer shall run (``volume.kubernetes.io/selected-node``)."""
    deleting: bool = False
    finalizers: tuple[str, ...] = ()
    """Who keeps it from going once it is deleted."""
    version: str = ""
    """Its resourceVersion; empty where nobody else writes."""
    path: str | None = None
    """The volume's directory where this machine has it."""


WITHOUT_CLAIM = ("Released", "Failed")
"""Phases of a PersistentVolume whose claim went away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A PersistentVolume."""

    name: str
    uid: str
    claim_uid: str = ""
    """Of the claim that ``spec.claimRef`` names; empty where it names none."""
    claim_namespace: str = ""
    claim_name: str = ""
    phase: str = "Bound"
    """Pending, Available, Bound, Released or Failed."""
    capacity: int | None = None
    """Bytes."""
    volume_mode: str = "Filesystem"
    access_modes: tuple[str, ...] = ()
    storage_class: str = ""
    reclaim: str = "Delete"
    """What becomes of it when its claim goes: Delete, Retain, or Recycle (``persistentVolumeReclaimPolicy``)."""
    filled_for: str = ""
    """The uid of the claim that it was handed over to, with its content complete; empty where it never was."""
    deleting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """By which a pod is found."""

    name: str
    uid: str
    claim: str = ""
    """The uid of the claim that it was made for: its controlling owner."""
    deleting: bool = False

    @property
    def foreign(self) -> bool:
        """It was made by somebody else."""
        return not self.claim


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Why a pod does not run although nothing of it has failed yet."""

    reason: str
    """Unschedulable, ImagePullFailed, ContainerCreating, NodeLost …: a reason of the Running condition."""
    message: str
    """Cause and remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """The pod that an attempt runs in."""

    name: str
    uid: str
    claim: str
    """The uid of the claim that it fills: its controlling owner."""
    node: str = ""
    """Empty until it is scheduled."""
    started: bool = False
    """Its container runs, or has run."""
    scheduled: bool | None = None
    """What the scheduler said; None where it has not spoken."""
    hold: Hold | None = None
    deleting: bool = False
    limits: str = ""
    """The annotation with its limits (`cdi.api.job.Limits`)."""
    scratch: bool = False
    """It has scratch space."""
    serves: bool = False
    """It is there to be sent to: an upload server, or the pod that takes a clone."""
    ready: bool = False
    """It says that it can be."""
    spec: str = ""
    """A digest of what it was made from."""
    address: str = ""
    """Its own address in the cluster's network, once it has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """The newest attempt to fill a claim."""

    attempt: int
    running: bool
    """It has not ended; its pod may still be waiting to begin (`Pod.started`)."""
    started: float
    """Seconds since the epoch."""
    ended: float | None = None
    progress: Progress | None = None
    outcome: Outcome | None = None
    """Set once it is not running; a worker that ended without one has a failure ``WorkerLost``."""
    fingerprint: str = ""
    """Of what it was started with (`StartWorker.fingerprint`)."""
    upload: str = ""
    pod: Pod | None = None
    """None where workers are processes."""
    journal: str = ""
    """What it left for the next attempt where its volume cannot keep it."""
    refused: Failure | None = None
    """Why it did not take the last upload; it waits for another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A Secret or ConfigMap that exists."""

    version: str
    """Changes with its content."""
    keys: frozenset[str]
    refused: str = ""
    """Why it may not be looked at, and what to do about that; then nothing else is known of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pods:
    """How worker pods are made: from the controller's own options, CDIConfig and the CDI object."""

    image: str = ""
    """The container image that holds the worker."""
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    """CDIConfig's imagePullSecrets, by name."""
    resources: Mapping[str, Any] = field(default_factory=dict)
    """CDIConfig's podResourceRequirements as an API object (``limits``, ``requests``); what it leaves open is filled
    in with the usual (`cdi.reconcile.pod`)."""
    placement: Mapping[str, Any] = field(default_factory=dict)
    """The CDI object's ``spec.workload`` as an API object: ``nodeSelector``, ``affinity``, ``tolerations``."""
    verbosity: int = 1
    """CDIConfig's logVerbosity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What CDIConfig says, resolved."""

    preallocation: bool = False
    proxy: Proxy = field(default_factory=Proxy)
    trusted_ca: InputRef | None = None
    """Certificates of the proxy."""
    insecure_registries: frozenset[str] = frozenset()
    """``host`` or ``host:port``."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """For every object that is made, beside its own."""
    scratch_class: str | None = None
    """The storage class of scratch space; None for the default one."""
    overhead: Fraction = NO_OVERHEAD
    """What a file system keeps for itself, as a part of the disk's size (`cdi.api.overhead`)."""
    overheads: Mapping[str, Fraction] = field(default_factory=dict)
    """The same for single storage classes."""
    adopts: bool = False
    """A DataVolume takes a claim of its name that nobody controls, unless its annotation says otherwise."""
    clone_strategy: str | None = None
    """The CDI object's cloneStrategyOverride."""
    pods: Pods = field(default_factory=Pods)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a StorageProfile says where a DataVolume's storage leaves it open."""

    access_modes: tuple[str, ...] = ("ReadWriteOnce",)
    volume_mode: str = "Filesystem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """When a failed attempt is followed by another.  Pauses are spread by a quarter either way."""

    budget: int | None = 10
    """How often in a row a passing fault may come without progress; None for any number of times."""
    base: float = 1.0
    """Seconds before the second attempt after a passing fault; each further one waits twice as long."""
    longest: float = 120.0
    """Seconds, the longest of these pauses."""
    base_on_change: float = 10.0
    """Seconds before the second attempt at what only somebody else can mend; each further one waits twice as long."""
    longest_on_change: float = 60.0
    """Seconds, the longest of these pauses."""
    patience: float = 60.0
    """Seconds between looks at what tells nobody that it has changed."""


CLUSTER_RETRIES: Final = Retries(budget=None, longest=240.0, longest_on_change=240.0)
"""As KubeVirt's CDI does it: any number of times, with pauses that grow to five minutes.  Nobody sits and waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What the place that this runs in can do."""

    local_files: bool = False
    """Manifests may name files of this machine (a key ring)."""
    snapshots: bool = False
    image_streams: bool = False
    cluster: bool = False
    """Workers are pods, and volumes are made by others: `World` holds what that needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where a worker finds its volume and its other things."""

    disk: str
    directory: str
    """The volume itself, for archives."""
    journal: str | None
    scratch: str | None
    inputs: str
    """Below it, one directory for each mount."""


class Objects(Protocol):
    """The other objects, as they were observed; looking one up does no I/O."""

    def claim(self, namespace: str, name: str) -> Claim | None: ...

    def data_volume(self, namespace: str, name: str) -> DataVolume | None: ...

    def data_source(self, namespace: str, name: str) -> DataSource | None: ...

    def input(self, ref: InputRef) -> Input | None: ...

    def profile(self, storage_class: str | None) -> Profile: ...

    # Those below are asked in a cluster only (`Platform.cluster`).

    def storage_class(self, name: str) -> StorageClass | None: ...

    def default_storage_class(self, *, virtualization: bool) -> StorageClass | None:
        """The one for claims that name none; with `virtualization` the one for virtual machines goes before it
        (`cdi.reconcile.storageclass.default_class`).
        """

    def csi_driver(self, provisioner: str) -> bool:
        """A CSIDriver object of this name exists."""

    def offer(self, storage_class: str | None, *, virtualization: bool) -> Offer:
        """What a claim that names this class (None: names none) is completed from (`cdi.reconcile.sizing.offer`)."""

    def volume(self, name: str) -> Volume | None: ...

    def volumes_for(self, namespace: str, claim: str) -> tuple[Volume, ...]:
        """Those whose claimRef names this claim, which need not exist."""

    def users(self, namespace: str, claim: str) -> tuple[str, ...]:
        """Pods, none of ours, that have the volume of a claim or are about to: they have not ended."""

    def import_source(self, namespace: str, name: str) -> VolumeImportSource | None: ...

    def upload_source(self, namespace: str, name: str) -> VolumeUploadSource | None: ...

    def service(self, namespace: str, name: str) -> Service | None: ...

    def worker(self, namespace: str, pod: str) -> Worker | None:
        """The worker in the pod of this name, as `cdi.reconcile.pod_facts.observe_pod` sees it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The server did not let an action be carried out."""

    action: Action
    failure: Failure
    """Of the `CdiError`, by `cdi.reconcile.refusal.refusal_of`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything that decides what becomes of one volume.

    In a cluster it is put together by `cdi.reconcile.cluster.observe`.
    """

    now: float
    """Seconds since the epoch."""
    datavolume: DataVolume
    """Synthesised where a claim asks for an import by itself (`synthetic`)."""
    objects: Objects
    worker: Worker | None
    """Of the claim that is filled: the prime claim where there is one to be, else the DataVolume's own."""
    layout: Layout | None
    """None until the claim exists."""
    config: Config = field(default_factory=Config)
    retries: Retries = field(default_factory=Retries)
    platform: Platform = field(default_factory=Platform)
    admitted: bool = True
    """There is room for one more worker."""
    turn: str = ""
    """Why not, where `admitted` is False."""
    synthetic: bool = False
    """There is no DataVolume: events are told of the claim, and there is no status to be written."""
    prime: Claim | None = None
    """The claim that is filled in the target's place (`cdi.api.names.prime_claim`)."""
    scratch: Claim | None = None
    """The scratch space of the claim that is filled."""
    service: Service | None = None
    """Of the name that the upload server of that claim has, whoever made it."""
    clones: CloneFacts | None = None
    """What else is observed for clones; in a cluster only."""
    refusal: Refusal | None = None
    """Set only for the reconcile right after a plan of this very world that could not be carried out: that gives a
    plan without the refused action, whose status and events say why.  The next one tries again."""


Operation = Literal["Import", "Upload", "Clone"]
