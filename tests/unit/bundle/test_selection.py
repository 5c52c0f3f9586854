"""Tests of which version of a golden image a bundle gets, and what of its DataImportCron."""

from __future__ import annotations

import pytest

from cdi.api.errors import NotFound
from cdi.bundle import selection
from cdi.bundle.selection import portable_cron
from cdi.store.base import Key

DIGEST = f"sha256:{'a1' * 32}"


class Objects:
    """A reader of objects in memory; those of kind VolumeSnapshot are found as volumes only."""

    def __init__(self, *bodies):
        self._snapshots = [body for body in bodies if body["kind"] == "VolumeSnapshot"]
        self._bodies = {Key.of_object(body): body for body in bodies if body["kind"] != "VolumeSnapshot"}

    def get(self, key):
        if key not in self._bodies:
            raise NotFound(f"there is no {key}")
        return self._bodies[key]

    def volume(self, namespace, name):
        claim = self._bodies.get(Key("persistentvolumeclaims", namespace, name))
        return claim or next((body for body in self._snapshots if body["metadata"]["name"] == name), None)

    def list(self, plural, namespace=None):
        return [body for key, body in self._bodies.items() if key.plural == plural and key.namespace == namespace]


def select(objects, namespace, name):
    return selection.select(objects, objects.volume, namespace, name)


def thing(kind, name, *, labels=None, annotations=None, namespace="images", **rest):
    version = "v1" if kind == "PersistentVolumeClaim" else "cdi.kubevirt.io/v1beta1"
    metadata = {"name": name, "namespace": namespace, "labels": labels or {}, "annotations": annotations or {}}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **rest}


def offering(name, **source):
    return thing(
        "DataSource",
        name,
        labels={"instancetype.kubevirt.io/default-preference": "f", "x": "y"},
        spec={"source": source},
    )


PVC = thing(
    "PersistentVolumeClaim",
    "fedora-a1a1a1a1a1a1",
    annotations={
        "cdi.kubevirt.io/image.digest": f"sha256:{'b2' * 32}",
        "cdi.kubevirt.io/image.validator": DIGEST,
        "cdi.kubevirt.io/image.virtualSize": "1048576",
        "cdi.kubevirt.io/golden.record": "{}",
    },
)
CRON = thing(
    "DataImportCron",
    "fedora-cron",
    annotations={
        "cdi.kubevirt.io/golden.proof": "boot",
        "cdi.kubevirt.io/golden.revoke": "x",
        "cdi.kubevirt.io/golden.pin": "x",
        "cdi.kubevirt.io/policy.signature": "require",
        "cdi.kubevirt.io/storage.import.lastCronTime": "x",
    },
    spec={
        "schedule": "0 * * * *",
        "managedDataSource": "fedora",
        "template": {"spec": {"source": {"registry": {"url": "docker://host/fedora:40", "secretRef": "pull"}}}},
    },
    status={
        "versions": [
            {"name": "fedora-c3c3c3c3c3c3", "digest": f"sha256:{'c3' * 32}", "state": "Available"},
            {"name": "fedora-a1a1a1a1a1a1", "digest": DIGEST, "state": "Available", "architecture": "arm64"},
        ]
    },
)


def test_the_version_that_the_data_source_offers_is_taken_and_not_the_newest():
    found = select(Objects(PVC, CRON, offering("fedora", pvc={"name": PVC["metadata"]["name"]})), "images", "fedora")
    assert (found.volume, found.version.digest, found.version.architecture) == (
        PVC["metadata"]["name"],
        DIGEST,
        "arm64",
    )
    assert found.version.source == "docker://host/fedora:40"
    assert found.source["registry"]["secretRef"] == "pull"
    assert (found.image.virtual_size, found.record, found.image.digest) == (1048576, "{}", f"sha256:{'b2' * 32}")
    assert found.labels == {"instancetype.kubevirt.io/default-preference": "f"}


def test_a_version_that_is_kept_as_a_snapshot_has_its_record():
    metadata = {**PVC["metadata"], "annotations": PVC["metadata"]["annotations"]}
    snapshot = {"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": metadata}
    found = select(Objects(snapshot, CRON, offering("fedora", snapshot={"name": metadata["name"]})), "images", "fedora")
    assert (found.volume, found.version.digest) == (metadata["name"], DIGEST)
    assert (found.image.virtual_size, found.record, found.image.digest) == (1048576, "{}", f"sha256:{'b2' * 32}")


def test_a_data_source_may_refer_to_another_and_a_loop_ends():
    chain = [
        offering("stable", dataSource={"name": "fedora", "namespace": "images"}),
        offering("fedora", pvc={"name": PVC["metadata"]["name"]}),
    ]
    assert select(Objects(PVC, *chain), "images", "stable").volume == PVC["metadata"]["name"]
    loop = offering("stable", dataSource={"name": "stable", "namespace": "images"})
    with pytest.raises(NotFound, match="refers to no volume"):
        select(Objects(loop), "images", "stable")


def test_a_volume_can_be_named_and_its_validator_is_the_digest_of_a_registrys_image():
    dv = thing("DataVolume", PVC["metadata"]["name"], spec={"source": {"registry": {"url": "docker://host/x"}}})
    found = select(Objects(PVC, dv), "images", PVC["metadata"]["name"])
    assert (found.version.digest, found.version.source, found.cron) == (DIGEST, "docker://host/x", None)


def test_a_volume_without_a_recorded_origin_has_no_digest():
    bare = thing("PersistentVolumeClaim", "bare")
    assert select(Objects(bare), "images", "bare").version.digest == ""


@pytest.mark.parametrize("objects", [(), (offering("fedora"),)])
def test_nothing_to_bundle_is_an_error(objects):
    with pytest.raises(NotFound):
        select(Objects(*objects), "images", "fedora")


def test_the_cron_travels_with_its_settings_but_without_commands_schedule_and_state():
    cron = portable_cron(CRON)
    assert cron["metadata"] == {
        "name": "fedora-cron",
        "annotations": {"cdi.kubevirt.io/golden.proof": "boot", "cdi.kubevirt.io/policy.signature": "require"},
    }
    assert cron["spec"] == {**CRON["spec"], "schedule": ""}
    assert "status" not in cron


def test_credentials_in_the_url_and_in_headers_stay_here():
    secret = "https://user:pw@images.example/os.qcow2?token=t0k#f"
    source = {"http": {"url": secret, "extraHeaders": ["X-Token: t0k"], "secretExtraHeaders": ["headers"]}}
    spec = {**CRON["spec"], "template": {"spec": {"source": source}}}
    cron = {**CRON, "spec": spec}
    found = select(Objects(PVC, cron, offering("fedora", pvc={"name": PVC["metadata"]["name"]})), "images", "fedora")
    assert found.url == secret
    assert found.version.source == "https://images.example/os.qcow2"
    assert found.cron["spec"]["template"]["spec"]["source"] == {"http": {"url": found.version.source}}
    assert cron["spec"]["template"]["spec"]["source"]["http"]["url"] == secret


@pytest.mark.parametrize("template", [None, 7, {"spec": "x"}, {"spec": {"source": {"http": "x"}}}])
def test_a_cron_of_another_shape_passes_unchanged(template):
    assert portable_cron({**CRON, "spec": {"template": template}})["spec"] == {"template": template, "schedule": ""}
