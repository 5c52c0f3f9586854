"""What `kubectl get vm` shows while a disk is filled, and when that fails; no guest boots."""

from __future__ import annotations

import subprocess

import pytest

from tests.cluster.kubectl import Kubectl
from tests.cluster.volumes import conditions
from tests.kubevirt.guest import Guest
from tests.kubevirt.machines import create, data_volume, machine, template


@pytest.mark.core
def test_a_missing_image_is_an_error_of_the_data_volume(namespace: Kubectl, guest: Guest) -> None:
    templates = [template("root", {"http": {"url": guest.nginx.url("missing.qcow2")}})]
    subject = create(namespace, machine("machine", [data_volume("root")], templates=templates))
    subject.wait_status("DataVolumeError")
    assert "404" in conditions(namespace.get("datavolume", "root"))["Running"]["message"]


def test_an_image_larger_than_its_volume_is_an_error_of_the_data_volume(namespace: Kubectl, guest: Guest) -> None:
    templates = [template("root", guest.http(), size="32Mi")]
    subject = create(namespace, machine("machine", [data_volume("root")], templates=templates))
    subject.wait_status("DataVolumeError")


def test_a_truncated_image_is_an_error_of_the_data_volume(namespace: Kubectl, guest: Guest) -> None:
    (guest.nginx.root / "short.qcow2").write_bytes(guest.qcow2.read_bytes()[: 4 << 20])
    templates = [template("root", {"http": {"url": guest.nginx.url("short.qcow2")}})]
    subject = create(namespace, machine("machine", [data_volume("root")], templates=templates))
    subject.wait_status("DataVolumeError")


def test_a_halted_machine_with_a_disk_for_a_first_consumer_is_stopped(namespace: Kubectl, guest: Guest) -> None:
    """Its disk is filled when it starts."""
    templates = [template("root", guest.http(), "csi-wait")]
    document = machine("machine", [data_volume("root")], templates=templates, runStrategy="Halted")
    subject = create(namespace, document)
    waiting = ("WaitForFirstConsumer", "PendingPopulation")
    subject.wait("datavolume", "waiting", lambda body: body.get("status", {}).get("phase") in waiting, name="root")
    subject.wait_status("Stopped")


def test_a_quota_is_named_by_the_data_volume(namespace: Kubectl, guest: Guest) -> None:
    namespace.create(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "quota"},
            "spec": {"hard": {"requests.storage": "64Mi"}},
        }
    )
    templates = [template("root", guest.http())]
    subject = create(namespace, machine("machine", [data_volume("root")], templates=templates))
    subject.wait(
        "datavolume", "over its quota",
        lambda body: "exceeded quota" in str(body.get("status")) or "exceeds quota" in str(body.get("status")),
        name="root",
    )  # fmt: skip
    subject.wait_status("Provisioning")


def test_a_missing_container_image_is_an_error_of_the_data_volume(namespace: Kubectl, guest: Guest) -> None:
    url = f"docker://{guest.image.rpartition('/')[0]}/missing:latest"
    subject = create(
        namespace, machine("machine", [data_volume("root")], templates=[template("root", {"registry": {"url": url}})])
    )
    subject.wait_status("DataVolumeError")
    assert conditions(namespace.get("datavolume", "root"))["Running"]["reason"] == "ImagePullFailed"


def test_an_image_with_a_backing_file_is_an_error_of_the_data_volume(namespace: Kubectl, guest: Guest) -> None:
    image = guest.nginx.root / "overlay.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "guest.qcow2", "-F", "qcow2", image, "96M"], check=True
    )
    image.chmod(0o644)
    templates = [template("root", {"http": {"url": guest.nginx.url("overlay.qcow2")}})]
    subject = create(namespace, machine("machine", [data_volume("root")], templates=templates))
    subject.wait_status("DataVolumeError")
    assert "backing file" in conditions(namespace.get("datavolume", "root"))["Running"]["message"]
