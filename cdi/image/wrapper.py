"""Wrappers of images, recognised by their first bytes and never by a file name.

gzip: RFC 1952.  xz: The .xz File Format 1.1.0.  zstd: RFC 8878, skippable frames included.  tar: POSIX.1-2017 pax,
"ustar Interchange Format", and the older form without its mark.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

Wrapper = Literal["gz", "xz", "zst", "tar"]

_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_LZ4: Final = b"\x04\x22\x4d\x18"
_SKIPPABLE: Final = b"\x2a\x4d\x18"
_SKIPPABLE_FRAMES: Final = 16
"""Looked past, in search of the first frame that says what it is."""

_UNPACK: Final = "unpack it and publish the image itself, or wrapped in gz, xz or zst"
_CONVERT: Final = "convert it: qemu-img convert -O qcow2 IMAGE disk.qcow2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """Something that is known and not accepted."""

    name: str
    """With its article."""
    remedy: str


def _archive(magic: bytes, name: str) -> tuple[bytes, Foreign]:
    return magic, Foreign(name=name, remedy=_UNPACK)


def _image(magic: bytes, name: str, remedy: str = _CONVERT) -> tuple[bytes, Foreign]:
    return magic, Foreign(name=name, remedy=remedy)


_FOREIGN: Final = (
    _archive(b"PK\x03\x04", "a zip archive"),
    _archive(b"PK\x05\x06", "a zip archive"),
    _archive(b"PK\x07\x08", "a zip archive"),
    _archive(b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    _archive(b"Rar!\x1a\x07", "a RAR archive"),
    _archive(b"\x02\x21\x4c\x18", "an lz4 stream"),
    _archive(b"\x89LZO\x00\r\n\x1a\n", "an lzop stream"),
    _archive(b"LZIP", "an lzip stream"),
    _archive(b"LRZI", "an lrzip stream"),
    _archive(b"MSCF\0\0\0\0", "a cabinet archive"),
    _archive(b"!<arch>\n", "an ar archive or Debian package"),
    _archive(b"\xed\xab\xee\xdb", "an RPM package"),
    _archive(b"070701", "a cpio archive"),
    _archive(b"070702", "a cpio archive"),
    _archive(b"070707", "a cpio archive"),
    _archive(b"MSWIM\0\0\0", "a Windows imaging (WIM) file"),
    _archive(b"xar!", "a xar archive"),
    _image(b"QED\0", "a QED image"),
    _image(b"WithoutFreeSpace", "a Parallels image"),
    _image(b"WithouFreSpacExt", "a Parallels image"),
    _image(b"Bochs Virtual HD Image", "a Bochs image"),
    _image(b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "a cloop image"),
    _image(b"\x3a\xff\x26\xed", "an Android sparse image", "expand it: simg2img IMAGE disk.raw"),
    _image(b"EVF\x09\x0d\x0a\xff\0", "an EnCase image", "export it as a raw image: ewfexport -f raw IMAGE"),
    _image(b"sprs", "an Apple sparse image", "convert it on macOS: hdiutil convert IMAGE -format UDTO -o disk"),
    _image(b"%PDF-", "a PDF document", "give the URL of the image itself"),
)
_BZIP2: Final = re.compile(rb"BZh[1-9](?:\x31\x41\x59\x26\x53\x59|\x17\x72\x45\x38\x50\x90)")

_TAR_TYPES: Final = b"\0" + b"01234567" + b"DKLMNSVXgx"
_TAR_ABOUT_ARCHIVE: Final = b"MV"
"""GNU tar's headers of a continued volume and of a volume's label, which have no mark and leave most fields blank."""


def recognise_wrapper(head: bytes) -> Wrapper | None:
    """Return the wrapper that `head`, the first bytes of some content (512 or more, or all of it), begins.

    An empty tar is a run of zeros and so not told from a blank disk.
    """
    if head.startswith(b"\x1f\x8b\x08"):
        return "gz"
    if head.startswith(b"\xfd7zXZ\x00"):
        return "xz"
    if _frame(head) == _ZSTD:
        return "zst"
    if _is_tar(head[:512]):
        return "tar"
    return None


def identify_unsupported(head: bytes) -> Foreign | None:
    """Return the recognised but unsupported wrapper or image format that `head` begins with, or None."""
    for magic, foreign in _FOREIGN:
        if head.startswith(magic):
            return foreign
    if head.startswith(b"\x1f\x9d") and len(head) > 2 and head[2] & 0x60 == 0 and 9 <= head[2] & 0x1F <= 16:
        return Foreign(name="a compress (.Z) stream", remedy=_UNPACK)
    if _frame(head) == _LZ4:
        return Foreign(name="an lz4 stream", remedy=_UNPACK)
    if _BZIP2.match(head):
        return Foreign(name="a bzip2 stream", remedy=_UNPACK)
    if _is_lzma_alone(head):
        return Foreign(name="an lzma stream (the old .lzma, not xz)", remedy=_UNPACK)
    return None


def _frame(head: bytes) -> bytes | None:
    """Return the magic of the first frame that is not skippable, or zstd's if only skippable ones are visible.

    zstd and lz4 share the skippable frames.
    """
    at = 0
    for _ in range(_SKIPPABLE_FRAMES):
        magic = head[at : at + 4]
        if len(magic) == 4 and magic[1:] == _SKIPPABLE and magic[0] & 0xF0 == 0x50:
            if at + 8 > len(head):
                return _ZSTD
            at += 8 + int.from_bytes(head[at + 4 : at + 8], "little")
            continue
        if magic in (_ZSTD, _LZ4):
            return magic
        return _ZSTD if at >= len(head) > 0 and at > 0 else None
    return None


def _is_tar(header: bytes) -> bool:
    """Return whether this is a tar header with a valid checksum.

    The magic alone, or a name alone, could be in any disk's boot sector.
    """
    if len(header) < 512 or header[0] == 0:
        return False
    said = _octal(header[148:156])
    if said is None:
        return False
    rest = header[:148] + b" " * 8 + header[156:]
    # Some old writers summed signed bytes.
    if said not in (sum(rest), sum(rest) - 256 * sum(byte > 127 for byte in rest)):
        return False
    if header[257:262] == b"ustar" or header[156] in _TAR_ABOUT_ARCHIVE:
        return True
    fields = (header[100:108], header[124:136], header[136:148])
    return header[156] in _TAR_TYPES and all(_octal(field) is not None for field in fields)


def _octal(field: bytes) -> int | None:
    digits = field.strip(b" \0")
    if not digits or digits.strip(b"01234567"):
        return None
    return int(digits, 8)


def _is_lzma_alone(head: bytes) -> bool:
    """Match a header without magic: properties, dictionary size, length, and the range coder's first byte, a zero."""
    if len(head) < 18 or head[0] >= 9 * 5 * 5 or head[13] != 0:
        return False
    dictionary = int.from_bytes(head[1:5], "little")
    length = int.from_bytes(head[5:13], "little")
    # As xz does: only sizes that encoders write, and lengths that are believable or not given.
    bits = dictionary.bit_length()
    usual = dictionary in (1 << max(bits - 1, 0), 3 << max(bits - 2, 0)) and 4096 <= dictionary <= 3 << 29
    return usual and (length == (1 << 64) - 1 or 0 < length < 1 << 38) and any(head[14:18])
