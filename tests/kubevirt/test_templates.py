"""Machines whose disks are DataVolume templates."""

from __future__ import annotations

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.kubectl import Kubectl
from tests.kubevirt.console import console
from tests.kubevirt.guest import MIB, Guest, device, sha256_in_guest
from tests.kubevirt.machines import create, data_volume, machine, template


@pytest.mark.core
def test_a_machine_boots_from_an_http_image_and_its_volumes_go_with_it(namespace: Kubectl, guest: Guest) -> None:
    templates = (
        template("root", guest.http(), "csi-wait"),
        template("blank", {"blank": {}}, "local-wait", mode="Filesystem", size="64Mi"),
    )
    document = machine("machine", [data_volume("root"), data_volume("blank")], templates=templates)
    subject = create(namespace, document)
    subject.wait_status("Running")
    with console(namespace, "machine") as terminal:
        terminal.login()
        root, blank = device(terminal, "root"), device(terminal, "blank")
        # The boot loader's part is what the guest never writes to.
        assert sha256_in_guest(terminal, root, 1) == guest.digest(MIB)
        assert int(terminal.run(f"cat /sys/block/{root[5:]}/size")) * 512 >= 128 * MIB
        assert terminal.run(f"tr -d '\\0' <{blank} | head -c 1 | wc -c") == "0"
    subject.delete()
    for name in ("root", "blank"):
        namespace.wait_gone("datavolume", name)
        namespace.wait_gone("persistentvolumeclaim", name)


def test_a_clone_from_a_namespace_that_does_not_permit_it_is_refused(kubevirt: Cluster, namespace: Kubectl) -> None:
    with kubevirt.namespace("private") as private:
        private.create(
            {
                "apiVersion": "cdi.kubevirt.io/v1beta1",
                "kind": "DataVolume",
                "metadata": {"name": "golden"},
                "spec": template("golden", {"blank": {}})["spec"],
            }
        )
        document = machine(
            "machine",
            [data_volume("root")],
            templates=[template("root", {"pvc": {"namespace": private.namespace, "name": "golden"}})],
        )
        subject = create(namespace, document)
        event = subject.wait_event("UnauthorizedDataVolumeCreate")
        assert f"insufficient permissions in clone source namespace {private.namespace}" in event["message"]
    assert namespace.get_all("datavolume") == []
