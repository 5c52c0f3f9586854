"""Choice of the pipeline, its reason and its cost."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.errors import (
    CdiError,
    FormatUnsupported,
    ScratchNeeded,
    SourceLengthUnknown,
    TargetError,
    TargetTooSmall,
    TargetUnsuitable,
)
from cdi.api.overhead import usable
from cdi.api.quantity import Quantity
from cdi.image.block_map import TOO_LARGE
from cdi.image.info import ImageInfo
from cdi.image.plan import WATERMARK, PlanInput, plan, render
from cdi.image.sizes import format_size, kubernetes_quantity, round_up

GIB = 1 << 30
RAW = ImageInfo(format="raw", virtual_size=GIB, raw_extent=(0, GIB))
QCOW2 = ImageInfo(format="qcow2", virtual_size=2 * GIB)
LARGE_MAP = ImageInfo(format="qcow2", virtual_size=2 * GIB, needs_qemu=(TOO_LARGE,))
VMDK = ImageInfo(format="vmdk", variant="streamOptimized", virtual_size=2 * GIB, needs_qemu=("its grains have 2 MiB",))
VDI = ImageInfo(format="vdi", variant="dynamic", virtual_size=2 * GIB, cluster_size=1 << 20)
DYNAMIC_VHD = ImageInfo(format="vpc", variant="dynamic", virtual_size=2 * GIB, cluster_size=2 << 20)
VHDX = ImageInfo(format="vhdx", variant="dynamic", virtual_size=2 * GIB, cluster_size=8 << 20)
VHD = ImageInfo(format="vpc", variant="fixed", virtual_size=GIB, raw_extent=(0, GIB))


def facts(image: ImageInfo | None, **more) -> PlanInput:
    return PlanInput(**{"length": GIB, "ranges": True, "image": image, "target": "file", **more})


@pytest.mark.parametrize(
    ("image", "more", "path"),
    [
        (RAW, {}, "raw-ranged"),
        (RAW, {"ranges": False}, "raw-stream"),
        (RAW, {"wrappers": ("gz",)}, "raw-stream"),
        (RAW, {"engine": "qemu", "scratch": True}, "qemu-spool"),
        (RAW, {"engine": "qemu", "local": True}, "qemu-file"),
        (RAW, {"engine": "qemu", "ranges": False, "scratch": True}, "qemu-spool"),
        (RAW, {"engine": "qemu", "wrappers": ("xz",)}, "raw-stream"),
        (VHD, {}, "raw-ranged"),
        (VHD, {"ranges": False}, "raw-stream"),
        (VHD, {"engine": "qemu", "local": True, "scratch": True}, "qemu-file"),
        (QCOW2, {}, "qcow2-ranged"),
        (QCOW2, {"ranges": False}, "qcow2-stream"),
        (QCOW2, {"wrappers": ("zst", "tar")}, "qcow2-stream"),
        (QCOW2, {"engine": "qemu", "scratch": True}, "qemu-spool"),
        (QCOW2, {"engine": "qemu", "local": True, "wrappers": ("gz",), "scratch": True}, "qemu-spool"),
        (QCOW2, {"engine": "qemu", "wrappers": ("gz",), "scratch": True}, "qemu-spool"),
        (VDI, {}, "mapped-ranged"),
        (VDI, {"ranges": False}, "mapped-stream"),
        (VDI, {"wrappers": ("xz",)}, "mapped-stream"),
        (VDI, {"engine": "qemu", "local": True}, "qemu-file"),
        (DYNAMIC_VHD, {}, "mapped-ranged"),
        (DYNAMIC_VHD, {"wrappers": ("gz", "tar")}, "mapped-stream"),
        (replace(DYNAMIC_VHD, needs_qemu=("its blocks have 512 bytes",)), {"local": True}, "qemu-file"),
        (VHDX, {}, "mapped-ranged"),
        (VHDX, {"ranges": False}, "mapped-stream"),
        (replace(VHDX, virtual_size=None), {"ranges": False, "scratch": True}, "qemu-spool"),
        (LARGE_MAP, {"scratch": True}, "qemu-spool"),
        (LARGE_MAP, {"wrappers": ("gz",), "scratch": True}, "qemu-spool"),
        (replace(VMDK, needs_qemu=()), {}, "mapped-ranged"),
        (replace(VMDK, needs_qemu=()), {"wrappers": ("tar",)}, "mapped-stream"),
        (VMDK, {"local": True}, "qemu-file"),
        (VMDK, {"scratch": True}, "qemu-spool"),
        (VMDK, {"ranges": False, "scratch": True}, "qemu-spool"),
        (None, {"content_type": "archive", "wrappers": ("gz", "tar"), "target": "directory"}, "archive"),
        (None, {"size": GIB, "length": None}, "blank"),
    ],
)
def test_path(image, more, path) -> None:
    assert plan(facts(image, **more)).path == path


@pytest.mark.parametrize(
    ("image", "more", "proof"),
    [
        (RAW, {"digest_promised": True}, "its digest"),
        (RAW, {"wrappers": ("gz",)}, "the gz stream"),
        (RAW, {"wrappers": ("tar",)}, "the tar archive"),
        (QCOW2, {}, "the qcow2 image"),
        (VMDK, {"scratch": True}, "the vmdk image"),
    ],
)
def test_a_content_that_only_a_close_ends_needs_another_proof_that_all_of_it_came(image, more, proof) -> None:
    found = plan(facts(image, length=None, ranges=False, close_delimited=True, **more))
    assert f"announces no length, so {proof} shows that it is complete" in found.reason


@pytest.mark.parametrize(("image", "path"), [(RAW, "raw-stream"), (QCOW2, "qcow2-stream")])
def test_ranges_that_cannot_be_told_to_be_of_one_version_are_not_used(image, path) -> None:
    found = plan(facts(image, ranges=False, unversioned=True, scratch=True))
    assert (found.path, found.connections) == (path, 1)
    assert "ETag or Last-Modified" in found.reason
    assert "no validator" in found.resumable


@pytest.mark.parametrize(
    ("image", "more", "error", "says"),
    [
        (VMDK, {"ranges": False}, ScratchNeeded, "its grains have 2 MiB, and QEMU reads only local files"),
        (VMDK, {}, ScratchNeeded, "QEMU reads only local files"),
        (VMDK, {"wrappers": ("gz",), "local": True}, ScratchNeeded, "scratch space is required"),
        (LARGE_MAP, {"wrappers": ("gz",)}, ScratchNeeded, "it has more extents"),
        (QCOW2, {"engine": "qemu", "ranges": False}, ScratchNeeded, "policy"),
        (RAW, {"ranges": False, "length": None, "close_delimited": True}, SourceLengthUnknown, "lost connection"),
        (RAW, {"engine": "qemu", "ranges": False, "close_delimited": True}, SourceLengthUnknown, "lost connection"),
        (RAW, {"size": (1 << 63) - 1}, TargetUnsuitable, "no file or device"),
        (RAW, {"target": "directory"}, TargetUnsuitable, "directory"),
        (None, {"content_type": "archive", "wrappers": ("tar",)}, TargetUnsuitable, "directory"),
        (None, {"content_type": "archive", "wrappers": ("tar",), "target": "block"}, TargetUnsuitable, "directory"),
        (RAW, {"content_type": "archive", "target": "directory"}, FormatUnsupported, "a disk image"),
        (None, {"content_type": "archive", "wrappers": ("gz",), "target": "directory"}, FormatUnsupported, "tar"),
        (None, {}, TargetUnsuitable, "size"),
    ],
)
def test_refusals(image, more, error, says) -> None:
    with pytest.raises(error) as caught:
        plan(facts(image, **more))
    assert says in caught.value.what


def test_too_small_names_both_sizes_and_the_request_that_fits() -> None:
    with pytest.raises(TargetTooSmall) as caught:
        plan(facts(QCOW2, size=GIB))
    assert caught.value.what == (
        "the image's virtual size is 2147483648 bytes (2 GiB) and the requested disk has 1073741824 bytes (1 GiB)"
    )
    assert caught.value.remedy.startswith("request storage: 2Gi (with spec.pvc on a file system: ")


def test_request_named_for_a_file_system_fits() -> None:
    with pytest.raises(TargetTooSmall) as caught:
        plan(facts(ImageInfo(format="qcow2", virtual_size=3 * GIB + 512), capacity=GIB))
    size = Quantity.parse(caught.value.remedy.rpartition(": ")[2].rstrip(")")).bytes
    assert usable(size, Fraction(6, 100)) >= 3 * GIB + 512


def test_block_device_needs_the_virtual_size_and_no_more() -> None:
    with pytest.raises(TargetTooSmall) as caught:
        plan(facts(QCOW2, target="block", capacity=2 * GIB - 512))
    assert "2147483136 bytes" in caught.value.what
    assert caught.value.remedy == "request storage: 2Gi"
    assert plan(facts(QCOW2, target="block", capacity=2 * GIB)).disk_size == 2 * GIB


def test_request_larger_than_the_volume_is_refused() -> None:
    with pytest.raises(TargetTooSmall, match="4294967296"):
        plan(facts(QCOW2, size=4 * GIB, capacity=3 * GIB))


def test_disk_is_grown_to_the_request_and_has_whole_sectors() -> None:
    assert plan(facts(QCOW2, size=5 * GIB)).disk_size == 5 * GIB
    assert plan(facts(ImageInfo(format="raw", virtual_size=1000), size=None)).disk_size == 1024
    assert plan(facts(QCOW2)).disk_size == 2 * GIB
    assert plan(facts(QCOW2, target="block", capacity=7 * GIB)).disk_size == 7 * GIB
    assert plan(facts(ImageInfo(format="raw", virtual_size=None), length=None)).disk_size is None


def test_costs() -> None:
    ranged = plan(facts(QCOW2))
    assert (ranged.fetch_bytes, ranged.write_bytes, ranged.scratch_bytes) == (GIB, 2 * GIB, 0)
    assert plan(facts(QCOW2, ranges=False)).scratch_bytes == 0
    assert plan(facts(QCOW2, ranges=False, scratch=True)).scratch_bytes is None
    assert plan(facts(VMDK, ranges=False, scratch=True)).scratch_bytes == GIB
    assert plan(facts(VMDK, wrappers=("gz",), scratch=True)).scratch_bytes is None
    assert plan(facts(None, size=GIB)).write_bytes == 0
    assert plan(facts(None, size=GIB, preallocation=True)).write_bytes == GIB
    assert plan(facts(None, size=GIB, reads_zero=False)).write_bytes == GIB


def test_only_a_local_file_is_read_by_qemu_without_a_copy() -> None:
    spool, local = plan(facts(VMDK, scratch=True)), plan(facts(VMDK, scratch=True, local=True))
    assert (spool.fetch_bytes, spool.scratch_bytes) == (GIB, GIB)
    assert "QEMU reads a copy in scratch space" in spool.reason
    assert (local.fetch_bytes, local.scratch_bytes) == (GIB, 0)
    assert "QEMU opens the file itself" in local.reason


@pytest.mark.parametrize(
    ("more", "connections"),
    [
        ({}, 4),
        ({"length": 10 * GIB}, 8),
        ({"length": 1 << 20}, 1),
        ({"length": 0}, 1),
        ({"length": 20 << 20}, 3),
        ({"length": None}, 4),
        ({"digest_promised": True}, 8),
        ({"digest_promised": True, "length": 24 << 20}, 3),
        ({"connections": 13}, 13),
        ({"ranges": False, "connections": 13}, 1),
        ({"wrappers": ("gz",)}, 1),
    ],
)
def test_connections(more, connections) -> None:
    chosen = plan(facts(QCOW2, **more))
    assert chosen.connections == connections
    assert f"{connections} connections" in chosen.reason or "one connection" in chosen.reason


def test_where_it_resumes() -> None:
    assert plan(facts(RAW)).resumable == plan(facts(QCOW2)).resumable == WATERMARK
    assert plan(facts(QCOW2, wrappers=("gz",))).resumable == "from the start: gz cannot be decompressed from the middle"
    assert plan(facts(RAW, ranges=False)).resumable == "from the start: the source does not support byte ranges"
    assert plan(facts(VMDK, scratch=True)).resumable.startswith("from the start: QEMU")
    assert plan(facts(VMDK, local=True)).resumable.startswith("from the start: QEMU")


def test_render_says_everything() -> None:
    text = render(plan(facts(QCOW2, size=5 * GIB)))
    assert text.splitlines() == [
        "path:        qcow2-ranged",
        "why:         qcow2 is decoded on the way and it is served with byte ranges; 4 connections for 1 GiB",
        "disk:        5368709120 bytes (5 GiB)",
        "fetch:       at most 1073741824 bytes (1 GiB)",
        "write:       at most 2147483648 bytes (2 GiB)",
        "scratch:     none",
        "connections: 4",
        "resumes:     from the watermark",
    ]
    spool = render(plan(facts(VMDK, wrappers=("gz",), length=None, scratch=True)))
    assert "fetch:       not known in advance" in spool


@given(
    st.builds(
        PlanInput,
        length=st.none() | st.integers(0, 1 << 50),
        ranges=st.booleans(),
        wrappers=st.lists(st.sampled_from(["gz", "xz", "zst", "tar"]), max_size=3).map(tuple),
        image=st.sampled_from([None, RAW, QCOW2, LARGE_MAP, VMDK, VHD, ImageInfo(format="vhdx", virtual_size=None)]),
        content_type=st.sampled_from(["kubevirt", "archive"]),
        target=st.sampled_from(["file", "block", "directory"]),
        size=st.none() | st.integers(1, 1 << 45),
        capacity=st.none() | st.integers(1, 1 << 45).map(lambda n: n * 512),
        reads_zero=st.booleans(),
        engine=st.sampled_from(["auto", "qemu"]),
        preallocation=st.booleans(),
        connections=st.integers(0, 64),
        local=st.booleans(),
        scratch=st.booleans(),
    )
)
def test_every_input_has_a_plan_that_holds_or_a_refusal(given_facts: PlanInput) -> None:
    try:
        chosen = plan(given_facts)
    except CdiError as error:
        assert isinstance(error, TargetError | FormatUnsupported)
        return
    render(chosen)
    image = given_facts.image
    if chosen.disk_size is not None and image is not None and image.virtual_size is not None:
        assert chosen.disk_size >= image.virtual_size
        if given_facts.size is not None:
            assert chosen.disk_size >= given_facts.size
    if chosen.scratch_bytes != 0:
        assert given_facts.scratch
    if chosen.path in {"raw-ranged", "qcow2-ranged", "mapped-ranged"}:
        assert given_facts.ranges
        assert not given_facts.wrappers
    else:
        assert chosen.connections <= 1
    if chosen.path.startswith("qcow2"):
        assert image is not None
        assert image.format == "qcow2"
        assert not image.needs_qemu


@given(st.integers(0, 1 << 63), st.sampled_from([512, 4096, 1 << 20]))
def test_rounding(size: int, to: int) -> None:
    assert 0 <= round_up(size, to) - size < to
    assert round_up(size, to) % to == 0


@given(st.integers(1, 1 << 62))
def test_request_is_exactly_the_size(size: int) -> None:
    assert Quantity.parse(kubernetes_quantity(size)).value == size


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (700, "700 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (10 * GIB, "10 GiB"),
        (1000 << 20, "1000 MiB"),
        (1 << 62, "4 EiB"),
    ],
)
def test_sizes_in_words(size: int, words: str) -> None:
    assert format_size(size) == words
