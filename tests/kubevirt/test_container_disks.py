"""A containerDisk boots, and its network; that the same image boots after an import is tested with the templates."""

from __future__ import annotations

from tests.cluster.kubectl import Kubectl
from tests.kubevirt.console import console
from tests.kubevirt.guest import MIB, Guest, device, sha256_in_guest
from tests.kubevirt.machines import create, machine, volume


def test_a_container_disk_boots_and_reaches_a_server_through_masquerade(namespace: Kubectl, guest: Guest) -> None:
    (guest.nginx.root / "hello.txt").write_text("hello from outside")
    interface = {"name": "default", "masquerade": {}}
    disk = volume("root", containerDisk={"image": guest.image})
    subject = create(namespace, machine("machine", [disk], interfaces=[interface]))
    subject.wait_status("Running")
    with console(namespace, "machine") as terminal:
        terminal.login()
        assert sha256_in_guest(terminal, device(terminal, "root"), 1) == guest.digest(MIB)
        terminal.run("for n in $(seq 60); do ip route | grep -q default && exit 0; sleep 1; done; ip addr; exit 1")
        assert terminal.run(f"wget -q -O - {guest.nginx.url('hello.txt')}") == "hello from outside"
