"""Tests of the objects as reconcilers see them."""

from __future__ import annotations

import pytest

from cdi.api.configuration import CDIConfig
from cdi.api.errors import InvalidManifest
from cdi.api.kinds import (
    CDI_CONFIGS,
    CLAIMS,
    CSI_DRIVERS,
    DATA_VOLUMES,
    EVENTS,
    NODES,
    STORAGE_CLASSES,
    STORAGE_PROFILES,
    VOLUMES,
)
from cdi.controller.lister import ClusterLister
from cdi.controller.pod_usage import PodUsageTracker
from cdi.controller.progress import ProgressPoller
from cdi.controller.referenced_objects import ReferencedObjects
from cdi.controller.request import Scope
from cdi.reconcile.settings import WorkerPodConfig
from cdi.reconcile.types import DataRef
from tests.unit.controller.objects import body, watches


def observed(*known):
    def changed(resource, change):
        if made:
            made[0].changed(resource, change)

    made = []
    caches = watches(on_change=changed)
    progresses = ProgressPoller(on_progress=lambda _: None, save_journal=None)  # type: ignore[arg-type]
    made.append(
        ClusterLister(
            caches,
            progresses,
            ReferencedObjects(None),
            PodUsageTracker(None, Scope(), on_release=lambda *_: None),
            pods=WorkerPodConfig(image="i"),
            install_namespace="cdi",
        )
    )  # type: ignore[arg-type]
    for resource, each in known:
        caches.record_write(resource, each)
    return made[0], caches


def test_a_claim_is_read_whole() -> None:
    owner = body(DATA_VOLUMES, "disk")
    spec = {
        "accessModes": ["ReadWriteOnce"], "volumeMode": "Block", "storageClassName": "fast", "volumeName": "pv",
        "resources": {"requests": {"storage": "1Gi"}},
        "dataSourceRef": {"apiGroup": "cdi.kubevirt.io", "kind": "VolumeImportSource", "name": "v"},
    }  # fmt: skip
    given = body(
        CLAIMS, "disk", owner=owner, annotations={"volume.kubernetes.io/selected-node": "n1"}, labels={"l": "1"},
        spec=spec, status={"phase": "Bound", "capacity": {"storage": "2Gi"}},
    )  # fmt: skip
    claim = observed((CLAIMS, given))[0].claim("ns", "disk")
    assert claim is not None
    assert (claim.uid, claim.phase, claim.capacity, claim.requested) == ("uid-disk", "Bound", 2 << 30, 1 << 30)
    assert (claim.controller_kind, claim.controller_uid) == ("DataVolume", "uid-disk")
    assert claim.data_ref == DataRef(group="cdi.kubevirt.io", kind="VolumeImportSource", name="v")
    assert (claim.volume_mode, claim.access_modes, claim.storage_class) == ("Block", ("ReadWriteOnce",), "fast")
    assert (claim.selected_node, claim.volume_name, claim.deleting) == ("n1", "pv", False)


@pytest.mark.parametrize(("spec", "storage_class"), [({}, None), ({"storageClassName": ""}, "")])
def test_no_class_and_no_word_of_one_are_two_things(spec, storage_class) -> None:
    claim = observed((CLAIMS, body(CLAIMS, "c", spec=spec)))[0].claim("ns", "c")
    assert claim is not None
    assert claim.storage_class == storage_class
    assert claim.phase == "Pending"


def warning(name: str, when: str, message: str, about: str = "c"):
    reference = {"namespace": "ns", "name": about, "uid": f"uid-{about}"}
    return body(
        EVENTS, name, involvedObject=reference, reason="ProvisioningFailed", message=message, lastTimestamp=when
    )


def test_a_pending_claim_says_the_last_warning_about_it() -> None:
    seen, caches = observed((CLAIMS, body(CLAIMS, "c", spec={})))

    def why() -> str:
        claim = seen.claim("ns", "c")
        assert claim is not None
        return claim.provisioning_message

    assert why() == ""
    caches.record_write(EVENTS, warning("e1", "2026-01-01T00:00:02Z", "no room"))
    caches.record_write(EVENTS, warning("e2", "2026-01-01T00:00:01Z", "older"))
    caches.record_write(EVENTS, warning("e3", "2026-01-01T00:00:03Z", "another's", about="d"))
    assert why() == "no room"
    caches.record_write(EVENTS, warning("e1", "2026-01-01T00:00:09Z", "still no room"))
    assert why() == "still no room"
    caches.record_write(CLAIMS, body(CLAIMS, "c", spec={}, status={"phase": "Bound"}))
    assert why() == ""


def test_a_model_is_parsed_once_for_each_version_and_object() -> None:
    seen, caches = observed((DATA_VOLUMES, body(DATA_VOLUMES, "d", spec={"source": {"blank": {}}})))
    first = seen.data_volume("ns", "d")
    assert first is seen.data_volume("ns", "d")
    caches.record_write(DATA_VOLUMES, body(DATA_VOLUMES, "d", spec={"source": {"upload": {}}}))
    second = seen.data_volume("ns", "d")
    assert second is not None
    assert second.spec.source is not None
    assert second.spec.source.upload is not None
    assert seen.data_volume("ns", "other") is None


def test_the_class_and_what_it_offers() -> None:
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    seen, caches = observed(
        (STORAGE_CLASSES, body(STORAGE_CLASSES, "slow", provisioner="p", annotations=default)),
        (CSI_DRIVERS, body(CSI_DRIVERS, "p")),
    )
    found = seen.default_storage_class(virtualization=True)
    assert found is not None
    assert found.name == "slow"
    assert seen.csi_driver("p")
    assert not seen.csi_driver("q")
    assert seen.storage_defaults(None, virtualization=True).sets == ()
    virt = {"storageclass.kubevirt.io/is-default-virt-class": "true"}
    caches.record_write(STORAGE_CLASSES, body(STORAGE_CLASSES, "fast", provisioner="q", annotations=virt))
    found = seen.default_storage_class(virtualization=True)
    assert found is not None
    assert found.name == "fast"
    bound = body(
        VOLUMES,
        "v",
        spec={"storageClassName": "fast", "accessModes": ["ReadWriteMany"], "volumeMode": "Block"},
        status={"phase": "Bound"},
    )
    caches.record_write(VOLUMES, bound)
    assert seen.storage_defaults(None, virtualization=True).sets[0].volume_mode == "Block"
    assert seen.profile("fast").access_modes == ("ReadWriteMany",)


def test_the_configuration_is_followed_and_one_that_cannot_be_read_counts_as_none() -> None:
    seen, caches = observed((CDI_CONFIGS, body(CDI_CONFIGS, "config", spec={"preallocation": True})))
    assert seen.config().preallocation
    assert seen.config().pods.image == "i"
    caches.record_write(CDI_CONFIGS, body(CDI_CONFIGS, "config", spec={"preallocation": "perhaps"}))
    assert not seen.config().preallocation
    with pytest.raises(InvalidManifest):
        seen.model(CDI_CONFIGS, "", "config", CDIConfig)
    caches.record_write(STORAGE_PROFILES, body(STORAGE_PROFILES, "x", spec={"claimPropertySets": 3}))
    assert seen.storage_profile("x") is None


@pytest.mark.parametrize(("status", "well"), [("True", True), ("False", False), ("Unknown", False)])
def test_a_node_is_well_when_it_says_so(status: str, well: bool) -> None:
    node = body(NODES, "n", status={"conditions": [{"type": "Ready", "status": status}]})
    assert observed((NODES, node))[0].node_ready("n") is well
    assert not observed()[0].node_ready("n")
