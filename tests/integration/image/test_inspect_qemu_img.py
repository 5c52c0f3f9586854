"""Tests of the inspection of images that qemu-img makes, against qemu-img's own output."""

import json
import subprocess
from pathlib import Path

import pytest

from cdi.api.errors import BackingFileRefused, CdiError, EncryptionRefused, ExternalDataRefused, FormatUnsupported
from cdi.image.info import ImageInfo
from cdi.image.inspect import Inspector
from tests.corpus import SAMPLES, Sample

MIB = 1 << 20

VARIANTS = [
    ("qcow2", "compat=0.10"),
    *(("qcow2", f"cluster_size={size}") for size in ("512", "1k", "2k", "4k", "32k", "64k", "128k", "1M", "2M")),
    ("qcow2", "extended_l2=on,cluster_size=16k"),
    ("qcow2", "compression_type=zstd"),
    ("qcow2", "lazy_refcounts=on"),
    ("qcow2", "refcount_bits=1"),
    ("qcow2", "refcount_bits=64"),
    ("qcow2", "preallocation=metadata"),
    ("qcow2", "preallocation=full,cluster_size=4k"),
    ("vmdk", "subformat=monolithicSparse"),
    ("vmdk", "subformat=monolithicSparse,adapter_type=lsilogic,hwversion=14"),
    ("vmdk", "subformat=streamOptimized"),
    ("vdi", ""),
    ("vdi", "static=on"),
    ("vpc", ""),
    ("vpc", "force_size=on"),
    ("vpc", "subformat=fixed"),
    ("vpc", "subformat=fixed,force_size=on"),
    ("vhdx", ""),
    ("vhdx", "subformat=fixed"),
    ("vhdx", "block_size=1M"),
    ("vhdx", "block_size=32M,log_size=4M"),
    ("raw", ""),
]


def qemu_img(*arguments: object) -> str:
    # LUKS measures its key derivation by the process's CPU time, which does not always advance on a virtual machine.
    for _ in range(10):
        done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, timeout=60)
        if "Unable to get accurate CPU usage" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    return done.stdout


def inspect(path: Path) -> ImageInfo:
    length = path.stat().st_size
    inspector = Inspector(length)
    with path.open("rb") as image:
        while (want := inspector.next_range()) is not None:
            image.seek(want[0])
            inspector.feed(want[0], image.read(want[1]))
    return inspector.result()


def agree(path: Path, form: str) -> ImageInfo:
    info = inspect(path)
    oracle = json.loads(qemu_img("info", "--output=json", "-f", form, path))
    assert info.format == form
    assert info.virtual_size == oracle["virtual-size"]
    if "cluster-size" in oracle:
        assert info.cluster_size == oracle["cluster-size"]
    return info


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Path:
    """Return a disk of 3 MiB and an odd number of sectors, with some data."""
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    path.write_bytes((bytes(range(256)) * 256 + bytes(1 << 18)) * 9 + bytes(512 * 33))
    return path


@pytest.mark.parametrize(("form", "options"), VARIANTS)
@pytest.mark.parametrize("size", [10 * MIB, 1000448, 9 << 30])
def test_created(tmp_path: Path, form: str, options: str, size: int) -> None:
    whole = "preallocation" in options or "fixed" in options or "static" in options
    path = tmp_path / f"image.{form}"
    extra = ("-o", options) if options else ()
    qemu_img("create", "-q", "-f", form, *extra, path, min(size, 40 * MIB) if whole else size)
    agree(path, form)


@pytest.mark.parametrize(("form", "options"), [v for v in VARIANTS if "preallocation" not in v[1]])
def test_converted(tmp_path: Path, disk: Path, form: str, options: str) -> None:
    path = tmp_path / f"image.{form}"
    extra = ("-o", options) if options else ()
    qemu_img("convert", "-q", "-f", "raw", "-O", form, *extra, disk, path)
    info = agree(path, form)
    if info.raw_extent is not None:
        # A plain run stores the disk's bytes unchanged.
        offset, length = info.raw_extent
        plain = tmp_path / "plain.raw"
        plain.write_bytes(path.read_bytes()[offset : offset + length])
        assert "identical" in qemu_img("compare", "-f", "raw", "-F", form, plain, path)


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_compressed_qcow2(tmp_path: Path, disk: Path, compression: str) -> None:
    path = tmp_path / "image.qcow2"
    qemu_img("convert", "-c", "-O", "qcow2", "-o", f"compression_type={compression}", disk, path)
    assert agree(path, "qcow2").compression == compression


def test_internal_snapshots_and_bitmaps_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "10M")
    qemu_img("snapshot", "-c", "before", path)
    qemu_img("bitmap", "--add", path, "changes")
    assert agree(path, "qcow2").has_snapshots


def test_rebased_image_is_no_overlay_any_more(tmp_path: Path) -> None:
    base, path = tmp_path / "base.qcow2", tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, "10M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path)
    with pytest.raises(BackingFileRefused, match="overlay over"):
        inspect(path)
    qemu_img("rebase", "-u", "-b", "", path)
    agree(path, "qcow2")


def test_resized_images(tmp_path: Path) -> None:
    for form in ("qcow2", "raw"):
        path = tmp_path / f"image.{form}"
        qemu_img("create", "-q", "-f", form, path, "10M")
        qemu_img("resize", "-q", "-f", form, path, "3G")
        assert agree(path, form).virtual_size == 3 << 30


@pytest.mark.parametrize(
    ("form", "options", "error"),
    [
        ("qcow2", "data_file={0}/data.raw", ExternalDataRefused),
        ("qcow2", "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10", EncryptionRefused),
        ("vmdk", "subformat=monolithicFlat", ExternalDataRefused),
        ("vmdk", "subformat=twoGbMaxExtentSparse", ExternalDataRefused),
        ("vmdk", "subformat=twoGbMaxExtentFlat", ExternalDataRefused),
        ("qcow", "", FormatUnsupported),
        ("qed", "", FormatUnsupported),
        ("parallels", "", FormatUnsupported),
    ],
)
def test_refused_kinds(tmp_path: Path, form: str, options: str, error: type[CdiError]) -> None:
    path = tmp_path / "image"
    secret = ("--object", "secret,id=key,data=abc") if "key" in options else ()
    extra = ("-o", options.format(tmp_path)) if options else ()
    qemu_img("create", "-q", *secret, "-f", form, *extra, path, "10M")
    with pytest.raises(error):
        inspect(path)


def test_extent_of_a_split_vmdk_is_refused(tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", tmp_path / "image.vmdk", "10M")
    with pytest.raises(ExternalDataRefused):
        inspect(tmp_path / "image-s001.vmdk")


def test_vmdk_overlay_is_refused(tmp_path: Path) -> None:
    base, path = tmp_path / "base.vmdk", tmp_path / "image.vmdk"
    qemu_img("create", "-q", "-f", "vmdk", base, "10M")
    qemu_img("create", "-q", "-f", "vmdk", "-b", base, "-F", "vmdk", path)
    with pytest.raises(BackingFileRefused, match=r"base\.vmdk"):
        inspect(path)


# Its snapshot table is empty, which is an error only to a reader of snapshots.
_OPENABLE = [s for s in SAMPLES if s.format not in (None, "raw") and s.name != "qcow2-snapshots"]


@pytest.mark.parametrize("sample", _OPENABLE, ids=lambda sample: sample.name)
def test_accepted_samples_open_in_qemu_too(tmp_path: Path, sample: Sample) -> None:
    assert sample.format is not None
    path = tmp_path / "image"
    path.write_bytes(sample.build())
    agree(path, sample.format)
