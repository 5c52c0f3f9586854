"""What a batch consists of, however it was written down."""

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
    """One volume that is wanted."""

    name: str
    namespace: str
    label: str
    """Its name in lock file and messages: with the namespace where the batch itself names one."""
    place: str
    """Where it is written down, such as ``images.yaml: images[3]``."""
    manifest: Object
    """The DataVolume; without a size where it shall have the image's own."""
    url: str | None = None
    """As it is written down; None where nothing is fetched (blank, clones)."""
    path: Path | None = None
    """A local file, that the DataVolume takes as an upload."""
    unsized: bool = False
    source: Key | None = None
    """The claim that is cloned."""

    @property
    def key(self) -> Key:
        return Key("datavolumes", self.namespace, self.name)

    @property
    def claim(self) -> Key:
        return Key("persistentvolumeclaims", self.namespace, self.name)

    @property
    def pinnable(self) -> bool:
        """It has an origin that a lock file can hold on to."""
        return self.url is not None

    @property
    def is_registry(self) -> bool:
        return "registry" in (self.manifest["spec"].get("source") or {})

    def sized(self, size: int) -> Object:
        """The manifest with a disk for `size` bytes; as it is where it says a size itself."""
        if not self.unsized:
            return self.manifest
        whole = max(MIB, -(-size // SECTOR) * SECTOR)
        return with_size(self.manifest, Quantity.of_bytes(whole).text)

    def model(self) -> DataVolume:
        """The DataVolume for whom its size does not matter."""
        dv = parse(with_size(self.manifest, _PLACEHOLDER) if self.unsized else self.manifest)
        assert isinstance(dv, DataVolume)
        return dv


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """All that was read."""

    items: tuple[Item, ...]
    others: tuple[Object, ...] = ()
    """Secrets, config maps and whatever else stands beside them."""
    directory: Path = field(default_factory=Path.cwd)
    """Where its lock file is kept."""


def claim_of(spec: Mapping[str, Any]) -> str:
    """The field of a DataVolume's spec that says what volume is wanted."""
    return "pvc" if "pvc" in spec else "storage"


def size_of(manifest: Object) -> Any:
    """What a DataVolume asks for, None where it does not say."""
    claim: Any = manifest["spec"].get(claim_of(manifest["spec"])) or {}
    for name in ("resources", "requests"):
        claim = claim.get(name) if isinstance(claim, Mapping) else None
    return claim.get("storage") if isinstance(claim, Mapping) else None


def with_size(manifest: Object, size: Any) -> Object:
    """A copy that asks for `size`.  Raises `InvalidManifest` where there is no mapping to put it into."""
    spec = manifest["spec"]
    name = claim_of(spec)
    claim = spec.get(name) or {}
    resources = claim.get("resources") or {} if isinstance(claim, Mapping) else None
    requests = resources.get("requests") or {} if isinstance(resources, Mapping) else None
    if not isinstance(requests, Mapping) or not isinstance(resources, Mapping) or not isinstance(claim, Mapping):
        raise InvalidManifest("it is no mapping", where=f"spec.{name}.resources.requests")
    claim = {**claim, "resources": {**resources, "requests": {**requests, "storage": size}}}
    return {**manifest, "spec": {**spec, name: claim}}
