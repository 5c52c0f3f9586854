"""Tests of the how-to guides' blocks for one machine, run as they are written against real servers."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import subprocess
import tarfile
from base64 import b64encode
from pathlib import Path

import pytest

from tests.doc_blocks import DocShell
from tests.integration.docs.conftest import DISK, MIB
from tests.integration.fixtures_registry import PASSWORD, USER

pytestmark = pytest.mark.timeout(600)
POLICY = {"default": [{"type": "insecureAcceptAnything"}]}


def volume(page: DocShell, name: str) -> Path:
    return Path(page.environment["HOME"]) / ".local/share/cdi/volumes/default" / name


def run(page: DocShell, command: str) -> None:
    """Run a command that prepares what a page presupposes."""
    subprocess.run(["bash", "-c", command], cwd=page.directory, env=page.environment, check=True)


def holds_the_disk(path: Path) -> bool:
    """Return whether the file begins with the guest's disk and continues with zeros."""
    content = path.read_bytes()
    return content[: len(DISK)] == DISK and not content[len(DISK) :].strip(b"\0")


@pytest.fixture
def archive() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        member = tarfile.TarInfo("index.html")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"hello"))
    return packed.getvalue()


@pytest.fixture
def images_bucket(s3_endpoint, no_aws):
    import boto3

    client = boto3.client(
        "s3", endpoint_url=s3_endpoint, region_name="us-east-1", aws_access_key_id="AKIA", aws_secret_access_key="secret"
    )
    client.create_bucket(Bucket="images")
    yield client
    client.close()


def push(registries, oci_layout, guest, name):
    layer = oci_layout.layer({"disk/guest.qcow2": guest})
    oci_layout.image([layer], tag="1")
    registries.push(oci_layout, "1", name)


def test_import(page, nginx, guest, archive, s3_endpoint, images_bucket, registries, oci_layout):
    nginx.put("guest.qcow2", guest)
    nginx.put("site.tar.gz", archive)
    images_bucket.put_object(Bucket="images", Key="guest.qcow2", Body=guest)
    push(registries, oci_layout, guest, "public/guest:1")
    shell = page(
        replacements={
            "https://images.example.org": nginx.url("").rstrip("/"),
            "https://s3.example.org": s3_endpoint,
            "registry.example.org": registries.token.address,
        },
        SSL_CERT_FILE=str(registries.directory / "ca/registry-ca.crt"),
        AWS_EC2_METADATA_DISABLED="true",
    )
    (shell.directory / "guest.qcow2").write_bytes(guest)
    (shell.directory / "password").write_text(nginx.password)
    (shell.directory / "secret-key").write_text("secret")
    settings = Path(shell.environment["HOME"]) / ".config/containers"
    settings.mkdir(parents=True)
    (settings / "policy.json").write_text(json.dumps(POLICY))
    shell.run(timeout=500)
    for name in ("http", "http-manifest", "private", "s3", "s3-manifest", "registry", "archive-file", "file", "pipe"):
        assert holds_the_disk(volume(shell, f"from-{name}") / "disk.img"), name
    assert (shell.directory / "disk.img").read_bytes() == DISK
    assert (volume(shell, "site") / "index.html").read_text() == "hello"
    assert volume(shell, "empty").joinpath("disk.img").stat().st_size == 1 << 30


def sign(directory: Path, content: bytes) -> tuple[bytes, bytes]:
    """Return the public key of a new pair, and its signature of the content."""
    home = directory / "gnupg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", home, "--batch", "--yes", "--pinentry-mode", "loopback", "--passphrase", ""]
    try:
        key = [*gpg, "--quick-gen-key", "images@example.org", "ed25519", "sign", "0"]
        subprocess.run(key, check=True, capture_output=True)
        public = subprocess.run([*gpg, "--export"], check=True, capture_output=True).stdout
        signed = subprocess.run([*gpg, "--detach-sign", "-o", "-"], input=content, check=True, capture_output=True)
    finally:
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False)
    return public, signed.stdout


def test_checksum(page, nginx, guest, tmp_path):
    nginx.put("guest.qcow2", guest)
    nginx.put("signed/guest.qcow2", guest)
    sums = f"{hashlib.sha256(guest).hexdigest()}  guest.qcow2\n".encode()
    keys, signature = sign(tmp_path, sums)
    nginx.put("signed/SHA256SUMS", sums)
    nginx.put("signed/SHA256SUMS.gpg", signature)
    shell = page(replacements={"https://images.example.org": nginx.url("").rstrip("/")})
    (shell.directory / "keys.gpg").write_bytes(keys)
    shell.run()
    assert holds_the_disk(volume(shell, "signed") / "disk.img")
    assert holds_the_disk(volume(shell, "checked") / "disk.img")
    assert not (volume(shell, "refused") / "disk.img").exists()


def test_upload(page, guest):
    shell = page()
    (shell.directory / "guest.qcow2").write_bytes(guest)
    shell.run()
    assert holds_the_disk(volume(shell, "uploaded") / "disk.img")


def test_web_page(page):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shell = page(replacements={"8080": port})
    shell.run()
    assert "<html" in (shell.directory / "page.html").read_text()


def test_limits(page, nginx):
    nginx.put("large.raw", DISK + bytes(56 * MIB))
    shell = page(replacements={"https://images.example.org": nginx.url("").rstrip("/")})
    shell.run()
    assert holds_the_disk(volume(shell, "limited") / "disk.img")


def test_private_ca(page, nginx, guest):
    nginx.put("guest.qcow2", guest)
    shell = page(replacements={"https://mirror.example.org": nginx.url("", tls=True).rstrip("/")})
    (shell.directory / "ca.pem").write_bytes((nginx.ca_dir / "any-name-at-all").read_bytes())
    shell.run()
    for name in ("from-mirror", "from-mirror-manifest"):
        assert holds_the_disk(volume(shell, name) / "disk.img")


def test_private_registry(page, registries, oci_layout, guest):
    push(registries, oci_layout, guest, "disks/guest:1")
    shell = page(
        replacements={
            "registry.example.org": registries.basic.address,
            "insecure.example.org": registries.open.address,
        }
    )
    login = {"auths": {registries.basic.address: {"auth": b64encode(f"{USER}:{PASSWORD}".encode()).decode()}}}
    (shell.directory / "config.json").write_text(json.dumps(login))
    (shell.directory / "ca.pem").write_bytes((registries.directory / "ca/registry-ca.crt").read_bytes())
    shell.run()
    for name in ("from-registry", "from-insecure"):
        assert holds_the_disk(volume(shell, name) / "disk.img")


def test_clone(page, guest):
    shell = page()
    (shell.directory / "guest.qcow2").write_bytes(guest)
    run(shell, "cdi import guest.qcow2 --name golden")
    shell.run()
    for name in ("machine-1", "machine-2"):
        assert holds_the_disk(volume(shell, name) / "disk.img")
    assert (volume(shell, "machine-2") / "disk.img").stat().st_size == 2 << 30


def test_golden_images(page, nginx, guest):
    for name in ("debian", "appliance"):
        nginx.put(f"{name}.qcow2", guest)
    shell = page(replacements={"https://images.example.org": nginx.url("").rstrip("/")})
    shell.run()
    assert sorted(json.loads((shell.directory / "cdi.lock").read_text())["images"]) == ["appliance", "debian"]


def test_golden_images_update(page, nginx, guest):
    shell = page()
    (shell.directory / "images.yaml").write_text(f"images: [{{name: debian, url: '{nginx.url('changing.qcow2')}'}}]")
    nginx.put("changing.qcow2", guest)
    run(shell, "cdi batch images.yaml")
    replaced = DISK[::-1]
    nginx.put("changing.qcow2", replaced)
    shell.run()
    assert (volume(shell, "debian") / "disk.img").read_bytes() == replaced


def test_troubleshooting(page, nginx):
    shell = page(replacements={"https://images.example.org": nginx.url("").rstrip("/")})
    shell.run()


def test_uninstall(page, guest):
    shell = page()
    (shell.directory / "guest.qcow2").write_bytes(guest)
    run(shell, "cdi import guest.qcow2 --name golden")
    shell.run()
    assert not (Path(shell.environment["HOME"]) / ".local/share/cdi").exists()
