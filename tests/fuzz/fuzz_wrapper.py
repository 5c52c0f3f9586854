"""Fuzz target: detecting wrappers and documents is safe for any bytes, and its texts are printable.

python tests/fuzz/fuzz_wrapper.py -max_total_time=60
"""

from __future__ import annotations

import gzip
import io
import lzma
import sys
import tarfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["cdi.image"]):
    from cdi.image.web_page import sniff_document
    from cdi.image.wrapper import identify_unsupported, recognise_wrapper

from tests import corpus
from tests.fuzz.seeds import run


def target(data: bytes) -> None:
    wrapper, foreign = recognise_wrapper(data), identify_unsupported(data)
    assert wrapper in (None, "gz", "xz", "zst", "tar")
    for media in (None, "text/html", "text/plain; charset=x"):
        document = sniff_document(data, media)
        assert document is None or document.isprintable()
        assert document is None or len(document) < 400
    if wrapper in ("gz", "xz", "zst"):
        assert foreign is None
    assert foreign is None or (foreign.name.isprintable() and foreign.remedy)


def seeds() -> list[bytes]:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("disk.img"))
    pages = [b"<!doctype html><title>x</title>", b"<?xml version='1.0'?><a/>", b'{"a": [1]}', "<html>".encode("utf-16")]
    streams = [gzip.compress(b"x"), lzma.compress(b"x"), lzma.compress(b"x", format=lzma.FORMAT_ALONE)]
    frames = [b"\x28\xb5\x2f\xfd\x04\x00", b"\x50\x2a\x4d\x18\x01\0\0\0x\x04\x22\x4d\x18"]
    return [out.getvalue()[:1024], *pages, *streams, *frames, *(s.build()[:600] for s in corpus.SAMPLES[::7])]


if __name__ == "__main__":
    run(target, seeds(), 2048, fixed=250_000)
