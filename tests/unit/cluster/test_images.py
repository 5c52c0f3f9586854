"""Tests of the test cluster's image writer: other programs read its output as an OCI archive."""

import json
import os
import shutil
import struct
import subprocess
import tarfile

import pytest

from tests.cluster.images import File, Image, write_archive, write_images

FILES = {
    "etc": File(),
    "etc/name": File(content=b"content\n", mode=0o640),
    "bin/sh": File(link="busybox"),
    "tmp": File(mode=0o1777),
}


def blob(archive, digest):
    return archive.extractfile("blobs/" + digest.replace(":", "/"))


def test_the_layer_has_the_files_owned_by_root(tmp_path):
    write_archive(tmp_path / "image.tar", "example.test/image:1", FILES, {"Cmd": ["/bin/sh"]})
    with tarfile.open(tmp_path / "image.tar") as archive:
        index = json.load(archive.extractfile("index.json"))
        manifest = json.load(blob(archive, index["manifests"][0]["digest"]))
        assert json.load(blob(archive, manifest["config"]["digest"]))["config"] == {"Cmd": ["/bin/sh"]}
        with tarfile.open(fileobj=blob(archive, manifest["layers"][0]["digest"])) as layer:
            entries = {entry.name: entry for entry in layer}
            assert entries.keys() == FILES.keys()
            assert {(entry.uid, entry.gid) for entry in entries.values()} == {(0, 0)}
            assert layer.extractfile("etc/name").read() == b"content\n"
            assert entries["etc/name"].mode == 0o640
            assert entries["tmp"].isdir() and entries["tmp"].mode == 0o1777
            assert entries["bin/sh"].issym() and entries["bin/sh"].linkname == "busybox"


def test_the_same_files_give_the_same_bytes(tmp_path):
    for name in ("one.tar", "two.tar"):
        write_archive(tmp_path / name, "example.test/image:1", dict(reversed(FILES.items())), {})
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_images_share_the_layer_of_their_system(tmp_path):
    system = tmp_path / "system.tar"
    with tarfile.open(system, "w") as archive:
        archive.addfile(tarfile.TarInfo("from-below"))
    names = ("example.test/one:1", "example.test/two:1")
    images = [Image(name=name, files={name[-5:-2]: File(content=b"")}, config={}, system=system) for name in names]
    write_images(tmp_path / "images.tar", *images)
    with tarfile.open(tmp_path / "images.tar") as archive:
        manifests = json.load(archive.extractfile("index.json"))["manifests"]
        assert [each["annotations"]["io.containerd.image.name"] for each in manifests] == list(names)
        one, two = (json.load(blob(archive, each["digest"])) for each in manifests)
        assert one["layers"][0] == two["layers"][0]
        assert one["layers"][1] != two["layers"][1]
        assert blob(archive, one["layers"][0]["digest"]).read() == system.read_bytes()
        assert len(archive.getnames()) == len(set(archive.getnames()))
        configuration = json.load(blob(archive, one["config"]["digest"]))
        assert configuration["rootfs"]["diff_ids"] == [layer["digest"] for layer in one["layers"]]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_program_has_its_capability(tmp_path):
    files = {"program": File(content=b"", capability=10)}
    write_archive(tmp_path / "image.tar", "example.test/image:1", files, {})
    with tarfile.open(tmp_path / "image.tar") as archive:
        index = json.load(archive.extractfile("index.json"))
        manifest = json.load(blob(archive, index["manifests"][0]["digest"]))
        (tmp_path / "layer.tar").write_bytes(blob(archive, manifest["layers"][0]["digest"]).read())
    unpack = ["tar", "-x", "--xattrs", "--xattrs-include=security.*", "-f", tmp_path / "layer.tar", "-C", tmp_path]
    subprocess.run(unpack, check=True)
    # linux/capability.h: revision 2 with the effective flag, permitted CAP_NET_BIND_SERVICE.
    assert os.getxattr(tmp_path / "program", "security.capability") == struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_another_program_reads_the_archive(tmp_path):
    write_archive(tmp_path / "image.tar", "example.test/image:1", FILES, {"Env": ["A=b"]})
    # skopeo would unpack the archive with its owners, which needs root.
    (tmp_path / "image").mkdir()
    subprocess.run(["tar", "-x", "--no-same-owner", "-f", tmp_path / "image.tar", "-C", tmp_path / "image"], check=True)
    command = ["skopeo", "inspect", "--config", f"oci:{tmp_path}/image:1"]
    shown = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert shown["config"]["Env"] == ["A=b"]
