"""Tests of truncated images at the source: rejected before anything is written, unless they are found in a stream.

Images as QEMU writes them are never rejected, whatever their size.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cdi.api.errors import CdiError
from cdi.api.job import FileSourceSpec, HttpSourceSpec, Outcome, Policy
from cdi.image.inspect import Inspector
from cdi.transfer.bounds_check import check_file_bounds
from tests.faults.server import FaultServer
from tests.integration.fixtures_images import Image, Images, Importing, Volume, disk_bytes, run
from tests.integration.transfer.ways import OLD

MIB = 1 << 20
THROUGH_QEMU = ("vmdk-2M", "vmdk-4M")
MAPPED = ("vmdk-sparse", "vmdk-stream", "vdi", "vdi-static", "vhd-dynamic", "vhdx")
ENGINE_QEMU = ("qcow2-v3", "qcow2-zlib", "qcow2-zstd", "qcow2-2M", "qcow2-512-zlib")


def cuts(image: Image) -> list[int]:
    """Return lengths that lack a part of the disk: most of it, half, the last sectors of data, its very last byte."""
    content = image.path.read_bytes()
    data = image.disk[6 * MIB : 8 * MIB]
    length = len(content)
    found = [length * 6 // 10, length * 3 // 4 + 77]
    # The end of the data in the middle of the disk, if the file stores it unchanged.
    at = content.rfind(data[MIB : MIB + 4096])
    if at > 0:
        found += [at + 4096 + 1, at + 512]
    return found


def untouched(outcome: Outcome, volume: Volume, importing: Importing) -> None:
    assert outcome.failure is not None
    assert outcome.failure.code in ("ContentTruncated", "ImageCorrupt"), outcome.failure
    assert outcome.failure.exit_status == 4
    assert str(outcome.failure.retry) == "never"
    assert outcome.written == 0
    if volume.device is None:
        assert volume.disk.read_bytes() == OLD
        assert os.listdir(volume.directory) == ["disk.img"]
    else:
        assert volume.is_as_it_was()
    assert os.listdir(importing.directory / "scratch") == []


@pytest.mark.parametrize("kind", ["file", "block512"])
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "once"])
@pytest.mark.parametrize("name", THROUGH_QEMU)
def test_a_cut_image_touches_nothing(
    name: str,
    ranges: bool,
    kind: str,
    images: Images,
    volumes: Callable[[str], Volume],
    importing: Importing,
    fault_server: FaultServer,
) -> None:
    image, volume = images.get(name), volumes(kind)
    if volume.device is None:
        volume.disk.write_bytes(OLD)
    for length in cuts(image):
        fault_server.put("/disk", image.content[:length], ranges=ranges)
        source = HttpSourceSpec(url=fault_server.url("/disk"))
        outcome = importing.run(importing.job(source, volume))
        untouched(outcome, volume, importing)
        assert outcome.path in ("qemu-spool", None)


@pytest.mark.parametrize("kind", ["file", "block512"])
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "once"])
@pytest.mark.parametrize("name", MAPPED)
def test_a_cut_image_that_is_read_without_qemu_is_no_disk(
    name: str,
    ranges: bool,
    kind: str,
    images: Images,
    volumes: Callable[[str], Volume],
    importing: Importing,
    fault_server: FaultServer,
) -> None:
    """From ranges nothing is touched; a stream is read while it is written, and what it wrote is wiped."""
    image, volume = images.get(name), volumes(kind)
    if volume.device is None:
        volume.disk.write_bytes(OLD)
    for length in cuts(image):
        fault_server.put("/disk", image.content[:length], ranges=ranges)
        outcome = importing.run(importing.job(HttpSourceSpec(url=fault_server.url("/disk")), volume))
        if ranges or volume.device is None:
            untouched(outcome, volume, importing)
        assert outcome.failure is not None
        assert outcome.failure.code == "ContentTruncated"
        assert outcome.path == ("mapped-ranged" if ranges else "mapped-stream")
        assert outcome.scratch == 0
        if ranges:
            assert outcome.fetched < 2 * MIB, "no more than the tables"


def test_a_stream_that_is_too_short_for_its_header_touches_nothing(
    images: Images, volumes: Callable[[str], Volume], importing: Importing, fault_server: FaultServer
) -> None:
    """The announced length shows that the L1 table is missing, so the image is refused before it is read."""
    volume = volumes("block512")
    fault_server.put("/disk", images.get("qcow2-v3").content[: 3 << 16], ranges=False)
    outcome = importing.run(importing.job(HttpSourceSpec(url=fault_server.url("/disk")), volume))
    untouched(outcome, volume, importing)
    assert outcome.path == "qcow2-stream"


@pytest.mark.parametrize("name", [*ENGINE_QEMU, *MAPPED])
def test_a_cut_image_touches_nothing_when_qemu_is_asked_for(
    name: str, images: Images, volumes: Callable[[str], Volume], importing: Importing, tmp_path: Path
) -> None:
    image, volume = images.get(name), volumes("block512")
    for length in (len(image.content) * 6 // 10 // 512 * 512, len(image.content) * 3 // 4 + 77):
        path = tmp_path / "cut"
        path.write_bytes(image.content[:length])
        policy = Policy(discover_checksum=False, engine="qemu")
        outcome = importing.run(importing.job(FileSourceSpec(path=str(path)), volume, policy=policy))
        untouched(outcome, volume, importing)
        assert outcome.failure is not None
        assert outcome.failure.code == "ContentTruncated"


@pytest.mark.parametrize("wrapper", ["gz", "tar.gz"])
def test_a_cut_image_in_a_whole_wrapper_touches_nothing(
    wrapper: str, images: Images, volumes: Callable[[str], Volume], importing: Importing, tmp_path: Path
) -> None:
    from tests.integration.fixtures_images import WRAPPERS

    volume = volumes("block512")
    path = tmp_path / "cut"
    path.write_bytes(WRAPPERS[wrapper][1](images.get("vmdk-2M").content[: 5 * MIB]))
    outcome = importing.run(importing.job(FileSourceSpec(path=str(path)), volume))
    untouched(outcome, volume, importing)
    assert outcome.failure is not None
    assert "disk offset" in outcome.failure.message
    assert f"of a file of {5 * MIB} bytes: the file is truncated" in outcome.failure.message


def test_the_tables_of_an_image_are_read_over_several_connections(
    volumes: Callable[[str], Volume], importing: Importing, fault_server: FaultServer, tmp_path: Path
) -> None:
    """A disk of 64 GiB with a little data far apart, written backwards: its tables are all over the file."""
    path = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=16k", str(path), "64G")
    writes = [part for n in range(60, 0, -3) for part in ("-c", f"write -P {n} {n}G 256k")]
    run("qemu-io", "-f", "qcow2", *writes, str(path))
    content = path.read_bytes()
    fault_server.put("/disk", content[:-1000])
    source = HttpSourceSpec(url=fault_server.url("/disk"))
    volume = volumes("file")
    volume.disk.write_bytes(OLD)
    outcome = importing.run(importing.job(source, volume))
    untouched(outcome, volume, importing)
    fault_server.put("/disk", content)
    outcome = importing.run(importing.job(source, volume))
    assert outcome.failure is None, outcome.failure


# --- images that QEMU writes and reads --------------------------------------------------------------------------

SIZES = (512, 7 * 512, MIB + 512, 3 * MIB - 512)
WRITTEN: dict[str, Sequence[str]] = {
    "vmdk": ("-O", "vmdk"),
    "vmdk-stream": ("-O", "vmdk", "-o", "subformat=streamOptimized"),
    "vdi": ("-O", "vdi"),
    "vdi-static": ("-O", "vdi", "-o", "static=on"),
    "vhd": ("-O", "vpc"),
    "vhd-forced": ("-O", "vpc", "-o", "force_size=on"),
    "vhdx": ("-O", "vhdx", "-o", "block_size=1M"),
    "vhdx-usual": ("-O", "vhdx"),
    "vhdx-fixed": ("-O", "vhdx", "-o", "subformat=fixed"),
    "qcow2": ("-O", "qcow2"),
    "qcow2-512": ("-O", "qcow2", "-o", "cluster_size=512"),
    "qcow2-2M": ("-O", "qcow2", "-o", "cluster_size=2M"),
    "qcow2-extended": ("-O", "qcow2", "-o", "extended_l2=on,cluster_size=128k"),
    "qcow2-metadata": ("-O", "qcow2", "-o", "preallocation=metadata"),
    "qcow2-zlib": ("-O", "qcow2", "-c"),
    "qcow2-zstd": ("-O", "qcow2", "-c", "-o", "compression_type=zstd"),
}


def accepted(path: Path) -> bool:
    with path.open("rb", buffering=0) as file:
        inspector = Inspector(path.stat().st_size)
        while (want := inspector.next_range()) is not None:
            inspector.feed(want[0], os.pread(file.fileno(), want[1], want[0]))
        try:
            image = inspector.result()
            check = check_file_bounds(file.fileno(), image)
        except CdiError as error:
            assert error.code in ("ContentTruncated", "ImageCorrupt", "FormatUnrecognised"), error
            return False
    assert check is not None
    return check.passed


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_accepted_is_what_qemu_reads_as_it_was(name: str, tmp_path: Path) -> None:
    """Whole images of any size are accepted; a truncated one is rejected unless QEMU reads the same disk from it."""
    dice = random.Random(name)
    image, raw, read = tmp_path / "image", tmp_path / "raw", tmp_path / "read"
    options = WRITTEN[name]
    for size in SIZES:
        # The last sector is data, so that truncation loses something.
        raw.write_bytes(disk_bytes()[: size - 512] + dice.randbytes(512))
        run("qemu-img", "convert", "-f", "raw", *options, str(raw), str(image))
        assert accepted(image), "it is whole"
        run("qemu-img", "convert", "-f", options[1], "-O", "raw", str(image), str(read))
        disk, length = read.read_bytes(), image.stat().st_size
        for _ in range(7):
            length -= dice.choice((1, 60, 700, length // 9, length // 3))
            os.truncate(image, max(0, length))
            if not accepted(image):
                break
            run("qemu-img", "convert", "-f", options[1], "-O", "raw", str(image), str(read))
            assert read.read_bytes() == disk, f"{length} bytes were taken for a whole image"
            # qemu-img rounds up the length of a file that ends within a sector.
            length = image.stat().st_size
