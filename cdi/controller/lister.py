"""Read-only view of the cluster's objects for reconcilers, from the watch caches.  Nothing here does any I/O."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from cdi.api.annotations import FILLED_FOR
from cdi.api.configuration import CONFIG_NAME, CDIConfig
from cdi.api.datasource import DataSource
from cdi.api.datavolume import DataVolume
from cdi.api.errors import InternalError, InvalidManifest
from cdi.api.installation import CDI
from cdi.api.job import Failure, Progress
from cdi.api.kinds import (
    CDI_CONFIGS,
    CDIS,
    CLAIMS,
    CSI_DRIVERS,
    DATA_SOURCES,
    DATA_VOLUMES,
    EVENTS,
    NODES,
    PODS,
    SERVICES,
    STORAGE_CLASSES,
    STORAGE_PROFILES,
    VOLUME_IMPORT_SOURCES,
    VOLUME_SNAPSHOT_CLASSES,
    VOLUME_UPLOAD_SOURCES,
    VOLUMES,
    Object,
    Resource,
)
from cdi.api.meta import KubeObject
from cdi.api.names import ANN_SELECTED_NODE
from cdi.api.populators import VolumeImportSource, VolumeUploadSource
from cdi.api.quantity import Quantity
from cdi.api.storageprofile import StorageProfile
from cdi.api.validation import parse
from cdi.controller.informers import require_valid
from cdi.kube.reflector import WatchEvent
from cdi.reconcile.actions import ObjectRef
from cdi.reconcile.cdi.config import active_cdi, effective_spec, resolve_config
from cdi.reconcile.pods.status import worker_from_pod
from cdi.reconcile.pods.types import Worker
from cdi.reconcile.settings import ResolvedConfig, WorkerPodConfig
from cdi.reconcile.storage.capabilities import ObservedVolume
from cdi.reconcile.storage.claim_defaults import storage_defaults
from cdi.reconcile.storage.classes import StorageClass, default_class, named_or_default
from cdi.reconcile.storage.profiles import SnapshotClass
from cdi.reconcile.types import PVC, DataRef, Input, Profile, Service, StorageDefaults, Volume

M = TypeVar("M", bound=KubeObject)
_MODELS = 256
"""Number of parsed models to keep: enough for the active volumes, not for thousands of completed ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Warning:
    """The latest warning event of a PVC."""

    name: str = ""
    when: str = ""
    reason: str = ""
    message: str = ""


_NO_WARNING = _Warning()


class Cache(Protocol):
    """Objects in their latest known state (`cdi.controller.informers.InformerSet`).  They must not be modified."""

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """Return an object; `namespace` is empty for cluster-scoped ones."""
        ...

    def values(self, resource: Resource) -> Iterable[Object]: ...

    def volumes_for(self, namespace: str, claim: str) -> Iterable[Object]:
        """Return the PersistentVolumes whose claimRef names this PVC."""
        ...


class InputSource(Protocol):
    """Source of Secrets' and ConfigMaps' keys and versions (`cdi.controller.referenced_objects.ReferencedObjects`)."""

    def get(self, ref: ObjectRef) -> Input | None: ...


class PodUsageSource(Protocol):
    """Source of the pods that use a PVC (`cdi.controller.pod_usage.PodUsageTracker`)."""

    def pods_using(self, namespace: str, claim: str) -> tuple[str, ...]: ...


class ProgressSource(Protocol):
    """Source of the progress of workers (`cdi.controller.progress.ProgressPoller`)."""

    def of(self, uid: str) -> Progress | None: ...

    def last_rejected_upload(self, uid: str) -> Failure | None: ...


class ClusterLister:
    """Implementation of `cdi.reconcile.context.Lister`, with further lookups for the controller."""

    def __init__(
        self,
        watches: Cache,
        progresses: ProgressSource,
        inputs: InputSource,
        users: PodUsageSource,
        *,
        pods: WorkerPodConfig,
        install_namespace: str,
    ) -> None:
        """Start with empty model caches; `pods` has the settings of worker pods from the command line."""
        self._watches = watches
        self._progresses = progresses
        self._inputs = inputs
        self._users = users
        self._pods = pods
        self._install_namespace = install_namespace
        self._models: OrderedDict[tuple[Resource, str, str], tuple[str, str, KubeObject]] = OrderedDict()
        self._warnings: dict[str, _Warning] = {}
        """Latest warnings by UID of the PVC."""
        self._config: ResolvedConfig | None = None
        self._classes: tuple[StorageClass, ...] | None = None

    def changed(self, resource: Resource, change: WatchEvent) -> None:
        """Discard what was computed from all objects of this resource, as one of them has changed."""
        if resource == EVENTS:
            self._warned(change)
        if resource == STORAGE_CLASSES:
            self._classes = None
        if resource in (STORAGE_CLASSES, CDI_CONFIGS, CDIS):
            self._config = None

    # --- for reconcilers --------------------------------------------------------------------------------------------

    def claim(self, namespace: str, name: str) -> PVC | None:
        body = self._watches.get(CLAIMS, namespace, name)
        return None if body is None else self._claim(body)

    def data_volume(self, namespace: str, name: str) -> DataVolume | None:
        return self.model(DATA_VOLUMES, namespace, name, DataVolume)

    def data_source(self, namespace: str, name: str) -> DataSource | None:
        return self.model(DATA_SOURCES, namespace, name, DataSource)

    def import_source(self, namespace: str, name: str) -> VolumeImportSource | None:
        return self.model(VOLUME_IMPORT_SOURCES, namespace, name, VolumeImportSource)

    def upload_source(self, namespace: str, name: str) -> VolumeUploadSource | None:
        return self.model(VOLUME_UPLOAD_SOURCES, namespace, name, VolumeUploadSource)

    def service(self, namespace: str, name: str) -> Service | None:
        body = self._watches.get(SERVICES, namespace, name)
        if body is None:
            return None
        metadata = body["metadata"]
        owners = metadata.get("ownerReferences") or ()
        owner: Mapping[str, str] = next((one for one in owners if one.get("controller")), {})
        return Service(
            name=name,
            uid=metadata["uid"],
            claim=owner.get("uid", "") if owner.get("kind") == CLAIMS.kind else "",
            deleting="deletionTimestamp" in metadata,
        )

    def input(self, ref: ObjectRef) -> Input | None:
        return self._inputs.get(ref)

    def storage_class(self, name: str) -> StorageClass | None:
        return next((one for one in self.storage_classes() if one.name == name), None)

    def default_storage_class(self, *, virtualization: bool) -> StorageClass | None:
        return default_class(self.storage_classes(), virtualization=virtualization)

    def csi_driver(self, provisioner: str) -> bool:
        return self._watches.get(CSI_DRIVERS, "", provisioner) is not None

    def storage_defaults(self, storage_class: str | None, *, virtualization: bool) -> StorageDefaults:
        found = named_or_default(storage_class, self.storage_classes(), virtualization=virtualization)
        name = found.name if found is not None else storage_class or ""
        return storage_defaults(
            storage_class, found, self.storage_profile(name), self.config(), self.provisioned_volumes(name)
        )

    def profile(self, storage_class: str | None) -> Profile:
        sets = self.storage_defaults(storage_class, virtualization=True).sets
        return Profile(access_modes=sets[0].access_modes, volume_mode=sets[0].volume_mode) if sets else Profile()

    def volume(self, name: str) -> Volume | None:
        body = self._watches.get(VOLUMES, "", name)
        return None if body is None else _volume(body)

    def volumes_for(self, namespace: str, claim: str) -> tuple[Volume, ...]:
        return tuple(_volume(body) for body in self._watches.volumes_for(namespace, claim))

    def users(self, namespace: str, claim: str) -> tuple[str, ...]:
        return self._users.pods_using(namespace, claim)

    def worker(self, namespace: str, pod: str) -> Worker | None:
        body = self._watches.get(PODS, namespace, pod)
        if body is None:
            return None
        node = (body.get("spec") or {}).get("nodeName") or ""
        lost = bool(node) and not self.node_ready(node)
        uid = body["metadata"]["uid"]
        told = self._progresses
        return worker_from_pod(body, progress=told.of(uid), refused=told.last_rejected_upload(uid), node_lost=lost)

    # --- for the controller -----------------------------------------------------------------------------------------

    def model(self, resource: Resource, namespace: str, name: str, kind: type[M]) -> M | None:
        """Return an object as a model, which is parsed once for each version; None if it does not exist.

        Raises:
            InvalidManifest: The object does not have the form of its kind.

        """
        body = self._watches.get(resource, namespace, name)
        key = (resource, namespace, name)
        if body is None:
            self._models.pop(key, None)
            return None
        uid, version = body["metadata"]["uid"], body["metadata"]["resourceVersion"]
        known = self._models.get(key)
        if known is None or known[:2] != (uid, version):
            known = (uid, version, parse(require_valid(body)))
            self._models[key] = known
        self._models.move_to_end(key)
        while len(self._models) > _MODELS:
            self._models.popitem(last=False)
        model = known[2]
        if not isinstance(model, kind):
            raise InternalError(f"{resource} {namespace}/{name} is cached as a {type(model).__name__}")
        return model

    def config(self) -> ResolvedConfig:
        """Return the effective configuration from CDI and CDIConfig."""
        if self._config is None:
            self._config = resolve_config(
                active_cdi(self.cdis()),
                self.cdi_config(),
                self.storage_classes(),
                namespace=self._install_namespace,
                pods=self._pods,
            )
        return self._config

    def cdi_config(self) -> CDIConfig | None:
        return self._readable(CDI_CONFIGS, CONFIG_NAME, CDIConfig)

    def upload_proxy_override(self) -> str:
        """Return the upload proxy's URL that an administrator has set; empty if there is none."""
        active = active_cdi(self.cdis())
        return effective_spec(active, self.cdi_config()).upload_proxy_url_override or ""

    def cdis(self) -> list[CDI]:
        """Return the CDI objects."""
        names = [body["metadata"]["name"] for body in self._watches.values(CDIS)]
        found = (self._readable(CDIS, name, CDI) for name in names)
        return [one for one in found if one is not None]

    def storage_classes(self) -> tuple[StorageClass, ...]:
        if self._classes is None:
            self._classes = tuple(StorageClass.read(body) for body in self._watches.values(STORAGE_CLASSES))
        return self._classes

    def storage_profile(self, name: str) -> StorageProfile | None:
        return self._readable(STORAGE_PROFILES, name, StorageProfile)

    def _readable(self, resource: Resource, name: str, kind: type[M]) -> M | None:
        """Return an object that all volumes depend on; None if it is missing or invalid.

        An error in it is reported when its own key is reconciled.
        """
        with contextlib.suppress(InvalidManifest):
            return self.model(resource, "", name, kind)
        return None

    def snapshot_classes(self) -> tuple[SnapshotClass, ...]:
        return tuple(SnapshotClass.read(body) for body in self._watches.values(VOLUME_SNAPSHOT_CLASSES))

    def provisioned_volumes(self, storage_class: str) -> Iterable[ObservedVolume]:
        """Yield the PersistentVolumes of a class."""
        for body in self._watches.values(VOLUMES):
            spec = body.get("spec") or {}
            if spec.get("storageClassName") == storage_class:
                yield ObservedVolume(
                    access_modes=tuple(spec.get("accessModes") or ()),
                    volume_mode=spec.get("volumeMode") or "Filesystem",
                    phase=(body.get("status") or {}).get("phase") or "",
                )

    def node_ready(self, name: str) -> bool:
        """Return whether a node exists and has the condition Ready."""
        body = self._watches.get(NODES, "", name)
        conditions = ((body or {}).get("status") or {}).get("conditions") or []
        return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)

    def _claim(self, body: Object) -> PVC:
        metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
        annotations: Mapping[str, str] = metadata.get("annotations") or {}
        controller: Mapping[str, str] = next(
            (one for one in metadata.get("ownerReferences") or () if one.get("controller")), {}
        )
        phase = status.get("phase") or "Pending"
        warning = self._warnings.get(metadata["uid"], _NO_WARNING) if phase == "Pending" else _NO_WARNING
        return PVC(
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata["uid"],
            phase=phase,
            provisioning_message=warning.message,
            provisioning_reason=warning.reason,
            capacity=_size(status.get("capacity")),
            controller_kind=controller.get("kind") or "",
            controller_name=controller.get("name") or "",
            controller_uid=controller.get("uid") or "",
            annotations=annotations,
            labels=metadata.get("labels") or {},
            volume_mode=spec.get("volumeMode") or "Filesystem",
            access_modes=tuple(spec.get("accessModes") or ()),
            storage_class=spec.get("storageClassName"),
            requested=_size((spec.get("resources") or {}).get("requests")),
            volume_name=spec.get("volumeName") or "",
            data_ref=data_ref(spec),
            selected_node=annotations.get(ANN_SELECTED_NODE, ""),
            deleting="deletionTimestamp" in metadata,
            finalizers=tuple(metadata.get("finalizers") or ()),
            version=metadata.get("resourceVersion") or "",
        )

    def _warned(self, change: WatchEvent) -> None:
        """Record the latest warning event of a PVC, usually its provisioner's, until that event expires."""
        body = change.object
        uid, name = str(body["involvedObject"].get("uid") or ""), body["metadata"]["name"]
        known = self._warnings.get(uid, _NO_WARNING)
        if change.type == "DELETED":
            if known.name == name:
                del self._warnings[uid]
        elif str(body["when"]) >= known.when:
            self._warnings[uid] = _Warning(
                name=name, when=str(body["when"]), reason=str(body.get("reason") or ""), message=str(body["message"])
            )


def _volume(body: Object) -> Volume:
    metadata, spec = body["metadata"], body.get("spec") or {}
    claim = spec.get("claimRef") or {}
    return Volume(
        name=metadata["name"],
        uid=metadata["uid"],
        claim_uid=claim.get("uid") or "",
        claim_namespace=claim.get("namespace") or "",
        claim_name=claim.get("name") or "",
        phase=(body.get("status") or {}).get("phase") or "",
        capacity=_size(spec.get("capacity")),
        volume_mode=spec.get("volumeMode") or "Filesystem",
        access_modes=tuple(spec.get("accessModes") or ()),
        storage_class=spec.get("storageClassName") or "",
        reclaim=spec.get("persistentVolumeReclaimPolicy") or "Delete",
        filled_for=FILLED_FOR.read(metadata.get("annotations") or {}) or "",
        deleting="deletionTimestamp" in metadata,
        version=metadata.get("resourceVersion") or "",
    )


def data_ref(spec: Mapping[str, Any]) -> DataRef | None:
    """Return the reference in a PVC's spec to the object that it is created from; None if there is none."""
    ref = spec.get("dataSourceRef") or spec.get("dataSource")
    if not ref:
        return None
    return DataRef(
        group=ref.get("apiGroup") or "",
        kind=ref.get("kind") or "",
        name=ref.get("name") or "",
        namespace=ref.get("namespace"),
    )


def _size(amounts: Mapping[str, Any] | None) -> int | None:
    """Return ``storage`` in bytes; None if it is missing or invalid."""
    text = (amounts or {}).get("storage")
    if text is None:
        return None
    try:
        return Quantity.parse(text).bytes
    except InvalidManifest:
        return None
