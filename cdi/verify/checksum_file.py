"""Parser of the checksum files that distributions publish with their images.

Accepted are lines of GNU coreutils (``<hex>  name``, ``<hex> *name``, with a backslash if the name is escaped), lines
of BSD (``SHA256 (name) = <hex>``), a bare digest in a file of one line, and any of these inside an OpenPGP clear-signed
message (RFC 9580, section 7), whose signature `cdi.verify.openpgp` verifies.
"""

from __future__ import annotations

import re

from cdi.api.digest import HEX_LENGTH, Digest
from cdi.api.errors import ChecksumInvalid

MAX_SUMS = 1 << 20
"""Maximum size of a checksum file in bytes."""

_ALGORITHMS = {length: name for name, length in HEX_LENGTH.items()}
_PREFERENCE = ("sha256", "sha512", "sha384", "sha224", "sha1", "md5")
# sha256 is as secure as the longer ones, and three times as fast with processor support.
_MAX_LINE = 8192
_BSD = re.compile(r"([A-Za-z0-9-]+) ?\((.+)\) ?= ?([0-9A-Fa-f]+)")
_GNU = re.compile(r"(\\?)([0-9A-Fa-f]{32,128})(?: [ *]|\t+| +)(.+)")
_BARE = re.compile(r"(?:([A-Za-z0-9-]+):)?([0-9A-Fa-f]{32,128})")

SIGNED_BEGIN = "-----BEGIN PGP SIGNED MESSAGE-----"
_SIGNATURE_BEGIN = "-----BEGIN PGP SIGNATURE-----"


def checksum_files(name: str) -> tuple[str, ...]:
    """Return the names of checksum files to look for beside an image, in order of preference.

    Files that cover several images come first, as usually only those are signed.
    """
    return (
        "SHA256SUMS",
        "SHA512SUMS",
        "CHECKSUM",
        f"{name}.sha256",
        f"{name}.sha512",
        f"{name}.CHECKSUM",
        f"{name}.SHA256SUM",
        f"{name}.sha256sum",
        f"{name}.sha512sum",
        f"{name}.SHA256",
        "sha256sum.txt",
        "CHECKSUM.SHA256",
        "SHA1SUMS",
        "MD5SUMS",
    )


def signature_files(name: str) -> tuple[str, ...]:
    """Return the names of detached signatures to look for beside a checksum file."""
    return (f"{name}.gpg", f"{name}.sign", f"{name}.asc", f"{name}.sig")


def find_digest(content: bytes, name: str, *, file_name: str = "") -> Digest | None:
    """Return the preferred digest that `content`, a checksum file, lists for the image `name`; None if it lists none.

    `file_name` is that of the checksum file: one that is named after the image may hold a bare digest.

    Raises:
        ChecksumInvalid: the file exceeds `MAX_SUMS`, is not text, or lists two digests of one algorithm for `name`.
    """
    where = file_name or None
    found: dict[str, str] = {}
    for algorithm, value, listed in _entries(signed_text(content, where), file_name, name):
        if _plain(listed) != name:
            continue
        if found.setdefault(algorithm, value) != value:
            raise ChecksumInvalid(f"the checksum file lists two {algorithm} digests for {name[:200]!r}", where=where)
    for algorithm in _PREFERENCE:
        if algorithm in found:
            return Digest(algorithm, found[algorithm])
    return None


def signed_text(content: bytes, where: str | None = None) -> str:
    """Return the text of a checksum file; of a clear-signed one only the part that the signature covers.

    Text outside the signed part is dropped because it is not authenticated.

    Raises:
        ChecksumInvalid: the file is too large, not text, or ambiguous.
    """
    if len(content) > MAX_SUMS:
        raise ChecksumInvalid(f"the checksum file is larger than {MAX_SUMS} bytes", where=where)
    # PowerShell's redirection writes UTF-16.
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ChecksumInvalid("the checksum file is not text", where=where) from error
    if "\0" in text:
        raise ChecksumInvalid("the checksum file is not text", where=where)
    lines = [line.rstrip(" \t\r") for line in text.split("\n")]
    if SIGNED_BEGIN not in lines:
        return "\n".join(lines)
    if lines.count(SIGNED_BEGIN) != 1 or lines.count(_SIGNATURE_BEGIN) != 1:
        raise ChecksumInvalid("the checksum file contains several signed parts", where=where)
    begin, end = lines.index(SIGNED_BEGIN), lines.index(_SIGNATURE_BEGIN)
    body = lines[begin + 1 : end]
    if "" not in body:
        raise ChecksumInvalid("the checksum file's signed part is empty", where=where)
    # Header lines (Hash: …) end with an empty line; a dash at the start of a line is escaped.
    return "\n".join(line.removeprefix("- ") for line in body[body.index("") + 1 :])


def _entries(text: str, file_name: str, name: str) -> list[tuple[str, str, str]]:
    """Return ``(algorithm, hex, name)`` of every line that lists a digest."""
    entries = []
    lines = [line.strip() for line in text.split("\n")]
    lines = [line for line in lines if line and not line.startswith("#") and len(line) <= _MAX_LINE]
    for line in lines:
        if bsd := _BSD.fullmatch(line):
            algorithm = bsd[1].lower().replace("-", "")
            value = bsd[3].lower()
            if HEX_LENGTH.get(algorithm) == len(value):
                entries.append((algorithm, value, bsd[2]))
        elif gnu := _GNU.fullmatch(line):
            value = gnu[2].lower()
            listed = gnu[3].replace("\\n", "\n").replace("\\\\", "\\") if gnu[1] else gnu[3]
            if len(value) in _ALGORITHMS:
                entries.append((_ALGORITHMS[len(value)], value, listed))
    if not entries and len(lines) == 1 and file_name.startswith(name) and (bare := _BARE.fullmatch(lines[0])):
        value = bare[2].lower()
        algorithm = (bare[1] or _ALGORITHMS.get(len(value), "")).lower()
        if HEX_LENGTH.get(algorithm) == len(value):
            entries.append((algorithm, value, name))
    return entries


def _plain(listed: str) -> str:
    """Return a listed name without its markers; names in other directories are kept, as they are other files."""
    listed = listed.strip().removeprefix("*")
    while listed.startswith("./"):
        listed = listed[2:]
    return listed
