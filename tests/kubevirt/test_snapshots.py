"""Snapshot and restore of a machine whose disk is a DataVolume."""

from __future__ import annotations

from tests.cluster.kubectl import Kubectl
from tests.kubevirt.console import console
from tests.kubevirt.guest import Guest, source_ref
from tests.kubevirt.machines import create, data_volume, machine, template

VERSION = "snapshot.kubevirt.io/v1beta1"
MACHINE = {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "machine"}


def test_a_restored_machine_has_the_files_of_its_snapshot(namespace: Kubectl, guest: Guest, golden: Kubectl) -> None:
    templates = [template("root", sourceRef=source_ref(golden))]
    subject = create(namespace, machine("machine", [data_volume("root")], templates=templates))
    subject.wait_status("Running")
    with console(namespace, "machine") as terminal:
        terminal.login()
        terminal.run("echo before >/root/file && sync")
        namespace.create(
            {
                "apiVersion": VERSION,
                "kind": "VirtualMachineSnapshot",
                "metadata": {"name": "snapshot"},
                "spec": {"source": MACHINE},
            }
        )
        subject.wait(
            "virtualmachinesnapshot", "ready", lambda body: body.get("status", {}).get("readyToUse") is True,
            name="snapshot",
        )  # fmt: skip
        terminal.run("echo after >/root/file && sync")
    # KubeVirt refuses to stop the machine for a moment after the snapshot is ready.
    subject.wait("vm", "released", lambda body: not body.get("status", {}).get("snapshotInProgress"))
    subject.run_state(running=False)
    namespace.create(
        {
            "apiVersion": VERSION,
            "kind": "VirtualMachineRestore",
            "metadata": {"name": "restore"},
            "spec": {"target": MACHINE, "virtualMachineSnapshotName": "snapshot"},
        }
    )
    subject.wait(
        "virtualmachinerestore", "complete", lambda body: body.get("status", {}).get("complete") is True,
        name="restore",
    )  # fmt: skip
    subject.run_state(running=True)
    subject.wait_status("Running")
    with console(namespace, "machine") as terminal:
        terminal.login()
        assert terminal.run("cat /root/file") == "before"
