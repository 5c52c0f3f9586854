"""Results of each format's inspector."""

import pytest

from cdi.api.errors import BackingFileRefused, ImageCorrupt, ImageError
from cdi.image.checks import Checklist
from cdi.image.formats import vhdx as vhdx_module
from cdi.image.formats import vpc
from cdi.image.formats.qcow2 import EXTENDED_L2, parse_header
from cdi.image.info import ImageInfo
from cdi.image.inspect import Inspector
from tests.corpus import MIB, crc32c, qcow2, vdi, vhd_dynamic, vhd_fixed, vhd_footer, vhdx, vmdk, vmdk_stream


def info_of(content: bytes) -> ImageInfo:
    inspector = Inspector(len(content))
    while (want := inspector.next_range()) is not None:
        inspector.feed(want[0], content[want[0] : want[0] + want[1]])
    return inspector.result()


def test_qcow2_header_has_the_geometry_that_the_map_needs() -> None:
    header = parse_header(qcow2(size=700 * MIB, l1_entries=2), 4 << 16)
    assert (header.version, header.cluster_size, header.virtual_size) == (3, 65536, 700 * MIB)
    assert (header.l1_offset, header.l1_entries, header.l1_needed) == (3 << 16, 2, 2)
    assert (header.l2_entry_size, header.l2_entries) == (8, 8192)
    assert header.compression == "zlib"


def test_qcow2_of_odd_size_has_whole_sectors() -> None:
    # QEMU reports and reads whole sectors only.
    assert parse_header(qcow2(size=10 * MIB - 100), None).virtual_size == 10 * MIB - 512


def test_qcow2_with_subclusters_has_larger_entries() -> None:
    content = qcow2(incompatible=EXTENDED_L2)
    assert parse_header(content, len(content)).l2_entries == 4096
    assert info_of(content).needs_qemu == ()


def test_qcow2_header_length_decides_whether_there_is_a_compression_type() -> None:
    # Byte 104 belongs to the extensions if the header ends before it.
    assert parse_header(qcow2(header_length=104, compression=0), None).compression_type == 0


def test_qcow2_of_unknown_length_is_not_measured_against_it() -> None:
    assert parse_header(qcow2(l1_offset=1 << 40)[:65536], None).l1_offset == 1 << 40
    with pytest.raises(ImageCorrupt):
        parse_header(qcow2(l1_offset=1 << 40)[:65536], 1 << 40)


def test_qcow2_snapshots_are_told() -> None:
    info = info_of(qcow2(snapshots=2, snapshots_offset=3 << 16))
    assert info.has_snapshots
    assert info.notes == ("2 internal snapshots are not imported",)


def test_vmdk_kinds() -> None:
    sparse, stream = info_of(vmdk()), info_of(vmdk_stream())
    assert (sparse.variant, sparse.virtual_size, sparse.cluster_size) == ("monolithicSparse", 10 * MIB, 65536)
    assert (stream.variant, stream.compression, stream.version) == ("streamOptimized", "zlib", 3)


def test_vdi_kinds() -> None:
    assert info_of(vdi()).variant == "dynamic"
    assert info_of(vdi(kind=2)).variant == "static"


def test_vhd_fixed_is_a_plain_run() -> None:
    info = info_of(vhd_fixed(disk=bytes(3 * MIB)))
    assert (info.format, info.variant, info.virtual_size, info.raw_extent) == ("vpc", "fixed", 3 * MIB, (0, 3 * MIB))


@pytest.mark.parametrize(
    ("app", "size"),
    [
        (b"vpc ", 300 * 4 * 17 * 512),
        (b"qemu", 300 * 4 * 17 * 512),
        (b"vbox", 300 * 4 * 17 * 512),
        (b"qem2", 10 * MIB),
        (b"win ", 10 * MIB),
        (b"d2v ", 10 * MIB),
        (b"tap\0", 10 * MIB),
        (b"CTXS", 10 * MIB),
        (b"wa\0\0", 10 * MIB),
    ],
)
def test_vhd_size_is_by_geometry_or_by_field_as_its_writer_has_it(app: bytes, size: int) -> None:
    assert info_of(vhd_dynamic(app=app, entries=6)).virtual_size == size


def test_vhd_of_the_largest_geometry_goes_by_its_field() -> None:
    assert info_of(vhd_dynamic(app=b"qemu", geometry=(65535, 16, 255))).virtual_size == 10 * MIB


def test_fixed_payload_of_a_stream_is_told_from_its_last_sector() -> None:
    footer = vhd_footer(size=8 * MIB)
    assert vpc.fixed_payload(footer, 8 * MIB + 512) == 8 * MIB
    assert vpc.fixed_payload(footer, 4 * MIB + 512) == 4 * MIB
    assert vpc.fixed_payload(vhd_footer(sealed=False), 8 * MIB + 512) is None
    assert vpc.fixed_payload(vhd_footer(kind=3), 8 * MIB + 512) is None
    assert vpc.fixed_payload(bytes(512), 8 * MIB) is None
    assert vpc.fixed_payload(footer[:100], 8 * MIB) is None


def test_vhd_fixed_may_lack_the_last_byte_of_its_footer() -> None:
    whole = vhd_fixed(disk=bytes(3 * MIB))
    info = info_of(whole[:-1])
    assert (info.format, info.variant, info.virtual_size, info.raw_extent) == ("vpc", "fixed", 3 * MIB, (0, 3 * MIB))
    assert vpc.fixed_payload(whole[-513:-1], 3 * MIB + 511) == 3 * MIB
    # One byte less still, or before whole sectors, is no footer.
    assert vpc.fixed_payload(whole[-514:-2], 3 * MIB + 510) is None
    assert vpc.fixed_payload(whole[-513:-1], 3 * MIB + 512) is None


def test_vhdx_kinds() -> None:
    info = info_of(vhdx())
    assert (info.variant, info.virtual_size, info.cluster_size) == ("dynamic", 10 * MIB, 8 * MIB)
    assert info.details == (("made by", "'test'"),)
    assert info_of(vhdx(flags=1)).variant == "fixed"


def test_vhdx_takes_the_header_with_the_higher_sequence_number() -> None:
    content = bytearray(vhdx())
    dirty = vhdx(log=b"l" * 16)
    first, second = slice(64 << 10, 68 << 10), slice(128 << 10, 132 << 10)
    content[first] = dirty[first]
    assert info_of(bytes(content)).format == "vhdx"
    content[second] = dirty[second]
    with pytest.raises(ImageError, match="log"):
        info_of(bytes(content))
    content[second] = bytes(4096)
    with pytest.raises(ImageError, match="log"):
        info_of(bytes(content))


def test_crc32c_is_castagnolis() -> None:
    assert vhdx_module._crc32c(b"123456789") == 0xE306_9283 == crc32c(b"123456789")


def test_gravest_refusal_names_the_class() -> None:
    checks = Checklist("x")
    checks.check(passed=True, name="a", detail="fine")
    checks.check(passed=False, name="b", detail="broken", refusal=ImageCorrupt)
    checks.check(passed=False, name="c", detail="overlay", refusal=BackingFileRefused)
    with pytest.raises(BackingFileRefused) as caught:
        checks.raise_for_failures()
    assert caught.value.what == "b: broken; c: overlay"
