"""A machine from a disk that ``virtctl image-upload`` has uploaded; tests/cluster has the forms and refusals."""

from __future__ import annotations

from tests.cluster.cluster import Cluster
from tests.cluster.kubectl import Kubectl
from tests.kubevirt import install
from tests.kubevirt.console import console
from tests.kubevirt.guest import Guest
from tests.kubevirt.machines import create, data_volume, machine
from tests.kubevirt.virtctl import virtctl


def test_a_machine_boots_from_an_uploaded_image(kubevirt: Cluster, namespace: Kubectl, guest: Guest, tmp_path) -> None:
    address = kubevirt.kubectl.within(install.CDI_NAMESPACE).get("service", "cdi-uploadproxy")["spec"]["clusterIP"]
    virtctl(
        namespace, tmp_path, "image-upload", "dv", "root", f"--image-path={guest.qcow2}", "--size=128Mi",
        "--storage-class=csi-wait", "--access-mode=ReadWriteOnce", "--volume-mode=block", "--force-bind", "--insecure",
        f"--uploadproxy-url=https://{address}",
    )  # fmt: skip
    subject = create(namespace, machine("machine", [data_volume("root")]))
    subject.wait_status("Running")
    with console(namespace, "machine") as terminal:
        terminal.login()
        assert terminal.run("hostname") == "golden"
