"""What a StorageClass can do, as far as its provisioner's name and its parameters tell.

The facts are in `cdi.reconcile.capabilities_table`; this is how they are looked up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cdi.api.claims import AccessMode, VolumeMode
from cdi.api.storageprofile import MAX_CLAIM_PROPERTY_SETS, CloneStrategy, CronSourceFormat
from cdi.reconcile.storageclass import NO_PROVISIONER, StorageClass

_PREFERENCE = (
    # A file system takes every content, and is what a claim is that says nothing.  With a volume that several nodes can
    # use, a machine can move.
    (AccessMode.READ_WRITE_MANY, VolumeMode.FILESYSTEM),
    (AccessMode.READ_WRITE_ONCE, VolumeMode.FILESYSTEM),
    (AccessMode.READ_WRITE_ONCE_POD, VolumeMode.FILESYSTEM),
    (AccessMode.READ_WRITE_MANY, VolumeMode.BLOCK),
    (AccessMode.READ_WRITE_ONCE, VolumeMode.BLOCK),
    (AccessMode.READ_WRITE_ONCE_POD, VolumeMode.BLOCK),
    (AccessMode.READ_ONLY_MANY, VolumeMode.FILESYSTEM),
    (AccessMode.READ_ONLY_MANY, VolumeMode.BLOCK),
)
"""Of what is learned at the same time, the first is preferred."""
_LONGEST_LEARNED = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PropertySet:
    """Access modes that go with a volume mode."""

    access_modes: tuple[str, ...]
    volume_mode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What volumes of a class can be; the first set is the one to use."""

    sets: tuple[PropertySet, ...]
    clone: CloneStrategy | None = None
    """The best way to clone; None: by snapshot where there are any."""
    cron: CronSourceFormat | None = None
    """The best form for the imports of a DataImportCron; None: a claim."""
    minimum: str | None = None
    """The smallest volume that it makes, a quantity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """A condition on one of a StorageClass's parameters."""

    parameter: str
    any_of: tuple[str, ...] = ()
    """Its value, letter case aside, is one of these; with nothing here, it is given and not empty."""
    prefix: str = ""
    """Its value begins so."""
    includes: tuple[str, ...] = ()
    """Its value is a list, divided by commas or semicolons, with all of these in it."""
    part: str = ""
    """Its value holds this text, letter case aside."""

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
class Variant:
    """What a provisioner's volumes can be where the class's parameters meet all conditions."""

    when: tuple[When, ...]
    capabilities: Capabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisioner:
    """A provisioner, whose volumes may depend on the class's parameters: the first variant that fits counts."""

    name: str
    product: str
    """What it is called outside of Kubernetes."""
    otherwise: Capabilities | None
    """Where no variant fits; None: nothing can be said then."""
    variants: tuple[Variant, ...] = ()

    def of(self, storage_class: StorageClass) -> Capabilities | None:
        """None where the class's parameters do not tell."""
        for variant in self.variants:
            if all(condition.holds(storage_class.parameters) for condition in variant.when):
                return variant.capabilities
        return self.otherwise

    @property
    def deciding(self) -> tuple[str, ...]:
        """The parameters that its volumes depend on."""
        return tuple(dict.fromkeys(condition.parameter for one in self.variants for condition in one.when))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A PersistentVolume of the class, as it is."""

    access_modes: tuple[str, ...]
    volume_mode: str
    phase: str
    """Available, Bound, Released, Failed or Pending."""


def learned(
    storage_class: StorageClass, volumes: Iterable[Evidence], before: Sequence[PropertySet] = ()
) -> Capabilities | None:
    """Return what the class can do by the evidence of the volumes that it has; None where they tell nothing.

    What was learned `before` keeps its place, and what is new comes after it: a volume that somebody makes must not
    change what a claim becomes that worked until then.  It also stays once no such volume is left.

    Only volumes that are bound count, since one that never was bound proves nothing.  Of a class without a provisioner
    every volume counts, and only those that are there: there are no others than those that somebody made.
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
    # A volume that can only be read cannot be filled: that alone is nothing to go by.
    if all(mode == AccessMode.READ_ONLY_MANY for mode, _ in ways):
        return None
    sets = tuple(PropertySet(access_modes=(mode,), volume_mode=form) for mode, form in ways)
    return Capabilities(sets=sets[:MAX_CLAIM_PROPERTY_SETS])


def write_learned(sets: Iterable[PropertySet]) -> str:
    """Return learned sets as they are kept in an annotation: ``ReadWriteOnce Filesystem, ReadWriteMany Block``."""
    return ", ".join(f"{one.access_modes[0]} {one.volume_mode}" for one in sets)


def read_learned(text: str | None) -> tuple[PropertySet, ...]:
    """Return what `write_learned` wrote, in the same order, without whatever else somebody may have written there."""
    words = [tuple(part.split()) for part in (text or "")[:_LONGEST_LEARNED].split(",")]
    found = dict.fromkeys(one for one in words if one in _PREFERENCE)
    return tuple(PropertySet(access_modes=(mode,), volume_mode=form) for mode, form in found)
