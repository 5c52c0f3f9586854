"""Fuzz target: decoders and tar turn any content, in any pieces, into bounded output or an `ImageError`.

An input is a byte that says what it is, a byte that says how it is cut, then the content.  What a checksum covers is
given the right one after the fuzzer's changes: the CRCs of xz headers and the sums of tar headers.

    python tests/fuzz/fuzz_codec.py -max_total_time=60
"""

from __future__ import annotations

import gzip
import io
import lzma
import struct
import sys
import tarfile
import zlib
from pathlib import Path

import atheris
from backports import zstd

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["cdi.codec"]):
    from cdi.api.errors import ImageError
    from cdi.codec.base import MAX_CHUNK
    from cdi.codec.gz import GzDecoder
    from cdi.codec.tar import members
    from cdi.codec.xz import XzDecoder
    from cdi.codec.zst import ZstDecoder

from tests.fuzz.seeds import run

MAX_OUTPUT = 8 << 20


def sealed_xz(raw: bytearray) -> bytes:
    if len(raw) > 12:
        raw[:8] = b"\xfd7zXZ\0" + bytes((0, raw[7] & 15))
        struct.pack_into("<I", raw, 8, zlib.crc32(raw[6:8]))
        size = (raw[12] + 1) * 4
        if raw[12] and len(raw) >= 12 + size:
            struct.pack_into("<I", raw, 12 + size - 4, zlib.crc32(raw[12 : 12 + size - 4]))
    return bytes(raw)


def sealed_tar(raw: bytearray) -> bytes:
    for at in range(0, len(raw) - 511, 512):
        if raw[at + 257 : at + 262] == b"ustar":
            raw[at + 148 : at + 156] = b" " * 8
            raw[at + 148 : at + 156] = b"%06o\0 " % sum(raw[at : at + 512])
    return bytes(raw)


def outcome(kind: int, content: bytes, step: int) -> object:
    pieces = (content[at : at + step] for at in range(0, len(content), step))
    digest, given = zlib.crc32(b""), 0
    try:
        if kind == 3:
            seen = []
            for number, member in enumerate(members(pieces)):
                left = MAX_OUTPUT
                for piece in member.read() if number % 2 else (piece for _, piece in member.chunks()):
                    digest = zlib.crc32(piece, digest)
                    left -= len(piece)
                    if left < 0:
                        return "large"
                seen.append((member.name, member.kind, member.size, member.link))
            return seen, digest
        decoder = (GzDecoder(), XzDecoder(threads=2, in_flight=4 << 20), ZstDecoder())[kind]
        for piece in decoder.decode(pieces):
            assert 0 < len(piece) <= MAX_CHUNK
            digest, given = zlib.crc32(piece, digest), given + len(piece)
            if given > MAX_OUTPUT:
                return "large"
    except ImageError as error:
        return type(error)
    return given, digest


def target(data: bytes) -> None:
    if len(data) < 2:
        return
    kind, step = data[0] % 4, data[1] + 1
    content = data[2:]
    if data[0] & 0x80 and kind in (1, 3):
        content = (sealed_xz if kind == 1 else sealed_tar)(bytearray(content))
    whole, cut = outcome(kind, content, 1 << 20), outcome(kind, content, step)
    assert whole == cut, (whole, cut)


def seeds() -> list[bytes]:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("n" * 120)
        info.size = 5
        info.pax_headers = {"GNU.sparse.size": "9", "GNU.sparse.map": "0,2,6,3", "mtime": "1.5"}
        archive.addfile(info, io.BytesIO(b"abcde"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "x"
        archive.addfile(link)
    content = b"content " * 40
    made = {
        0: [gzip.compress(content), gzip.compress(b"") * 3 + bytes(8)],
        1: [lzma.compress(content), lzma.compress(content, check=lzma.CHECK_CRC32) * 2],
        2: [zstd.compress(content), b"\x53\x2a\x4d\x18\x02\0\0\0xx" + zstd.compress(content)],
        3: [out.getvalue()[:4096]],
    }
    return [
        bytes((kind | seal, step)) + raw
        for kind, packed in made.items()
        for raw in packed
        for seal in (0, 0x80)
        for step in (0, 200)
    ]


if __name__ == "__main__":
    run(target, seeds(), 4608, fixed=15_000)
