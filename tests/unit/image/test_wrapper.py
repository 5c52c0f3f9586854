"""Detection of wrappers and documents by their bytes."""

import bz2
import gzip
import io
import lzma
import random
import sys
import tarfile
import zipfile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cdi.image.web_page import sniff_document
from cdi.image.wrapper import identify_unsupported, recognise_wrapper
from tests.corpus import SAMPLES, with_gpt, with_iso, with_mbr

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def tar(form: int, name: str = "disk.img", size: int = 3) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        member = tarfile.TarInfo(name)
        member.size = size
        archive.addfile(member, io.BytesIO(bytes(size)))
    return out.getvalue()


def v7_tar() -> bytes:
    """Return a header without the magic, as before POSIX."""
    head = bytearray(tar(tarfile.USTAR_FORMAT)[:512])
    head[257:512] = bytes(255)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + bytes(1024)


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("disk.img", b"x")
    return out.getvalue()


SKIPPABLE = b"\x5a\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"abcd"


@pytest.mark.parametrize(
    ("head", "wrapper"),
    [
        (gzip.compress(b"x" * 1000), "gz"),
        (lzma.compress(b"x" * 1000), "xz"),
        (zstd.compress(b"x" * 1000), "zst"),
        (SKIPPABLE + zstd.compress(b"x"), "zst"),
        (SKIPPABLE * 3 + zstd.compress(b"x"), "zst"),
        (b"\x50\x2a\x4d\x18" + (1 << 30).to_bytes(4, "little") + b"far", "zst"),
        (tar(tarfile.USTAR_FORMAT), "tar"),
        (tar(tarfile.GNU_FORMAT, "n" * 200), "tar"),
        (tar(tarfile.PAX_FORMAT, "ü" * 200), "tar"),
        (v7_tar(), "tar"),
        (b"", None),
        (bytes(4096), None),
        (b"\x1f\x8b", None),
        (b"\x1f\x8b\x07" + bytes(600), None),
        (lzma.compress(b"x", format=lzma.FORMAT_ALONE), None),
    ],
)
def test_wrappers(head: bytes, wrapper: str | None) -> None:
    assert recognise_wrapper(head) == wrapper


def test_tar_with_a_wrong_checksum_is_none() -> None:
    head = bytearray(tar(tarfile.USTAR_FORMAT))
    head[0] ^= 1
    assert recognise_wrapper(bytes(head)) is None


@pytest.mark.parametrize("kind", [b"V", b"M"])
def test_tar_that_begins_with_what_concerns_the_archive_is_one(kind: bytes) -> None:
    # GNU tar writes no mark there, and leaves most fields blank.
    head = bytearray(b"label".ljust(512, b"\0"))
    head[156:157] = kind
    head[148:156] = b" " * 8
    assert recognise_wrapper(bytes(head)) is None
    head[148:156] = b"%06o\0 " % sum(head)
    assert recognise_wrapper(bytes(head)) == "tar"
    head[200] ^= 1
    assert recognise_wrapper(bytes(head)) is None


def test_tar_whose_sum_is_of_signed_bytes_is_one() -> None:
    head = bytearray(tar(tarfile.USTAR_FORMAT, "ü.img"))
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(byte - 256 * (byte > 127) for byte in head[:512])
    assert recognise_wrapper(bytes(head)) == "tar"


def test_mark_of_a_tar_in_a_boot_sector_is_not_enough() -> None:
    disk = bytearray(with_mbr(bytes(1024)))
    disk[0:3] = b"\xeb\x63\x90"
    disk[257:263] = b"ustar\0"
    assert recognise_wrapper(bytes(disk)) is None


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (bz2.compress(b"x"), "bzip2"),
        (bz2.compress(b""), "bzip2"),
        (zipped(), "zip"),
        (b"7z\xbc\xaf\x27\x1c\0\4", "7-Zip"),
        (b"Rar!\x1a\x07\x01\0", "RAR"),
        (b"\x04\x22\x4d\x18\x64\x40\xa7", "lz4"),
        (SKIPPABLE + b"\x04\x22\x4d\x18\x64", "lz4"),
        (lzma.compress(b"x" * 100, format=lzma.FORMAT_ALONE), "lzma"),
        (lzma.compress(b"x" * 100, format=lzma.FORMAT_ALONE, preset=9), "lzma"),
        (lzma.compress(b"x" * 100, format=lzma.FORMAT_ALONE, preset=0), "lzma"),
        (b"\x1f\x9d\x90abc", "compress"),
    ],
)
def test_foreign_wrappers_are_named(head: bytes, name: str) -> None:
    assert recognise_wrapper(head) is None
    found = identify_unsupported(head)
    assert found is not None
    assert name in found.name
    assert "unpack it" in found.remedy


@pytest.mark.parametrize(
    ("head", "name", "remedy"),
    [
        (b"QED\0", "QED", "qemu-img convert -O qcow2"),
        (b"WithoutFreeSpace", "Parallels", "qemu-img convert -O qcow2"),
        (b"WithouFreSpacExt", "Parallels", "qemu-img convert -O qcow2"),
        (b"Bochs Virtual HD Image", "Bochs", "qemu-img convert -O qcow2"),
        (b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "cloop", "qemu-img convert -O qcow2"),
        (b"\x3a\xff\x26\xed", "Android", "simg2img"),
        (b"EVF\x09\x0d\x0a\xff\0", "EnCase", "ewfexport"),
    ],
)
def test_foreign_image_formats_are_to_be_converted(head: bytes, name: str, remedy: str) -> None:
    found = identify_unsupported(head.ljust(600, b"\0"))
    assert found is not None
    assert name in found.name
    assert remedy in found.remedy
    assert "unpack" not in found.remedy


@pytest.mark.parametrize(
    "disk", [bytes(65536), with_mbr(bytes(65536)), with_gpt(with_mbr(bytes(65536))), with_iso(bytes(65536))]
)
def test_disks_are_no_wrappers(disk: bytes) -> None:
    assert recognise_wrapper(disk) is None
    assert identify_unsupported(disk) is None
    assert sniff_document(disk, "text/html") is None


def test_accepted_images_are_no_wrappers_or_documents() -> None:
    for sample in SAMPLES:
        if sample.refusal is None and sample.name != "raw-tiny":
            head = sample.build()[:65536]
            assert (recognise_wrapper(head), identify_unsupported(head)) == (None, None), sample.name
            assert sniff_document(head, "text/plain") is None, sample.name


def test_random_disks_are_no_wrappers() -> None:
    rng = random.Random(7)
    for _ in range(2000):
        head = rng.randbytes(1024)
        assert recognise_wrapper(head) is None
        assert sniff_document(head, None) is None


@pytest.mark.parametrize(
    ("head", "content_type", "found"),
    [
        (b"<!DOCTYPE html><html><head><title>Sign\n in</title>", None, "an HTML page titled 'Sign in'"),
        (b"\xef\xbb\xbf\r\n  <HTML><BODY>x", "application/octet-stream", "an HTML page"),
        (b"<!-- mirror --><html>", None, "an HTML page"),
        (b"<p>moved</p>", "text/html; charset=utf-8", "an HTML page"),
        ("<!doctype html><title>Träume\x85</title>".encode(), None, "an HTML page titled 'Tr\\xc3\\xa4ume\\xc2'"),
        ("\ufeff<html>".encode("utf-16-le"), None, "an HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', None, "an XML document"),
        (b"<ListBucketResult xmlns='x'>", None, "an XML document"),
        (b'{"errors": []}', None, "a JSON document"),
        (b"{}", None, "a JSON document"),
        (b"[\n 1, 2]", None, "a JSON document"),
        (b"-----BEGIN PGP SIGNATURE-----\n", None, "a PEM or OpenPGP text"),
        (b"404 page not found\n", "text/plain", "a text document"),
        (b"404 page not found\n", None, None),
        (b"A" * 4096, "application/octet-stream", None),
        (b"<garbage\x00\x01", "text/html", None),
        (b"\x00" * 512, "text/html", None),
        (b"", "text/html", None),
        (b"   \n", "text/html", None),
        (b"{garbage", None, None),
    ],
)
def test_documents(head: bytes, content_type: str | None, found: str | None) -> None:
    assert sniff_document(head, content_type) == found


@given(st.binary(max_size=2000), st.one_of(st.none(), st.text(max_size=30)))
@example(SKIPPABLE * 40, None)
@example(b"\xff\xfe\x00\xd8", None)
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_looked_at_without_harm(head: bytes, content_type: str | None) -> None:
    assert recognise_wrapper(head) in (None, "gz", "xz", "zst", "tar")
    foreign, document = identify_unsupported(head), sniff_document(head, content_type)
    assert foreign is None or foreign.name.isprintable()
    assert document is None or document.isprintable()
