"""Capabilities of a StorageClass, as far as its provisioner's name and its parameters determine them.

The facts are in `cdi.reconcile.storage.capabilities_table`; this module looks them up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cdi.api.claims import AccessMode, VolumeMode
from cdi.api.storageprofile import MAX_CLAIM_PROPERTY_SETS, CloneStrategy, CronSourceFormat
from cdi.reconcile.storage.classes import NO_PROVISIONER, StorageClass

_PREFERENCE = (
    # A filesystem holds every content type and is the default volume mode of a PVC. ReadWriteMany volumes allow live
    # migration.
    (AccessMode.READ_WRITE_MANY, VolumeMode.FILESYSTEM),
    (AccessMode.READ_WRITE_ONCE, VolumeMode.FILESYSTEM),
    (AccessMode.READ_WRITE_ONCE_POD, VolumeMode.FILESYSTEM),
    (AccessMode.READ_WRITE_MANY, VolumeMode.BLOCK),
    (AccessMode.READ_WRITE_ONCE, VolumeMode.BLOCK),
    (AccessMode.READ_WRITE_ONCE_POD, VolumeMode.BLOCK),
    (AccessMode.READ_ONLY_MANY, VolumeMode.FILESYSTEM),
    (AccessMode.READ_ONLY_MANY, VolumeMode.BLOCK),
)
"""Order of preference among capabilities that are inferred at the same time."""
_MAX_LEARNED = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PropertySet:
    """Access modes supported with a volume mode."""

    access_modes: tuple[str, ...]
    volume_mode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Capabilities of a class's volumes; the first set is the default."""

    sets: tuple[PropertySet, ...]
    clone: CloneStrategy | None = None
    """The preferred clone strategy; None: snapshots, if the storage supports them."""
    cron: CronSourceFormat | None = None
    """The preferred format for the imports of a DataImportCron; None: a PVC."""
    minimum: str | None = None
    """The smallest volume that can be provisioned, as a Kubernetes quantity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterMatch:
    """A condition on one of a StorageClass's parameters.

    Without any of the fields below, the parameter must be set and not empty.
    """

    parameter: str
    any_of: tuple[str, ...] = ()
    """Allowed values, in lower case; the comparison ignores case."""
    prefix: str = ""
    """Required prefix of the value."""
    includes: tuple[str, ...] = ()
    """Elements that the value, a list separated by commas or semicolons, must all include."""
    part: str = ""
    """Text in lower case that the value must contain; the comparison ignores case."""

    def holds(self, parameters: Mapping[str, str]) -> bool:
        value = parameters.get(self.parameter, "").strip()
        if self.any_of:
            return value.lower() in self.any_of
        if self.prefix:
            return value.startswith(self.prefix)
        if self.includes:
            given = {each.strip() for each in value.replace(";", ",").split(",")}
            return given.issuperset(self.includes)
        if self.part:
            return self.part in value.lower()
        return bool(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionalCapabilities:
    """Capabilities of a provisioner's volumes if the class's parameters meet all conditions."""

    when: tuple[ParameterMatch, ...]
    capabilities: Capabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisioner:
    """A provisioner, whose capabilities may depend on the class's parameters; the first matching variant is used."""

    name: str
    product: str
    """The product's name outside of Kubernetes."""
    otherwise: Capabilities | None
    """Capabilities if no variant matches; None if they are unknown then."""
    variants: tuple[ConditionalCapabilities, ...] = ()

    def of(self, storage_class: StorageClass) -> Capabilities | None:
        """Return the capabilities of a class; None if its parameters do not determine them."""
        for variant in self.variants:
            if all(condition.holds(storage_class.parameters) for condition in variant.when):
                return variant.capabilities
        return self.otherwise

    @property
    def deciding(self) -> tuple[str, ...]:
        """The parameters that the capabilities depend on."""
        return tuple(dict.fromkeys(condition.parameter for one in self.variants for condition in one.when))


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedVolume:
    """An existing PersistentVolume of the class."""

    access_modes: tuple[str, ...]
    volume_mode: str
    phase: str
    """Available, Bound, Released, Failed or Pending."""


def infer_from_volumes(
    storage_class: StorageClass, volumes: Iterable[ObservedVolume], before: Sequence[PropertySet] = ()
) -> Capabilities | None:
    """Infer a class's capabilities from its existing volumes; return None if these show nothing.

    Sets that were inferred `before` keep their position, and new ones are appended: a new volume must not change the
    result for a PVC that worked until then. They also stay after the last such volume is deleted.

    Only bound volumes count, since an unbound volume proves nothing. For a class without a provisioner, whose volumes
    are created manually, available volumes count as well, but only those that still exist.
    """
    by_hand = storage_class.provisioner == NO_PROVISIONER
    seen = {
        (mode, volume.volume_mode)
        for volume in volumes
        if volume.phase == "Bound" or (by_hand and volume.phase == "Available")
        for mode in volume.access_modes
    }
    old = [(one.access_modes[0], one.volume_mode) for one in before]
    kept = [one for one in old if one in seen or not by_hand]
    ways = [*kept, *(one for one in _PREFERENCE if one in seen and one not in kept)]
    # A read-only volume cannot be filled, so that access mode alone is not sufficient.
    if all(mode == AccessMode.READ_ONLY_MANY for mode, _ in ways):
        return None
    sets = tuple(PropertySet(access_modes=(mode,), volume_mode=form) for mode, form in ways)
    return Capabilities(sets=sets[:MAX_CLAIM_PROPERTY_SETS])


def write_learned(sets: Iterable[PropertySet]) -> str:
    """Return inferred sets in the form stored in an annotation: ``ReadWriteOnce Filesystem, ReadWriteMany Block``."""
    return ", ".join(f"{one.access_modes[0]} {one.volume_mode}" for one in sets)


def read_learned(text: str | None) -> tuple[PropertySet, ...]:
    """Parse the output of `write_learned`, in the same order; unknown elements are ignored."""
    words = [tuple(part.split()) for part in (text or "")[:_MAX_LEARNED].split(",")]
    found = dict.fromkeys(one for one in words if one in _PREFERENCE)
    return tuple(PropertySet(access_modes=(mode,), volume_mode=form) for mode, form in found)
