from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.errors import CdiError, ChecksumInvalid
from cdi.verify.checksum_file import MAX_SUMS, checksum_files, find_digest, signature_files

A256, B256, A512, AMD5 = "a" * 64, "b" * 64, "c" * 128, "d" * 32


@pytest.mark.parametrize(
    "line",
    [
        f"{A256}  disk.qcow2",
        f"{A256} *disk.qcow2",
        f"{A256}  ./disk.qcow2",
        f"{A256} disk.qcow2",
        f"{A256}\tdisk.qcow2",
        f"{A256.upper()}  disk.qcow2",
        f"SHA256 (disk.qcow2) = {A256}",
        f"SHA256(disk.qcow2)= {A256}",
        f"SHA-256 (disk.qcow2) = {A256}",
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_way_to_write_a_line(line, end, mark):
    text = f"# a comment{end or chr(10)}{B256}  other.qcow2{end or chr(10)}{line}{end}"
    assert str(find_digest(mark + text.encode(), "disk.qcow2")) == f"sha256:{A256}"


def test_a_name_in_another_directory_or_with_a_longer_name_is_another_image():
    text = f"{A256}  sub/disk.img\n{A256}  disk.img.sig\n{A256}  my-disk.img\n"
    assert find_digest(text.encode(), "disk.img") is None


def test_the_fast_safe_digest_is_preferred():
    text = f"MD5 (disk) = {AMD5}\nSHA512 (disk) = {A512}\nSHA256 (disk) = {A256}\n"
    assert find_digest(text.encode(), "disk").algorithm == "sha256"
    assert find_digest(f"MD5 (disk) = {AMD5}\nSHA512 (disk) = {A512}".encode(), "disk").algorithm == "sha512"


def test_a_digest_whose_length_contradicts_its_name_does_not_count():
    assert find_digest(f"SHA256 (disk) = {AMD5}".encode(), "disk") is None


def test_two_digests_for_one_name_are_refused():
    with pytest.raises(ChecksumInvalid, match="two sha256"):
        find_digest(f"{A256}  disk\n{B256}  disk\n".encode(), "disk")
    assert find_digest(f"{A256}  disk\n{A256} *disk\n".encode(), "disk").hex == A256


def test_a_bare_digest_counts_only_in_a_file_named_after_the_image():
    assert find_digest(A256.encode() + b"\n", "disk", file_name="disk.sha256").hex == A256
    assert find_digest(f"sha256:{A256}".encode(), "disk", file_name="disk.sha256").hex == A256
    assert find_digest(A256.encode() + b"\n", "disk", file_name="SHA256SUMS") is None
    assert find_digest(f"{A256}\n{B256}\n".encode(), "disk", file_name="disk.sha256") is None


def test_of_a_clear_signed_file_only_the_signed_part_counts():
    text = f"""{B256}  disk
-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

# Fedora
- {A256}  dashed
SHA256 (disk) = {A256}
-----BEGIN PGP SIGNATURE-----

iQIzBAEBCAAdFiEE
-----END PGP SIGNATURE-----
{B256}  late
"""
    assert find_digest(text.encode(), "disk").hex == A256
    assert find_digest(text.encode(), "dashed").hex == A256
    assert find_digest(text.encode(), "late") is None


def test_two_signed_parts_are_refused():
    part = f"-----BEGIN PGP SIGNED MESSAGE-----\n\n{A256}  disk\n-----BEGIN PGP SIGNATURE-----\nx\n-----END PGP SIGNATURE-----\n"
    with pytest.raises(ChecksumInvalid):
        find_digest((part * 2).encode(), "disk")


def test_an_escaped_name():
    assert find_digest(f"\\{A256}  back\\\\slash\n".encode(), "back\\slash").hex == A256


def test_utf16_from_powershell():
    assert find_digest(f"{A256}  disk\r\n".encode("utf-16"), "disk").hex == A256


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x80\x81", b"a\0b", bytes(MAX_SUMS + 1)])
def test_what_is_no_text_is_refused(content):
    with pytest.raises(ChecksumInvalid):
        find_digest(content, "disk")


@given(st.binary(max_size=300), st.text(max_size=20))
def test_anything_ends_in_a_digest_none_or_an_error(content, name):
    try:
        find_digest(content, name, file_name=f"{name}.sha256")
    except CdiError:
        pass


def test_the_names_to_look_for():
    names = checksum_files("disk.qcow2")
    assert names[0] == "SHA256SUMS"
    assert len(set(names)) == len(names)
    assert "disk.qcow2.sha256" in names
    assert "SHA256SUMS.gpg" in signature_files("SHA256SUMS")
