"""Wire protocol of a clone: encoding, parsing and validation of its frames.

The source connects and sends HELLO. The target responds with WELCOME: the offset to resume from, and the state of its
digest. Chunks follow in the order of their offsets, each with its own digest; everything between two of them is zero.
The target acknowledges periodically what is safe on its volume (ACK). After END it verifies the digest of the whole,
commits the disk and sends DONE.

    source                                  target
    HELLO    job, sizes, content type
                                            WELCOME   resume from here (or FAIL)
    DATA     offset, leaf, runs, bytes
    MARK     zeros up to here
                                            ACK       safe up to here; repeated as keep-alive
    PING     keep-alive
    END      size, digest
                                            DONE      the same digest
    BYE

A frame is a header of 8 bytes (kind, encoding, number of runs, length of the rest; big-endian) and the rest. All input
is validated before use: lengths before memory is allocated, offsets before anything is written, and a chunk's digest
before its bytes go to the volume.
"""

from __future__ import annotations

import enum
import json
import struct
from dataclasses import asdict, dataclass
from typing import Annotated, TypeVar

from cdi.api.copy import Content
from cdi.api.decode import Range, decode
from cdi.api.errors import CdiError, PeerProtocolError, by_code
from cdi.transfer.clone.digest import CHUNK, RUN_SIZE, SIZE, Run, packed, unpacked

PROTOCOL = 1
HEADER_SIZE = 8
MAX_MESSAGE = 8192
"""Maximum size of a HELLO or another message in JSON, in bytes."""
MAX_RUNS = 16
"""Maximum runs in a chunk: zeros are detected in steps of 64 KiB."""
RAW, ZSTD = 0, 1

_HEADER = struct.Struct(">BBHI")
_DATA = struct.Struct(f">Q{SIZE}s")
_MARK = struct.Struct(">Q")
_END = struct.Struct(f">Q{SIZE}s")
_MAX_TEXT = 1000
_MAX_SIZE = 1 << 62


class Kind(enum.IntEnum):
    HELLO = 1
    WELCOME = 2
    DATA = 3
    MARK = 4
    PING = 5
    END = 6
    ACK = 7
    DONE = 8
    FAIL = 9
    BYE = 10


_LENGTHS = {
    Kind.DATA: (_DATA.size + RUN_SIZE, _DATA.size + MAX_RUNS * RUN_SIZE + CHUNK),
    Kind.MARK: (_MARK.size, _MARK.size),
    Kind.PING: (0, 0),
    Kind.END: (_END.size, _END.size),
    Kind.ACK: (_MARK.size, _MARK.size),
    Kind.BYE: (0, 0),
}
"""Minimum and maximum bytes after the header; other kinds have the limits of a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    kind: Kind
    encoding: int
    runs: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """First message of the source."""

    job: str
    content: Content
    size: Annotated[int, Range(at_least=0, at_most=_MAX_SIZE)]
    """Size of the disk in bytes; of an archive, approximately."""
    data: Annotated[int, Range(at_least=0, at_most=_MAX_SIZE)]
    """Approximate allocated bytes."""
    validator: str
    """Validator of the content: data that was sent under another is not resumed."""
    fresh: bool = False
    """Whether the target must start over."""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """Response of the target, which has everything before `watermark`."""

    watermark: Annotated[int, Range(at_least=0, at_most=_MAX_SIZE)]
    state: str
    """State of the digest at the watermark, in hexadecimal; empty at the beginning."""
    data: Annotated[int, Range(at_least=0, at_most=_MAX_SIZE)] = 0
    """Bytes sent up to the watermark, as progress counts them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    digest: str
    """Digest in hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """Reason why the sender of this message cannot continue."""

    code: str
    what: str
    where: str | None = None
    remedy: str | None = None

    @classmethod
    def of(cls, error: CdiError) -> Fail:
        return cls(
            code=error.code,
            what=error.what[:_MAX_TEXT],
            where=None if error.where is None else error.where[:_MAX_TEXT],
            remedy=error.remedy[:_MAX_TEXT],
        )

    def error(self) -> CdiError:
        return by_code(self.code)(
            self.what[:_MAX_TEXT],
            where=None if self.where is None else self.where[:_MAX_TEXT],
            remedy=None if self.remedy is None else self.remedy[:_MAX_TEXT],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """DATA frame without its payload."""

    offset: int
    leaf: bytes
    runs: tuple[Run, ...]
    compressed: bool
    plain: int
    """Bytes of all runs together."""
    payload: int
    """Bytes that follow."""


_Document = TypeVar("_Document", Hello, Welcome, Done, Fail)
_KINDS: dict[type, Kind] = {Hello: Kind.HELLO, Welcome: Kind.WELCOME, Done: Kind.DONE, Fail: Kind.FAIL}


# --- encoding -----------------------------------------------------------------------------------------------------


def header(kind: Kind, length: int = 0, *, encoding: int = RAW, runs: int = 0) -> bytes:
    return _HEADER.pack(kind, encoding, runs, length)


def encode_message(content: Hello | Welcome | Done | Fail) -> bytes:
    body = json.dumps(asdict(content), separators=(",", ":")).encode()
    if len(body) > MAX_MESSAGE and isinstance(content, Fail):
        # Escapes can make foreign text exceed the limit.
        body = json.dumps({"code": content.code, "what": "", "where": None, "remedy": None}).encode()
    return header(_KINDS[type(content)], len(body)) + body


def data(offset: int, leaf: bytes, runs: tuple[Run, ...], payload: int, encoding: int) -> bytes:
    """Return the frame of a chunk up to its `payload` bytes."""
    table = packed(runs)
    length = _DATA.size + len(table) + payload
    return header(Kind.DATA, length, encoding=encoding, runs=len(runs)) + _DATA.pack(offset, leaf) + table


def encode_zero(offset: int) -> bytes:
    return header(Kind.MARK, _MARK.size) + _MARK.pack(offset)


def ack(watermark: int) -> bytes:
    return header(Kind.ACK, _MARK.size) + _MARK.pack(watermark)


def end(size: int, digest: bytes) -> bytes:
    return header(Kind.END, _END.size) + _END.pack(size, digest)


# --- parsing ------------------------------------------------------------------------------------------------------


def parse_header(raw: bytes | bytearray | memoryview) -> Header:
    """Parse a frame's header; like all parsers below it raises `PeerProtocolError`."""
    number, encoding, runs, length = _HEADER.unpack(raw)
    try:
        kind = Kind(number)
    except ValueError as error:
        raise PeerProtocolError(f"unknown frame kind {number}") from error
    least, most = _LENGTHS.get(kind, (2, MAX_MESSAGE))
    if not least <= length <= most:
        raise PeerProtocolError(f"invalid length of a {kind.name} frame: {length} bytes")
    if kind is Kind.DATA:
        if encoding not in (RAW, ZSTD) or not 1 <= runs <= MAX_RUNS or length <= prologue(runs):
            raise PeerProtocolError(f"invalid chunk: {runs} runs, {length} bytes, encoding {encoding}")
    elif encoding or runs:
        raise PeerProtocolError(f"unexpected encoding or runs in a {kind.name} frame")
    return Header(kind=kind, encoding=encoding, runs=runs, length=length)


def prologue(runs: int) -> int:
    """Return the number of bytes between the header of a chunk and its payload."""
    return _DATA.size + runs * RUN_SIZE


def parse_chunk(head: Header, raw: memoryview, position: int, size: int | None) -> Chunk:
    """Parse the first `prologue` bytes, `raw`, of a chunk; everything before `position` was received, of `size` bytes.

    Chunks must have ascending offsets, so none is repeated and their number is bounded.
    """
    offset, leaf = _DATA.unpack(raw[: _DATA.size])
    if offset % CHUNK or offset < position or (size is not None and offset >= size):
        raise PeerProtocolError(f"invalid chunk offset {offset} after {position} of {size} bytes")
    length = CHUNK if size is None else min(CHUNK, size - offset)
    runs = unpacked(raw[_DATA.size :])
    last = plain = 0
    for number, (start, stop) in enumerate(runs):
        if not (last < start or number == 0) or start >= stop or stop > length:
            raise PeerProtocolError(f"invalid run {start} to {stop} after {last} in a chunk of {length} bytes")
        last = stop
        plain += stop - start
    payload = head.length - len(raw)
    if payload != plain if head.encoding == RAW else payload >= plain:
        raise PeerProtocolError(f"invalid payload of {payload} bytes for {plain} bytes of a chunk")
    return Chunk(
        offset=offset,
        leaf=leaf,
        runs=runs,
        compressed=head.encoding == ZSTD,
        plain=plain,
        payload=payload,
    )


def parse_mark(raw: bytes | memoryview, position: int, size: int | None) -> int:
    """Return the offset up to which the content is zero."""
    (offset,) = _MARK.unpack(raw)
    if offset <= position or size is None or (offset % CHUNK and offset != size) or offset > size:
        raise PeerProtocolError(f"invalid MARK at {offset} after {position} of {size} bytes")
    return int(offset)


def parse_ack(raw: bytes | memoryview, before: int, sent: int) -> int:
    """Return the watermark, which is at least `before`, the previous one, and at most `sent`."""
    (watermark,) = _MARK.unpack(raw)
    if not before <= watermark <= sent:
        raise PeerProtocolError(f"invalid ACK of {watermark} bytes after {before}, with {sent} sent")
    return int(watermark)


def parse_end(raw: bytes | memoryview) -> tuple[int, bytes]:
    """Return size and digest."""
    size, digest = _END.unpack(raw)
    return size, digest


def parse_digest(text: str) -> bytes:
    """Return a digest or its state."""
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != SIZE:
        raise PeerProtocolError(f"{text[:100]!r} is not a valid digest")
    return raw


def parse_document(cls: type[_Document], raw: bytes | memoryview) -> _Document:
    try:
        return decode(cls, bytes(raw))
    except ValueError as error:
        raise PeerProtocolError(f"invalid {cls.__name__}: {str(error)[:_MAX_TEXT]}") from error
