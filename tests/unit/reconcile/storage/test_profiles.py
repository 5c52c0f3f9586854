"""Tests of the StorageProfile of a StorageClass."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from cdi.api.errors import StorageProfileIncomplete
from cdi.api.storageprofile import StorageProfile
from cdi.api.validation import parse, validate
from cdi.reconcile.actions import CreateObject, DeleteObject, PatchObject
from cdi.reconcile.cdi.config import resolve_config
from cdi.reconcile.storage.capabilities import ObservedVolume, PropertySet
from cdi.reconcile.storage.claim_defaults import default_claim, storage_defaults
from cdi.reconcile.storage.classes import StorageClass
from cdi.reconcile.storage.profiles import (
    ProfileFacts,
    SnapshotClass,
    is_complete,
    minimum_size,
    profile_patch,
    reconcile_orphan,
    reconcile_storage_profile,
    supports_rwx,
    supports_smart_clone,
    volume_sets,
)

NOW = 1_780_000_000.0
RBD = "rook-ceph.rbd.csi.ceph.com"
OWNER = {"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "CDI", "name": "cdi", "uid": "cdi-uid"}
SNAPSHOTS = (SnapshotClass(name="z-snap", driver=RBD), SnapshotClass(name="b-snap", driver=RBD))


def klass(provisioner: str = RBD, **changes) -> StorageClass:
    return StorageClass(name="fast", provisioner=provisioner, **changes)


def stored(body, **changes) -> StorageProfile:
    """Return the profile as the API server stores it after creation."""
    body = json.loads(json.dumps(body)) | changes
    body["metadata"] = {"uid": "profile-uid", "resourceVersion": "1"} | body["metadata"]
    profile = parse(body)
    assert isinstance(profile, StorageProfile)
    return profile


def made(storage_class: StorageClass, facts: ProfileFacts = ProfileFacts(), **changes) -> StorageProfile:
    """Return the profile that the reconciler creates, with these fields set by a user."""
    (action,) = reconcile_storage_profile(storage_class, None, facts, NOW).actions
    assert isinstance(action, CreateObject)
    return stored(action.body, **changes)


def settled(storage_class: StorageClass, facts: ProfileFacts = ProfileFacts(), **changes) -> StorageProfile:
    """Return the profile at the fixpoint."""
    profile = made(storage_class, facts, **changes)
    plan = reconcile_storage_profile(storage_class, profile, facts, NOW)
    assert plan.status is not None
    body = profile.to_dict() | {"status": plan.status}
    for action in plan.actions:
        assert isinstance(action, PatchObject)
        for part in ("labels", "annotations"):
            body["metadata"][part] = {**body["metadata"].get(part, {}), **getattr(action, part)}
    profile = stored(body)
    again = reconcile_storage_profile(storage_class, profile, facts, NOW + 3600)
    assert (again.actions, again.status) == ((), None)
    return profile


def recognized(profile: StorageProfile) -> tuple[str, str, str]:
    assert profile.status is not None
    (condition,) = profile.status.conditions or []
    assert condition.type == "Recognized"
    return condition.status, condition.reason or "", condition.message or ""


def sets(profile: StorageProfile) -> list[tuple[list[str], str]]:
    assert profile.status is not None
    return [(one.access_modes, one.volume_mode) for one in profile.status.claim_property_sets or []]


def test_a_class_without_a_profile_gets_one():
    profile = made(klass(), ProfileFacts(owner=OWNER))
    assert profile.metadata.name == "fast"
    assert profile.metadata.labels == {"app": "containerized-data-importer", "cdi.kubevirt.io": ""}
    assert [one.name for one in profile.metadata.owner_references or []] == ["cdi"]
    assert profile.spec.to_dict() == {}
    assert validate(profile) == ()


def test_a_known_provisioner_fills_the_status():
    profile = settled(klass(), ProfileFacts(snapshot_classes=SNAPSHOTS))
    status = profile.status
    assert status is not None
    assert (status.storage_class, status.provisioner) == ("fast", RBD)
    assert sets(profile) == [
        (["ReadWriteMany"], "Block"),
        (["ReadWriteOnce"], "Block"),
        (["ReadWriteOnce"], "Filesystem"),
    ]
    assert (status.clone_strategy, status.data_import_cron_source_format) == ("csi-clone", "snapshot")
    assert status.snapshot_class == "b-snap"  # the first by name
    assert recognized(profile)[:2] == ("True", "RecognizedProvisioner")
    assert is_complete(profile)
    assert supports_rwx(profile)


def test_the_default_snapshot_class_goes_first():
    default = SnapshotClass.read({
        "metadata": {"name": "y", "annotations": {"snapshot.storage.kubernetes.io/is-default-class": "true"}},
        "driver": RBD,
    })  # fmt: skip
    profile = settled(klass(), ProfileFacts(snapshot_classes=(*SNAPSHOTS, default)))
    assert profile.status is not None
    assert profile.status.snapshot_class == "y"


def test_without_a_snapshot_class_what_needs_one_is_not_advised():
    profile = settled(klass("pd.csi.storage.gke.io"), ProfileFacts(snapshot_classes=SNAPSHOTS))
    assert profile.status is not None
    assert (profile.status.clone_strategy, profile.status.data_import_cron_source_format) == ("copy", "pvc")
    assert profile.status.snapshot_class is None


def test_an_unknown_provisioner_with_snapshots_clones_by_them():
    facts = ProfileFacts(snapshot_classes=(SnapshotClass(name="s", driver="who.example"),))
    profile = settled(klass("who.example"), facts)
    assert profile.status is not None
    assert profile.status.clone_strategy == "snapshot"
    assert profile.status.data_import_cron_source_format == "pvc"


def test_the_spec_is_the_administrators():
    spec = {
        "claimPropertySets": [{"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem"}],
        "cloneStrategy": "copy",
        "dataImportCronSourceFormat": "pvc",
        "snapshotClass": "z-snap",
    }
    profile = settled(klass(), ProfileFacts(snapshot_classes=SNAPSHOTS), spec=spec)
    assert profile.spec.to_dict() == spec
    assert profile.status is not None
    assert spec.items() <= profile.status.to_dict().items()


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ("other", "VolumeSnapshotClass other is for x.example, not for"),
        ("gone", "VolumeSnapshotClass gone does not exist"),
    ],
)
def test_a_snapshot_class_that_does_not_fit_is_told(named, why):
    facts = ProfileFacts(snapshot_classes=(*SNAPSHOTS, SnapshotClass(name="other", driver="x.example")))
    profile = settled(klass(), facts, spec={"snapshotClass": named})
    assert profile.status is not None
    assert profile.status.snapshot_class is None
    assert why in recognized(profile)[2]


def test_the_class_s_annotation_says_how_to_clone():
    profile = settled(klass(annotations={"cdi.kubevirt.io/clone-strategy": "copy"}))
    assert profile.status is not None
    assert profile.status.clone_strategy == "copy"


def test_values_that_mean_nothing_are_told_and_left_out_of_account():
    profile = settled(
        klass(annotations={"cdi.kubevirt.io/clone-strategy": "magic"}),
        spec={
            "cloneStrategy": "fast",
            "dataImportCronSourceFormat": "tape",
            "claimPropertySets": [{"accessModes": [], "volumeMode": "Block"}],
        },
    )
    status, _, message = recognized(profile)
    assert status == "True"
    for word in (
        "'magic'",
        "spec.cloneStrategy",
        "spec.dataImportCronSourceFormat",
        "claimPropertySets[0].accessModes",
    ):
        assert word in message
    assert profile.status is not None
    assert profile.status.clone_strategy == "csi-clone"
    assert len(sets(profile)) == 3


def test_the_least_size_is_noted_once():
    gp3 = klass("ebs.csi.aws.com", parameters={"type": "gp3"})
    assert (made(gp3).metadata.annotations or {})["cdi.kubevirt.io/minimumSupportedPvcSize"] == "1Gi"
    own = {"name": "fast", "annotations": {"cdi.kubevirt.io/minimumSupportedPvcSize": "8Gi"}}
    profile = settled(gp3, metadata=own)
    assert minimum_size(profile) == 8 << 30


def test_a_least_size_that_cannot_be_read_is_told():
    own = {"name": "fast", "annotations": {"cdi.kubevirt.io/minimumSupportedPvcSize": "much"}}
    profile = settled(klass(), metadata=own)
    assert minimum_size(profile) == 0
    assert "minimumSupportedPvcSize: 'much' is not a size" in recognized(profile)[2]


def test_a_profile_made_by_hand_gets_labels_owner_and_least_size():
    gp3 = klass("ebs.csi.aws.com", parameters={"type": "gp3"})
    bare = stored({"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "StorageProfile", "metadata": {"name": "fast"}})
    (action,) = reconcile_storage_profile(gp3, bare, ProfileFacts(owner=OWNER), NOW).actions
    assert action == PatchObject(
        plural="storageprofiles", namespace="", name="fast", uid="profile-uid", owner=OWNER,
        labels={"app": "containerized-data-importer", "cdi.kubevirt.io": ""},
        annotations={"cdi.kubevirt.io/minimumSupportedPvcSize": "1Gi"},
    )  # fmt: skip


GOOGLE = "pd.csi.storage.gke.io"
READ_WRITE_ONCE = "cdi.kubevirt.io/useReadWriteOnceForDataImportCron"
SNAPSHOT_CLASS = "cdi.kubevirt.io/snapshotClassForDataImportCron"


def golden_annotations(profile: StorageProfile) -> dict[str, str]:
    found = profile.metadata.annotations or {}
    return {name: text for name, text in found.items() if name in (READ_WRITE_ONCE, SNAPSHOT_CLASS)}


def test_golden_images_of_a_provisioner_with_image_snapshots_use_these():
    facts = ProfileFacts(
        snapshot_classes=(
            SnapshotClass(name="disks", driver=GOOGLE, default=True),
            SnapshotClass(name="images", driver=GOOGLE, images=True),
            SnapshotClass(name="preferred", driver=GOOGLE, images=True, default=True),
            SnapshotClass(name="0", driver="other", images=True, default=True),
        )
    )
    assert golden_annotations(made(klass(GOOGLE), facts)) == {READ_WRITE_ONCE: "true", SNAPSHOT_CLASS: "preferred"}


def test_the_administrators_access_mode_for_golden_images_stands():
    metadata = {"name": "x", "annotations": {READ_WRITE_ONCE: "false"}}
    before = stored(
        {"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "StorageProfile", "metadata": metadata, "spec": {}}
    )
    plan = reconcile_storage_profile(klass(GOOGLE), before, ProfileFacts(), 0.0)
    assert READ_WRITE_ONCE not in plan.actions[0].annotations


def test_the_snapshot_class_of_golden_images_belongs_to_the_controller():
    metadata = {"name": "x", "annotations": {SNAPSHOT_CLASS: "by-hand"}}
    before = stored(
        {"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "StorageProfile", "metadata": metadata, "spec": {}}
    )
    plan = reconcile_storage_profile(klass(), before, ProfileFacts(), 0.0)
    assert plan.actions[0].annotations[SNAPSHOT_CLASS] is None


def test_the_type_of_snapshots_is_read():
    parsed = SnapshotClass.read(
        {"metadata": {"name": "i"}, "driver": GOOGLE, "parameters": {"snapshot-type": "images"}}
    )
    assert parsed == SnapshotClass(name="i", driver=GOOGLE, images=True)


def test_an_unknown_provisioner_is_told_with_the_command_that_helps():
    profile = settled(klass("who.example"))
    status, reason, message = recognized(profile)
    assert (status, reason) == ("False", "UnrecognizedProvisioner")
    assert "The provisioner who.example is not known" in message
    command = shlex.split(message[message.index("kubectl patch") :])
    assert command[:6] == ["kubectl", "patch", "storageprofile", "fast", "--type", "merge"]
    patched = settled(klass("who.example"), **json.loads(command[7]))
    assert sets(patched) == [(["ReadWriteOnce"], "Filesystem")]
    assert not is_complete(profile)
    assert is_complete(patched)
    assert "the profile's spec" in recognized(patched)[2]


def test_parameters_that_do_not_tell_are_told():
    status, reason, message = recognized(settled(klass("csi.trident.netapp.io")))
    assert (status, reason) == ("False", "UnrecognizedParameters")
    assert "NetApp Trident" in message
    assert "backendType" in message
    assert "kubectl patch storageprofile fast" in message


def test_an_unknown_provisioner_is_learned_from_its_volumes():
    volumes = (ObservedVolume(access_modes=("ReadWriteMany",), volume_mode="Block", phase="Bound"),)
    profile = settled(klass("who.example"), ProfileFacts(volumes=volumes))
    status, reason, message = recognized(profile)
    assert (status, reason) == ("False", "UnrecognizedProvisioner")
    assert "ReadWriteMany Block" in message
    assert "kubectl" not in message
    assert sets(profile) == [(["ReadWriteMany"], "Block")]
    assert is_complete(profile)


FILE = ObservedVolume(access_modes=("ReadWriteOnce",), volume_mode="Filesystem", phase="Bound")
DEVICE = ObservedVolume(access_modes=("ReadWriteOnce",), volume_mode="Block", phase="Bound")
DISK = {"resources": {"requests": {"storage": "1Gi"}}}


def after(profile: StorageProfile, volumes: tuple[ObservedVolume, ...]) -> StorageProfile:
    """Return the profile after a reconcile with these volumes of its class."""
    body = profile.to_dict()
    plan = reconcile_storage_profile(klass("who.example"), profile, ProfileFacts(volumes=volumes), NOW)
    for action in plan.actions:
        assert isinstance(action, PatchObject)
        body["metadata"]["annotations"] = {**(profile.metadata.annotations or {}), **action.annotations}
    return stored(body | {"status": plan.status} if plan.status is not None else body)


def mode(profile: StorageProfile, volumes: tuple[ObservedVolume, ...], **more: Any) -> str:
    """Return the volume mode that a claim for a disk gets."""
    given = storage_defaults("fast", klass("who.example"), profile, resolve_config(None, None), volumes)
    return str(default_claim({**DISK, **more}, given)["volumeMode"])


@pytest.mark.parametrize(
    ("course", "expected"),
    [
        ([(FILE,), (FILE, DEVICE), (DEVICE,), ()], "Filesystem"),
        ([(DEVICE,), (FILE, DEVICE), (FILE,), ()], "Block"),
        ([(DEVICE, FILE), (DEVICE,)], "Filesystem"),
    ],
)
def test_the_same_disk_stays_the_same_whatever_volumes_come_and_go(
    course: list[tuple[ObservedVolume, ...]], expected: str
) -> None:
    profile = settled(klass("who.example"))
    with pytest.raises(StorageProfileIncomplete):
        mode(profile, ())
    for volumes in course:
        assert mode(profile, volumes) == expected
        profile = after(profile, volumes)
        assert sets(profile)[0] == (["ReadWriteOnce"], expected)


def test_with_access_modes_a_disk_is_on_a_file_system_also_where_devices_are_in_use() -> None:
    profile = settled(klass("who.example"))
    assert mode(profile, (), accessModes=["ReadWriteOnce"]) == "Filesystem"
    profile = after(profile, (DEVICE,))
    assert mode(profile, (DEVICE,), accessModes=["ReadWriteOnce"]) == "Filesystem"
    assert mode(profile, (DEVICE,)) == "Block"


def test_what_was_learned_is_forgotten_when_its_annotation_is_removed() -> None:
    profile = after(settled(klass("who.example")), (DEVICE,))
    assert profile.metadata.annotations == {"cdi.kubevirt.io/learnedClaimPropertySets": "ReadWriteOnce Block"}
    body = profile.to_dict()
    del body["metadata"]["annotations"]
    assert sets(after(stored(body), (FILE, DEVICE)))[0] == (["ReadWriteOnce"], "Filesystem")


def test_what_the_table_knows_goes_before_what_volumes_show():
    volumes = (ObservedVolume(access_modes=("ReadWriteOncePod",), volume_mode="Block", phase="Bound"),)
    assert len(sets(settled(klass(), ProfileFacts(volumes=volumes)))) == 3


def test_buckets_are_complete_without_anything():
    profile = settled(klass("openshift-storage.noobaa.io/obc"))
    assert sets(profile) == []
    assert is_complete(profile)
    assert recognized(profile)[:2] == ("False", "NotForDisks")


def test_the_time_of_a_condition_moves_only_with_it():
    profile = settled(klass())
    plan = reconcile_storage_profile(klass("who.example"), profile, ProfileFacts(), NOW + 60)
    assert plan.status is not None
    assert plan.status["conditions"][0]["lastTransitionTime"] > (profile.status.conditions[0].last_transition_time)


def test_a_profile_that_is_being_deleted_is_left_alone():
    profile = made(klass(), metadata={"name": "fast", "deletionTimestamp": "2026-01-01T00:00:00Z"})
    plan = reconcile_storage_profile(klass(), profile, ProfileFacts(), NOW)
    assert (plan.actions, plan.status) == ((), None)


def test_a_profile_goes_with_its_class_unless_somebody_wrote_into_it():
    assert reconcile_orphan(settled(klass())).actions == (
        DeleteObject(plural="storageprofiles", namespace="", name="fast", uid="profile-uid"),
    )
    assert reconcile_orphan(settled(klass(), spec={"cloneStrategy": "copy"})).actions == ()
    going = made(klass(), metadata={"name": "fast", "deletionTimestamp": "2026-01-01T00:00:00Z"})
    assert reconcile_orphan(going).actions == ()


def test_nothing_has_to_wait_for_the_status():
    assert volume_sets(klass(), None) == volume_sets(klass(), made(klass()))
    assert [one.volume_mode for one in volume_sets(klass(), None)] == ["Block", "Block", "Filesystem"]
    assert volume_sets(None, None) == ()
    assert volume_sets(klass("who.example"), None) == ()


def test_the_patch_names_all_sets():
    pair = (
        PropertySet(access_modes=("A", "B"), volume_mode="Block"),
        PropertySet(access_modes=("C",), volume_mode="F"),
    )
    assert json.loads(shlex.split(profile_patch("x", pair))[7]) == {
        "spec": {"claimPropertySets": [{"accessModes": ["A", "B"], "volumeMode": "Block"}, {"accessModes": ["C"], "volumeMode": "F"}]}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("strategy", "drivers", "snapshots", "fast"),
    [
        ("copy", {RBD}, SNAPSHOTS, False),
        ("csi-clone", {RBD}, (), True),
        ("csi-clone", set(), SNAPSHOTS, False),
        ("snapshot", set(), SNAPSHOTS, True),
        ("snapshot", {RBD}, (), False),
        ("snapshot", {RBD}, (SnapshotClass(name="s", driver="x"),), False),
    ],
)
def test_whether_the_storage_itself_clones(strategy, drivers, snapshots, fast):
    profile = settled(klass(), spec={"cloneStrategy": strategy})
    assert supports_smart_clone(profile, csi_drivers=frozenset(drivers), snapshot_classes=snapshots) is fast


def test_a_profile_without_a_status_says_nothing():
    profile = made(klass())
    assert not is_complete(profile)
    assert not supports_rwx(profile)
    assert not supports_smart_clone(profile, csi_drivers=frozenset({RBD}), snapshot_classes=SNAPSHOTS)
