"""Fuzz target: the index of a tar has all that the standard library finds in it, within the file, or rejects the file.

    python tests/fuzz/fuzz_tar_index.py -max_total_time=60
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["cdi.source.registry.tar_index", "cdi.image.tar_header"]):
    from cdi.api.errors import CdiError
    from cdi.image.tar_header import BLOCK
    from cdi.source.registry.tar_index import Member, index_tar

from tests.fuzz.seeds import run

COMPARED = {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE}
"""Types of members about whose content both agree; links with a size, sparse members and others are read differently."""
DESCRIPTOR = os.memfd_create("fuzz")


def sealed(data: bytes) -> bytes:
    """Return `data` with the right checksum in every block that has the mark of a header, which a mutation broke."""
    blocks = bytearray(data)
    for at in range(0, len(blocks) - BLOCK + 1, BLOCK):
        if blocks[at + 257 : at + 262] == b"ustar":
            blocks[at + 148 : at + 156] = b" " * 8
            blocks[at + 148 : at + 156] = b"%06o\0 " % sum(blocks[at : at + BLOCK])
    return bytes(blocks)


def indexed(data: bytes) -> list[Member] | None:
    os.ftruncate(DESCRIPTOR, 0)
    os.pwrite(DESCRIPTOR, data, 0)
    found = []
    try:
        for member in index_tar(DESCRIPTOR, len(data), where="x"):
            assert 0 <= member.size <= len(data) - member.offset
            assert not member.name.startswith("./")
            found.append(member)
    except CdiError as error:
        assert error.what.isprintable()
        return None
    return found


def by_the_library(data: bytes) -> list[tuple[str, int, int]] | None:
    """Return names, offsets and sizes of the regular files; None for what is not compared."""
    found = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", encoding="utf-8") as archive:
            for each in archive:
                sparse = any(key.startswith("GNU.sparse") for key in each.pax_headers)
                if each.type not in COMPARED or sparse or (not each.isreg() and each.size):
                    return None
                if each.isreg():
                    found.append((each.name.rstrip("/"), each.offset_data, each.size))
            return None if archive.pax_headers else found
    except (tarfile.TarError, ValueError, OverflowError, MemoryError, OSError):
        return None


def target(data: bytes) -> None:
    if not data:
        return
    archive = sealed(data[1:]) if data[0] & 1 else data[1:]
    ours, theirs = indexed(archive), by_the_library(archive)
    if ours is not None and theirs is not None:
        # The library ends silently at a damaged header, takes GNU tar's times for the prefix of a name, and reads a long
        # name beyond its stated length.
        assert len(theirs) <= len(ours), (ours, theirs)
        for member, (name, offset, size) in zip(ours, theirs, strict=False):
            assert (member.offset, member.size) == (offset, size), (member, theirs)
            stem = member.name.rstrip("/")
            assert name.endswith(stem) or name.startswith(stem), (member, theirs)


def seeds() -> list[bytes]:
    found = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        for names in (["index.json"], ["./blobs/sha256/" + "a" * 64, "oci-layout"], ["n" * 90 + "/" + "m" * 60, "é"], ["d/", "d/f"]):
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w", format=form) as archive:
                for number, name in enumerate(names):
                    member = tarfile.TarInfo(name)
                    if name.endswith("/"):
                        member.type = tarfile.DIRTYPE
                    else:
                        member.size = number * 600 + 5
                    if form == tarfile.PAX_FORMAT:
                        member.pax_headers = {"size": str(member.size), "comment": "x"}
                    archive.addfile(member, io.BytesIO(bytes(member.size)))
            found += [bytes((flag,)) + packed.getvalue()[: 8 * BLOCK] for flag in (0, 1)]
    return found


if __name__ == "__main__":
    run(target, seeds(), 8 * BLOCK + 1, fixed=20_000)
