"""Tests of signatures of the real cosign that travel in a bundle and are verified without a network."""

from __future__ import annotations

import json
import random
import subprocess

import pytest

from tests.integration.bundle.conftest import GUEST, offer


@pytest.fixture(params=["tag", "bundle"])
def signed(request, cdi, registries, referrers_registry, oci_layout, qcow2, cosign):
    """A machine with a golden image that cosign signed, under a tag or as a referrer, and the public key."""
    oci_layout.image([oci_layout.layer({"disk/": b"", "disk/guest.qcow2": qcow2.read_bytes()})], tag="v1")
    name = f"signed/{random.SystemRandom().randbytes(6).hex()}"
    address = registries.open.address if request.param == "tag" else referrers_registry
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false",
         "--digestfile", oci_layout.path.parent / "digest", f"oci:{oci_layout.path}:v1", f"docker://{address}/{name}:v1"],
        check=True,
    )  # fmt: skip
    digest = (oci_layout.path.parent / "digest").read_text().strip()
    cosign.sign(f"docker://{address}/{name}", digest, "release", request.param)
    cdi("import", f"docker://{address}/{name}:v1", "--insecure", "--name", "fedora-1")
    offer(cdi, "fedora", "fedora-1")
    return cdi


@pytest.mark.root
def test_a_signature_is_verified_on_the_other_side(signed, elsewhere, cosign, tmp_path):
    bundle = tmp_path / "golden.tar"
    assert ", 1 signatures)" in signed("bundle", "create", "-o", bundle, "fedora", "--insecure").stdout
    elsewhere("bundle", "import", bundle, "--cosign-key", cosign.key("release"))
    (volume,) = json.loads(elsewhere("get", "pvc", "-o", "json").stdout)["items"]
    assert elsewhere.disk(volume["metadata"]["name"]).read_bytes() == GUEST


@pytest.mark.root
def test_an_image_without_a_signature_by_the_key_is_not_offered(signed, elsewhere, cosign, tmp_path):
    bundle = tmp_path / "golden"
    signed("bundle", "create", "-o", bundle, "fedora", "--insecure")
    done = elsewhere("bundle", "import", bundle, "--cosign-key", cosign.key("stranger"), status=5)
    assert "error[SignatureInvalid]" in done.stderr or "error[ImageUnsigned]" in done.stderr
    assert json.loads(elsewhere("get", "datasource", "-o", "json").stdout)["items"] == []
