"""Tests of a storage class's capabilities by its provisioner, its parameters, and its existing volumes."""

from __future__ import annotations

import pytest

from cdi.api.claims import AccessMode, VolumeMode
from cdi.api.quantity import Quantity
from cdi.api.storageprofile import MAX_CLAIM_PROPERTY_SETS
from cdi.reconcile.storage.capabilities import ObservedVolume, infer_from_volumes, read_learned, write_learned
from cdi.reconcile.storage.capabilities_table import NOT_FOR_DISKS, PROVISIONERS
from cdi.reconcile.storage.classes import NO_PROVISIONER, StorageClass


def of(provisioner: str, **parameters: str) -> list[str] | None:
    """Return the claim property sets of a provisioner in short form."""
    known = PROVISIONERS[provisioner].of(StorageClass(name="c", provisioner=provisioner, parameters=parameters))
    return None if known is None else short(known.sets)


def short(sets) -> list[str]:
    return [f"{''.join(c for c in one.access_modes[0] if c.isupper())} {one.volume_mode}" for one in sets]


SHARED = ["RWM Block", "RWO Block", "RWO Filesystem"]
FILES = ["RWM Filesystem", "RWO Filesystem"]


@pytest.mark.parametrize(
    ("provisioner", "parameters", "sets"),
    [
        ("rook-ceph.rbd.csi.ceph.com", {}, SHARED),
        ("cephfs.csi.ceph.com", {}, ["RWM Filesystem"]),
        ("rancher.io/local-path", {}, ["RWO Filesystem"]),
        ("driver.longhorn.io", {}, ["RWO Block"]),
        ("driver.longhorn.io", {"migratable": "true", "fsType": "ext4"}, ["RWM Block", "RWO Block"]),
        ("driver.longhorn.io", {"migratable": "false", "nfsOptions": "vers=4.2"}, FILES),
        ("driver.longhorn.io", {"fsType": "ext4"}, ["RWO Filesystem"]),
        ("ebs.csi.aws.com", {"type": "io2"}, SHARED),
        ("ebs.csi.aws.com", {"type": "gp3"}, ["RWO Block"]),
        ("pd.csi.storage.gke.io", {"type": "pd-ssd"}, ["RWO Block"]),
        ("pd.csi.storage.gke.io", {"type": "hyperdisk-balanced"}, SHARED),
        ("csi.vsphere.vmware.com", {}, ["RWO Block", "RWO Filesystem"]),
        ("csi.vsphere.vmware.com", {"csi.storage.k8s.io/fstype": "NFS4"}, ["RWM Filesystem", "RWO Block", "RWO Filesystem"]),
        ("csi.trident.netapp.io", {"backendType": "ontap-nas-economy"}, FILES),
        ("csi.trident.netapp.io", {"backendType": "ontap-san"}, ["RWM Block"]),
        ("csi.trident.netapp.io", {"backendType": "google-cloud-netapp-volumes", "selector": "a=b; performance=flex"}, FILES),
        ("csi.trident.netapp.io", {"backendType": "google-cloud-netapp-volumes", "selector": "performance=premium"}, None),
        ("csi.trident.netapp.io", {}, None),
        ("infinibox-csi-driver", {"storage_protocol": "fc"}, SHARED),
        ("infinibox-csi-driver", {"storage_protocol": "nfs_treeq"}, FILES),
        ("infinibox-csi-driver", {}, None),
        ("pxd.portworx.com", {"backend": "pure_fa_file"}, FILES),
        ("pxd.portworx.com", {"sharedv4_mount_options": "vers=3.0, nolock"}, FILES),
        ("pxd.portworx.com", {"backend": "x", "sharedv4_mount_options": "vers=3.0,nolock"},
         ["RWM Block", "RWM Filesystem", "RWO Block", "RWO Filesystem"]),
        ("pxd.portworx.com", {"sharedv4_mount_options": "vers=3.0"},
         ["RWM Block", "RWM Filesystem", "RWO Block", "RWO Filesystem"]),
        ("csi-unity.dellemc.com", {"protocol": "NFS"}, [*FILES, "ROM Filesystem"]),
        ("csi-powerstore.dellemc.com", {"csi.storage.k8s.io/fstype": "ext4"}, [*SHARED, "ROM Block"]),
    ],
)  # fmt: skip
def test_known_provisioners_and_their_parameters(provisioner, parameters, sets):
    assert of(provisioner, **parameters) == sets


def test_the_table_is_well_formed():
    assert len(PROVISIONERS) >= 70
    for provisioner in PROVISIONERS.values():
        every = [one.capabilities for one in provisioner.variants]
        if provisioner.otherwise is not None:
            every.append(provisioner.otherwise)
        assert every, provisioner.name
        for capabilities in every:
            assert 0 < len(capabilities.sets) <= MAX_CLAIM_PROPERTY_SETS
            assert len(set(capabilities.sets)) == len(capabilities.sets)
            assert capabilities.minimum is None or Quantity.parse(capabilities.minimum).bytes > 0
            # A read-only volume cannot be filled, so this is never the preferred access mode.
            assert capabilities.sets[0].access_modes != (AccessMode.READ_ONLY_MANY,)
    assert not NOT_FOR_DISKS & PROVISIONERS.keys()


def test_a_provisioner_names_the_parameters_that_decide():
    assert PROVISIONERS["csi.trident.netapp.io"].deciding == ("backendType", "selector")


UNKNOWN = StorageClass(name="c", provisioner="who.example")


def evidence(mode: str, form: str, phase: str = "Bound") -> ObservedVolume:
    return ObservedVolume(access_modes=(mode,), volume_mode=form, phase=phase)


def test_what_is_bound_shows_what_is_possible():
    found = infer_from_volumes(
        UNKNOWN,
        [
            evidence("ReadWriteOnce", "Filesystem"),
            evidence("ReadWriteOnce", "Filesystem"),
            evidence("ReadWriteMany", "Block"),
            evidence("ReadWriteOnce", "Block", phase="Failed"),
        ],
    )
    assert found is not None
    assert short(found.sets) == ["RWO Filesystem", "RWM Block"]


def test_what_was_learned_keeps_its_place_and_what_is_new_comes_after_it():
    before = read_learned("ReadWriteOnce Block")
    found = infer_from_volumes(
        UNKNOWN, [evidence("ReadWriteMany", "Filesystem"), evidence("ReadWriteOnce", "Block")], before
    )
    assert found is not None
    assert short(found.sets) == ["RWO Block", "RWM Filesystem"]


def test_what_was_learned_stays_where_no_such_volume_is_left():
    found = infer_from_volumes(UNKNOWN, [], read_learned("ReadWriteOnce Filesystem"))
    assert found is not None
    assert short(found.sets) == ["RWO Filesystem"]


def test_of_volumes_made_by_hand_only_those_that_are_there_count():
    by_hand = StorageClass(name="c", provisioner=NO_PROVISIONER)
    before = read_learned("ReadWriteOnce Filesystem, ReadWriteOnce Block")
    found = infer_from_volumes(by_hand, [evidence("ReadWriteOnce", "Block", "Available")], before)
    assert found is not None
    assert short(found.sets) == ["RWO Block"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, []),
        ("", []),
        ("ReadWriteOnce Block, ReadWriteMany Filesystem", ["RWO Block", "RWM Filesystem"]),
        ("ReadWriteOnce Block,ReadWriteOnce  Block", ["RWO Block"]),
        ("Sometimes Block, ReadWriteOnce, Block ReadWriteOnce, ReadWriteOnce Block x, \x1b, ROX Block", []),
        ("ReadWriteOnce Block," * 10_000, ["RWO Block"]),
    ],
)
def test_an_annotation_with_what_was_learned_is_read_as_far_as_it_is_one(text, expected):
    assert short(read_learned(text)) == expected


def test_what_was_learned_is_read_as_it_was_written():
    sets = read_learned("ReadWriteOnce Block, ReadWriteMany Filesystem")
    assert read_learned(write_learned(sets)) == sets


def test_several_access_modes_of_a_volume_are_several_ways_to_use_it():
    volume = ObservedVolume(access_modes=("ReadWriteOnce", "ReadWriteMany"), volume_mode="Filesystem", phase="Bound")
    found = infer_from_volumes(UNKNOWN, [volume])
    assert found is not None
    assert short(found.sets) == FILES


@pytest.mark.parametrize("phase", ["Available", "Released", "Failed", "Pending"])
def test_what_never_was_bound_proves_nothing(phase):
    assert infer_from_volumes(UNKNOWN, [evidence("ReadWriteOnce", "Block", phase)]) is None


def test_volumes_made_by_hand_count_before_they_are_bound():
    by_hand = StorageClass(name="c", provisioner=NO_PROVISIONER)
    found = infer_from_volumes(by_hand, [evidence("ReadWriteOnce", "Block", "Available")])
    assert found is not None
    assert short(found.sets) == ["RWO Block"]
    assert infer_from_volumes(by_hand, [evidence("ReadWriteOnce", "Block", "Released")]) is None


def test_volumes_that_can_only_be_read_are_nothing_to_go_by():
    assert infer_from_volumes(UNKNOWN, [evidence("ReadOnlyMany", "Filesystem")]) is None
    assert infer_from_volumes(UNKNOWN, []) is None


def test_modes_that_nobody_knows_are_left_out():
    assert infer_from_volumes(UNKNOWN, [evidence("Sometimes", VolumeMode.BLOCK)]) is None
