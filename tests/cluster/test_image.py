"""Contents of the container image, and its programs on a read-only root file system."""

import json
import platform
import tarfile
import uuid
from pathlib import PurePosixPath

import pytest

from tests.cluster.cdi_image import archived
from tests.cluster.objects import is_phase
from tests.cluster.worker_pods import RESTRICTED, bare

MAX_IMAGE_SIZE = 210 << 20
"""Maximum uncompressed size in bytes, low enough to reveal a dependency of tens of megabytes."""


@pytest.fixture(scope="module")
def archive():
    with tarfile.open(archived()) as archive:
        yield archive


@pytest.fixture(scope="module")
def manifest(archive):
    return json.load(archive.extractfile("manifest.json"))[0]


@pytest.fixture(scope="module")
def config(archive, manifest):
    return json.load(archive.extractfile(manifest["Config"]))["config"]


@pytest.fixture(scope="module")
def members(archive, manifest):
    """Return the files by path, each from the last layer that has it, with the header bytes of compiled modules."""
    found = {}
    for name in manifest["Layers"]:
        with tarfile.open(fileobj=archive.extractfile(name)) as layer:
            for member in layer:
                head = layer.extractfile(member).read(16) if member.name.endswith(".pyc") else b""
                found[PurePosixPath("/", member.name)] = (member, head)
    return found


def below(members, directory):
    return {path.name for path in members if str(path.parent) == directory}


def test_it_is_small_and_what_changes_often_is_apart(archive, manifest):
    system, project = (archive.getmember(name).size for name in manifest["Layers"])
    assert system + project < MAX_IMAGE_SIZE
    assert project < 16 << 20


def test_it_runs_as_nobody_special(config):
    assert config["User"] == "107:107"
    assert config["Cmd"] == ["cdi", "--help"]
    assert not config.get("Entrypoint")
    labels = config["Labels"]
    for name in ("title", "description", "licenses", "version", "revision"):
        assert labels[f"org.opencontainers.image.{name}"]


def test_it_holds_the_programs_and_no_others(members):
    python = {name for name in below(members, "/usr/bin") if name.startswith("python3")}
    emulator = {"qemu-system-x86_64", "qemu-system-aarch64"} & below(members, "/usr/bin")
    assert len(emulator) == 1
    assert below(members, "/usr/bin") - python == {"qemu-img", "qemu-storage-daemon", "gpgv", *emulator}
    assert "python3" in python
    assert below(members, "/usr/local/bin") == {"cdi", "cdi-worker"}
    assert {
        name for name in ("/bin/sh", "/usr/bin/dpkg", "/usr/bin/apt-get") if PurePosixPath(name) in members
    } == set()


def test_it_holds_the_firmware_that_its_emulator_boots_with(members):
    firmware = {
        "/usr/bin/qemu-system-x86_64": ("seabios/bios-256k.bin", "OVMF/OVMF_CODE_4M.fd", "OVMF/OVMF_VARS_4M.fd"),
        "/usr/bin/qemu-system-aarch64": ("AAVMF/AAVMF_CODE.fd", "AAVMF/AAVMF_VARS.fd"),
    }
    for emulator, names in firmware.items():
        present = PurePosixPath(emulator) in members
        assert {PurePosixPath("/usr/share", name) in members for name in names} == {present}


def test_nothing_in_it_gives_or_takes_rights(members):
    for path, (member, _) in members.items():
        assert not member.mode & 0o6000, path
        assert member.issym() or not member.mode & 0o002 or str(path) == "/tmp", path
        assert (member.uid, member.gid) == (0, 0) or str(path) == "/", path


def test_no_start_compiles_or_looks_at_the_time_of_a_file(members):
    modules = [path for path in members if path.suffix == ".py"]
    compiled = {path: head for path, (_, head) in members.items() if path.suffix == ".pyc"}
    assert len(modules) > 1000
    places = {(path.parent.parent, path.name.split(".")[0]) for path in compiled}
    missing = [path for path in modules if (path.parent, path.stem) not in places]
    assert missing == []
    # PEP 552: hash-based pycs that are not checked against the source.
    assert {head[4:8] for head in compiled.values()} == {b"\1\0\0\0"}


def test_scanners_find_the_packages_and_readers_the_licences(members):
    noted = below(members, "/var/lib/dpkg/status.d")
    wanted = {"libc6", "libssl3", "qemu-utils", "qemu-system-common", "gpgv", "ca-certificates", "libgnutls30"}
    assert wanted <= noted
    assert {PurePosixPath("/usr/share/doc", name, "copyright") for name in wanted} <= set(members)


EVERY_MODULE = """
import importlib, pkgutil, cdi
for module in pkgutil.walk_packages(cdi.__path__, "cdi."):
    if not module.name.endswith(("__main__", "qemu.launcher")):
        importlib.import_module(module.name)
# What is imported only where it is used.
import boto3, botocore.session, google.auth.transport.requests, google.oauth2.service_account
import deflate, isal.igzip, lzma, qemu.qmp, yaml
from kubernetes.aio.client import Configuration
from kubernetes.aio.config.incluster_config import InClusterConfigLoader
from kubernetes.aio.config.kube_config import KubeConfigLoader, KubeConfigMerger
session = botocore.session.get_session()
for service in ("s3", "sts", "sso", "sso-oidc"):
    session.create_client(service, region_name="eu-central-1", aws_access_key_id="a", aws_secret_access_key="b")
import ssl
context = ssl.create_default_context()
assert len(__import__("os").listdir(ssl.get_default_verify_paths().capath)) > 100
import socket
socket.getaddrinfo("localhost", 80)
"""


@pytest.mark.parametrize(
    "command",
    [
        ["/usr/bin/python3", "-I", "-c", EVERY_MODULE],
        ["cdi", "version"],
        ["cdi", "--help"],
        ["cdi", "controller", "--help"],
        ["cdi", "apiserver", "--help"],
        ["qemu-storage-daemon", "--version"],
        [f"qemu-system-{platform.machine()}", "-accel", "help"],
        ["gpgv", "--version"],
    ],
    ids=["every module", "version", "help", "controller", "apiserver", "qemu-storage-daemon", "qemu-system", "gpgv"],
)
def test_its_programs_run_where_nothing_can_be_written(namespace, cdi_image, command):
    namespace.run("label", "namespace", namespace.namespace, *(f"{a}={b}" for a, b in RESTRICTED.items()))
    name = f"run-{uuid.uuid4().hex[:6]}"
    namespace.create(bare(name, cdi_image, command, memory="300M"))
    document = namespace.wait("pod", name, "at its end", is_phase("Succeeded", "Failed"), 300)
    said = namespace.logs(name)
    assert document["status"]["phase"] == "Succeeded", said
    assert ": missing" not in said.replace("bwrap: missing", "")
