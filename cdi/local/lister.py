"""Cache of the objects in one CDI_HOME, and the context that it presents to reconcilers."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from cdi.api.configuration import CONFIG_NAME, CDIConfig
from cdi.api.core import ConfigMap, PersistentVolumeClaim, Secret
from cdi.api.datasource import DataSource
from cdi.api.datavolume import DataVolume
from cdi.api.errors import InternalError, NotFound
from cdi.api.installation import CDI
from cdi.api.meta import KubeObject
from cdi.api.names import ANN_BOUND_CONDITION_MESSAGE
from cdi.api.overhead import NO_OVERHEAD
from cdi.api.populators import VolumeImportSource, VolumeUploadSource
from cdi.api.storageprofile import StorageProfile
from cdi.api.validation import parse
from cdi.local.home import Home
from cdi.reconcile.actions import ObjectRef
from cdi.reconcile.cdi.config import active_cdi, resolve_config
from cdi.reconcile.context import ReconcileContext
from cdi.reconcile.pods.types import VolumeLayout, Worker
from cdi.reconcile.settings import Platform, ResolvedConfig, Retries
from cdi.reconcile.storage.classes import StorageClass
from cdi.reconcile.types import PVC, Input, Profile, Service, StorageDefaults, Volume
from cdi.store.base import Change, Key, Object

PLATFORM = Platform(local_files=True)
WATCHED = (
    "datavolumes",
    "datasources",
    "dataimportcrons",
    "persistentvolumeclaims",
    "secrets",
    "configmaps",
    "storageprofiles",
    "cdiconfigs",
    "cdis",
    "events",
)
M = TypeVar("M", bound=KubeObject)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Settings of a machine for every reconcile."""

    retries: Retries = field(default_factory=Retries)
    now: Callable[[], float] = time.time


class Observed:
    """The objects as a watch reported them; implements `cdi.reconcile.context.Lister`."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._bodies: dict[Key, Object] = {}
        self._models: dict[Key, tuple[str, KubeObject]] = {}

    def take(self, changes: Iterable[Change]) -> None:
        for change in changes:
            if change.type == "DELETED":
                self._bodies.pop(change.key, None)
                self._models.pop(change.key, None)
            else:
                self._bodies[change.key] = change.body

    def keys(self, plural: str) -> Iterator[Key]:
        return (key for key in list(self._bodies) if key.plural == plural)

    def body(self, key: Key) -> Object | None:
        return self._bodies.get(key)

    def uids(self) -> set[str]:
        return {body["metadata"]["uid"] for body in self._bodies.values()}

    def model(self, key: Key, kind: type[M]) -> M | None:
        """Return a parsed object; raise `InvalidManifest` for one that no version of this project can have written."""
        body = self._bodies.get(key)
        if body is None:
            return None
        version = body["metadata"]["resourceVersion"]
        known = self._models.get(key)
        if known is None or known[0] != version:
            known = (version, parse(body))
            self._models[key] = known
        model = known[1]
        if not isinstance(model, kind):
            raise InternalError(f"{key} is cached as a {type(model).__name__}")
        return model

    # --- for reconcilers ------------------------------------------------------------------------------------------

    def claim(self, namespace: str, name: str) -> PVC | None:
        body = self._bodies.get(Key("persistentvolumeclaims", namespace, name))
        model = self.model(Key("persistentvolumeclaims", namespace, name), PersistentVolumeClaim)
        return None if model is None or body is None else self._claim(model)

    def data_volume(self, namespace: str, name: str) -> DataVolume | None:
        return self.model(Key("datavolumes", namespace, name), DataVolume)

    def data_source(self, namespace: str, name: str) -> DataSource | None:
        return self.model(Key("datasources", namespace, name), DataSource)

    def input(self, ref: ObjectRef) -> Input | None:
        body = self._bodies.get(_input_key(ref))
        if body is None:
            return None
        keys = {*(body.get("data") or {}), *(body.get("binaryData") or {})}
        metadata = body["metadata"]
        return Input(version=f"{metadata['uid']}/{metadata['resourceVersion']}", keys=frozenset(keys))

    def profile(self, storage_class: str | None) -> Profile:
        profile = self.model(Key("storageprofiles", "", storage_class or ""), StorageProfile)
        sets = profile.spec.claim_property_sets if profile is not None else None
        if not sets:
            return Profile()
        return Profile(
            access_modes=tuple(sets[0].access_modes) or Profile().access_modes, volume_mode=sets[0].volume_mode
        )

    # A machine has directories, but no storage classes, PersistentVolumes or pods.

    def storage_class(self, name: str) -> StorageClass | None:
        return None

    def default_storage_class(self, *, virtualization: bool) -> StorageClass | None:
        return None

    def csi_driver(self, provisioner: str) -> bool:
        return False

    def storage_defaults(self, storage_class: str | None, *, virtualization: bool) -> StorageDefaults:
        return StorageDefaults(storage_class=storage_class)

    def volume(self, name: str) -> Volume | None:
        return None

    def volumes_for(self, namespace: str, claim: str) -> tuple[Volume, ...]:
        return ()

    def users(self, namespace: str, claim: str) -> tuple[str, ...]:
        return ()

    def import_source(self, namespace: str, name: str) -> VolumeImportSource | None:
        return None

    def upload_source(self, namespace: str, name: str) -> VolumeUploadSource | None:
        return None

    def service(self, namespace: str, name: str) -> Service | None:
        return None

    def worker(self, namespace: str, pod: str) -> Worker | None:
        return None

    def config(self) -> ResolvedConfig:
        """Return the configuration of CDI and CDIConfig, without overhead, since a volume holds only the disk."""
        installations = [self.model(key, CDI) for key in self.keys("cdis")]
        active = active_cdi(one for one in installations if one is not None)
        resolved = resolve_config(active, self.model(Key("cdiconfigs", "", CONFIG_NAME), CDIConfig))
        return replace(resolved, overhead=NO_OVERHEAD, overheads={})

    def _claim(self, claim: PersistentVolumeClaim) -> PVC:
        metadata, status = claim.metadata, claim.status
        annotations = metadata.annotations or {}
        controller = next((owner for owner in metadata.owner_references or () if owner.controller), None)
        capacity = (status.capacity or {}).get("storage") if status is not None else None
        namespace, name = metadata.namespace or "", metadata.name or ""
        return PVC(
            namespace=namespace,
            name=name,
            uid=metadata.uid or "",
            phase=(status.phase if status is not None else None) or "Pending",
            provisioning_message=annotations.get(ANN_BOUND_CONDITION_MESSAGE, ""),
            capacity=capacity.bytes if capacity is not None else None,
            controller_kind=controller.kind if controller else "",
            controller_name=controller.name if controller else "",
            controller_uid=controller.uid if controller else "",
            annotations=annotations,
            labels=metadata.labels or {},
            deleting=metadata.deletion_timestamp is not None,
            path=str(self._home.volume(namespace, name)),
        )

    # --- for the runtime ----------------------------------------------------------------------------------------

    def content(self, ref: ObjectRef) -> Mapping[str, bytes]:
        """Return the values of a Secret or ConfigMap; raise `NotFound`."""
        key = _input_key(ref)
        if key not in self._bodies:
            raise NotFound(f"{ref} does not exist")
        data: Mapping[str, str] = {}
        text: Mapping[str, str] = {}
        if ref.kind == "Secret":
            secret = self.model(key, Secret)
            data = (secret.data if secret is not None else None) or {}
        else:
            config_map = self.model(key, ConfigMap)
            if config_map is not None:
                data, text = config_map.binary_data or {}, config_map.data or {}
        try:
            binary = {name: base64.b64decode(value, validate=False) for name, value in data.items()}
        except binascii.Error as error:
            raise InternalError(f"{ref} holds a value that is not base64") from error
        return {**{name: value.encode() for name, value in text.items()}, **binary}

    def context(
        self, dv: DataVolume, worker: Worker | None, setting: Setting, *, admitted: bool, turn: str = ""
    ) -> ReconcileContext:
        claim = self.claim(dv.metadata.namespace or "", dv.metadata.name or "")
        return ReconcileContext(
            now=setting.now(),
            datavolume=dv,
            objects=self,
            worker=worker,
            layout=None if claim is None else layout(self._home, claim),
            config=self.config(),
            retries=setting.retries,
            platform=PLATFORM,
            has_worker_slot=admitted,
            queue_message=turn,
        )


def layout(home: Home, claim: PVC) -> VolumeLayout:
    directory = home.worker(claim.uid)
    return VolumeLayout(
        disk=str(home.disk(claim.namespace, claim.name)),
        directory=str(home.volume(claim.namespace, claim.name)),
        journal=str(directory.journal),
        scratch=str(directory.scratch),
        inputs=str(directory.inputs),
    )


def _input_key(ref: ObjectRef) -> Key:
    return Key("secrets" if ref.kind == "Secret" else "configmaps", ref.namespace, ref.name)
