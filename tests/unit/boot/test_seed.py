import shutil
import struct
import subprocess

import pytest

from cdi.boot.seed import MAX_FILE, iso9660, nocloud, script


def listing(image):
    """Return the files of the Joliet tree, read as the standard defines it."""
    found = {}
    assert image[17 * 2048 : 17 * 2048 + 6] == b"\x02CD001"
    root = image[17 * 2048 + 156 :]
    sector, length = struct.unpack_from("<I4xI", root, 2)
    place = sector * 2048
    while place < sector * 2048 + length and image[place]:
        size = image[place]
        assert size % 2 == 0
        extent, bytes_ = struct.unpack_from("<I4xI", image, place + 2)
        name_length = image[place + 32]
        if not image[place + 25] & 2:
            name = image[place + 33 : place + 33 + name_length].decode("utf-16-be")
            found[name.removesuffix(";1")] = image[extent * 2048 : extent * 2048 + bytes_]
        place += size
    return found


def test_the_files_are_in_it():
    files = {"meta-data": b"a: b\n", "user-data": bytes(5000), "vendor-data": b""}
    image = iso9660(files, label="cidata")
    assert listing(image) == files
    assert len(image) % 2048 == 0


@pytest.mark.skipif(shutil.which("isoinfo") is None, reason="isoinfo is not installed")
def test_another_reader_finds_them_in_both_trees(tmp_path):
    path = tmp_path / "seed.iso"
    path.write_bytes(iso9660({"meta-data": b"hello\n", "user-data": b"x" * 3000}, label="cidata"))

    def isoinfo(*arguments):
        return subprocess.run(["isoinfo", "-i", str(path), *arguments], check=True, capture_output=True).stdout

    assert b"Volume id: cidata" in isoinfo("-d")
    for tree in ("-J", "-R"):
        assert isoinfo(tree, "-x", "/meta-data") == b"hello\n"
        assert isoinfo(tree, "-x", "/user-data") == b"x" * 3000


def test_the_marker_shows_only_when_the_script_runs(tmp_path):
    assert "cdi-boot-0123" not in script("cdi-boot-0123")
    text = script("cdi-boot-0123").replace("/dev/ttyS0", str(tmp_path / "tty")).replace("-c ", "-f ")
    (tmp_path / "tty").touch()
    subprocess.run(["sh", "-c", text], check=True)
    assert (tmp_path / "tty").read_text() == "\ncdi-boot-0123\n"


def test_ones_own_user_data_keeps_the_script_as_vendor_data():
    files = listing(nocloud({"user-data": "#cloud-config\nhostname: x\n"}, marker="cdi-boot-1"))
    assert files["user-data"] == b"#cloud-config\nhostname: x\n"
    assert files["vendor-data"].startswith(b"#!/bin/sh")
    assert b"instance-id" in files["meta-data"]


def test_without_any_the_script_is_the_user_data():
    files = listing(nocloud({}, marker="cdi-boot-1"))
    assert set(files) == {"meta-data", "user-data"}
    assert files["user-data"].startswith(b"#!/bin/sh")


def test_what_is_no_seed_is_refused():
    with pytest.raises(ValueError, match="passwd"):
        nocloud({"passwd": "x"}, marker="m")
    with pytest.raises(ValueError, match="small"):
        nocloud({"user-data": "x" * (MAX_FILE + 1)}, marker="m")
