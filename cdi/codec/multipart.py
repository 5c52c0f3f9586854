"""Streaming parser for a file in a form (``multipart/form-data``, RFC 7578 over RFC 2046).

Parts before the file and everything after it are ignored. Content is not buffered, except for bytes that may be the
start of a delimiter.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping

from cdi.api.errors import UploadMalformed
from cdi.codec.base import Buffer

MAX_HEADERS = 8 << 10
"""Maximum size in bytes of one part's header."""
MAX_PARTS = 100
"""Maximum number of parts before the file."""
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_CLOSING = re.compile(rb"\r\n--[0-9A-Za-z'()+_,./:=? -]{1,70}--(?:\r\n)?\Z")
_PARAMETER = re.compile(
    r';[ \t]*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*(?:"((?:[^"\\\r\n]|\\.)*)"|([^;"\s]*))[ \t]*'
)


def parameters(value: str) -> tuple[str, dict[str, str]]:
    """Parse a header field like Content-Type; return its value and parameters, with value and names in lower case."""
    head, _, _ = value.partition(";")
    found: dict[str, str] = {}
    for match in _PARAMETER.finditer(value, len(head)):
        text = match[2] if match[2] is not None else match[3]
        found.setdefault(match[1].lower(), re.sub(r"\\(.)", r"\1", text) if match[2] is not None else text)
    return head.strip().lower(), found


def boundary_of(content_type: str) -> bytes:
    """Return the boundary of a form; raise `UploadMalformed` if `content_type` is not that of a form."""
    kind, given = parameters(content_type)
    boundary = given.get("boundary", "")
    if kind != "multipart/form-data" or not _BOUNDARY.fullmatch(boundary):
        raise UploadMalformed(
            "Content-Type must be multipart/form-data with a boundary",
            remedy="send a form, for instance with curl -F file=@IMAGE",
        )
    return boundary.encode("ascii")


def closing_length(tail: bytes) -> int:
    """Return the length in bytes of a form's closing delimiter at the end of `tail`.

    Some programs pass it on with the file.
    """
    match = _CLOSING.search(tail)
    return 0 if match is None else len(match[0])


class _State(enum.Enum):
    PREAMBLE = enum.auto()
    HEADERS = enum.auto()
    OTHER = enum.auto()
    FILE = enum.auto()
    AFTER = enum.auto()


class MultipartFileParser:
    """Parser for the part of a form named `field`; it is fed with pieces of any size."""

    def __init__(self, boundary: bytes, field: str = "file") -> None:
        self._delimiter = b"\r\n--" + boundary
        self._field = field
        # A line break before the first delimiter is optional.
        self._held = b"\r\n"
        self._at = _State.PREAMBLE
        self._parts = 0
        self.headers: Mapping[str, str] = {}
        """Header fields of the file's part, once they were received; names in lower case."""

    @property
    def found(self) -> bool:
        """True if the file's part has started."""
        return self._at in {_State.FILE, _State.AFTER}

    @property
    def ended(self) -> bool:
        """True if the file is complete."""
        return self._at is _State.AFTER

    def feed(self, piece: Buffer) -> Iterator[memoryview]:
        """Yield the bytes of the file in this piece; raise `UploadMalformed` if the form is malformed.

        A view is valid until the next one is requested. The caller must exhaust the iterator before it feeds the next
        piece.
        """
        if self._at is _State.AFTER:
            return
        text = self._held + bytes(piece)
        view = memoryview(text)
        position = 0
        while position < len(text) or self._at is _State.HEADERS:
            if self._at is _State.HEADERS:
                after = self._read_headers(text[position : position + MAX_HEADERS])
                if after is None:
                    break
                position += after
                continue
            found = text.find(self._delimiter, position)
            stop = found if found >= 0 else self._safe_prefix(text, position)
            if self._at is _State.FILE and stop > position:
                yield view[position:stop]
            position = stop
            if found < 0:
                break
            if self._at is _State.FILE:
                self._at, self._held = _State.AFTER, b""
                return
            self._at = _State.HEADERS
            position += len(self._delimiter)
        self._held = text[position:]

    def end(self) -> None:
        """Finish the form; raise `UploadMalformed` if the file is missing or incomplete."""
        if not self.found:
            raise UploadMalformed(f"the form has no field {self._field!r}", remedy=f"curl -F {self._field}=@IMAGE")
        if not self.ended:
            raise UploadMalformed("the form ends within the file", remedy="send it again")

    def _safe_prefix(self, text: bytes, position: int) -> int:
        """Return the offset at which a delimiter may begin at the end of `text`; its length if there is none."""
        last = text.rfind(b"\r", max(position, len(text) - len(self._delimiter) + 1))
        return last if last >= 0 and self._delimiter.startswith(text[last:]) else len(text)

    def _read_headers(self, text: bytes) -> int | None:
        """Parse a part's header, which follows a delimiter; return its length, or None if it is incomplete."""
        if text.startswith(b"--"):
            raise UploadMalformed(f"the form has no field {self._field!r}", remedy=f"curl -F {self._field}=@IMAGE")
        end = text.find(b"\r\n\r\n")
        if end < 0:
            if len(text) >= MAX_HEADERS:
                raise UploadMalformed("the header of a part of the form is too long", status=431)
            return None
        fields: dict[str, str] = {}
        for line in text[:end].split(b"\r\n")[1:]:
            name, colon, value = line.decode("utf-8", "replace").partition(":")
            if not colon:
                raise UploadMalformed("a part of the form has a malformed header")
            fields.setdefault(name.strip().lower(), value.strip())
        kind, given = parameters(fields.get("content-disposition", ""))
        self._parts += 1
        if kind == "form-data" and given.get("name") == self._field:
            self._at, self.headers = _State.FILE, fields
        elif self._parts > MAX_PARTS:
            raise UploadMalformed(f"the form has more than {MAX_PARTS} parts before its file")
        else:
            self._at = _State.OTHER
        return end + 4
