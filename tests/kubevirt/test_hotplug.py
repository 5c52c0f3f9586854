"""Volumes that a running machine gets and gives back, and a dump of its memory, with virtctl."""

from __future__ import annotations

from tests.cluster.cluster import Cluster
from tests.cluster.kubectl import Kubectl
from tests.cluster.volumes import look, wait_phase
from tests.cluster.worker_pods import DATA, DEVICE
from tests.kubevirt.console import console
from tests.kubevirt.guest import Guest, device
from tests.kubevirt.machines import create, machine, template, volume
from tests.kubevirt.virtctl import virtctl


def test_a_data_volume_is_plugged_in_written_and_unplugged_and_memory_is_dumped(
    kubevirt: Cluster, namespace: Kubectl, guest: Guest, tmp_path
) -> None:
    subject = create(namespace, machine("machine", [volume("root", containerDisk={"image": guest.image})]))
    extra = template("extra", {"blank": {}}, "csi-wait", size="32Mi")
    namespace.create({"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", **extra})
    subject.wait_status("Running")
    with console(namespace, "machine") as terminal:
        terminal.login()
        virtctl(namespace, tmp_path, "addvolume", "machine", "--volume-name=extra", "--serial=extra")
        wait_phase(namespace, "extra", "Succeeded")
        found = terminal.run(
            "for n in $(seq 120); do for d in /sys/block/sd*; do [ -e $d ] && echo $d && exit 0; done; sleep 1; done; "
            "dmesg | tail -20; exit 1",
            timeout=300,
        )
        plugged = f"/dev/{found.rpartition('/')[2]}"
        terminal.run(f"echo written >{plugged} && sync")
        assert device(terminal, "root") == "/dev/vda"
        dump = ("memory-dump", "get", "machine", "--claim-name=dump", "--create-claim", "--storage-class=csi")
        virtctl(namespace, tmp_path, *dump)
        subject.wait(
            "vm", "dumped", lambda body: body.get("status", {}).get("memoryDumpRequest", {}).get("phase") == "Completed"
        )
        virtctl(namespace, tmp_path, "removevolume", "machine", "--volume-name=extra")
        gone = f"for n in $(seq 120); do [ -e {found} ] || exit 0; sleep 1; done; exit 1"
        terminal.run(gone, timeout=300)
    subject.delete()
    assert look(kubevirt, namespace, "extra", "Block", f"head -c 7 {DEVICE}") == "written"
    assert look(kubevirt, namespace, "dump", "Filesystem", f"ls {DATA}").endswith("memory.dump")
