import subprocess

import pytest

from cdi.api.errors import QemuFailed
from cdi.api.job import Policy
from cdi.transfer.qemu.image import check, info


def create(path, *arguments):
    subprocess.run(["qemu-img", "create", *arguments, str(path), "3M"], check=True, stdout=subprocess.DEVNULL)
    return str(path)


def test_info_names_what_the_header_says(tmp_path):
    path = create(tmp_path / "a", "-f", "qcow2", "-o", "cluster_size=128k")
    said = info(path, format="qcow2", policy=Policy(), workdir=str(tmp_path))
    assert (said.format, said.virtual_size, said.cluster_size) == ("qcow2", 3 << 20, 128 << 10)
    assert (said.backing_file, said.encrypted, said.dirty) == (None, False, False)


def test_info_names_a_backing_file_and_does_not_open_it(tmp_path):
    path = create(tmp_path / "a", "-f", "qcow2", "-u", "-F", "raw", "-b", "/nowhere/else")
    assert info(path, format="qcow2", policy=Policy(), workdir=str(tmp_path)).backing_file == "/nowhere/else"


def test_another_format_than_the_named_one_is_refused(tmp_path):
    path = create(tmp_path / "a", "-f", "qcow2")
    with pytest.raises(QemuFailed, match="VDI"):
        info(path, format="vdi", policy=Policy(), workdir=str(tmp_path))
    assert info(path, format="raw", policy=Policy(), workdir=str(tmp_path)).format == "raw"


def test_a_path_that_looks_like_an_option_or_a_protocol_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    create(tmp_path / "-a")
    assert info(str(tmp_path / "-a"), format="raw", policy=Policy(), workdir=str(tmp_path)).virtual_size == 3 << 20


def test_check_tells_leaks_from_corruption(tmp_path):
    path = create(tmp_path / "a", "-f", "qcow2")
    sound = check(path, format="qcow2", policy=Policy(), workdir=str(tmp_path))
    assert sound.supported
    assert sound.sound
    with open(path, "r+b") as file:
        table = int.from_bytes(file.read(56)[48:56], "big")
        file.seek(table)
        block = int.from_bytes(file.read(8), "big")
        size = -(-file.seek(0, 2) // 65536) * 65536
        file.truncate(size + 65536)
        file.seek(block + 2 * (size // 65536))
        file.write(b"\0\1")  # an unreferenced cluster
    leaking = check(path, format="qcow2", policy=Policy(), workdir=str(tmp_path))
    assert (leaking.leaks, leaking.sound) == (1, True)
    with open(path, "r+b") as file:
        file.seek(block)
        file.write(bytes(8))  # the header, counted as unused
    assert not check(path, format="qcow2", policy=Policy(), workdir=str(tmp_path)).sound


def test_a_format_without_a_check_says_so(tmp_path):
    path = create(tmp_path / "a", "-f", "raw")
    assert not check(path, format="raw", policy=Policy(), workdir=str(tmp_path)).supported
