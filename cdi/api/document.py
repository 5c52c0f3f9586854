"""Documents from outside, before any model sees them.

A manifest is untrusted: it may be nested a thousand levels deep, refer to itself, hold numbers that JSON cannot
express, or be a few lines of YAML that unfold to gigabytes.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from typing import Any

from cdi.api.errors import InvalidManifest

MAX_DEPTH = 64
"""Levels; the deepest field of the API is at about 15."""
MAX_VALUES = 100_000
"""Values in all.  An API server takes 3 MiB."""
MAX_TEXT = 3 << 20
"""Characters in all."""


def plain(document: object) -> dict[str, Any]:
    """A copy of a document that is plain JSON; raises `InvalidManifest` naming the place where it is not.

    A time is a string: YAML reads an unquoted one as its own type, and Kubernetes does not.
    """
    if not isinstance(document, Mapping):
        raise InvalidManifest(f"a manifest must be of type object, not {json_type(document)}")
    copy = _Copy().of(document, "", 0)
    assert isinstance(copy, dict)
    return copy


class _Copy:
    """One copying under way, with what it has used up."""

    def __init__(self) -> None:
        self._values = 0
        self._text = 0

    def of(self, value: object, path: str, depth: int) -> Any:
        self._values += 1
        # What an alias names is counted wherever it stands, so a document that unfolds is refused while it is small.
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
    """Return the type of a value as OpenAPI names it, ``string`` or ``boolean`` for instance."""
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
