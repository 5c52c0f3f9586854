"""Crafted images: small, made of headers only, each unusual or hostile in one named way.

Builders are pure and return bytes. `SAMPLES` lists them with the expected result; fuzz targets take them as seeds.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from cdi.api.errors import (
    BackingFileRefused,
    CdiError,
    EncryptionRefused,
    ExternalDataRefused,
    FormatUnrecognised,
    FormatUnsupported,
    ImageCorrupt,
    ImageDirty,
    ImageUnsafe,
)

MIB = 1 << 20

# --- qcow2 ------------------------------------------------------------------------------------------------------


def extension(kind: int, body: bytes) -> bytes:
    """Return a header extension, padded."""
    return struct.pack(">II", kind, len(body)) + body + bytes(-len(body) % 8)


def qcow2(
    *,
    version: int = 3,
    cluster_bits: int = 16,
    size: int = 10 * MIB,
    backing: bytes = b"",
    crypt: int = 0,
    l1_entries: int = 1,
    l1_offset: int | None = None,
    refcount_offset: int | None = None,
    refcount_clusters: int = 1,
    snapshots: int = 0,
    snapshots_offset: int = 0,
    incompatible: int = 0,
    refcount_order: int = 4,
    header_length: int = 112,
    compression: int = 0,
    extensions: bytes = b"",
    clusters: int = 4,
) -> bytes:
    """Return an empty qcow2 that QEMU opens: header, refcount table, refcount block and L1 table, a cluster each."""
    cluster = 1 << cluster_bits if 9 <= cluster_bits <= 21 else 1 << 16
    place = lambda n: n * cluster  # noqa: E731
    image = bytearray(clusters * cluster)
    names = 112 if version == 3 else 72
    body = extensions + bytes(8)
    backing_offset = names + len(body) if backing else 0
    struct.pack_into(
        ">4sIQIIQIIQQIIQ",
        image,
        0,
        b"QFI\xfb",
        version,
        backing_offset,
        len(backing),
        cluster_bits,
        size,
        crypt,
        l1_entries,
        place(3) if l1_offset is None else l1_offset,
        place(1) if refcount_offset is None else refcount_offset,
        refcount_clusters,
        snapshots,
        snapshots_offset,
    )
    if version == 3:
        struct.pack_into(">QQQIIB", image, 72, incompatible, 0, 0, refcount_order, header_length, compression)
    image[names : names + len(body)] = body
    image[backing_offset or names : (backing_offset or names) + len(backing)] = backing
    if clusters >= 4:
        struct.pack_into(">Q", image, place(1), place(2))
        for index in range(4):
            struct.pack_into(">H", image, place(2) + 2 * index, 1)
    return bytes(image)


def feature_name(bit: int, name: bytes) -> bytes:
    """Return an entry of the feature name table, for an incompatible feature."""
    return bytes([0, bit]) + name.ljust(46, b"\0")


# --- vmdk -------------------------------------------------------------------------------------------------------


def vmdk_descriptor(
    *,
    kind: str = "monolithicSparse",
    parent: str = "ffffffff",
    extents: str = 'RW 20480 SPARSE "disk.vmdk"',
    more: str = "",
) -> bytes:
    return (
        f'# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID={parent}\ncreateType="{kind}"\n{more}'
        f"\n# Extent description\n{extents}\n\n# The Disk Data Base\n#DDB\n\n"
        'ddb.virtualHWVersion = "4"\nddb.geometry.cylinders = "20"\nddb.geometry.heads = "16"\n'
        'ddb.geometry.sectors = "63"\nddb.adapterType = "ide"\n'
    ).encode()


def vmdk_header(
    *,
    version: int = 1,
    flags: int = 3,
    capacity: int = 20480,
    grain: int = 128,
    descriptor_offset: int = 1,
    descriptor_size: int = 20,
    entries: int = 512,
    directory: int = 26,
    overhead: int = 128,
    unclean: int = 0,
    newlines: bytes = b"\n \r\n",
    compression: int = 0,
) -> bytes:
    return struct.pack(
        "<4sIIQQQQIQQQB4sH",
        b"KDMV",
        version,
        flags,
        capacity,
        grain,
        descriptor_offset,
        descriptor_size,
        entries,
        21,
        directory,
        overhead,
        unclean,
        newlines,
        compression,
    ).ljust(512, b"\0")


def vmdk(descriptor: bytes | None = None, **header: int | bytes) -> bytes:
    """Return an empty sparse VMDK of 10 MiB that QEMU opens."""
    image = bytearray(64 << 10)
    image[:512] = vmdk_header(**header)  # type: ignore[arg-type]
    text = vmdk_descriptor() if descriptor is None else descriptor
    image[512 : 512 + len(text)] = text
    return bytes(image)


def vmdk_stream(*, footer_capacity: int = 20480, trailing: bytes = b"", marker: int = 3) -> bytes:
    """Return a streamOptimized VMDK as VMware writes it: the grain directory's offset is in a footer."""
    what = {"flags": 0x30001, "compression": 1, "version": 3}
    head = vmdk_header(directory=0xFFFF_FFFF_FFFF_FFFF, **what)
    text = vmdk_descriptor(kind="streamOptimized", extents='RDONLY 20480 SPARSE "call-me-stream.vmdk"')
    front = (head + text.ljust(20 * 512, b"\0")).ljust(64 << 10, b"\0")
    directory = struct.pack("<QII", 1, 0, 2).ljust(512, b"\0") + bytes(512)
    end = struct.pack("<QII", 1, 0, marker).ljust(512, b"\0")
    end += vmdk_header(directory=129, capacity=footer_capacity, **what) + bytes(512)
    return front + directory + end + trailing


# --- vdi --------------------------------------------------------------------------------------------------------


def vdi(
    *,
    kind: int = 1,
    version: int = 0x10001,
    size: int = 10 * MIB,
    blocks: int = 10,
    allocated: int = 0,
    block_size: int = MIB,
    extra: int = 0,
    map_offset: int = 512,
    data_offset: int = 1024,
    sector: int = 512,
    linked: bytes = bytes(16),
    parent: bytes = bytes(16),
) -> bytes:
    """Return an empty VDI that QEMU opens."""
    image = bytearray(1024)
    image[:40] = b"<<< QEMU VM Virtual Disk Image >>>\n".ljust(40, b"\0")
    struct.pack_into("<IIIII", image, 64, 0xBEDA107F, version, 400, kind, 0)
    struct.pack_into(
        "<IIIIIIIQIIII",
        image,
        340,
        map_offset,
        data_offset,
        0,
        0,
        0,
        sector,
        0,
        size,
        block_size,
        extra,
        blocks,
        allocated,
    )
    image[392:408] = b"i" * 16
    image[424:440] = linked
    image[440:456] = parent
    image[512:1024] = b"\xff" * 512
    return bytes(image)


# --- vhd --------------------------------------------------------------------------------------------------------


def _sealed_vhd(data: bytes, field: int) -> bytes:
    whole = bytearray(data)
    struct.pack_into(">I", whole, field, ~sum(data) & 0xFFFF_FFFF)
    return bytes(whole)


def vhd_footer(
    *,
    kind: int = 2,
    data_offset: int = 0xFFFF_FFFF_FFFF_FFFF,
    app: bytes = b"win ",
    size: int = 10 * MIB,
    geometry: tuple[int, int, int] = (300, 4, 17),
    sealed: bool = True,
) -> bytes:
    data = struct.pack(
        ">8sIIQI4sI4sQQHBBII16s",
        b"conectix",
        2,
        0x10000,
        data_offset,
        0,
        app,
        0x50003,
        b"Wi2k",
        size,
        size,
        *geometry,
        kind,
        0,
        b"u" * 16,
    ).ljust(512, b"\0")
    return _sealed_vhd(data, 64) if sealed else data


def vhd_fixed(*, disk: bytes | None = None, **footer: object) -> bytes:
    disk = bytes(64 << 10) if disk is None else disk
    return disk + vhd_footer(**{"size": len(disk), **footer})  # type: ignore[arg-type]


def vhd_dynamic(
    *,
    kind: int = 3,
    data_offset: int = 512,
    entries: int = 5,
    block_size: int = 2 * MIB,
    table: int = 1536,
    magic: bytes = b"cxsparse",
    sealed: bool = True,
    **footer: object,
) -> bytes:
    """Return an empty dynamic VHD that QEMU opens."""
    foot = vhd_footer(kind=kind, data_offset=data_offset, sealed=sealed, **footer)  # type: ignore[arg-type]
    header = struct.pack(">8sQQIIII", magic, 0xFFFF_FFFF_FFFF_FFFF, table, 0x10000, entries, block_size, 0)
    header = _sealed_vhd(header.ljust(1024, b"\0"), 36)
    return foot + header + b"\xff" * 512 + foot


# --- vhdx -------------------------------------------------------------------------------------------------------


def crc32c(data: bytes) -> int:
    """Compute CRC-32C bit by bit, sharing nothing with the code under test."""
    crc = 0xFFFF_FFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 & -(crc & 1))
    return crc ^ 0xFFFF_FFFF


def _sealed_vhdx(data: bytes) -> bytes:
    return data[:4] + struct.pack("<I", crc32c(data)) + data[8:]


def _vhdx_header(sequence: int, log: bytes) -> bytes:
    guids = b"w" * 16 + b"d" * 16 + log
    body = struct.pack("<4sIQ48sHHIQ", b"head", 0, sequence, guids, 0, 1, MIB, MIB)
    return _sealed_vhdx(body.ljust(4096, b"\0"))


def guid(text: str) -> bytes:
    return uuid.UUID(text).bytes_le


VHDX_BAT = guid("2dc27766-f623-4200-9d64-115e9bfd4a08")
VHDX_METADATA = guid("8b7ca206-4790-4b9a-b8fe-575f050f886e")


def vhdx(
    *,
    size: int = 10 * MIB,
    block_size: int = 8 * MIB,
    flags: int = 0,
    sector: int = 512,
    log: bytes = bytes(16),
    locator: bool = False,
    regions: list[tuple[bytes, int, int, int]] | None = None,
    unknown_item: bool = False,
    metadata_at: int = 2 * MIB,
    item_at: int = 64 << 10,
    item_count: int | None = None,
    broken: str = "",
) -> bytes:
    """Return an empty VHDX that QEMU opens; `broken` names a structure to give a wrong checksum."""
    image = bytearray(metadata_at + 2 * MIB)
    image[:8] = b"vhdxfile"
    image[8:16] = "test".encode("utf-16-le")
    for sequence, at in ((1, 64 << 10), (2, 128 << 10)):
        header = _vhdx_header(sequence, log)
        image[at : at + 4096] = header if broken != "header" else header[:-1] + b"x"
    entries = regions
    if entries is None:
        entries = [(VHDX_BAT, metadata_at + MIB, MIB, 1), (VHDX_METADATA, metadata_at, MIB, 1)]
    table = struct.pack("<4sIII", b"regi", 0, len(entries), 0)
    table += b"".join(struct.pack("<16sQII", *entry) for entry in entries)
    table = _sealed_vhdx(table.ljust(64 << 10, b"\0"))
    for at in (192 << 10, 256 << 10):
        image[at : at + (64 << 10)] = table if broken != "region" else table[:-1] + b"x"
    items = [
        ("caa16737-fa36-4d43-b3b6-33f0aa44e76b", struct.pack("<II", block_size, flags), 4),
        ("2fa54224-cd1b-4876-b211-5dbed83bf4b8", struct.pack("<Q", size), 6),
        ("beca12ab-b2e6-4523-93ef-c309e000c746", b"p" * 16, 6),
        ("8141bf1d-a96f-4709-ba47-f233a8faab5f", struct.pack("<I", sector), 6),
        ("cda348c7-445d-4471-9cc9-e9885251c556", struct.pack("<I", 512), 6),
    ]
    if locator:
        items.append(("a8d35f2d-b30b-454d-abf7-d3d84834ab0c", bytes(64), 4))
    if unknown_item:
        items.append(("00000000-1111-2222-3333-444444444444", bytes(8), 4))
    count = len(items) if item_count is None else item_count
    directory, values = struct.pack("<8sHH20x", b"metadata", 0, count), b""
    for name, value, bits in items:
        directory += struct.pack("<16sIIII", guid(name), item_at + len(values), len(value), bits, 0)
        values += value
    image[metadata_at : metadata_at + len(directory)] = directory
    if item_at + len(values) <= MIB:
        at = metadata_at + item_at
        image[at : at + len(values)] = values
    return bytes(image)


# --- raw --------------------------------------------------------------------------------------------------------


def with_mbr(image: bytes) -> bytes:
    """Return the image with a partition table in the first sector."""
    entry = bytes([0x80, 0, 2, 0, 0x83, 0, 0, 0]) + struct.pack("<II", 2048, 20480)
    return image[:446] + entry + bytes(48) + b"\x55\xaa" + image[512:]


def with_gpt(image: bytes) -> bytes:
    head = struct.pack("<8sIII", b"EFI PART", 0x10000, 92, 0)
    head = head.ljust(72, b"\0") + struct.pack("<QII", 2, 128, 128)
    return image[:512] + head.ljust(512, b"\0") + b"g" * 128 + image[1152:]


def with_iso(image: bytes, label: bytes = b"DEBIAN 13") -> bytes:
    descriptor = b"\x01CD001\x01\x00" + b" " * 32 + label.ljust(32)
    return image[:0x8000] + descriptor + image[0x8000 + len(descriptor) :]


# --- the table --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """An image and the expected result."""

    name: str
    build: Callable[[], bytes]
    refusal: type[CdiError] | None = None
    """The class of the error that rejects it; None if it is accepted."""
    says: str = ""
    """Part of the error's message."""
    format: str | None = None
    """The recognised format, if it is accepted."""


def _good(name: str, format_: str, build: Callable[[], bytes]) -> Sample:
    return Sample(name=name, build=build, format=format_)


def _bad(name: str, refusal: type[CdiError], build: Callable[[], bytes], says: str = "") -> Sample:
    return Sample(name=name, build=build, refusal=refusal, says=says)


_DISK = bytes(128 << 10)
_ENDLESS = extension(0x12345678, b"") * 100

SAMPLES: tuple[Sample, ...] = (
    _good("qcow2-v3", "qcow2", qcow2),
    _good("qcow2-v2", "qcow2", lambda: qcow2(version=2)),
    _good("qcow2-small-clusters", "qcow2", lambda: qcow2(cluster_bits=9, size=32768)),
    _good("qcow2-zstd", "qcow2", lambda: qcow2(incompatible=8, compression=1)),
    _good("qcow2-extended-l2", "qcow2", lambda: qcow2(incompatible=16)),
    _good("qcow2-short-header", "qcow2", lambda: qcow2(header_length=104)),
    _good("qcow2-snapshots", "qcow2", lambda: qcow2(snapshots=2, snapshots_offset=3 << 16)),
    _good("qcow2-unknown-extension", "qcow2", lambda: qcow2(extensions=extension(0x11223344, b"whatever"))),
    _good("qcow2-backing-format-only", "qcow2", lambda: qcow2(extensions=extension(0xE2792ACA, b"raw"))),
    _bad("qcow2-backing-file", BackingFileRefused, lambda: qcow2(backing=b"/etc/passwd"), "/etc/passwd"),
    _bad("qcow2-backing-json", BackingFileRefused, lambda: qcow2(backing=b'json:{"driver":"file"}'), "json:"),
    _bad("qcow2-backing-v2", BackingFileRefused, lambda: qcow2(version=2, backing=b"nbd:unix:/x"), "nbd:"),
    _bad("qcow2-backing-control-chars", BackingFileRefused, lambda: qcow2(backing=b"\x1b[2J\n"), r"\x1b[2J\n"),
    _bad("qcow2-data-file-bit", ExternalDataRefused, lambda: qcow2(incompatible=4)),
    _bad(
        "qcow2-data-file-name",
        ExternalDataRefused,
        lambda: qcow2(incompatible=4, extensions=extension(0x44415441, b"/etc/shadow")),
        "/etc/shadow",
    ),
    _bad(
        "qcow2-data-file-name-without-bit",
        ExternalDataRefused,
        lambda: qcow2(extensions=extension(0x44415441, b"/etc/shadow")),
    ),
    _bad("qcow2-aes", EncryptionRefused, lambda: qcow2(crypt=1), "AES"),
    _bad("qcow2-luks", EncryptionRefused, lambda: qcow2(crypt=2), "LUKS"),
    _bad("qcow2-crypt-unknown", EncryptionRefused, lambda: qcow2(crypt=77), "77"),
    _bad("qcow2-luks-header", EncryptionRefused, lambda: qcow2(extensions=extension(0x0537BE77, bytes(16)))),
    _bad("qcow2-dirty", ImageDirty, lambda: qcow2(incompatible=1), "dirty"),
    _bad("qcow2-corrupt", ImageDirty, lambda: qcow2(incompatible=2), "corrupt"),
    _bad("qcow2-unknown-feature", FormatUnsupported, lambda: qcow2(incompatible=1 << 40), "bit 40"),
    _bad(
        "qcow2-named-feature",
        FormatUnsupported,
        lambda: qcow2(incompatible=1 << 40, extensions=extension(0x6803F857, feature_name(40, b"time travel"))),
        "time travel",
    ),
    _bad("qcow2-compression-unknown", FormatUnsupported, lambda: qcow2(incompatible=8, compression=9), "9"),
    _bad("qcow2-compression-without-bit", ImageCorrupt, lambda: qcow2(compression=1)),
    _bad("qcow2-compression-bit-alone", ImageCorrupt, lambda: qcow2(incompatible=8)),
    _bad("qcow2-version-1", FormatUnsupported, lambda: qcow2(version=1)),
    _bad("qcow2-version-4", FormatUnsupported, lambda: qcow2(version=4)),
    _bad("qcow2-cluster-bits-0", ImageCorrupt, lambda: qcow2(cluster_bits=0)),
    _bad("qcow2-cluster-bits-22", ImageCorrupt, lambda: qcow2(cluster_bits=22)),
    _bad("qcow2-cluster-bits-63", ImageCorrupt, lambda: qcow2(cluster_bits=63)),
    _bad("qcow2-cluster-bits-max", ImageCorrupt, lambda: qcow2(cluster_bits=0xFFFF_FFFF)),
    _bad("qcow2-subclusters-too-small", ImageCorrupt, lambda: qcow2(cluster_bits=9, size=8192, incompatible=16)),
    _bad("qcow2-l1-beyond-file", ImageCorrupt, lambda: qcow2(l1_offset=1 << 40), "L1 table"),
    _bad("qcow2-l1-at-0", ImageCorrupt, lambda: qcow2(l1_offset=0)),
    _bad("qcow2-l1-unaligned", ImageCorrupt, lambda: qcow2(l1_offset=(1 << 16) + 8)),
    _bad("qcow2-l1-wraps", ImageCorrupt, lambda: qcow2(l1_offset=0xFFFF_FFFF_FFFF_0000)),
    _bad("qcow2-l1-huge", ImageUnsafe, lambda: qcow2(l1_entries=0xFFFF_FFFF)),
    _bad("qcow2-l1-too-small", ImageCorrupt, lambda: qcow2(size=1 << 40)),
    _bad("qcow2-no-l1", ImageCorrupt, lambda: qcow2(l1_entries=0)),
    _bad("qcow2-size-max", FormatUnsupported, lambda: qcow2(size=0xFFFF_FFFF_FFFF_FFFF)),
    _bad("qcow2-no-refcounts", ImageCorrupt, lambda: qcow2(refcount_clusters=0)),
    _bad("qcow2-refcounts-huge", ImageUnsafe, lambda: qcow2(refcount_clusters=0xFFFF_FFFF)),
    _bad("qcow2-refcounts-beyond-file", ImageCorrupt, lambda: qcow2(refcount_offset=1 << 50)),
    _bad("qcow2-refcount-order", ImageCorrupt, lambda: qcow2(refcount_order=64)),
    _bad("qcow2-snapshots-2^32", ImageUnsafe, lambda: qcow2(snapshots=0xFFFF_FFFF, snapshots_offset=3 << 16)),
    _bad("qcow2-snapshots-beyond-file", ImageCorrupt, lambda: qcow2(snapshots=1, snapshots_offset=1 << 40)),
    _bad("qcow2-header-length-overflow", ImageCorrupt, lambda: qcow2(header_length=0xFFFF_FFFF)),
    _bad("qcow2-header-length-0", ImageCorrupt, lambda: qcow2(header_length=0)),
    _bad(
        "qcow2-extension-overflow",
        ImageCorrupt,
        lambda: qcow2(extensions=struct.pack(">II", 0x11223344, 0xFFFF_FFFF)),
    ),
    _bad("qcow2-extensions-many", ImageCorrupt, lambda: qcow2(extensions=_ENDLESS)),
    _bad("qcow2-cut-in-header", ImageCorrupt, lambda: qcow2()[:100]),
    _bad("qcow2-magic-alone", ImageCorrupt, lambda: b"QFI\xfb"),
    _bad("qcow2-cut-before-l1", ImageCorrupt, lambda: qcow2()[: 3 << 16]),
    _bad(
        "qcow2-several",
        BackingFileRefused,
        lambda: qcow2(backing=b"/dev/sda", crypt=1, incompatible=1),
        "dirty",
    ),
    _good("vmdk-sparse", "vmdk", vmdk),
    _good("vmdk-stream", "vmdk", vmdk_stream),
    _good("vmdk-unclean", "vmdk", lambda: vmdk(unclean=1)),
    _bad(
        "vmdk-absolute-extent",
        ExternalDataRefused,
        lambda: vmdk(vmdk_descriptor(extents='RW 20480 SPARSE "/etc/passwd"')),
        "/etc/passwd",
    ),
    _bad(
        "vmdk-parent-directory-extent",
        ExternalDataRefused,
        lambda: vmdk(vmdk_descriptor(extents='RW 20480 SPARSE "..\\\\x.vmdk"')),
    ),
    _bad(
        "vmdk-flat-extent",
        ExternalDataRefused,
        lambda: vmdk(vmdk_descriptor(extents='RW 20480 FLAT "/etc/passwd" 0')),
        "FLAT",
    ),
    _bad(
        "vmdk-two-extents",
        ExternalDataRefused,
        lambda: vmdk(vmdk_descriptor(extents='RW 1 SPARSE "a.vmdk"\nRW 1 SPARSE "b.vmdk"')),
        "2 extents",
    ),
    _bad(
        "vmdk-extents-1000",
        ExternalDataRefused,
        lambda: vmdk(vmdk_descriptor(extents='RW 1 SPARSE "a"\n' * 400), descriptor_size=60),
    ),
    _bad("vmdk-lower-case-extent", ExternalDataRefused, lambda: vmdk(vmdk_descriptor(extents='rw 1 flat "a" 0'))),
    _bad("vmdk-malformed-extent", ImageUnsafe, lambda: vmdk(vmdk_descriptor(extents="RW lots SPARSE x"))),
    _bad("vmdk-no-extent", ImageUnsafe, lambda: vmdk(vmdk_descriptor(extents=""))),
    _bad("vmdk-flat-type", ExternalDataRefused, lambda: vmdk(vmdk_descriptor(kind="monolithicFlat"))),
    _bad("vmdk-unknown-type", FormatUnsupported, lambda: vmdk(vmdk_descriptor(kind="holographic"))),
    _bad("vmdk-parent-cid", BackingFileRefused, lambda: vmdk(vmdk_descriptor(parent="deadbeef"))),
    _bad(
        "vmdk-parent-hint",
        BackingFileRefused,
        lambda: vmdk(vmdk_descriptor(more='parentFileNameHint="/etc/passwd"\n')),
        "/etc/passwd",
    ),
    _bad(
        "vmdk-parent-hint-in-comment",
        BackingFileRefused,
        lambda: vmdk(vmdk_descriptor(more='# parentFileNameHint="/etc/passwd"\n')),
    ),
    _bad(
        "vmdk-parent-hint-past-descriptor",
        BackingFileRefused,
        lambda: vmdk(
            (vmdk_descriptor() + b"\n" * 1024)[:1024] + b'parentFileNameHint="/etc/passwd"', descriptor_size=2
        ),
    ),
    _bad("vmdk-key-twice", ImageUnsafe, lambda: vmdk(vmdk_descriptor(more='createType="streamOptimized"\n'))),
    _bad("vmdk-encrypted", EncryptionRefused, lambda: vmdk(vmdk_descriptor(more='encryption.keySafe="x"\n'))),
    _bad("vmdk-descriptor-elsewhere", FormatUnsupported, lambda: vmdk(descriptor_offset=3)),
    _bad("vmdk-descriptor-missing", ExternalDataRefused, lambda: vmdk(descriptor_offset=0)),
    _bad("vmdk-descriptor-huge", FormatUnsupported, lambda: vmdk(descriptor_size=1 << 50)),
    _bad("vmdk-descriptor-garbage", ImageCorrupt, lambda: vmdk(b"\xff" * 100)),
    _bad("vmdk-capacity-0", ExternalDataRefused, lambda: vmdk(capacity=0)),
    _bad("vmdk-capacity-max", FormatUnsupported, lambda: vmdk(capacity=0xFFFF_FFFF_FFFF_FFFF)),
    _bad("vmdk-grain-0", ImageCorrupt, lambda: vmdk(grain=0)),
    _bad("vmdk-grain-huge", ImageCorrupt, lambda: vmdk(grain=1 << 62)),
    _bad("vmdk-entries-0", ImageCorrupt, lambda: vmdk(entries=0)),
    _bad("vmdk-entries-huge", ImageCorrupt, lambda: vmdk(entries=0xFFFF_FFFF)),
    _bad("vmdk-directory-huge", ImageUnsafe, lambda: vmdk(capacity=1 << 35, grain=1, entries=1)),
    _bad("vmdk-directory-beyond-file", ImageCorrupt, lambda: vmdk(directory=1 << 40)),
    _bad("vmdk-overhead-beyond-file", ImageCorrupt, lambda: vmdk(overhead=1 << 40)),
    _bad("vmdk-version-9", FormatUnsupported, lambda: vmdk(version=9)),
    _bad("vmdk-compression-unknown", FormatUnsupported, lambda: vmdk(compression=5)),
    _bad("vmdk-text-mode-transfer", ImageCorrupt, lambda: vmdk(newlines=b"\n \n\n"), "line ends"),
    _bad("vmdk-footer-contradicts", ImageCorrupt, lambda: vmdk_stream(footer_capacity=40960), "contradict"),
    _bad("vmdk-footer-missing", ImageCorrupt, lambda: vmdk_stream()[:-512], "footer"),
    _bad("vmdk-footer-buried", ImageCorrupt, lambda: vmdk_stream(trailing=bytes(4096)), "footer"),
    _bad("vmdk-footer-marker", ImageCorrupt, lambda: vmdk_stream(marker=4), "footer"),
    _bad("vmdk-cut", ImageCorrupt, lambda: vmdk()[:60]),
    _bad("vmdk-bare-descriptor", ExternalDataRefused, vmdk_descriptor),
    _bad("vmdk-bare-descriptor-unmarked", ExternalDataRefused, lambda: b"# hello\n\n version=1\nCID=0\n"),
    _bad("vmdk-cowd", FormatUnsupported, lambda: b"COWD" + bytes(2044), "COWD"),
    _bad("vmdk-sesparse", FormatUnsupported, lambda: struct.pack("<QQ", 0xCAFEBABE, 0) + bytes(1008), "SESPARSE"),
    _good("vdi-dynamic", "vdi", vdi),
    _good("vdi-static", "vdi", lambda: vdi(kind=2)),
    _bad("vdi-differencing", BackingFileRefused, lambda: vdi(kind=4)),
    _bad("vdi-undo", BackingFileRefused, lambda: vdi(kind=3)),
    _bad("vdi-linked", BackingFileRefused, lambda: vdi(linked=b"l" * 16)),
    _bad("vdi-parent", BackingFileRefused, lambda: vdi(parent=b"p" * 16)),
    _bad("vdi-type-0", FormatUnsupported, lambda: vdi(kind=0)),
    _bad("vdi-version-0.1", FormatUnsupported, lambda: vdi(version=1)),
    _bad("vdi-blocks-too-few", ImageCorrupt, lambda: vdi(blocks=1)),
    _bad("vdi-blocks-huge", ImageCorrupt, lambda: vdi(blocks=0xFFFF_FFFF)),
    _bad("vdi-size-max", FormatUnsupported, lambda: vdi(size=0xFFFF_FFFF_FFFF_FFFF)),
    _bad("vdi-block-size-0", FormatUnsupported, lambda: vdi(block_size=0)),
    _bad("vdi-block-extra", FormatUnsupported, lambda: vdi(extra=512), "512 bytes precede each block"),
    _bad("vdi-sector-4096", FormatUnsupported, lambda: vdi(sector=4096)),
    _bad("vdi-allocated-too-many", ImageCorrupt, lambda: vdi(allocated=11)),
    _bad("vdi-map-unaligned", ImageCorrupt, lambda: vdi(map_offset=513)),
    _bad("vdi-map-at-0", ImageCorrupt, lambda: vdi(map_offset=0)),
    _bad("vdi-data-beyond-file", ImageCorrupt, lambda: vdi(allocated=1, data_offset=1 << 30)),
    _bad("vdi-cut", ImageCorrupt, lambda: vdi()[:400]),
    _good("vhd-dynamic", "vpc", vhd_dynamic),
    _good("vhd-fixed", "vpc", vhd_fixed),
    _good("vhd-fixed-partitioned", "vpc", lambda: vhd_fixed(disk=with_mbr(bytes(64 << 10)))),
    _good("vhd-fixed-short-footer", "vpc", lambda: vhd_fixed()[:-1]),
    _good("raw-short-footer-without-checksum", "raw", lambda: bytes(4096) + vhd_footer(sealed=False)[:-1]),
    _good("raw-footer-cut-short", "raw", lambda: vhd_fixed()[:-2]),
    _bad("vhd-fixed-short-footer-too-short", ImageCorrupt, lambda: vhd_fixed(size=1 << 30)[:-1]),
    _bad("vhd-differencing", BackingFileRefused, lambda: vhd_dynamic(kind=4)),
    _bad("vhd-fixed-in-front", FormatUnsupported, lambda: vhd_dynamic(kind=2)),
    _bad("vhd-type-77", FormatUnsupported, lambda: vhd_dynamic(kind=77)),
    _bad("vhd-checksum", ImageCorrupt, lambda: vhd_dynamic(sealed=False), "checksum"),
    _bad("vhd-header-missing", ImageCorrupt, lambda: vhd_dynamic(magic=b"xxxxxxxx")),
    _bad("vhd-header-beyond-file", ImageCorrupt, lambda: vhd_dynamic(data_offset=1 << 40)),
    _bad("vhd-header-wraps", ImageCorrupt, lambda: vhd_dynamic(data_offset=0xFFFF_FFFF_FFFF_FE00)),
    _bad("vhd-header-at-0", ImageCorrupt, lambda: vhd_dynamic(data_offset=0)),
    _bad("vhd-block-size-0", ImageCorrupt, lambda: vhd_dynamic(block_size=0)),
    _bad("vhd-block-size-odd", ImageCorrupt, lambda: vhd_dynamic(block_size=3 * MIB)),
    _bad("vhd-table-too-small", ImageCorrupt, lambda: vhd_dynamic(entries=4)),
    _bad("vhd-table-huge", ImageUnsafe, lambda: vhd_dynamic(entries=0xFFFF_FFFF)),
    _bad("vhd-table-beyond-file", ImageCorrupt, lambda: vhd_dynamic(table=1 << 40)),
    _bad("vhd-size-max", FormatUnsupported, lambda: vhd_dynamic(size=0xFFFF_FFFF_FFFF_FFFF)),
    _bad("vhd-fixed-too-short", ImageCorrupt, lambda: vhd_fixed(size=1 << 30)),
    _bad("vhd-cut", ImageCorrupt, lambda: vhd_dynamic()[:100]),
    _good("vhdx-dynamic", "vhdx", vhdx),
    _good("vhdx-fixed", "vhdx", lambda: vhdx(flags=1)),
    _good("vhdx-items-far", "vhdx", lambda: vhdx(item_at=512 << 10)),
    _bad("vhdx-parent", BackingFileRefused, lambda: vhdx(flags=2, locator=True)),
    _bad("vhdx-parent-flag", BackingFileRefused, lambda: vhdx(flags=2)),
    _bad("vhdx-parent-locator", BackingFileRefused, lambda: vhdx(locator=True)),
    _bad("vhdx-log", ImageDirty, lambda: vhdx(log=b"l" * 16), "log"),
    _bad("vhdx-headers-broken", ImageCorrupt, lambda: vhdx(broken="header")),
    _bad("vhdx-regions-broken", ImageCorrupt, lambda: vhdx(broken="region")),
    _bad("vhdx-no-regions", ImageCorrupt, lambda: vhdx(regions=[])),
    _bad(
        "vhdx-metadata-in-header",
        ImageCorrupt,
        lambda: vhdx(regions=[(VHDX_BAT, 3 * MIB, MIB, 1), (VHDX_METADATA, 0, MIB, 1)]),
    ),
    _bad(
        "vhdx-metadata-beyond-file",
        ImageCorrupt,
        lambda: vhdx(regions=[(VHDX_BAT, 3 * MIB, MIB, 1), (VHDX_METADATA, 1 << 60, MIB, 1)]),
    ),
    _bad("vhdx-bat-missing", ImageCorrupt, lambda: vhdx(regions=[(VHDX_METADATA, 2 * MIB, MIB, 1)])),
    _bad(
        "vhdx-region-twice",
        ImageCorrupt,
        lambda: vhdx(regions=[(VHDX_METADATA, 2 * MIB, MIB, 1), (VHDX_METADATA, 2 * MIB, MIB, 1)]),
    ),
    _bad("vhdx-region-unknown", FormatUnsupported, lambda: vhdx(regions=[(b"?" * 16, 2 * MIB, MIB, 1)])),
    _bad("vhdx-item-unknown", FormatUnsupported, lambda: vhdx(unknown_item=True)),
    _bad("vhdx-items-65535", ImageUnsafe, lambda: vhdx(item_count=65535)),
    _bad("vhdx-items-few", ImageCorrupt, lambda: vhdx(item_count=2)),
    _bad("vhdx-item-outside", ImageCorrupt, lambda: vhdx(item_at=MIB)),
    _bad("vhdx-item-in-table", ImageCorrupt, lambda: vhdx(item_at=0)),
    _bad("vhdx-4096-byte-sectors", FormatUnsupported, lambda: vhdx(sector=4096)),
    _bad("vhdx-block-size-0", ImageCorrupt, lambda: vhdx(block_size=0)),
    _bad("vhdx-block-size-odd", ImageCorrupt, lambda: vhdx(block_size=3 * MIB)),
    _bad("vhdx-size-max", FormatUnsupported, lambda: vhdx(size=0xFFFF_FFFF_FFFF_FFFF)),
    _bad("vhdx-table-too-small", ImageCorrupt, lambda: vhdx(size=4 << 40, block_size=MIB)),
    _bad("vhdx-cut", ImageCorrupt, lambda: vhdx()[: 100 << 10]),
    _bad("vhdx-magic-alone", ImageCorrupt, lambda: b"vhdxfile"),
    _good("raw-zeros", "raw", lambda: _DISK),
    _good("raw-tiny", "raw", lambda: b"x"),
    _good("raw-odd-length", "raw", lambda: bytes(1000)),
    _good("raw-mbr", "raw", lambda: with_mbr(_DISK)),
    _good("raw-gpt", "raw", lambda: with_gpt(with_mbr(_DISK))),
    _good("raw-iso", "raw", lambda: with_iso(_DISK)),
    _good("raw-hybrid-iso", "raw", lambda: with_iso(with_gpt(with_mbr(_DISK)))),
    _good("raw-footer-without-checksum", "raw", lambda: bytes(4096) + vhd_footer(sealed=False)),
    _good("raw-dynamic-footer-at-end", "raw", lambda: bytes(4096) + vhd_footer(kind=3)),
    _bad("empty", FormatUnrecognised, lambda: b"", "empty"),
    _bad("polyglot-qcow2-mbr", FormatUnrecognised, lambda: with_mbr(qcow2()), "qcow2 and a partitioned"),
    _bad("polyglot-qcow2-iso", FormatUnrecognised, lambda: with_iso(qcow2()), "qcow2 and an ISO 9660"),
    _bad(
        "polyglot-vhdx-vdi",
        FormatUnrecognised,
        lambda: b"vhdxfile" + vdi()[8:],
        "vdi and vhdx",
    ),
    _bad(
        "polyglot-qcow2-vdi",
        FormatUnrecognised,
        lambda: qcow2()[:64] + struct.pack("<I", 0xBEDA107F) + qcow2()[68:],
        "qcow2 and vdi",
    ),
    _bad("foreign-zip", FormatUnsupported, lambda: b"PK\x03\x04" + bytes(600), "zip"),
    _bad("foreign-bzip2", FormatUnsupported, lambda: b"BZh91AY&SY" + bytes(600), "bzip2"),
    _bad("foreign-dmg", FormatUnsupported, lambda: bytes(4096) + b"koly".ljust(512, b"\0"), "Apple"),
    _bad("foreign-qed", FormatUnsupported, lambda: b"QED\0" + bytes(600), "QED"),
    _bad("foreign-parallels", FormatUnsupported, lambda: b"WithoutFreeSpace" + bytes(600), "Parallels"),
    _bad("foreign-bochs", FormatUnsupported, lambda: b"Bochs Virtual HD Image".ljust(600, b"\0"), "Bochs"),
    _bad("foreign-android-sparse", FormatUnsupported, lambda: b"\x3a\xff\x26\xed" + bytes(600), "Android"),
)
