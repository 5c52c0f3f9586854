"""Reconciler of StorageProfiles.

Volume properties come from the administrator's spec, else from the table of provisioners, else from the class's
existing volumes. If none of these gives a result, a condition describes the remedy.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cdi.api.annotations import LEARNED_SETS
from cdi.api.claims import AccessMode
from cdi.api.conditions import set_condition
from cdi.api.errors import InvalidManifest, render
from cdi.api.names import (
    ANN_CLONE_STRATEGY,
    ANN_CRON_READ_WRITE_ONCE,
    ANN_CRON_SNAPSHOT_CLASS,
    ANN_MINIMUM_PVC_SIZE,
    COMMON_LABELS,
    LABEL_COMPONENT,
)
from cdi.api.phases import ConditionStatus, ConditionType
from cdi.api.quantity import Quantity
from cdi.api.rules.configuration import check_storage_profile
from cdi.api.rules.problems import truncate
from cdi.api.storageprofile import CloneStrategy, CronSourceFormat, StorageProfile
from cdi.reconcile.actions import Action, CreateObject, DeleteObject, PatchObject, Plan
from cdi.reconcile.storage.capabilities import (
    Capabilities,
    ObservedVolume,
    PropertySet,
    infer_from_volumes,
    read_learned,
    write_learned,
)
from cdi.reconcile.storage.capabilities_table import NOT_FOR_DISKS, PROVISIONERS
from cdi.reconcile.storage.classes import NO_PROVISIONER, StorageClass

ANN_DEFAULT_SNAPSHOT_CLASS = "snapshot.storage.kubernetes.io/is-default-class"
IMAGE_SNAPSHOT_PROVISIONERS = frozenset({"pd.csi.storage.gke.io"})
"""Provisioners whose volumes for golden images are ReadWriteOnce and snapshot as disk images."""
RECOGNIZED = "RecognizedProvisioner"
UNRECOGNIZED = "UnrecognizedProvisioner"
UNRECOGNIZED_PARAMETERS = "UnrecognizedParameters"
NO_DISKS = "NotForDisks"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotClass:
    """A VolumeSnapshotClass."""

    name: str
    driver: str
    default: bool = False
    images: bool = False
    """Whether its snapshots are stored as disk images (parameter ``snapshot-type: images`` of Google's driver)."""

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> SnapshotClass:
        """Parse an API object."""
        metadata = body.get("metadata") or {}
        annotations = metadata.get("annotations") or {}
        return cls(
            name=metadata.get("name") or "",
            driver=body.get("driver") or "",
            default=annotations.get(ANN_DEFAULT_SNAPSHOT_CLASS) == "true",
            images=(body.get("parameters") or {}).get("snapshot-type") == "images",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileFacts:
    """Further facts for reconciling a profile."""

    volumes: tuple[ObservedVolume, ...] = ()
    """The PersistentVolumes of the class."""
    snapshot_classes: tuple[SnapshotClass, ...] = ()
    """All VolumeSnapshotClasses of the cluster."""
    owner: Mapping[str, Any] | None = None
    """An owner reference to the CDI object, so that profiles are garbage-collected with the installation."""


def reconcile_storage_profile(
    storage_class: StorageClass, profile: StorageProfile | None, facts: ProfileFacts, now: float
) -> Plan:
    """Create the profile of a class, or update its labels, annotation and status.

    The spec belongs to the administrator.
    """
    known = _known(storage_class)
    annotations = _annotations(storage_class, profile, known, facts.volumes)
    golden = _golden_image_annotations(storage_class, profile, facts.snapshot_classes)
    if profile is None:
        given = annotations | {name: text for name, text in golden.items() if text is not None}
        return Plan(actions=(CreateObject(body=_body(storage_class, given, facts.owner)),))
    if profile.metadata.deletion_timestamp is not None:
        return Plan()
    status = _status(storage_class, profile, known, facts, now)
    before = profile.status.to_dict() if profile.status is not None else None
    return Plan(
        actions=_metadata_patch(profile, annotations | golden, facts.owner),
        status=None if status == before else status,
    )


def reconcile_orphan(profile: StorageProfile) -> Plan:
    """Delete a profile whose class was deleted, unless an administrator has set its spec.

    A class must be recreated to change its parameters; the spec then applies to the new class.
    """
    if profile.metadata.deletion_timestamp is not None or profile.spec.to_dict():
        return Plan()
    metadata = profile.metadata
    gone = DeleteObject(plural="storageprofiles", namespace="", name=metadata.name or "", uid=metadata.uid or "")
    return Plan(actions=(gone,))


def volume_sets(
    storage_class: StorageClass | None, profile: StorageProfile | None, volumes: Iterable[ObservedVolume] = ()
) -> tuple[PropertySet, ...]:
    """Return the supported sets of a class, best first; empty if they are unknown.

    The result equals the profile's status once that is written, so callers need not wait for it.
    """
    given = _specified(profile)
    if given or storage_class is None:
        return given
    capabilities = _known(storage_class) or _learned(storage_class, profile, volumes)
    return capabilities.sets if capabilities is not None else ()


def is_learned(storage_class: StorageClass, profile: StorageProfile | None) -> bool:
    """Return whether `volume_sets` is inferred from existing volumes, for lack of any declared capabilities.

    This is never the case for manually created volumes, since there are no others.
    """
    return storage_class.provisioner != NO_PROVISIONER and not _specified(profile) and _known(storage_class) is None


def minimum_size(profile: StorageProfile | None) -> int:
    """Return the minimum size of the class's volumes in bytes; 0 if there is none, or an invalid one."""
    text = ((profile.metadata.annotations if profile is not None else None) or {}).get(ANN_MINIMUM_PVC_SIZE)
    if not text:
        return 0
    try:
        return max(0, Quantity.parse(text).bytes)
    except InvalidManifest:
        return 0


def profile_patch(name: str, sets: Iterable[PropertySet]) -> str:
    """Return the command with which an administrator sets the properties of a class."""
    spec = {
        "claimPropertySets": [{"accessModes": list(one.access_modes), "volumeMode": one.volume_mode} for one in sets]
    }
    body = json.dumps({"spec": spec}, separators=(",", ":"))
    return f"kubectl patch storageprofile {name} --type merge -p '{body}'"


def is_complete(profile: StorageProfile) -> bool:
    """Return whether the profile is complete or not needed for disks."""
    status = profile.status
    provisioner = (status.provisioner if status is not None else None) or ""
    sets = (status.claim_property_sets if status is not None else None) or []
    usable = bool(sets) and all(one.access_modes and one.volume_mode for one in sets)
    return usable or provisioner in NOT_FOR_DISKS or provisioner == NO_PROVISIONER


def supports_rwx(profile: StorageProfile) -> bool:
    """Return whether volumes can be shared between nodes, which live migration requires."""
    sets = (profile.status.claim_property_sets if profile.status is not None else None) or []
    return any(AccessMode.READ_WRITE_MANY in one.access_modes for one in sets)


def supports_smart_clone(
    profile: StorageProfile, *, csi_drivers: frozenset[str], snapshot_classes: Iterable[SnapshotClass]
) -> bool:
    """Return whether the storage creates clones itself and everything for that is installed."""
    status = profile.status
    if status is None or status.clone_strategy == CloneStrategy.COPY:
        return False
    if status.clone_strategy == CloneStrategy.CSI_CLONE:
        return (status.provisioner or "") in csi_drivers
    return any(one.driver == status.provisioner for one in snapshot_classes)


# --- capabilities -----------------------------------------------------------------------------------------------


def _known(storage_class: StorageClass) -> Capabilities | None:
    provisioner = PROVISIONERS.get(storage_class.provisioner)
    return provisioner.of(storage_class) if provisioner is not None else None


def _learned(
    storage_class: StorageClass, profile: StorageProfile | None, volumes: Iterable[ObservedVolume]
) -> Capabilities | None:
    annotations = (profile.metadata.annotations if profile is not None else None) or {}
    return infer_from_volumes(storage_class, volumes, read_learned(LEARNED_SETS.read(annotations)))


def _specified(profile: StorageProfile | None) -> tuple[PropertySet, ...]:
    sets = (profile.spec.claim_property_sets if profile is not None else None) or []
    return tuple(
        PropertySet(access_modes=tuple(one.access_modes), volume_mode=one.volume_mode)
        for one in sets
        if one.access_modes and one.volume_mode
    )


def _snapshot_class(
    storage_class: StorageClass, profile: StorageProfile, facts: ProfileFacts
) -> tuple[str | None, str]:
    """Return the name of the VolumeSnapshotClass, and the error in the one that the administrator named."""
    fitting = sorted(
        (one for one in facts.snapshot_classes if one.driver == storage_class.provisioner), key=lambda one: one.name
    )
    named = profile.spec.snapshot_class
    if named:
        if any(one.name == named for one in fitting):
            return named, ""
        drivers = [one.driver for one in facts.snapshot_classes if one.name == named]
        why = f"is for {drivers[0]}, not for {storage_class.provisioner}" if drivers else "does not exist"
        return None, f"spec.snapshotClass: VolumeSnapshotClass {named} {why}"
    chosen = next((one for one in fitting if one.default), fitting[0] if fitting else None)
    return (chosen.name if chosen is not None else None), ""


def _clone_strategy(
    storage_class: StorageClass, profile: StorageProfile, known: Capabilities | None, snapshot_class: str | None
) -> str:
    if profile.spec.clone_strategy in set(CloneStrategy):
        return str(profile.spec.clone_strategy)
    if storage_class.clone_strategy is not None:
        return storage_class.clone_strategy
    advised = known.clone if known is not None else None
    if advised is None or advised is CloneStrategy.SNAPSHOT:
        return CloneStrategy.SNAPSHOT if snapshot_class else CloneStrategy.COPY
    return advised


def _invalid_settings(storage_class: StorageClass, profile: StorageProfile, snapshot_class: str) -> str:
    """Return a sentence about the invalid settings, which are ignored but reported."""
    found = [str(problem) for problem in check_storage_profile(profile)]
    asked = storage_class.annotations.get(ANN_CLONE_STRATEGY)
    if asked and storage_class.clone_strategy is None:
        found.append(
            f"StorageClass annotation {ANN_CLONE_STRATEGY}: {truncate(asked)!r} is not one of copy, snapshot, csi-clone"
        )
    least = (profile.metadata.annotations or {}).get(ANN_MINIMUM_PVC_SIZE)
    if least and not minimum_size(profile):
        found.append(f"annotation {ANN_MINIMUM_PVC_SIZE}: {truncate(least)!r} is not a size")
    if snapshot_class:
        found.append(snapshot_class)
    return f" Not followed: {'; '.join(found)}." if found else ""


def _cron_format(profile: StorageProfile, known: Capabilities | None, snapshot_class: str | None) -> str:
    if profile.spec.data_import_cron_source_format in set(CronSourceFormat):
        return str(profile.spec.data_import_cron_source_format)
    advised = known.cron if known is not None else None
    if advised is CronSourceFormat.SNAPSHOT and snapshot_class:
        return CronSourceFormat.SNAPSHOT
    return CronSourceFormat.PVC


# --- written objects --------------------------------------------------------------------------------------------


def _annotations(
    storage_class: StorageClass,
    profile: StorageProfile | None,
    known: Capabilities | None,
    volumes: Iterable[ObservedVolume],
) -> dict[str, str]:
    """Return the wanted annotations of the profile, except a minimum size set by an administrator."""
    there = (profile.metadata.annotations if profile is not None else None) or {}
    if known is not None:
        return {ANN_MINIMUM_PVC_SIZE: known.minimum} if known.minimum and ANN_MINIMUM_PVC_SIZE not in there else {}
    shows = _learned(storage_class, profile, volumes)
    return LEARNED_SETS.write(write_learned(shows.sets)) if shows is not None else {}


def _body(
    storage_class: StorageClass, annotations: Mapping[str, str], owner: Mapping[str, Any] | None
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": storage_class.name, "labels": {**COMMON_LABELS, LABEL_COMPONENT: ""}}
    if annotations:
        metadata["annotations"] = dict(annotations)
    if owner is not None:
        metadata["ownerReferences"] = [dict(owner)]
    return {
        "apiVersion": StorageProfile.group_version,
        "kind": StorageProfile.kind_name(),
        "metadata": metadata,
        "spec": {},
    }


def _golden_image_annotations(
    storage_class: StorageClass, profile: StorageProfile | None, snapshot_classes: Iterable[SnapshotClass]
) -> dict[str, str | None]:
    """Return the annotations for DataImportCrons; None removes one.

    ReadWriteOnce is a default, which an administrator may change. The class of snapshots belongs to the controller.
    """
    there = (profile.metadata.annotations if profile is not None else None) or {}
    wanted: dict[str, str | None] = {ANN_CRON_SNAPSHOT_CLASS: None}
    if storage_class.provisioner in IMAGE_SNAPSHOT_PROVISIONERS:
        if ANN_CRON_READ_WRITE_ONCE not in there:
            wanted[ANN_CRON_READ_WRITE_ONCE] = "true"
        fitting = [one for one in snapshot_classes if one.images and one.driver == storage_class.provisioner]
        chosen = min(fitting, key=lambda one: (not one.default, one.name), default=None)
        wanted[ANN_CRON_SNAPSHOT_CLASS] = chosen.name if chosen is not None else None
    return {name: text for name, text in wanted.items() if there.get(name) != text}


def _metadata_patch(
    profile: StorageProfile, annotations: Mapping[str, str | None], owner: Mapping[str, Any] | None
) -> tuple[Action, ...]:
    metadata = profile.metadata
    wanted = {**COMMON_LABELS, LABEL_COMPONENT: ""}
    labels = {name: text for name, text in wanted.items() if (metadata.labels or {}).get(name) != text}
    annotations = {name: text for name, text in annotations.items() if (metadata.annotations or {}).get(name) != text}
    orphan = owner is not None and not metadata.owner_references
    if not labels and not annotations and not orphan:
        return ()
    patch = PatchObject(
        plural="storageprofiles",
        namespace="",
        name=metadata.name or "",
        uid=metadata.uid or "",
        labels=labels,
        annotations=annotations,
        owner=owner if orphan else None,
    )
    return (patch,)


def _status(
    storage_class: StorageClass, profile: StorageProfile, known: Capabilities | None, facts: ProfileFacts, now: float
) -> dict[str, Any]:
    snapshot_class, trouble = _snapshot_class(storage_class, profile, facts)
    sets = volume_sets(storage_class, profile, facts.volumes)
    status: dict[str, Any] = {
        "storageClass": storage_class.name,
        "provisioner": storage_class.provisioner,
        "cloneStrategy": str(_clone_strategy(storage_class, profile, known, snapshot_class)),
        "dataImportCronSourceFormat": str(_cron_format(profile, known, snapshot_class)),
    }
    if sets:
        status["claimPropertySets"] = [
            {"accessModes": list(one.access_modes), "volumeMode": one.volume_mode} for one in sets
        ]
    if snapshot_class is not None:
        status["snapshotClass"] = snapshot_class
    recognized, reason, message = _unrecognized_message(storage_class, profile, known, sets)
    set_conditions = set_condition(
        profile.status.conditions if profile.status is not None else None,
        ConditionType.RECOGNIZED,
        status=recognized,
        reason=reason,
        message=message + _invalid_settings(storage_class, profile, trouble),
        now=datetime.fromtimestamp(now, UTC),
    )
    status["conditions"] = [one.to_dict() for one in set_conditions]
    return status


def _unrecognized_message(
    storage_class: StorageClass,
    profile: StorageProfile,
    known: Capabilities | None,
    sets: tuple[PropertySet, ...],
) -> tuple[ConditionStatus, str, str]:
    name, provisioner = storage_class.name, storage_class.provisioner
    table = PROVISIONERS.get(provisioner)
    if known is not None:
        product = table.product if table is not None else provisioner
        return ConditionStatus.TRUE, RECOGNIZED, f"{provisioner} is known: {product}."
    if provisioner in NOT_FOR_DISKS:
        return ConditionStatus.FALSE, NO_DISKS, f"{provisioner} does not provision volumes for disks."
    reason = UNRECOGNIZED if table is None else UNRECOGNIZED_PARAMETERS
    if table is None:
        what = (
            f"the provisioner {provisioner} is not known"
            if provisioner != NO_PROVISIONER
            else "the class has no provisioner"
        )
    else:
        named = ", ".join(table.deciding)
        what = (
            f"what volumes of {table.product} support depends on the parameters {named}, which do not determine it here"
        )
    if _specified(profile):
        return ConditionStatus.FALSE, reason, f"{_capitalize(what)}; the profile's spec sets what volumes support."
    if sets:
        # Recognized describes the provisioner, so it stays False; the message names what is used instead.
        found = ", ".join(f"{one.access_modes[0]} {one.volume_mode}" for one in sets)
        return ConditionStatus.FALSE, reason, f"{_capitalize(what)}; learned from its bound volumes: {found}."
    example = PropertySet(access_modes=(AccessMode.READ_WRITE_ONCE.value,), volume_mode="Filesystem")
    text = render(
        f"{_capitalize(what)}, and StorageClass {name} has no bound volume to learn from",
        None,
        f"set what its volumes support (the values are an example): {profile_patch(name, (example,))}",
    )
    return ConditionStatus.FALSE, reason, text


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]
