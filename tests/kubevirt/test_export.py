"""Export of a golden volume by KubeVirt's export server."""

from __future__ import annotations

import gzip
import hashlib

from tests.cluster.kubectl import Kubectl
from tests.kubevirt.guest import Guest
from tests.kubevirt.virtctl import virtctl


def test_a_claim_is_exported_as_it_was_imported(namespace: Kubectl, guest: Guest, golden: Kubectl, tmp_path) -> None:
    out = tmp_path / "disk.img.gz"
    virtctl(
        golden, tmp_path, "vmexport", "download", "copy", "--pvc=golden", f"--output={out}", "--port-forward",
        "--local-port=0",
    )  # fmt: skip
    with gzip.open(out) as file:
        assert hashlib.sha256(file.read()).hexdigest() == guest.digest(guest.size)
