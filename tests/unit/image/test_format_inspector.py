"""The inspectors against those of oslo.utils, which OpenStack uses: format, virtual size and what is refused.

Both must agree on what is accepted, and nothing that oslo.utils calls unsafe may be accepted. What is refused here only is
structure that oslo.utils does not read; the failed checks are listed by their names, so a new difference is noticed.
"""

import io
import random
import subprocess

import pytest
from oslo_utils.imageutils import format_inspector

from cdi.api.errors import CdiError
from cdi.image.checks import checks_of
from cdi.image.inspect import Inspector
from tests import vmdk_writer
from tests.corpus import SAMPLES, qcow2, vdi, vhd_dynamic, vhdx, vmdk, vmdk_stream

NAMES = {"vhd": "vpc", "gpt": "raw", "iso": "raw"}
"""A partitioned disk and an ISO 9660 volume are formats there, and raw disks here."""

UNREAD = {
    "qcow2": {
        "cluster size", "virtual size", "L1 table size", "L1 table place", "L1 table within the file",
        "L1 table covers the disk", "refcount table", "refcount table place", "refcount table size", "refcount table within the file",
        "refcount width", "snapshots", "snapshot table within the file", "header length", "header extensions",
        "external data file name", "encryption", "encryption header", "dirty bit", "corrupt bit", "compression type",
        "compression flag",
    },
    "vmdk": {
        "version", "virtual size", "capacity", "grain size", "grain tables", "grain directory size",
        "grain directory within the file", "compression", "overhead within the file", "line ends", "footer agrees",
        "descriptor place", "descriptor keys", "encryption", "parent image", "one extent", "extent size", "extent lines",
        "extent is the image itself",
    },
    "vdi": {
        "image type", "parent image", "version", "map covers the disk", "map before data", "map within the file",
        "block map place", "block size", "bytes before blocks", "sector size", "blocks in use", "virtual size",
    },
    "vhd": {
        "disk type", "parent image", "footer checksum", "dynamic header", "dynamic header place",
        "dynamic header checksum", "block size",
        "map covers the disk", "map size", "map within the file", "virtual size", "disk within the file",
    },
    "vhdx": {
        "parent image", "log", "header", "region table", "block table listed", "one metadata", "metadata place",
        "regions known", "metadata known", "metadata items", "metadata complete", "metadata item", "metadata table",
        "logical sector", "block size", "virtual size", "block table covers the disk",
    },
}  # fmt: skip
"""Checks whose failure oslo.utils does not notice, as it reads little more than the fields that hold the size."""

UNKNOWN = {
    "the file ends within the header": "oslo.utils needs the whole header to recognise a format, and calls the rest raw",
    "the file ends within the footer's copy": "as above",
    "a bare VMDK descriptor": "it is recognised only with its comment in front, and has no size",
    "extent of a VMware host": "COWD and SESPARSE are not known to oslo.utils",
    "the content is": "foreign archives and images are raw disks to oslo.utils",
}
"""Refusals before any check, and why oslo.utils accepts the content."""


def theirs(content):
    """Return format and size by oslo.utils; None if it refuses the content, and an error of its parser as a text."""
    wrapper = format_inspector.InspectWrapper(io.BytesIO(content))
    while wrapper.read(64 << 10):
        pass
    wrapper.close()
    try:
        found = wrapper.format
        found.safety_check()
        return NAMES.get(found.NAME, found.NAME), found.virtual_size
    except format_inspector.ImageFormatError as error:
        # "Incomplete" is said of what it cannot decide, for example of a truncated file.
        return "undecided" if "Incomplete" in str(error) else None
    except format_inspector.SafetyCheckFailed:
        return None
    except (KeyError, ValueError, IndexError) as error:
        return repr(error)


def ours(content):
    """Return format and size, or the error."""
    inspector = Inspector(len(content))
    while (want := inspector.next_range()) is not None:
        inspector.feed(want[0], content[want[0] : sum(want)])
    try:
        info = inspector.result()
    except CdiError as error:
        return error
    return info.format, info.virtual_size


def compare(content):
    """Fail if the two disagree without a known reason."""
    mine, other = ours(content), theirs(content)
    if not isinstance(mine, CdiError):
        # Extended L2 entries, which QEMU reads, are an unknown feature to oslo.utils.
        if mine[0] == "qcow2" and content[79] & 16:
            assert other is None
        elif mine[0] in ("raw", "vpc") and other != mine:
            # A footer of a fixed VHD, at the end of its disk, is not looked for; of an ISO 9660 volume the size is that
            # in its descriptor; a disk that is both an ISO and partitioned is usual for installation media.
            raw = isinstance(other, tuple) and other[0] == "raw"
            hybrid = other is None and content[32769:32774] == b"CD001"
            assert hybrid or raw, (mine, other)
            assert mine[0] == "vpc" or content[32769:32774] == b"CD001", (mine, other)
        else:
            assert mine == other
        return
    if not isinstance(other, tuple):
        return
    failed = {check.name for check in checks_of(mine) if not check.passed}
    if failed:
        assert failed & UNREAD[mine.where], (mine, failed, other)
    else:
        assert any(words in mine.what for words in UNKNOWN), (mine, other)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_hostile_images(sample):
    compare(sample.build())


@pytest.mark.parametrize(
    "options",
    [
        ["raw"], ["qcow2"], ["qcow2", "-o", "compat=0.10"], ["qcow2", "-o", "cluster_size=4k"],
        ["vmdk"], ["vmdk", "-o", "subformat=streamOptimized"], ["vmdk", "-o", "zeroed_grain=on"],
        ["vmdk", "-o", "subformat=monolithicFlat"], ["vmdk", "-o", "subformat=twoGbMaxExtentSparse"],
        ["vdi"], ["vdi", "-o", "static=on"], ["vpc"], ["vpc", "-o", "subformat=fixed"], ["vpc", "-o", "force_size=on"],
        ["vhdx"], ["vhdx", "-o", "subformat=fixed"], ["qed"], ["parallels"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_images_of_qemu(tmp_path, options):
    for size in (65536, 1 << 20, 5 << 20):
        path = tmp_path / f"{size}"
        subprocess.run(["qemu-img", "create", "-q", "-f", *options, path, str(size)], check=True, timeout=60)
        compare(path.read_bytes())


def test_vmdk_files_of_every_layout():
    for seed in range(60):
        compare(vmdk_writer.write(vmdk_writer.random_layout(seed)))


@pytest.mark.parametrize(
    ("build", "key", "unit"),
    [(qcow2, "size", 512), (vmdk, "capacity", 1), (vdi, "size", 512), (vhd_dynamic, "size", 512), (vhdx, "size", 512)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_size(build, key, unit):
    dice = random.Random(5)
    for sectors in (1, 2047, 20480, *(dice.randrange(1, 20480) for _ in range(3 if build is vhdx else 40))):
        compare(build(**{key: sectors * unit}))


@pytest.mark.parametrize("build", [qcow2, vmdk, vmdk_stream, vdi, vhd_dynamic, vhdx], ids=lambda build: build.__name__)
def test_flipped_bits(build):
    """Flip bits of the binary header.

    Of a VMDK's descriptor oslo.utils demands more: nothing but ASCII, though VMware writes names in UTF-8, and no space
    in front of "=" outside of the disk data base.
    """
    original = build()
    dice = random.Random(17)
    for _ in range(30 if build is vhdx else 150):
        content = bytearray(original)
        content[dice.randrange(512)] ^= 1 << dice.randrange(8)
        compare(bytes(content))
