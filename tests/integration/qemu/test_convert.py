"""Conversions by the storage daemon, compared with the result of qemu-img for the same image."""

import contextlib
import hashlib
import os
import random
import subprocess
import threading

import pytest

from cdi.api.errors import (
    ImageCorrupt,
    Interrupted,
    QemuFailed,
    ResourceLimit,
    TargetFull,
    TargetTooSmall,
)
from cdi.api.job import Policy
from cdi.transfer.qemu.convert import MirrorJob, convert
from cdi.transfer.qemu.disk import inspect_target

MIB = 1 << 20
SIZE = 24 * MIB + 65536

FORMATS = {
    "raw": ("raw", ()),
    "vmdk": ("vmdk", ("subformat=monolithicSparse",)),
    "vmdk-stream": ("vmdk", ("subformat=streamOptimized",)),
    "vdi": ("vdi", ()),
    "vdi-static": ("vdi", ("static=on",)),
    "vhd": ("vpc", ("subformat=dynamic", "force_size=on")),
    "vhd-fixed": ("vpc", ("subformat=fixed", "force_size=on")),
    "vhdx": ("vhdx", ()),
    "vhdx-fixed": ("vhdx", ("subformat=fixed", "block_size=1M")),
    "qcow2": ("qcow2", ()),
    "qcow2-small": ("qcow2", ("cluster_size=512", "compat=0.10")),
    "qcow2-large": ("qcow2", ("cluster_size=2M",)),
    "qcow2-subclusters": ("qcow2", ("extended_l2=on", "cluster_size=128k")),
}


def qemu_img(*arguments):
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def disk(path, size=SIZE):
    """Write data at odd offsets, written zeros, and holes."""
    dice = random.Random(5)
    with open(path, "wb") as file:
        file.truncate(size)
        for _ in range(60):
            offset = dice.randrange(size // 512 - 1) * 512
            length = min(dice.choice([512, 4096, 65536, 200_000]), size - offset)
            file.seek(offset)
            file.write(dice.randbytes(length))
        file.seek(size // 4)
        file.write(bytes(size // 8))
        file.seek(size - 512)
        file.write(b"end" + bytes(509))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    directory = tmp_path_factory.mktemp("images")
    plain = disk(directory / "disk.raw")
    made = {}
    for name, (kind, options) in FORMATS.items():
        path = directory / name
        arguments = [part for option in options for part in ("-o", option)]
        qemu_img("convert", "-f", "raw", "-O", kind, *arguments, plain, path)
        oracle = directory / f"{name}.oracle"
        qemu_img("convert", "-f", kind, "-O", "raw", path, oracle)
        made[name] = (kind, path, oracle)
    return made


def fresh(path, size, content=b""):
    with open(path, "wb") as file:
        file.write(content)
        file.truncate(size)
    return str(path)


def run(image, kind, target, size, tmp_path, **more):
    is_block, reads_zero = more.pop("target_is_block", False), more.pop("target_reads_zero", True)
    defaults = {
        "target": inspect_target(target, is_block=is_block, reads_zero=reads_zero),
        "policy": Policy(),
        "on_progress": lambda done, total: None,
        "cancelled": threading.Event(),
    }
    return convert(MirrorJob(image=image, format=kind, virtual_size=size, **(defaults | more)), str(tmp_path))


def content(path, length):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(length)).hexdigest()


@contextlib.contextmanager
def loop_device(path, size):
    """Yield a block device full of old data."""
    with open(path, "wb") as file:
        file.write(b"\xa5" * size)
    device = subprocess.run(
        ["losetup", "--find", "--show", str(path)], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.mark.parametrize("name", FORMATS)
def test_the_disk_is_what_qemu_img_makes_of_it(name, images, tmp_path):
    kind, image, oracle = images[name]
    size = oracle.stat().st_size
    target = fresh(tmp_path / "disk.img", size + MIB)
    result = run(str(image), kind, target, size, tmp_path)
    assert result.virtual_size == size
    assert content(target, size) == content(oracle, size)
    # Unallocated ranges occupy no space, and neither does a whole mebibyte of written zeros.
    assert os.stat(target).st_blocks * 512 < size - MIB


@pytest.mark.parametrize("name", ["raw", "vmdk", "qcow2"])
def test_a_disk_that_ends_between_blocks_of_the_volume(name, tmp_path):
    kind, options = FORMATS[name]
    size = 3 * MIB + 512
    plain = disk(tmp_path / "disk.raw", size)
    qemu_img("convert", "-f", "raw", "-O", kind, plain, tmp_path / "image")
    target = fresh(tmp_path / "disk.img", size)
    assert not run(str(tmp_path / "image"), kind, target, size, tmp_path).direct
    assert content(target, -1) == content(plain, -1)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("offloads", [True, False])
@pytest.mark.parametrize("name", ["vmdk", "vhdx", "qcow2", "raw"])
def test_a_used_block_device_reads_as_the_image_and_not_beyond(name, offloads, images, tmp_path, monkeypatch):
    kind, image, oracle = images[name]
    size = oracle.stat().st_size
    monkeypatch.setattr("cdi.transfer.qemu.disk.device_offloads_zero", lambda device: offloads)
    with loop_device(tmp_path / "backing", 32 * MIB) as device:
        run(str(image), kind, device, size, tmp_path, target_is_block=True, target_reads_zero=False)
        assert content(device, size) == content(oracle, size)
        with open(device, "rb") as file:
            file.seek(size)
            assert set(file.read()) == {0xA5}


def test_a_used_file_reads_as_the_image(images, tmp_path):
    kind, image, oracle = images["vmdk"]
    size = oracle.stat().st_size
    target = fresh(tmp_path / "disk.img", size, b"\xa5" * size)
    run(str(image), kind, target, size, tmp_path, target_reads_zero=False)
    assert content(target, -1) == content(oracle, -1)


def test_a_size_that_is_no_multiple_of_a_sector_stays(tmp_path):
    image = tmp_path / "odd.raw"
    image.write_bytes(random.Random(1).randbytes(70_001))
    target = fresh(tmp_path / "disk.img", 70_001)
    run(str(image), "raw", target, 70_001, tmp_path)
    assert content(target, -1) == content(image, -1)
    assert os.path.getsize(target) == 70_001


def test_progress_grows_to_its_end(images, tmp_path):
    kind, image, oracle = images["qcow2"]
    size = oracle.stat().st_size
    seen = []
    run(
        str(image),
        kind,
        fresh(tmp_path / "disk.img", size),
        size,
        tmp_path,
        on_progress=lambda *pair: seen.append(pair),
    )
    assert seen[-1][0] == seen[-1][1] > 0
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_another_size_than_the_header_was_read_as_is_refused_before_anything_is_written(images, tmp_path):
    kind, image, oracle = images["vmdk"]
    size = oracle.stat().st_size
    target = fresh(tmp_path / "disk.img", size)
    with pytest.raises(ImageCorrupt, match=str(size - 512)):
        run(str(image), kind, target, size - 512, tmp_path)
    assert os.stat(target).st_blocks == 0


def test_a_target_that_is_too_small_is_refused(images, tmp_path):
    kind, image, oracle = images["vmdk"]
    size = oracle.stat().st_size
    with pytest.raises(TargetTooSmall, match=str(size)):
        run(str(image), kind, fresh(tmp_path / "disk.img", size - MIB), size, tmp_path)


def test_cancelling_stops_it(images, tmp_path):
    kind, image, oracle = images["raw"]
    size = oracle.stat().st_size
    cancelled = threading.Event()

    def progress(done, total):
        if done:
            cancelled.set()

    with pytest.raises(Interrupted):
        # Slow enough to take minutes.
        run(
            str(image),
            kind,
            fresh(tmp_path / "disk.img", size),
            size,
            tmp_path,
            cancelled=cancelled,
            bandwidth=lambda: 200_000,
            on_progress=progress,
        )


def test_the_speed_can_be_changed_meanwhile(images, tmp_path):
    kind, image, oracle = images["raw"]
    size = oracle.stat().st_size
    asked = 0

    def bandwidth():
        nonlocal asked
        asked += 1
        return 1000 if asked < 5 else 0  # at the first speed it would take hours

    target = fresh(tmp_path / "disk.img", size)
    run(str(image), kind, target, size, tmp_path, bandwidth=bandwidth)
    assert content(target, -1) == content(oracle, -1)
    assert asked >= 5


def test_too_little_memory_is_said_so(images, tmp_path):
    kind, image, oracle = images["qcow2"]
    size = oracle.stat().st_size
    with pytest.raises(ResourceLimit, match="memory"):
        run(str(image), kind, fresh(tmp_path / "disk.img", size), size, tmp_path, policy=Policy(qemu_memory=40 << 20))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_full_file_system_is_said_so(images, tmp_path):
    kind, image, oracle = images["raw"]
    size = oracle.stat().st_size
    mount = tmp_path / "small"
    mount.mkdir()
    # Including a file system without direct I/O before Linux 6.6.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(mount)], check=True)
    try:
        with pytest.raises(TargetFull):
            run(str(image), kind, fresh(mount / "disk.img", size), size, tmp_path)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_no_image_makes_qemu_open_another_file(tmp_path):
    secret = disk(tmp_path / "secret", 2 * MIB)
    overlay = tmp_path / "overlay.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", secret, "-F", "raw", overlay)
    target = fresh(tmp_path / "disk.img", 2 * MIB)
    run(str(overlay), "qcow2", target, 2 * MIB, tmp_path)
    with open(target, "rb") as file:
        assert not file.read().strip(b"\0")

    descriptor = tmp_path / "descriptor.vmdk"
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=monolithicFlat", secret, descriptor)
    with pytest.raises(QemuFailed):
        run(str(descriptor), "vmdk", fresh(tmp_path / "out.img", 2 * MIB), 2 * MIB, tmp_path)

    data_file = tmp_path / "external.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'},data_file_raw=on", data_file, "2M")
    with pytest.raises(QemuFailed):
        run(str(data_file), "qcow2", fresh(tmp_path / "out.img", 2 * MIB), 2 * MIB, tmp_path)


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vdi", "vpc", "vhdx"])
@pytest.mark.parametrize("garbage", [b"", b"\0" * 4096, b"QFI\xfb" + b"\xff" * 4096, b"KDMV" + b"\xff" * 4096])
def test_what_is_no_image_fails_with_qemus_words(kind, garbage, tmp_path):
    image = tmp_path / "garbage"
    image.write_bytes(garbage)
    with pytest.raises((QemuFailed, ResourceLimit)) as raised:
        run(str(image), kind, fresh(tmp_path / "disk.img", MIB), MIB, tmp_path)
    assert "blockdev" not in raised.value.what


@pytest.mark.parametrize("name", ["raw", "vmdk", "vhdx", "vhdx-fixed", "qcow2"])
def test_what_is_written_is_the_data_and_not_the_disk(images, name, tmp_path):
    kind, path, _ = images[name]
    target, told = fresh(tmp_path / "disk", SIZE), []
    found = run(str(path), kind, target, SIZE, tmp_path, on_written=told.append)
    taken = os.stat(target).st_blocks * 512
    assert 0 < taken <= found.written <= taken + MIB
    assert told == sorted(told)
    assert told[-1] == found.written


def test_an_empty_disk_takes_no_writing(tmp_path):
    qemu_img("create", "-f", "vhdx", tmp_path / "image", 64 * MIB)
    target = fresh(tmp_path / "disk", 64 * MIB)
    found = run(str(tmp_path / "image"), "vhdx", target, 64 * MIB, tmp_path)
    assert (found.copied, found.written) == (64 * MIB, 0)


def test_what_is_written_is_known_where_the_kernel_does_not_count(images, tmp_path, monkeypatch):
    """A file shows it by its growth, a device only by the bytes processed."""
    monkeypatch.setattr("cdi.transfer.qemu.convert.process_write_bytes", lambda _: None)
    kind, path, _ = images["vmdk"]
    target = fresh(tmp_path / "disk", SIZE)
    found = run(str(path), kind, target, SIZE, tmp_path)
    assert found.written == os.stat(target).st_blocks * 512 > 0
