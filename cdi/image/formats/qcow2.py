"""Header of qcow2, versions 2 and 3 (QEMU's docs/interop/qcow2.txt); limits are those of QEMU's own reader."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from cdi.api.errors import (
    BackingFileRefused,
    EncryptionRefused,
    ExternalDataRefused,
    FormatUnsupported,
    ImageCorrupt,
    ImageDirty,
    ImageUnsafe,
)
from cdi.api.importer_messages import invalid_format
from cdi.image.checks import Check, Checklist, quoted
from cdi.image.formats import signatures

DIRTY: Final = 1 << 0
CORRUPT: Final = 1 << 1
EXTERNAL_DATA: Final = 1 << 2
COMPRESSION: Final = 1 << 3
EXTENDED_L2: Final = 1 << 4
_KNOWN: Final = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION | EXTENDED_L2

_EXT_END: Final = 0
_EXT_FEATURE_NAMES: Final = 0x6803F857
_EXT_ENCRYPTION: Final = 0x0537BE77
_EXT_EXTERNAL_DATA: Final = 0x44415441
_EXT_LIMIT: Final = 64
"""Maximum number of extensions in a header; QEMU writes at most six."""

_V2: Final = struct.Struct(">4sIQIIQIIQQIIQ")
_V3: Final = struct.Struct(">QQQII")
V2_LENGTH: Final = 72
V3_LENGTH: Final = 104

MIN_CLUSTER_BITS: Final = 9
MAX_CLUSTER_BITS: Final = 21
MAX_L1_BYTES: Final = 32 << 20
MAX_REFCOUNT_TABLE_BYTES: Final = 8 << 20
MAX_SNAPSHOTS: Final = 65536
_SUBCLUSTERS: Final = 32
COMPRESSIONS: Final = {0: "zlib", 1: "zstd"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Qcow2Header:
    """Fields of the header; offsets and sizes are in bytes."""

    version: int
    cluster_bits: int
    virtual_size: int
    """Virtual size as QEMU reports it: whole sectors."""
    l1_offset: int
    l1_entries: int
    refcount_table_offset: int
    refcount_table_clusters: int
    refcount_order: int
    snapshots: int
    snapshots_offset: int
    backing_offset: int
    backing_size: int
    crypt_method: int
    incompatible: int
    """Feature bits that a reader must know."""
    compatible: int
    autoclear: int
    header_length: int
    compression_type: int
    """Compression: 0 is zlib (raw deflate), 1 is zstd."""

    @property
    def cluster_size(self) -> int:
        return 1 << self.cluster_bits

    @property
    def extended_l2(self) -> bool:
        """True if L2 entries have 16 bytes and clusters have 32 subclusters."""
        return bool(self.incompatible & EXTENDED_L2)

    @property
    def l2_entry_size(self) -> int:
        return 16 if self.extended_l2 else 8

    @property
    def l2_entries(self) -> int:
        """Number of entries of one L2 table, which fills a cluster."""
        return self.cluster_size // self.l2_entry_size

    @property
    def l1_needed(self) -> int:
        """L1 entries that the virtual size needs; there may be more, for a saved VM state."""
        reach = self.cluster_size * self.l2_entries
        return -(-self.virtual_size // reach)

    @property
    def compression(self) -> str:
        return COMPRESSIONS.get(self.compression_type, f"type {self.compression_type}")


def parse_header(data: bytes, length: int | None) -> Qcow2Header:
    """Return the header at the start of `data` (64 KiB, or the whole file) after all safety checks.

    `length` is the size of the file in bytes, if known. The result has valid geometry and refers to no other file, and
    its tables lie within the file.

    Raises:
        ImageError: a check failed; the class is that of the gravest failure.
    """
    header, _ = examine(data, length)
    return header


def header_cluster(head: bytes) -> int:
    """Return the size of the cluster that holds the header, at least a sector; `head` is not validated."""
    bits = int.from_bytes(head[20:24], "big")
    return 1 << bits if MIN_CLUSTER_BITS <= bits <= MAX_CLUSTER_BITS else 512


def examine(data: bytes, length: int | None) -> tuple[Qcow2Header, tuple[Check, ...]]:
    """Do what `parse_header` does and return the checks as well."""
    checks = Checklist("qcow2")
    header = _read(data)
    _check_features(header, data, checks)
    if _check_geometry(header, checks):
        _check_tables(header, length, checks)
        _check_extensions(header, data, checks)
    return header, checks.raise_for_failures()


def _read(data: bytes) -> Qcow2Header:
    if len(data) < V2_LENGTH or not data.startswith(signatures.QCOW2):
        raise ImageCorrupt("the file ends within the header", where="qcow2")
    (_, version, backing_offset, backing_size, cluster_bits, size, crypt, l1_entries, l1_offset) = _V2.unpack_from(
        data
    )[:9]
    (refcount_offset, refcount_clusters, snapshots, snapshots_offset) = _V2.unpack_from(data)[9:]
    if version not in (2, 3):
        raise FormatUnsupported(f"version {version} is not qcow2", where="qcow").with_upstream(invalid_format("qcow"))
    incompatible = compatible = autoclear = compression_type = 0
    refcount_order, header_length = 4, V2_LENGTH
    if version == 3:
        if len(data) < V3_LENGTH:
            raise ImageCorrupt("the file ends within the header", where="qcow2")
        incompatible, compatible, autoclear, refcount_order, header_length = _V3.unpack_from(data, V2_LENGTH)
        if header_length > V3_LENGTH and len(data) > V3_LENGTH:
            compression_type = data[V3_LENGTH]
    return Qcow2Header(
        version=version,
        cluster_bits=cluster_bits,
        virtual_size=size // 512 * 512,
        l1_offset=l1_offset,
        l1_entries=l1_entries,
        refcount_table_offset=refcount_offset,
        refcount_table_clusters=refcount_clusters,
        refcount_order=refcount_order,
        snapshots=snapshots,
        snapshots_offset=snapshots_offset,
        backing_offset=backing_offset,
        backing_size=backing_size,
        crypt_method=crypt,
        incompatible=incompatible,
        compatible=compatible,
        autoclear=autoclear,
        header_length=header_length,
        compression_type=compression_type,
    )


def _check_features(header: Qcow2Header, data: bytes, checks: Checklist) -> None:
    backing = "no backing file"
    if header.backing_offset:
        end = min(header.backing_offset + min(header.backing_size, 1023), len(data))
        name = data[header.backing_offset : end]
        backing = f"it is an overlay over {quoted(name)}" if name else "it is an overlay over another file"
    checks.check(not header.backing_offset, "backing file", backing, BackingFileRefused)
    external = bool(header.incompatible & EXTERNAL_DATA)
    checks.check(
        not external,
        "external data file",
        "its data is in another file" if external else "the data is in the image",
        ExternalDataRefused,
    )
    methods = {0: "not encrypted", 1: "it is encrypted (AES)", 2: "it is encrypted (LUKS)"}
    crypt = methods.get(header.crypt_method, f"it is encrypted by unknown method {header.crypt_method}")
    checks.check(header.crypt_method == 0, "encryption", crypt, EncryptionRefused)
    dirty = bool(header.incompatible & DIRTY)
    checks.check(
        not dirty,
        "dirty bit",
        "it was not closed cleanly (dirty bit: reference counts are stale)" if dirty else "closed cleanly",
        ImageDirty,
    )
    corrupt = bool(header.incompatible & CORRUPT)
    checks.check(not corrupt, "corrupt bit", "it is marked corrupt" if corrupt else "not marked corrupt", ImageDirty)
    unknown = header.incompatible & ~_KNOWN
    checks.check(
        not unknown,
        "incompatible features",
        f"it needs unknown features: {_feature_names(header, data, unknown)}" if unknown else "all known",
        FormatUnsupported,
    )
    if checks.check(
        header.compression_type in COMPRESSIONS,
        "compression type",
        f"clusters are compressed with {header.compression}"
        if header.compression_type in COMPRESSIONS
        else f"unknown compression type {header.compression_type}",
        FormatUnsupported,
    ):
        flagged = bool(header.incompatible & COMPRESSION)
        checks.check(
            flagged == (header.compression_type != 0),
            "compression flag",
            "agrees with the type" if flagged == (header.compression_type != 0) else "compression type and bit differ",
        )


def _feature_names(header: Qcow2Header, data: bytes, bits: int) -> str:
    """Return feature names, from the image's own feature table if it has one."""
    names: dict[int, str] = {}
    for kind, body in _extensions(header, data)[0]:
        if kind == _EXT_FEATURE_NAMES:
            for at in range(0, min(len(body), 48 * 256) - 47, 48):
                if body[at] == 0:
                    names.setdefault(body[at + 1], quoted(body[at + 2 : at + 48].rstrip(b"\0")))
    missing = [bit for bit in range(64) if bits >> bit & 1]
    return ", ".join(f"bit {bit} {names[bit]}" if bit in names else f"bit {bit}" for bit in missing)


def _check_geometry(header: Qcow2Header, checks: Checklist) -> bool:
    """Check the fields from which all others are computed."""
    bits = header.cluster_bits
    if not checks.check(
        MIN_CLUSTER_BITS <= bits <= MAX_CLUSTER_BITS,
        "cluster size",
        f"2^{bits} bytes" if bits < 64 else f"cluster_bits is {bits}",
    ):
        return False
    return all(
        (
            checks.expect_size(header.virtual_size),
            checks.check(header.refcount_order <= 6, "refcount width", f"refcount_order is {header.refcount_order}"),
            checks.check(
                header.version == 2 or V3_LENGTH <= header.header_length <= header.cluster_size,
                "header length",
                f"header_length is {header.header_length}",
            ),
            checks.check(
                not header.extended_l2 or header.cluster_size >= 512 * _SUBCLUSTERS,
                "subcluster size",
                "extended L2 entries with clusters too small for them" if header.extended_l2 else "no subclusters",
            ),
        )
    )


def _check_tables(header: Qcow2Header, length: int | None, checks: Checklist) -> None:
    size = header.l1_entries * 8
    if checks.check(
        size <= MAX_L1_BYTES, "L1 table size", f"the L1 table has {header.l1_entries} entries", ImageUnsafe
    ):
        checks.check(
            header.l1_entries >= header.l1_needed,
            "L1 table covers the disk",
            f"the L1 table has {header.l1_entries} entries and the virtual size needs {header.l1_needed}",
        )
    _check_place(header, checks, "L1 table", offset=header.l1_offset, size=size, length=length)
    clusters = header.refcount_table_clusters
    if checks.check(clusters > 0, "refcount table", f"the refcount table has {clusters} clusters"):
        checks.check(
            clusters << header.cluster_bits <= MAX_REFCOUNT_TABLE_BYTES,
            "refcount table size",
            f"the refcount table has {clusters} clusters",
            ImageUnsafe,
        )
    # Only its beginning: the table is not read, and a file may end within its last cluster.
    _check_place(header, checks, "refcount table", offset=header.refcount_table_offset, size=1, length=length)
    many = header.snapshots > MAX_SNAPSHOTS
    checks.check(not many, "snapshots", f"it claims {header.snapshots} internal snapshots", ImageUnsafe)
    if header.snapshots:
        _check_place(header, checks, "snapshot table", offset=header.snapshots_offset, size=1, length=length)


def _check_place(
    header: Qcow2Header, checks: Checklist, what: str, *, offset: int, size: int, length: int | None
) -> None:
    """Check that a table begins at a cluster boundary and lies within the file; an empty one may be anywhere."""
    if size == 0:
        return
    checks.check(
        offset % header.cluster_size == 0 and offset >= header.cluster_size,
        f"{what} place",
        f"the {what} is at offset {offset:#x}",
    )
    if length is not None:
        checks.check(
            offset + size <= length,
            f"{what} within the file",
            f"the {what} ends at {offset + size} of {length} bytes",
        )


def _check_extensions(header: Qcow2Header, data: bytes, checks: Checklist) -> None:
    extensions, fault = _extensions(header, data)
    checks.check(not fault, "header extensions", fault or f"{len(extensions)} of known form")
    for kind, body in extensions:
        if kind == _EXT_EXTERNAL_DATA:
            checks.check(
                passed=False,
                name="external data file name",
                detail=f"it names {quoted(body)} as its data file",
                refusal=ExternalDataRefused,
            )
        elif kind == _EXT_ENCRYPTION:
            checks.check(
                passed=False,
                name="encryption header",
                detail="it has an encryption header",
                refusal=EncryptionRefused,
            )


def _extensions(header: Qcow2Header, data: bytes) -> tuple[list[tuple[int, bytes]], str]:
    """Return the header extensions, which end with the first cluster or at the backing name, and their fault."""
    found: list[tuple[int, bytes]] = []
    end = header.cluster_size if header.cluster_bits <= MAX_CLUSTER_BITS else 0
    if header.backing_offset:
        end = min(end, header.backing_offset)
    at = header.header_length
    while at + 8 <= min(end, len(data)):
        kind, size = struct.unpack_from(">II", data, at)
        at += 8
        if kind == _EXT_END:
            return found, ""
        if size > min(end, len(data)) - at:
            return found, f"a header extension of {size} bytes exceeds the header"
        if len(found) == _EXT_LIMIT:
            return found, f"more than {_EXT_LIMIT} header extensions"
        found.append((kind, bytes(data[at : at + size])))
        at += -(-size // 8) * 8
    # Without an end marker they end with the cluster, unless only part of it was read.
    return found, "header extensions lack an end marker" if at + 8 <= end and found else ""
