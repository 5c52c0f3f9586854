"""The file in a form that is received in pieces (``multipart/form-data``, RFC 7578 over RFC 2046).

A preamble, parts before the file and everything after it are ignored. Content is not buffered, except for bytes that
may be the start of a delimiter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from cdi.api.errors import UploadMalformed
from cdi.codec.base import Buffer

if TYPE_CHECKING:
    from multipart import MultipartSegment  # type: ignore[import-untyped]  # it has no annotations

MAX_HEADER = 8 << 10
"""Maximum size in bytes of one header line of a part."""
MAX_HEADERS = 16
"""Maximum number of header lines of a part."""
MAX_PARTS = 100
"""Maximum number of parts before the file."""
MAX_PARTS_SIZE = 256 << 10
"""Maximum size in bytes of the parts before the file, with their headers."""
MAX_PREAMBLE = 64 << 10
"""Maximum size in bytes of the text before the first delimiter, which RFC 2046 allows (section 5.1.1)."""
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
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


class MultipartFileParser:
    """Parser for the part of a form named `field`; it is fed with pieces of any size."""

    def __init__(self, boundary: bytes, field: str = "file") -> None:
        # The library takes time to import, and most uploads are not forms.
        from multipart import PushMultipartParser

        self._parser = PushMultipartParser(
            boundary,
            max_header_size=MAX_HEADER,
            max_header_count=MAX_HEADERS,
            header_charset="latin-1",  # some clients send names of files in other encodings than UTF-8
            strict=True,
        )
        self._field = field
        self._parts = 0
        self._parts_size = 0
        self._delimiter = b"\r\n--" + boundary
        self._preamble: bytes | None = b"\r\n"  # a line break before the first delimiter is optional
        """The bytes before the first delimiter; None once it was found."""
        self.headers: Mapping[str, str] = {}
        """Header fields of the file's part, once they were received; names in lower case."""
        self.found = False
        """Whether the file's part has started."""
        self.ended = False
        """Whether the file is complete."""

    def feed(self, piece: Buffer) -> Iterator[memoryview]:
        """Yield the bytes of the file in this piece; raise `UploadMalformed` if the form is malformed.

        The caller must exhaust the iterator before it feeds the next piece.
        """
        data = bytes(piece)
        if self._preamble is not None:
            # The parser finds or rejects the first delimiter depending on the pieces, so a form is given to it from
            # there on.
            data = self._preamble + data
            start = data.find(self._delimiter, 0, MAX_PREAMBLE + len(self._delimiter))
            if start < 0:
                if len(data) >= MAX_PREAMBLE + len(self._delimiter):
                    raise UploadMalformed("the form does not start with the boundary that its Content-Type names")
                self._preamble = data
                return
            self._preamble, data = None, data[start + 2 :]
        yield from self._parse(data)

    def end(self) -> None:
        """Finish the form; raise `UploadMalformed` if the file is missing or incomplete."""
        if not self.found:
            raise self._missing()
        if not self.ended:
            raise UploadMalformed("the form ends within the file", remedy="send it again")

    def _parse(self, data: bytes) -> Iterator[memoryview]:
        # The library rejects a line feed without a carriage return only at the end of a piece, so headers are given to
        # it line by line: whether a form is accepted must not depend on its pieces.
        start = 0
        while not self.found and start < len(data):
            end = data.find(b"\n", start) + 1 or len(data)
            self._parts_size += end - start
            if self._parts_size > MAX_PARTS_SIZE:
                raise UploadMalformed(
                    f"the form has more than {MAX_PARTS_SIZE} bytes before its file", remedy="send the file first"
                )
            yield from self._parse_piece(data[start:end])
            start = end
        yield from self._parse_piece(data[start:])

    def _parse_piece(self, data: bytes) -> Iterator[memoryview]:
        if self.ended or not data:
            return
        try:
            for event in self._parser.parse(data):
                if isinstance(event, bytes):
                    if self.found:
                        yield memoryview(event)
                elif event is not None:
                    self._begin(event)
                elif self.found:
                    self.ended = True
                    return
        except ValueError as error:
            raise self._refusal(error) from error

    def _begin(self, segment: MultipartSegment) -> None:
        self._parts += 1
        if segment.name == self._field:
            self.found = True
            self.headers = {name.lower(): value for name, value in reversed(segment.headerlist)}
        elif self._parts > MAX_PARTS:
            raise UploadMalformed(f"the form has more than {MAX_PARTS} parts before its file")

    def _missing(self) -> UploadMalformed:
        return UploadMalformed(f"the form has no field {self._field!r}", remedy=f"curl -F {self._field}=@IMAGE")

    def _refusal(self, error: ValueError) -> UploadMalformed:
        from multipart import ParserLimitReached, StrictParserError

        if isinstance(error, StrictParserError):  # the form has ended
            return self._missing()
        if isinstance(error, ParserLimitReached):
            return UploadMalformed("the header of a part of the form is too long", status=431)
        return UploadMalformed("a part of the form has a malformed header or an invalid delimiter")
