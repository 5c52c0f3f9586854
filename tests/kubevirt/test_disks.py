"""Volumes beside a golden disk: emptyDisk, hostDisk, ConfigMap, Secret and ServiceAccount."""

from __future__ import annotations

import secrets

from tests.cluster.cluster import Cluster
from tests.cluster.kubectl import Kubectl
from tests.cluster.servers import secret
from tests.kubevirt.console import Console, console
from tests.kubevirt.guest import Guest, device, source_ref
from tests.kubevirt.machines import create, data_volume, machine, template, volume

SIZE = 16 << 20


def test_disks_beside_a_golden_disk_hold_what_they_should(
    kubevirt: Cluster, namespace: Kubectl, guest: Guest, golden: Kubectl
) -> None:
    namespace.create(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"color": "green"}},
        secret("keys", word="hidden"),
    )
    directory = f"/var/lib/cdi-test/host-disk-{secrets.token_hex(4)}"
    templates = [template("root", sourceRef=source_ref(golden))]
    volumes = [
        data_volume("root"),
        volume("empty", emptyDisk={"capacity": "16Mi"}),
        volume("host", hostDisk={"path": f"{directory}/disk.img", "type": "DiskOrCreate", "capacity": "16Mi"}),
        volume("settings", configMap={"name": "settings"}),
        volume("keys", secret={"secretName": "keys"}),
        volume("account", serviceAccount={"serviceAccountName": "default"}),
    ]
    try:
        subject = create(namespace, machine("machine", volumes, templates=templates))
        subject.wait_status("Running")
        with console(namespace, "machine") as terminal:
            terminal.login()
            for name in ("empty", "host"):
                path = device(terminal, name)
                assert int(terminal.run(f"cat /sys/block/{path[5:]}/size")) * 512 == SIZE
                terminal.run(f"echo written >{path} && sync")
            assert _read(terminal, "settings", "color") == "green"
            assert _read(terminal, "keys", "word") == "hidden"
            assert _read(terminal, "account", "namespace") == namespace.namespace
        subject.restart()
        subject.wait_status("Running")
        with console(namespace, "machine") as terminal:
            terminal.login()
            assert _begins(terminal, "empty") == ""
            assert _begins(terminal, "host") == "written"
        subject.delete()
        # A host disk belongs to the node, and a disk of type "Disk" must be there already.
        volumes[2] = volume("host", hostDisk={"path": f"{directory}/disk.img", "type": "Disk"})
        assert kubevirt.run("head", "-c", "7", f"{directory}/disk.img") == "written"
        subject = create(namespace, machine("again", [volumes[0], volumes[2]], templates=templates))
        subject.wait_status("Running")
        with console(namespace, "again") as terminal:
            terminal.login()
            assert _begins(terminal, "host") == "written"
    finally:
        kubevirt.run("rm", "-rf", directory)


def _read(terminal: Console, disk: str, name: str) -> str:
    path = device(terminal, disk)
    return terminal.run(f"mount -t iso9660 -o ro {path} /mnt && cat /mnt/{name}; umount /mnt")


def _begins(terminal: Console, disk: str) -> str:
    return terminal.run(f"head -c 7 {device(terminal, disk)} | tr -d '\\0'")
