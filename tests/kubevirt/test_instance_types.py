"""Instance types and preferences that KubeVirt infers from the labels of a DataSource and of an imported claim."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.kubectl import Kubectl
from tests.kubevirt.console import console
from tests.kubevirt.guest import INSTANCE_TYPE, LABELS, PREFERENCE, Guest, source_ref
from tests.kubevirt.machines import claim, create, data_volume, machine, template

Document = dict[str, Any]
INFERRED = {"inferFromVolume": "root"}


@pytest.fixture
def types(kubevirt: Cluster) -> Iterator[None]:
    kind = "instancetype.kubevirt.io/v1beta1"
    small = {"cpu": {"guest": 1}, "memory": {"guest": "144Mi"}}
    linux = {"devices": {"preferredDiskBus": "scsi"}}
    kubevirt.kubectl.apply(
        _named(kind, "VirtualMachineClusterInstancetype", INSTANCE_TYPE, small),
        _named(kind, "VirtualMachineClusterPreference", PREFERENCE, linux),
    )
    yield
    kubevirt.kubectl.delete("virtualmachineclusterinstancetype", INSTANCE_TYPE)
    kubevirt.kubectl.delete("virtualmachineclusterpreference", PREFERENCE)


def test_a_machine_has_the_type_and_the_preference_of_its_golden_image(
    types: None, namespace: Kubectl, guest: Guest, golden: Kubectl
) -> None:
    document = machine(
        "machine", [data_volume("root")], templates=[template("root", sourceRef=source_ref(golden))],
        instancetype=INFERRED, preference=INFERRED,
    )  # fmt: skip
    disks = document["spec"]["template"]["spec"]["domain"]["devices"]["disks"]
    disks[0]["disk"] = {}
    subject = create(namespace, document)
    subject.wait_status("Running")
    domain = namespace.get("vmi", "machine")["spec"]["domain"]
    assert domain["memory"]["guest"] == "144Mi"
    assert domain["devices"]["disks"][0]["disk"]["bus"] == "scsi"
    with console(namespace, "machine") as terminal:
        terminal.login()
        assert "/sda1" in terminal.run("mount")
        assert 90_000 < int(terminal.run("awk '/MemTotal/ {print $2}' /proc/meminfo")) < 144 << 10


def test_the_labels_of_an_import_are_those_of_its_claim(types: None, namespace: Kubectl, guest: Guest) -> None:
    volume = template("root", {"blank": {}})
    volume["metadata"]["labels"] = LABELS
    namespace.create({"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", **volume})
    namespace.wait("persistentvolumeclaim", "root", "there", lambda _: True)
    document = machine("machine", [claim("root")], instancetype=INFERRED, preference=INFERRED, runStrategy="Halted")
    subject = create(namespace, document)
    body = subject.wait("vm", "inferred", lambda each: "controllerRevisionRef" in str(each.get("status", {})))
    assert body["spec"]["instancetype"]["name"] == INSTANCE_TYPE
    assert body["spec"]["preference"]["name"] == PREFERENCE


def _named(version: str, kind: str, name: str, spec: Document) -> Document:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}
