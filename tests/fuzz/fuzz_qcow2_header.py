"""Fuzz target: an accepted qcow2 header has valid geometry; all others raise `ImageError`.

python tests/fuzz/fuzz_qcow2_header.py -max_total_time=60
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["cdi.image"]):
    from cdi.api.errors import ImageError
    from cdi.image.formats.qcow2 import parse_header
    from cdi.image.sizes import MAX_DISK

from tests import corpus
from tests.fuzz.seeds import run


def target(data: bytes) -> None:
    for length in (None, 4 << 16):
        try:
            header = parse_header(data, length)
        except ImageError:
            continue
        assert 9 <= header.cluster_bits <= 21
        assert header.virtual_size <= MAX_DISK
        assert header.virtual_size % 512 == 0
        assert header.l1_needed <= header.l1_entries <= 1 << 22
        assert header.l1_entries == 0 or header.l1_offset % header.cluster_size == 0
        assert header.compression_type in (0, 1)
        assert (header.backing_offset, header.crypt_method, header.incompatible & ~0b11000) == (0, 0, 0)
        if length is not None:
            assert header.l1_offset + 8 * header.l1_entries <= length or header.l1_entries == 0


def seeds() -> list[bytes]:
    return [sample.build()[:600] for sample in corpus.SAMPLES if sample.name.startswith("qcow2")]


if __name__ == "__main__":
    run(target, seeds(), 1024, fixed=90_000)
