"""Export of a golden volume by KubeVirt's export server, to a file and to another volume."""

from __future__ import annotations

import base64
import gzip
import hashlib

from tests.cluster.cluster import Cluster
from tests.cluster.kubectl import Kubectl
from tests.cluster.servers import secret
from tests.cluster.volumes import SLOW, digest, wait_phase
from tests.kubevirt.guest import Guest
from tests.kubevirt.machines import template
from tests.kubevirt.virtctl import virtctl


def test_a_claim_is_exported_as_it_was_imported(guest: Guest, golden: Kubectl, tmp_path) -> None:
    out = tmp_path / "disk.img.gz"
    virtctl(
        golden, tmp_path, "vmexport", "download", "download", "--pvc=golden", f"--output={out}", "--port-forward",
        "--local-port=0",
    )  # fmt: skip
    with gzip.open(out) as file:
        assert hashlib.sha256(file.read()).hexdigest() == guest.digest(guest.size)


def test_an_export_is_imported_in_another_namespace(
    kubevirt: Cluster, namespace: Kubectl, guest: Guest, golden: Kubectl, tmp_path
) -> None:
    virtctl(golden, tmp_path, "vmexport", "create", "export", "--pvc=golden")
    export = golden.wait(
        "vmexport", "export", "ready", lambda body: body.get("status", {}).get("phase") == "Ready", SLOW
    )
    status = export["status"]
    links = status["links"]["internal"]
    formats = {each["format"]: each["url"] for each in links["volumes"][0]["formats"]}
    token = base64.b64decode(golden.get("secret", status["tokenSecretRef"])["data"]["token"]).decode()
    namespace.create(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "authority"}, "data": {"ca.pem": links["cert"]}},
        secret("token", header=f"x-kubevirt-export-token:{token}"),
    )
    for form in ("gzip", "raw"):
        source = {"http": {"url": formats[form], "certConfigMap": "authority", "secretExtraHeaders": ["token"]}}
        namespace.create({"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", **template(form, source)})
        wait_phase(namespace, form, "Succeeded")
        assert digest(kubevirt, namespace, form, "Block", guest.size) == guest.digest(guest.size)
    virtctl(golden, tmp_path, "vmexport", "delete", "export")
