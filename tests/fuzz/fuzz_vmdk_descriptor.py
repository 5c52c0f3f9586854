"""Fuzz target: an accepted VMDK descriptor refers to no other file by any key that QEMU searches for.

python tests/fuzz/fuzz_vmdk_descriptor.py -max_total_time=60
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["cdi.image"]):
    from cdi.api.errors import ImageError
    from cdi.image.checks import Checklist
    from cdi.image.formats import signatures, vmdk_descriptor

from tests import corpus
from tests.fuzz.seeds import run


def target(data: bytes) -> None:
    signatures.is_vmdk_descriptor(data)
    descriptor = vmdk_descriptor.parse(data)
    if descriptor is None:
        return
    checks = Checklist("vmdk")
    kind = vmdk_descriptor.check(descriptor, data, checks)
    try:
        checks.raise_for_failures()
    except ImageError as error:
        assert error.what.isprintable()
        return
    text = data.partition(b"\0")[0]
    assert kind in ("monolithicSparse", "streamOptimized")
    assert b"parentFileNameHint" not in text
    assert len(descriptor.extents) == 1
    assert descriptor.extents[0].kind == "SPARSE"
    assert b"/" not in descriptor.extents[0].name


def seeds() -> list[bytes]:
    samples = (sample.build()[512:6000].rstrip(b"\0") for sample in corpus.SAMPLES if sample.name.startswith("vmdk"))
    return [corpus.vmdk_descriptor(), *samples]


if __name__ == "__main__":
    run(target, seeds(), 8192, fixed=50_000)
