"""Fuzz target: inspection gives the same result or `CdiError` however content is fed, within its budget.

Contents are made by patching an image of the corpus, so that small inputs reach deep structures.  An input is a byte
that picks the image, then patches: offset (3 bytes), length (1 byte), bytes.

    python tests/fuzz/fuzz_inspect.py -max_total_time=60
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["cdi.image"]):
    from cdi.api.errors import ImageError
    from cdi.image.formats.content import BUDGET
    from cdi.image.formats.vhdx import _crc32c
    from cdi.image.inspect import Inspector

from tests import corpus
from tests.fuzz.seeds import run

BASES = [sample.build() for sample in corpus.SAMPLES if sample.refusal is None]
SEALED = [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 65536), (256 << 10, 65536)]


def content_of(data: bytes) -> bytes:
    """Return the patched image; an input of 0xff and bytes is those bytes."""
    if data[:1] == b"\xff":
        return data[1:]
    content = bytearray(BASES[data[0] % len(BASES)] if data else b"")
    at = 1
    touched = set()
    while at + 4 <= len(data):
        offset, length = int.from_bytes(data[at : at + 3], "big"), data[at + 3]
        at += 4
        patch = data[at : at + length]
        at += length
        offset %= len(content) + 1
        content[offset : offset + len(patch)] = patch[: len(content) - offset]
        touched |= {place for place in SEALED if place[0] <= offset < sum(place)}
    # Update the checksums: content with a wrong checksum would be rejected before it is parsed.
    if content.startswith(b"vhdxfile"):
        for start, size in touched:
            block = content[start : start + 4] + bytes(4) + content[start + 8 : start + size]
            content[start + 4 : start + 8] = struct.pack("<I", _crc32c(bytes(block)))
    return bytes(content)


def outcome(content: bytes, *, seekable: bool, piece: int) -> object:
    inspector = Inspector(len(content), seekable=True) if seekable else Inspector(None)
    total, at = 0, 0
    while (want := inspector.next_range()) is not None:
        offset, size = want
        if seekable:
            assert 0 <= offset < offset + size <= len(content)
            size = min(size, piece)
            total += size
        else:
            assert offset >= at or at == 0 or offset + size > at, "goes back in a stream"
            offset, size = at, piece
        inspector.feed(offset, content[offset : offset + size])
        at = offset + len(content[offset : offset + size])
    assert total <= BUDGET
    try:
        return inspector.result()
    except ImageError as error:
        assert error.what.isprintable()
        return type(error), error.what


def target(data: bytes) -> None:
    content = content_of(data)
    assert outcome(content, seekable=True, piece=BUDGET) == outcome(content, seekable=True, piece=40_001)
    assert outcome(content, seekable=False, piece=BUDGET) == outcome(content, seekable=False, piece=40_001)


def seeds() -> list[bytes]:
    patches = [bytes([index]) for index in range(len(BASES))]
    return patches + [b"\xff" + sample.build()[:3000] for sample in corpus.SAMPLES]


if __name__ == "__main__":
    run(target, seeds(), 4096, fixed=5_000)
