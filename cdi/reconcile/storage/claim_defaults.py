"""Defaults of a PVC from its storage class: access modes, volume mode, class and size.

Used for a DataVolume's ``storage``, and at creation of PVCs with the label ``applyStorageProfile``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from cdi.api.annotation_types import annotations_of
from cdi.api.claims import VolumeMode
from cdi.api.errors import InvalidManifest, StorageClassMissing, StorageProfileIncomplete, TargetUnsuitable
from cdi.api.names import (
    ANN_CONTENT_TYPE,
    ANN_CREATED_BY_CONTROLLER,
    LABEL_APPLY_STORAGE_PROFILE,
)
from cdi.api.overhead import required
from cdi.api.quantity import MIB, Quantity
from cdi.api.storageprofile import StorageProfile
from cdi.reconcile.datavolume.status_table import WITHOUT_STORAGE_CLASS
from cdi.reconcile.settings import ResolvedConfig
from cdi.reconcile.storage.capabilities import ObservedVolume, PropertySet
from cdi.reconcile.storage.classes import NO_PROVISIONER, StorageClass
from cdi.reconcile.storage.profiles import is_learned, minimum_size, profile_patch, volume_sets
from cdi.reconcile.types import StorageDefaults

MIN_CLAIM_SIZE = MIB
"""Minimum size in bytes of a disk in KubeVirt."""


def storage_defaults(
    named: str | None,
    storage_class: StorageClass | None,
    profile: StorageProfile | None,
    config: ResolvedConfig,
    volumes: Iterable[ObservedVolume] = (),
) -> StorageDefaults:
    """Return the defaults for a PVC that names the class `named` (None: it names none).

    Args:
        named: The class in the PVC's spec.
        storage_class: The result of `cdi.reconcile.storage.classes.named_or_default` for it.
        profile: The StorageProfile of that class.
        config: The resolved CDIConfig.
        volumes: The PersistentVolumes of that class.

    """
    if storage_class is None:
        if not named:
            return StorageDefaults(storage_class=named, exists=False)
        by_hand = StorageClass(name=named, provisioner=NO_PROVISIONER)
        sets = volume_sets(by_hand, None, volumes)
        return StorageDefaults(storage_class=named, exists=False, sets=sets, overhead=overhead_of(named, config))
    return StorageDefaults(
        storage_class=storage_class.name,
        sets=volume_sets(storage_class, profile, volumes),
        learned=is_learned(storage_class, profile),
        overhead=overhead_of(storage_class.name, config),
        minimum=minimum_size(profile),
    )


def overhead_of(storage_class: str | None, config: ResolvedConfig) -> Fraction:
    """Return the filesystem overhead of a class as a fraction of the disk's size."""
    return config.overheads.get(storage_class or "", config.overhead)


def needs_defaults(claim: Mapping[str, Any], *, enabled: bool) -> bool:
    """Return whether the webhook sets defaults on a new PVC: it has the label, and CDI's controller did not create it.

    PVCs created by the controller are complete, and their size must not grow a second time.

    Args:
        claim: The PVC as an API object.
        enabled: CDIConfig's webhookPvcRendering (`cdi.reconcile.cdi.config.renders_claims`).

    """
    metadata = claim.get("metadata") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    return (
        enabled and labels.get(LABEL_APPLY_STORAGE_PROFILE) == "true" and ANN_CREATED_BY_CONTROLLER not in annotations
    )


def is_archive(claim: Mapping[str, Any]) -> bool:
    """Return whether a PVC's annotations request an archive."""
    annotations = annotations_of(claim)
    return bool(annotations.get(ANN_CONTENT_TYPE) == "archive")


def default_claim(
    spec: Mapping[str, Any], given: StorageDefaults, *, archive: bool = False, sized: bool = True
) -> dict[str, Any]:
    """Return a PVC's spec with class, access modes, volume mode and size filled in.

    Values that are set stay, but the size grows by the filesystem overhead and to the minimum of the class.

    Args:
        spec: The spec of a PVC or a DataVolume's ``storage``, as an API object.
        given: The defaults.
        archive: Whether the content is an archive.
        sized: Whether a size is required; a clone takes its source's.

    Raises:
        InvalidManifest: The size is missing or below 1 MiB.
        TargetUnsuitable: An archive is requested on a block device.
        StorageClassMissing: The access modes are missing and there is no class to take them from.
        StorageProfileIncomplete: The class has no known access modes.

    """
    completed = dict(spec)
    asked = completed.pop("volumeMode", None)
    volume_mode = None if asked in (None, "", VolumeMode.FROM_STORAGE_PROFILE) else str(asked)
    if archive:
        if volume_mode == VolumeMode.BLOCK:
            raise TargetUnsuitable("ContentType Archive cannot have block volumeMode", where="volumeMode")
        volume_mode = VolumeMode.FILESYSTEM.value
    access_modes, volume_mode = default_modes(spec.get("accessModes") or (), volume_mode, given)
    completed["accessModes"] = list(access_modes)
    completed["volumeMode"] = volume_mode
    if given.storage_class is not None:
        completed["storageClassName"] = given.storage_class
    size = _size(spec)
    if size is None:
        if sized:
            raise InvalidManifest("PVC Spec is not valid - missing storage size", where="resources.requests.storage")
        return completed
    wanted = default_size(size, volume_mode, given)
    if wanted != size:
        resources = dict(spec.get("resources") or {})
        resources["requests"] = {**(resources.get("requests") or {}), "storage": Quantity.of_bytes(wanted).text}
        completed["resources"] = resources
    return completed


def default_modes(
    access_modes: Sequence[str], volume_mode: str | None, given: StorageDefaults
) -> tuple[tuple[str, ...], str]:
    """Return both modes, the missing ones from the first matching set.

    Without access modes the PVC would be invalid, so inferred sets are used as well. With access modes the volume mode
    defaults to Filesystem, as in Kubernetes, and inferred sets do not change that.

    Raises:
        StorageClassMissing: There is no class to take the access modes from.
        StorageProfileIncomplete: The class has no known access modes.

    """
    if access_modes:
        if volume_mode is None:
            told = () if given.learned else given.sets
            fits = (one.volume_mode for one in told if set(one.access_modes) & set(access_modes))
            volume_mode = next(fits, VolumeMode.FILESYSTEM.value)
        return tuple(access_modes), volume_mode
    for one in given.sets:
        if volume_mode in (None, one.volume_mode):
            return one.access_modes, one.volume_mode
    raise _unknown(volume_mode, given)


def default_size(size: int, volume_mode: str, given: StorageDefaults) -> int:
    """Return the size in bytes of a PVC for a disk of `size` bytes.

    Raises:
        InvalidManifest: The size is below 1 MiB.

    """
    if size < MIN_CLAIM_SIZE:
        raise InvalidManifest(
            "PVC Spec is not valid - storage size should be at least 1MiB", where="resources.requests.storage"
        )
    # The minimum is one of the volume, not of the disk in its filesystem.
    wanted = required(size, given.overhead) if volume_mode == VolumeMode.FILESYSTEM else size
    return max(wanted, given.minimum)


def _size(spec: Mapping[str, Any]) -> int | None:
    text = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
    return None if text is None else Quantity.parse(text).bytes


def _unknown(volume_mode: str | None, given: StorageDefaults) -> StorageClassMissing | StorageProfileIncomplete:
    if given.storage_class is None:
        return StorageClassMissing(WITHOUT_STORAGE_CLASS, where="storageClassName")
    name = given.storage_class
    if not given.exists:
        return StorageClassMissing(
            f"{WITHOUT_STORAGE_CLASS}: StorageClass {name} does not exist, and no PersistentVolume has that "
            "storageClassName"
            if name
            else "accessModes is missing, and a volume without a StorageClass has no StorageProfile to take it from",
            where="storageClassName",
            remedy="name accessModes and volumeMode in the manifest" if not name else None,
        )
    form = volume_mode or "Filesystem"
    example = PropertySet(access_modes=("ReadWriteOnce",), volume_mode=form)
    missing = f" for volumeMode {volume_mode}" if given.sets and volume_mode else ""
    return StorageProfileIncomplete(
        f"no accessMode specified in StorageProfile {name}{missing}",
        where="accessModes",
        remedy="name accessModes and volumeMode in the manifest, or set what the class supports in its profile "
        f"(the values are an example): {profile_patch(name, (*given.sets, example))}",
    )
