"""Tests of ``--cosign-key`` and the annotation ``policy.cosignKeys`` with signatures by the real cosign."""

from __future__ import annotations

import json
import subprocess

import pytest

DISK = bytes(range(256)) * 4096
MANIFEST = """
apiVersion: v1
kind: Secret
metadata: {{name: signers}}
stringData:
  release.pub: {key}
---
apiVersion: cdi.kubevirt.io/v1beta1
kind: DataVolume
metadata:
  name: golden
  annotations: {{cdi.kubevirt.io/policy.cosignKeys: signers}}
spec:
  source: {{registry: {{url: "{url}"}}}}
  storage: {{resources: {{requests: {{storage: 1Mi}}}}}}
"""


@pytest.fixture
def image(registries, oci_layout, request):
    oci_layout.image([oci_layout.layer({"disk/": b"", "disk/disk.img": DISK})], tag="t")
    name = f"cli/{request.node.name}"
    digest = registries.push(oci_layout, "t", f"{name}:t")
    return registries.open.url(name), digest


def test_an_import_requires_the_signature(cdi, image, cosign):
    url, digest = image
    options = ("--cosign-key", cosign.key("release"), "--cosign-key", cosign.key("other"))
    refused = cdi("import", f"{url}:t", "--to", "disk.img", *options, status=5)
    assert "error[ImageUnsigned]" in refused.stderr
    assert not (cdi.cwd / "disk.img").exists()
    cosign.sign(url, digest, "stranger")
    refused = cdi("import", f"{url}:t", "--to", "disk.img", *options, status=5)
    assert "error[SignatureInvalid]" in refused.stderr
    cosign.sign(url, digest, "release")
    cdi("import", f"{url}:t", "--to", "disk.img", *options)
    assert (cdi.cwd / "disk.img").read_bytes() == DISK
    cdi("import", f"{url}:t", "--name", "volume", *options)
    assert cdi.disk("volume").read_bytes() == DISK
    described = json.loads(cdi("get", "dv", "volume", "-o", "json").stdout)
    assert "cosign (release.pub)" in json.dumps(described)


def test_explain_shows_the_signature(cdi, image, cosign):
    url, digest = image
    refused = cdi("explain", f"{url}:t", "--cosign-key", cosign.key("release"), status=5)
    assert "by cosign with one of the given keys, required" in refused.stdout
    assert "ImageUnsigned" in refused.stdout
    cosign.sign(url, digest, storage="bundle")
    assert "cosign (release.pub)" in cdi("explain", f"{url}:t", "--cosign-key", cosign.key("release")).stdout


def test_a_manifest_names_a_secret_with_the_keys(cdi, image, cosign):
    url, digest = image
    cosign.sign(url, digest)
    key = json.dumps(cosign.key("release").read_text())
    (cdi.cwd / "m.yaml").write_text(MANIFEST.format(key=key, url=f"{url}:t"))
    cdi("apply", "-f", "m.yaml", "--wait")
    assert cdi.disk("golden").read_bytes() == DISK


def test_the_key_is_required_of_container_images_only(cdi, cosign):
    refused = cdi("import", "http://127.0.0.1:1/x", "--cosign-key", cosign.key("release"), status=2)
    assert "--cosign-key applies to docker://" in refused.stderr
    private = cosign.home / "release.pem"
    assert "a private key" in cdi("import", "docker://h/x", "--cosign-key", private, status=5).stderr


def test_keys_by_openssl_are_accepted(cdi, image, cosign, tmp_path):
    url, digest = image
    cosign.sign(url, digest)
    pem = tmp_path / "again.pub"
    subprocess.run(["openssl", "pkey", "-in", cosign.home / "release.pem", "-pubout", "-out", pem], check=True)
    cdi("import", f"{url}:t", "--to", "disk.img", "--cosign-key", pem)
