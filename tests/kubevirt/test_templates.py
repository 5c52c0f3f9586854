"""Machines whose disks are DataVolume templates: every kind of source, both volume modes, and first consumers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.kubectl import Kubectl
from tests.cluster.volumes import SLOW, conditions
from tests.kubevirt.console import console
from tests.kubevirt.guest import MIB, Guest, device, sha256_in_guest, source_of, source_ref
from tests.kubevirt.machines import create, data_volume, machine, template

Document = dict[str, Any]


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
    # KubeVirt's temporary first consumer is no reason to warn of a volume in use.
    assert "ImportTargetInUse" not in [event["reason"] for event in namespace.events("DataVolume", "blank")]
    subject.delete()
    for name in ("root", "blank"):
        namespace.wait_gone("datavolume", name)
        namespace.wait_gone("persistentvolumeclaim", name)


def test_disks_from_a_registry_a_clone_and_a_data_source_are_the_same(
    namespace: Kubectl, guest: Guest, golden: Kubectl
) -> None:
    """The root disk is from a DataSource that a DataImportCron keeps; the others are read whole by the guest."""
    namespace.create(import_cron("kept", guest))
    namespace.wait(
        "datasource", "kept", "ready",
        lambda body: conditions(body).get("Ready", {}).get("status") == "True", SLOW,
    )  # fmt: skip
    templates = (
        template("root", sourceRef={"kind": "DataSource", "name": "kept"}),
        template("registry", guest.registry(), "local-wait", mode="Filesystem"),
        template("clone", source_of(golden), "local-wait"),
        template("reference", storage_class="csi-wait", sourceRef=source_ref(golden)),
    )
    names = [each["metadata"]["name"] for each in templates]
    subject = create(namespace, machine("machine", [data_volume(name) for name in names], templates=templates))
    subject.wait_status("Running")
    whole = guest.digest(guest.size)
    with console(namespace, "machine") as terminal:
        terminal.login()
        assert sha256_in_guest(terminal, device(terminal, "root"), 1) == guest.digest(MIB)
        for name in names[1:]:
            assert sha256_in_guest(terminal, device(terminal, name), guest.size // MIB) == whole, name


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
        document = machine("machine", [data_volume("root")], templates=[template("root", source_of(private))])
        subject = create(namespace, document)
        event = subject.wait_event("UnauthorizedDataVolumeCreate")
        assert f"insufficient permissions in clone source namespace {private.namespace}" in event["message"]
    assert namespace.get_all("datavolume") == []


def import_cron(name: str, guest: Guest) -> Document:
    """Build a DataImportCron that keeps a DataSource of the same name."""
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataImportCron",
        "metadata": {"name": name},
        "spec": {
            "schedule": "0 0 1 1 *",
            "managedDataSource": name,
            "template": {"spec": template(name, guest.registry())["spec"]},
        },
    }
