"""Tests of golden images that a DataImportCron keeps: their records of origin, and their way to another machine."""

from __future__ import annotations

import base64
import json
import subprocess

import pytest

from cdi.api.origin import parse_record, pre_authentication_encoding
from tests.integration.bundle.conftest import GUEST, keys


@pytest.mark.root
def test_a_signed_record_travels_from_the_poll_to_a_machine_without_a_network(
    cdi, elsewhere, registries, oci_layout, qcow2, tmp_path
):
    private, public = keys(tmp_path)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "signer"},
        "data": {"key.pem": base64.b64encode(private.read_bytes()).decode()},
    }
    cdi("apply", "-f", "-", input=json.dumps(secret))
    oci_layout.image([oci_layout.layer({"disk/": b"", "disk/guest.qcow2": qcow2.read_bytes()})], tag="v1")
    name = f"golden/{tmp_path.name}"
    digest = registries.push(oci_layout, "v1", f"{name}:v1")
    url = registries.open.url(f"{name}:v1")
    cdi("golden", "add", url, "--name", "os", "--insecure", "--schedule", "@yearly", "--record-key", "signer", "--wait")
    # The record of this version, in the place where other programs find it.
    (claim,) = json.loads(cdi("get", "pvc", "-o", "json").stdout)["items"]
    record = parse_record(claim["metadata"]["annotations"]["cdi.kubevirt.io/golden.record"])
    message, signature = tmp_path / "message", tmp_path / "signature"
    message.write_bytes(pre_authentication_encoding(record.payload_type, record.payload))
    signature.write_bytes(record.signatures[0].value)
    subprocess.run(
        ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", message, "-sigfile", signature],
        check=True,
    )
    statement = json.loads(record.payload)
    assert f"sha256:{statement['subject'][0]['digest']['sha256']}" == digest
    assert statement["predicate"]["buildDefinition"]["externalParameters"]["source"].startswith(url.rpartition(":")[0])
    assert statement["predicate"]["runDetails"]["builder"]["version"].keys() == {"cdi", "qemu"}
    assert "registry digest" in statement["predicate"]["runDetails"]["cdi_verifiedBy"]

    bundle = tmp_path / "golden.tar"
    cdi("bundle", "create", "-o", bundle, "os", "--insecure")
    _, stranger = keys(tmp_path, "stranger")
    assert "SignatureInvalid" in elsewhere("bundle", "import", bundle, "--record-key", stranger, status=5).stderr
    elsewhere("bundle", "import", bundle, "--record-key", public, "--with-cron")
    (copy,) = json.loads(elsewhere("get", "pvc", "-o", "json").stdout)["items"]
    assert copy["metadata"]["name"] == claim["metadata"]["name"]
    assert elsewhere.disk(copy["metadata"]["name"]).read_bytes() == GUEST
    assert parse_record(copy["metadata"]["annotations"]["cdi.kubevirt.io/golden.record"]) == record
    (cron,) = json.loads(elsewhere("get", "dataimportcron", "-o", "json").stdout)["items"]
    assert (cron["metadata"]["name"], cron["spec"]["schedule"]) == ("os", "")
