"""Parsing and limits of untrusted documents, before they are converted to models.

A manifest may be nested a thousand levels deep, contain reference cycles or numbers that JSON cannot express, or be a
few lines of YAML that expand to gigabytes.

`parse_json` is the only caller of the JSON parser (enforced by ruff's TID251; exceptions are marked). CPython's parser
recurses for each level, and since 3.12 its limit counts calls without regard to the remaining stack: a few thousand
brackets crash a process whose thread has a small stack.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from cdi.api.errors import InvalidManifest

MAX_DEPTH = 64
"""Maximum nesting of a manifest; the deepest field of the API is at about level 15."""
MAX_VALUES = 100_000
"""Maximum number of values; an API server accepts 3 MiB."""
MAX_TEXT = 3 << 20
"""Maximum number of characters."""
MAX_NESTING = 128
"""Maximum nesting of any JSON document: a manifest and the objects it is wrapped in."""
_CHUNK_SIZE = 1 << 18
_BRACKETS = b"[{]}"
_STEPS = bytes.maketrans(_BRACKETS, b"\x01\x01\xff\xff")
"""Change of the depth at each bracket, as a signed byte."""
_OTHERS = bytes(set(range(256)) - set(_BRACKETS))


def parse_json(text: str | bytes | bytearray, *, unique_fields: bool = False) -> Any:
    """Parse a JSON document (RFC 8259); bytes may be UTF-8, UTF-16 or UTF-32.

    Args:
        text: The document, whose size the caller has limited.
        unique_fields: Reject an object that repeats a field; otherwise the last value is used.

    Raises:
        ValueError: The text is not JSON, or it is nested more than `MAX_NESTING` levels deep.
    """
    if not isinstance(text, str):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    check_nesting(text)
    return (_UNIQUE_DECODER if unique_fields else _DECODER).decode(text)


def check_nesting(text: str) -> None:
    """Raise `ValueError` for JSON nested more than `MAX_NESTING` levels deep; invalid JSON may pass."""
    if text.count("[") + text.count("{") <= MAX_NESTING:
        return
    check = NestingCheck()
    for at in range(0, len(text), _CHUNK_SIZE):
        check.feed(text[at : at + _CHUNK_SIZE])


class NestingCheck:
    """Incremental check of the nesting of a JSON text.

    The check reads text as the parser does, up to the first syntax error. Text after that is never parsed, so the
    result for it does not matter.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._rest = ""
        """A backslash at the end of the last piece, whose escaped character is in the next one."""

    def feed(self, piece: str) -> None:
        """Check the next part of the text; raise `ValueError` if it is nested more than `MAX_NESTING` levels deep."""
        piece = self._rest + piece
        backslashes = len(piece) - len(piece.rstrip("\\"))
        self._rest = "\\" if backslashes % 2 else ""
        piece = piece.removesuffix(self._rest)
        # Without escaped backslashes and quotes, every quote starts or ends a string.
        parts = piece.replace("\\\\", "").replace('\\"', "").split('"')
        outside = "".join(parts[self._in_string :: 2])
        self._in_string ^= len(parts) % 2 == 0
        steps = memoryview(outside.encode("ascii", "ignore").translate(_STEPS, _OTHERS)).cast("b")
        depths = list(itertools.accumulate(steps, initial=self._depth))
        if max(depths) > MAX_NESTING:
            raise ValueError(f"it is nested more than {MAX_NESTING} levels deep")
        self._depth = depths[-1]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object; raise `ValueError` if a field is repeated, because parsers differ in which value counts."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"duplicate field {name[:80]!r}")
        found[name] = value
    return found


def _no_number(text: str) -> NoReturn:
    """Reject NaN and the infinities, which Python parses but JSON does not allow (RFC 8259, section 6)."""
    raise ValueError(f"{text} is not a number")


_DECODER = json.JSONDecoder(parse_constant=_no_number)  # noqa: TID251  that of `parse_json`
_UNIQUE_DECODER = json.JSONDecoder(parse_constant=_no_number, object_pairs_hook=_unique)  # noqa: TID251


def plain(document: object) -> dict[str, Any]:
    """Return a copy of a document as plain JSON types; raise `InvalidManifest` naming the invalid place.

    Timestamps become strings: YAML parses an unquoted one as a separate type, Kubernetes does not.
    """
    if not isinstance(document, Mapping):
        raise InvalidManifest(f"a manifest must be of type object, not {json_type(document)}")
    copy = _Copy().of(document, "", 0)
    assert isinstance(copy, dict)
    return copy


class _Copy:
    """State of one copy operation, with the consumed share of the limits."""

    def __init__(self) -> None:
        self._values = 0
        self._text = 0

    def of(self, value: object, path: str, depth: int) -> Any:
        self._values += 1
        # Aliased values count each time, so an expanding document is rejected while it is small.
        if self._values > MAX_VALUES:
            raise InvalidManifest(f"the manifest has more than {MAX_VALUES} values")
        if depth > MAX_DEPTH:
            raise InvalidManifest(f"the manifest is nested more than {MAX_DEPTH} levels deep", where=path[:200])
        match value:
            case None | bool():
                return value
            case str():
                return self._string(value, path)
            case int():
                if not -(1 << 63) <= value < 1 << 63:
                    raise InvalidManifest("the number does not fit into 64 bits", where=path)
                return int(value)
            case float():
                if not math.isfinite(value):
                    raise InvalidManifest(f"{value} is not a number of JSON", where=path)
                return float(value)
            case dt.date():
                return _time(value, path)
            case Mapping():
                return {
                    self._key(key, path): self.of(item, _child(path, key), depth + 1) for key, item in value.items()
                }
            case list() | tuple():
                return [self.of(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
            case _:
                raise InvalidManifest(f"a manifest cannot hold a value of type {json_type(value)}", where=path or None)

    def _key(self, key: object, path: str) -> str:
        if not isinstance(key, str):
            raise InvalidManifest(
                f"a field's name must be of type string, not {json_type(key)}; put it in quotes",
                where=path or None,
            )
        return self._string(key, path)

    def _string(self, text: str, path: str) -> str:
        self._text += len(text)
        if self._text > MAX_TEXT:
            raise InvalidManifest(f"the manifest is longer than {MAX_TEXT} characters")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidManifest("the text is not valid Unicode", where=path or None) from None
        return str(text)


def _child(path: str, key: object) -> str:
    name = key[:80].encode(errors="replace").decode() if isinstance(key, str) else "?"
    return f"{path}.{name}" if path else name


def _time(value: dt.date, path: str) -> str:
    if not isinstance(value, dt.datetime):
        return value.isoformat()
    if value.tzinfo is None:
        value = value.replace(tzinfo=dt.UTC)
    try:
        return value.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
    except OverflowError:
        raise InvalidManifest("the time is out of range", where=path) from None


def json_type(value: object) -> str:
    """Return the OpenAPI name of a value's type, such as ``string`` or ``boolean``."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case Mapping():
            return "object"
        case list() | tuple():
            return "array"
        case dt.date():
            return "date"
        case _:
            return type(value).__name__
