"""cloud-init in a Debian guest, whose disk is imported: a user, a password and an SSH key from either data source."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.cluster.kubectl import Kubectl
from tests.cluster.volumes import wait_phase
from tests.integration.fixtures_http import running_nginx
from tests.kubevirt.console import console
from tests.kubevirt.machines import TIMEOUT, create, data_volume, machine, template, volume

BOOT = 1200.0
"""Seconds: systemd and cloud-init start some hundred processes."""
USER, PASSWORD = "engineer", "correct-horse"
pytestmark = pytest.mark.timeout(4000)


@pytest.mark.parametrize("source", ["cloudInitNoCloud", "cloudInitConfigDrive"])
def test_the_user_and_the_key_are_there(kubevirt, namespace: Kubectl, guest_image: Path, tmp_path, source: str) -> None:
    public_key = Ed25519PrivateKey.generate().public_key()
    key = public_key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() + " test"
    user_data = (
        "#cloud-config\nusers:\n"
        f"  - name: {USER}\n    lock_passwd: false\n    plain_text_passwd: {PASSWORD}\n    shell: /bin/bash\n"
        f"    ssh_authorized_keys:\n      - {key}\n"
        "runcmd:\n  - [sh, -c, 'echo ready >/run/settings-applied']\n"
    )
    (tmp_path / "nginx").mkdir()
    with running_nginx(tmp_path / "nginx", kubevirt.host_address) as nginx:
        (nginx.root / "guest.qcow2").symlink_to(guest_image)
        templates = [template("root", {"http": {"url": nginx.url("guest.qcow2")}}, size="3Gi")]
        seed = volume("seed", **{source: {"userData": user_data}})
        document = machine("machine", [data_volume("root"), seed], templates=templates, memory="384Mi")
        subject = create(namespace, document)
        wait_phase(namespace, "root", "Succeeded", patience=TIMEOUT)
    subject.wait_status("Running")
    with console(namespace, "machine") as terminal:
        terminal.wait(r"Cloud-init v\. \S+ finished", BOOT)
        terminal.login(USER, PASSWORD)
        terminal.run("cat /run/settings-applied")
        assert key in terminal.run(f"cat /home/{USER}/.ssh/authorized_keys")
        # cloud-init has grown the partition and the file system to the size of the claim.
        assert int(terminal.run("df --output=size -B1M / | tail -1")) > 2100
