"""What a restart keeps: the disk of a template, and not an ephemeral disk over a golden claim."""

from __future__ import annotations

from tests.cluster.kubectl import Kubectl
from tests.kubevirt.console import console
from tests.kubevirt.guest import Guest, device, sha256_in_guest, source_ref
from tests.kubevirt.machines import create, data_volume, machine, template, volume


def test_a_file_on_the_disk_survives_a_restart_and_one_on_an_ephemeral_disk_does_not(
    namespace: Kubectl, guest: Guest, golden: Kubectl
) -> None:
    templates = [template(name, sourceRef=source_ref(golden)) for name in ("root", "base")]
    scratch = volume("scratch", ephemeral={"persistentVolumeClaim": {"claimName": "base"}})
    # The claim under the ephemeral disk belongs to a machine, too, which never runs.
    namespace.create(machine("owner", [data_volume("base")], templates=templates[1:], runStrategy="Halted"))
    subject = create(namespace, machine("machine", [data_volume("root"), scratch], templates=templates[:1]))
    subject.wait_status("Running")
    with console(namespace, "machine") as terminal:
        terminal.login()
        ephemeral = device(terminal, "scratch")
        assert sha256_in_guest(terminal, ephemeral, 1) == guest.digest(1 << 20)
        terminal.run("echo kept >/root/file && sync")
        terminal.run(f"mount {ephemeral}1 /mnt && echo lost >/mnt/root/file && umount /mnt && sync")
        terminal.run(f"mount {ephemeral}1 /mnt && grep lost /mnt/root/file && umount /mnt")
    subject.restart()
    subject.wait_status("Running")
    with console(namespace, "machine") as terminal:
        terminal.login()
        assert terminal.run("cat /root/file") == "kept"
        ephemeral = device(terminal, "scratch")
        assert terminal.run(f"mount {ephemeral}1 /mnt; ls /mnt/root; umount /mnt") == ""
