"""Ansible's collections kubernetes.core and kubevirt.core: what their modules wait for and compare."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cluster import virtual_machines
from tests.cluster.cdi import controller
from tests.cluster.volumes import data_volume, digest, disk, qcow2, sha256, wait_phase
from tests.faults.server import FaultServer

Document = dict[str, Any]
COMPLETED = {"type": "Running", "status": False, "reason": "Completed"}
READY = {"type": "Ready", "status": True}
WAIT = {"wait": True, "wait_sleep": 1, "wait_timeout": 240}


@pytest.fixture(scope="module")
def place(cluster):
    virtual_machines.install(cluster.kubectl)
    with cluster.namespace("ansible") as kubectl, controller(cluster, kubectl):
        yield kubectl


@pytest.fixture(scope="module")
def content():
    return disk()


@pytest.fixture(scope="module")
def source(cluster, content, tmp_path_factory):
    with FaultServer(host=cluster.host_address) as server:
        url = server.put("/golden.qcow2", qcow2(content, tmp_path_factory.mktemp("image")))
        yield {"http": {"url": url}}


def play(clients, **tasks: Document) -> dict[str, Document]:
    """Run a playbook of these tasks on this machine and return their results by name."""
    named = [{"name": name, **task} for name, task in tasks.items()]
    playbook = clients.home / "playbook.json"
    playbook.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": named}]))
    interpreter = f"ansible_python_interpreter={clients.python}"
    settings = {"ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json", "ANSIBLE_LOCALHOST_WARNING": "false"}
    done = clients.run(
        "-m", "ansible", "playbook", "--connection=local", f"--extra-vars={interpreter}", str(playbook), more=settings
    )
    assert done.exit == 0, done.out + done.errors
    results = json.loads(done.out[done.out.index("{") :])["plays"][0]["tasks"]
    return {each["task"]["name"]: each["hosts"]["localhost"] for each in results}


def hosts(clients, namespace: str) -> set[str]:
    """Return the names of the hosts that the inventory plugin finds in the namespace."""
    inventory = clients.home / "machines.kubevirt.yml"
    inventory.write_text(json.dumps({"plugin": "kubevirt.core.kubevirt", "namespaces": [namespace]}))
    strict = {"ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true"}
    done = clients.run("-m", "ansible", "inventory", f"--inventory={inventory}", "--list", more=strict)
    assert done.exit == 0, done.out + done.errors
    return set(json.loads(done.out)["_meta"]["hostvars"])


def test_a_data_volume_is_waited_for_and_found_unchanged(cluster, place, clients, source, content):
    volume = data_volume("golden", source, "csi", form="storage")
    volume["metadata"] = {"name": "golden", "namespace": place.namespace}
    one = {"api_version": volume["apiVersion"], "kind": "DataVolume", "name": "golden", "namespace": place.namespace}
    create = {"state": "present", "definition": volume}
    found = play(
        clients,
        created={"kubernetes.core.k8s": {**create, **WAIT, "wait_condition": READY}},
        again={"kubernetes.core.k8s": create},
        applied={"kubernetes.core.k8s": {**create, "apply": True}},
        applied_again={"kubernetes.core.k8s": {**create, "apply": True}},
        completed={"kubernetes.core.k8s_info": {**one, **WAIT, "wait_condition": COMPLETED}},
    )
    assert found["created"]["changed"]
    assert found["created"]["result"]["status"]["phase"] == "Succeeded"
    assert not found["again"]["changed"]
    assert not found["applied_again"]["changed"]
    (completed,) = found["completed"]["resources"]
    assert completed["status"]["progress"] == "100.0%"
    assert digest(cluster, place, "golden", "Filesystem", len(content)) == sha256(content)
    gone = play(clients, deleted={"kubernetes.core.k8s": {**one, **WAIT, "state": "absent"}})
    assert gone["deleted"]["changed"]
    place.wait_gone("persistentvolumeclaim", "golden")


def test_a_machine_s_template_becomes_its_disk(cluster, place, clients, source, content):
    template = {
        "metadata": {"name": "machine-disk"},
        "spec": data_volume("machine-disk", source, "csi", form="storage")["spec"],
    }
    devices = {"disks": [{"name": "root", "disk": {"bus": "virtio"}}]}
    machine = {
        "name": "machine",
        "namespace": place.namespace,
        "run_strategy": "Halted",
        "data_volume_templates": [template],
        "spec": {
            "domain": {"devices": devices, "memory": {"guest": "64Mi"}},
            "volumes": [{"name": "root", "dataVolume": {"name": "machine-disk"}}],
        },
    }
    created = play(clients, created={"kubevirt.core.kubevirt_vm": {**machine, "state": "present"}})
    assert created["created"]["changed"]
    (name,) = virtual_machines.create_data_volumes(place, "machine")
    wait_phase(place, name, "Succeeded")
    assert digest(cluster, place, name, "Filesystem", len(content)) == sha256(content)
    virtual_machines.report_stopped(place, "machine")
    assert hosts(clients, place.namespace) == {f"{place.namespace}-machine"}
    where = {"name": "machine", "namespace": place.namespace}
    found = play(
        clients,
        info={"kubevirt.core.kubevirt_vm_info": {**where, **WAIT, "running": False}},
        deleted={"kubevirt.core.kubevirt_vm": {**where, **WAIT, "state": "absent"}},
    )
    (read,) = found["info"]["resources"]
    assert read["spec"]["dataVolumeTemplates"][0]["metadata"]["name"] == name
    assert found["deleted"]["changed"]
    place.wait_gone("persistentvolumeclaim", name)
