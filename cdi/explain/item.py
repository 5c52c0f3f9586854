"""Items of a batch, independent of the format they were read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdi.api.datavolume import DataVolume
from cdi.api.errors import InvalidManifest
from cdi.api.quantity import MIB, Quantity
from cdi.api.validation import parse
from cdi.store.base import Key, Object

SECTOR = 512
_PLACEHOLDER = "1Gi"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A volume to import."""

    name: str
    namespace: str
    label: str
    """Its name in lock file and messages, with the namespace if the batch itself names one."""
    place: str
    """Its position in the input, such as ``images.yaml: images[3]``."""
    manifest: Object
    """The DataVolume; without a size if it gets the image's own."""
    url: str | None = None
    """The URL in the batch; None if nothing is fetched (blank disks, clones)."""
    path: Path | None = None
    """A local file that is uploaded into the DataVolume."""
    unsized: bool = False
    source: Key | None = None
    """The PVC to clone."""

    @property
    def key(self) -> Key:
        return Key("datavolumes", self.namespace, self.name)

    @property
    def claim(self) -> Key:
        return Key("persistentvolumeclaims", self.namespace, self.name)

    @property
    def pinnable(self) -> bool:
        """Return whether it has a source that a lock file can pin."""
        return self.url is not None

    @property
    def is_registry(self) -> bool:
        return "registry" in (self.manifest["spec"].get("source") or {})

    def sized(self, size: int) -> Object:
        """Return the manifest for a disk of `size` bytes, unchanged if it specifies a size itself."""
        if not self.unsized:
            return self.manifest
        whole = max(MIB, -(-size // SECTOR) * SECTOR)
        return with_size(self.manifest, Quantity.of_bytes(whole).text)

    def model(self) -> DataVolume:
        """Return the DataVolume for callers that do not need its size."""
        dv = parse(with_size(self.manifest, _PLACEHOLDER) if self.unsized else self.manifest)
        assert isinstance(dv, DataVolume)
        return dv


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The items and objects that were read."""

    items: tuple[Item, ...]
    others: tuple[Object, ...] = ()
    """Other objects, such as Secrets and ConfigMaps."""
    directory: Path = field(default_factory=Path.cwd)
    """The directory of the lock file."""


def claim_of(spec: Mapping[str, Any]) -> str:
    """Return the name of the field in a DataVolume's spec that describes the volume."""
    return "pvc" if "pvc" in spec else "storage"


def size_of(manifest: Object) -> Any:
    """Return the size that a DataVolume requests, or None."""
    claim: Any = manifest["spec"].get(claim_of(manifest["spec"])) or {}
    for name in ("resources", "requests"):
        claim = claim.get(name) if isinstance(claim, Mapping) else None
    return claim.get("storage") if isinstance(claim, Mapping) else None


def with_size(manifest: Object, size: Any) -> Object:
    """Return a copy that requests `size`; raise `InvalidManifest` if a parent field is not a mapping."""
    spec = manifest["spec"]
    name = claim_of(spec)
    claim = spec.get(name) or {}
    resources = claim.get("resources") or {} if isinstance(claim, Mapping) else None
    requests = resources.get("requests") or {} if isinstance(resources, Mapping) else None
    if not isinstance(requests, Mapping) or not isinstance(resources, Mapping) or not isinstance(claim, Mapping):
        raise InvalidManifest("it is not a mapping", where=f"spec.{name}.resources.requests")
    claim = {**claim, "resources": {**resources, "requests": {**requests, "storage": size}}}
    return {**manifest, "spec": {**spec, name: claim}}
