"""What the two ends of a clone say to each other, and what of it is believed.

The source connects and says HELLO, the target answers with WELCOME: from where on, and what of the content's digest it
has.  Then chunks come in the order of their offsets, each with its own digest; whatever lies between two of them is
zero.  The target tells now and then how much is safe on its volume (ACK).  After END it checks the digest of the whole,
gives the disk its name and says DONE.

    source                                  target
    HELLO    who, how much, what kind
                                            WELCOME   go on from here (or FAIL)
    DATA     offset, leaf, runs, bytes
    MARK     zeros up to here
                                            ACK       safe up to here; again: I am still there
    PING     I am still there
    END      size, digest
                                            DONE      the same digest
    BYE

A frame is a header of 8 bytes (kind, encoding, number of runs, length of the rest; big-endian) and the rest.  Nothing
that comes is used before it was checked: lengths before memory is given, offsets before anything is written, and a
chunk's digest before its bytes go to the volume.
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
from cdi.transfer.copy.digest import CHUNK, RUN_SIZE, SIZE, Run, packed, unpacked

PROTOCOL = 1
HEADER_SIZE = 8
MESSAGE_MOST = 8192
"""Of a HELLO and the other documents, bytes."""
RUNS_MOST = 16
"""In a chunk: zeros are looked for in steps of 64 KiB."""
RAW, ZSTD = 0, 1

_HEADER = struct.Struct(">BBHI")
_DATA = struct.Struct(f">Q{SIZE}s")
_MARK = struct.Struct(">Q")
_END = struct.Struct(f">Q{SIZE}s")
_TEXT_MOST = 1000
_SIZE_MOST = 1 << 62


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
    Kind.DATA: (_DATA.size + RUN_SIZE, _DATA.size + RUNS_MOST * RUN_SIZE + CHUNK),
    Kind.MARK: (_MARK.size, _MARK.size),
    Kind.PING: (0, 0),
    Kind.END: (_END.size, _END.size),
    Kind.ACK: (_MARK.size, _MARK.size),
    Kind.BYE: (0, 0),
}
"""The least and the most that may follow the header, bytes; of all others, what a document may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    kind: Kind
    encoding: int
    runs: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The source's first words."""

    job: str
    content: Content
    size: Annotated[int, Range(at_least=0, at_most=_SIZE_MOST)]
    """Of the disk; of an archive, about how much will come."""
    data: Annotated[int, Range(at_least=0, at_most=_SIZE_MOST)]
    """About how much of it is allocated."""
    validator: str
    """Of the content: what was sent under another is not gone on with."""
    fresh: bool = False
    """What the target has is of no use."""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The target's answer: everything before `watermark` is there."""

    watermark: Annotated[int, Range(at_least=0, at_most=_SIZE_MOST)]
    state: str
    """Of the digest at the watermark, in hexadecimal; empty at the beginning."""
    data: Annotated[int, Range(at_least=0, at_most=_SIZE_MOST)] = 0
    """Bytes of it that were sent, as progress counts them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    digest: str
    """In hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """Why the one that says it cannot go on."""

    code: str
    what: str
    where: str | None = None
    remedy: str | None = None

    @classmethod
    def of(cls, error: CdiError) -> Fail:
        return cls(
            code=error.code,
            what=error.what[:_TEXT_MOST],
            where=None if error.where is None else error.where[:_TEXT_MOST],
            remedy=error.remedy[:_TEXT_MOST],
        )

    def error(self) -> CdiError:
        return by_code(self.code)(
            self.what[:_TEXT_MOST],
            where=None if self.where is None else self.where[:_TEXT_MOST],
            remedy=None if self.remedy is None else self.remedy[:_TEXT_MOST],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A DATA frame without its bytes."""

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


# --- said ---------------------------------------------------------------------------------------------------------


def header(kind: Kind, length: int = 0, *, encoding: int = RAW, runs: int = 0) -> bytes:
    return _HEADER.pack(kind, encoding, runs, length)


def document(content: Hello | Welcome | Done | Fail) -> bytes:
    body = json.dumps(asdict(content), separators=(",", ":")).encode()
    if len(body) > MESSAGE_MOST and isinstance(content, Fail):
        # Escapes make a foreign text longer.
        body = json.dumps({"code": content.code, "what": "", "where": None, "remedy": None}).encode()
    return header(_KINDS[type(content)], len(body)) + body


def data(offset: int, leaf: bytes, runs: tuple[Run, ...], payload: int, encoding: int) -> bytes:
    """What precedes the `payload` bytes of a chunk."""
    table = packed(runs)
    length = _DATA.size + len(table) + payload
    return header(Kind.DATA, length, encoding=encoding, runs=len(runs)) + _DATA.pack(offset, leaf) + table


def mark(offset: int) -> bytes:
    return header(Kind.MARK, _MARK.size) + _MARK.pack(offset)


def ack(watermark: int) -> bytes:
    return header(Kind.ACK, _MARK.size) + _MARK.pack(watermark)


def end(size: int, digest: bytes) -> bytes:
    return header(Kind.END, _END.size) + _END.pack(size, digest)


# --- heard --------------------------------------------------------------------------------------------------------


def parse_header(raw: bytes | bytearray | memoryview) -> Header:
    """Raises `PeerProtocolError`, as all that follow."""
    number, encoding, runs, length = _HEADER.unpack(raw)
    try:
        kind = Kind(number)
    except ValueError as error:
        raise PeerProtocolError(f"a frame of the unknown kind {number}") from error
    least, most = _LENGTHS.get(kind, (2, MESSAGE_MOST))
    if not least <= length <= most:
        raise PeerProtocolError(f"a {kind.name} frame of {length} bytes")
    if kind is Kind.DATA:
        if encoding not in (RAW, ZSTD) or not 1 <= runs <= RUNS_MOST or length <= prologue(runs):
            raise PeerProtocolError(f"a chunk of {runs} runs, {length} bytes and encoding {encoding}")
    elif encoding or runs:
        raise PeerProtocolError(f"a {kind.name} frame with runs")
    return Header(kind=kind, encoding=encoding, runs=runs, length=length)


def prologue(runs: int) -> int:
    """Bytes between the header of a chunk and its payload."""
    return _DATA.size + runs * RUN_SIZE


def parse_chunk(head: Header, raw: memoryview, position: int, size: int | None) -> Chunk:
    """`raw` are the first `prologue` bytes; everything before `position` has come, and the disk has `size` bytes.

    Chunks come in the order of their offsets, so none is there twice and there is an end to them.
    """
    offset, leaf = _DATA.unpack(raw[: _DATA.size])
    if offset % CHUNK or offset < position or (size is not None and offset >= size):
        raise PeerProtocolError(f"a chunk at {offset}, after {position} of {size} bytes")
    length = CHUNK if size is None else min(CHUNK, size - offset)
    runs = unpacked(raw[_DATA.size :])
    last = plain = 0
    for number, (start, stop) in enumerate(runs):
        if not (last < start or number == 0) or start >= stop or stop > length:
            raise PeerProtocolError(f"bytes {start} to {stop} in a chunk of {length}, after {last}")
        last = stop
        plain += stop - start
    payload = head.length - len(raw)
    if payload != plain if head.encoding == RAW else payload >= plain:
        raise PeerProtocolError(f"{payload} bytes for {plain} bytes of a chunk")
    return Chunk(
        offset=offset,
        leaf=leaf,
        runs=runs,
        compressed=head.encoding == ZSTD,
        plain=plain,
        payload=payload,
    )


def parse_mark(raw: bytes | memoryview, position: int, size: int | None) -> int:
    """The offset up to which there are zeros."""
    (offset,) = _MARK.unpack(raw)
    if offset <= position or size is None or (offset % CHUNK and offset != size) or offset > size:
        raise PeerProtocolError(f"zeros up to {offset}, after {position} of {size} bytes")
    return int(offset)


def parse_ack(raw: bytes | memoryview, before: int, sent: int) -> int:
    """A watermark, which was `before` at the last time; `sent` is as far as it can be."""
    (watermark,) = _MARK.unpack(raw)
    if not before <= watermark <= sent:
        raise PeerProtocolError(f"{watermark} bytes said to be safe, after {before} and with {sent} sent")
    return int(watermark)


def parse_end(raw: bytes | memoryview) -> tuple[int, bytes]:
    """Size and digest."""
    size, digest = _END.unpack(raw)
    return size, digest


def parse_digest(text: str) -> bytes:
    """A digest or its state."""
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != SIZE:
        raise PeerProtocolError(f"{text[:100]!r} is no digest")
    return raw


def parse_document(cls: type[_Document], raw: bytes | memoryview) -> _Document:
    try:
        return decode(cls, bytes(raw))
    except ValueError as error:
        raise PeerProtocolError(f"a {cls.__name__} that cannot be read: {str(error)[:_TEXT_MOST]}") from error
