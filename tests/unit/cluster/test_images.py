"""Tests of the test cluster's image writer: other programs read its output as an OCI archive."""

import json
import shutil
import subprocess
import tarfile

import pytest

from tests.cluster.images import File, write_archive

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


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_another_program_reads_the_archive(tmp_path):
    write_archive(tmp_path / "image.tar", "example.test/image:1", FILES, {"Env": ["A=b"]})
    # skopeo would unpack the archive with its owners, which needs root.
    (tmp_path / "image").mkdir()
    subprocess.run(["tar", "-x", "--no-same-owner", "-f", tmp_path / "image.tar", "-C", tmp_path / "image"], check=True)
    command = ["skopeo", "inspect", "--config", f"oci:{tmp_path}/image:1"]
    shown = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert shown["config"]["Env"] == ["A=b"]
