"""Strict decoder from JSON to frozen dataclasses, for data that control plane and data plane exchange.

The models of the API use Pydantic. A worker that transfers one small image would spend more time on importing Pydantic
than on the image, so `Job` and related classes use this decoder: types are exact, repeated and (unless the
caller allows them) unknown fields are rejected, integers have at most 64 bits, other numbers are finite, and one
message lists all problems.

Supported types are str, int, float, bool, Literal, enums of strings, ``X | None``, ``tuple[X, ...]``, ``dict[str, X]``,
dataclasses, and unions of dataclasses with a Literal field ``kind`` as the discriminator; `Range` limits numbers.
"""

from __future__ import annotations

import enum
import functools
import json
import math
import types
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from cdi.api.errors import InvalidManifest
from cdi.api.json_document import parse_json

T = TypeVar("T")

_DEPTH = 16
_MAX_INT = (1 << 63) - 1
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}
"""Names of the types in JSON Schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Allowed values of a number, in ``Annotated[int, Range(...)]``."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None

    def problem(self, value: float) -> str | None:
        if self.at_least is not None and value < self.at_least:
            return f"must be at least {self.at_least:g}"
        if self.at_most is not None and value > self.at_most:
            return f"must be at most {self.at_most:g}"
        if self.above is not None and not value > self.above:
            return f"must be greater than {self.above:g}"
        return None


class DecodeError(ValueError):
    """Error for an invalid document; `problems` are strings ``field: what is wrong``."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class JsonRecord:
    """Base of the dataclasses that are exchanged as one JSON object."""

    __slots__ = ()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse JSON; raise `ValueError` if it is invalid."""
        return decode(cls, text)

    def to_json(self) -> str:
        return compact_json(asdict(cast("Any", self)))


class JsonJob(JsonRecord):
    """Base of the jobs of workers, whose errors users read."""

    __slots__ = ()
    title: ClassVar[str]

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse JSON; raise `InvalidManifest` that names every invalid field."""
        try:
            return decode(cls, text)
        except DecodeError as error:
            raise InvalidManifest(f"not a {cls.title}: {error}") from error


def compact_json(document: dict[str, Any]) -> str:
    """Return ASCII JSON without spaces."""
    return json.dumps(document, separators=(",", ":"))


def decode(cls: type[T], text: str | bytes, *, allow_unknown: bool = False) -> T:
    """Parse one JSON document as `cls`; raise `DecodeError` with all problems.

    With `allow_unknown`, fields that `cls` does not have are ignored: another version of the program may have written
    the document.
    """
    try:
        document = parse_json(text, unique_fields=True)
    except ValueError as error:
        raise DecodeError([f"not JSON: {error}"]) from error
    return decode_parsed(cls, document, allow_unknown=allow_unknown)


def decode_parsed(cls: type[T], document: Any, *, allow_unknown: bool = False) -> T:
    """Return a parsed JSON document as `cls`; raise `DecodeError` with all problems."""
    problems = _Problems(allow_unknown=allow_unknown)
    value = _value(cls, document, "", problems)
    if problems:
        raise DecodeError(problems)
    return cast(T, value)


class _Problems(list[str]):
    """The problems of a document that were found so far."""

    def __init__(self, *, allow_unknown: bool) -> None:
        super().__init__()
        self.allow_unknown = allow_unknown


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


@functools.cache
def _parts(hint: Any) -> tuple[Any, Range | None, Any, tuple[Any, ...]]:
    """Return a type without its `Range`, the range, and the type's origin and arguments."""
    bound: Range | None = None
    if get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
        bound = next((note for note in notes if isinstance(note, Range)), None)
    return hint, bound, get_origin(hint), get_args(hint)


def _value(hint: Any, value: Any, at: str, problems: _Problems) -> Any:
    """Return `value` as the type `hint`; if it is invalid, append to `problems` and return None."""
    hint, bound, origin, arguments = _parts(hint)
    if origin in (Union, types.UnionType):
        return _union(arguments, value, at, problems)
    if origin is Literal:
        if value in arguments and isinstance(value, str):
            return value
        return _wrong(at, f"must be one of {', '.join(map(str, arguments))}", problems)
    if origin is tuple:
        if not isinstance(value, list):
            return _wrong(at, "must be a list", problems)
        inner = arguments[0]
        return tuple(_value(inner, item, f"{at}[{number}]", problems) for number, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            return _wrong(at, "must be an object", problems)
        inner = arguments[1]
        return {key: _value(inner, item, f"{at}.{key}", problems) for key, item in value.items()}
    if is_dataclass(hint):
        return _dataclass(cast(type, hint), value, at, problems)
    if isinstance(hint, type) and issubclass(hint, enum.StrEnum):
        if isinstance(value, str) and value in list(hint):
            return hint(value)
        return _wrong(at, f"must be one of {', '.join(hint)}", problems)
    if (isinstance(value, int) and not -_MAX_INT <= value <= _MAX_INT) or value in (math.inf, -math.inf):
        return _wrong(at, "is too large a number", problems)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # In Python, bool is a subclass of int.
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        return _wrong(at, f"must be of type {_TYPES[hint]}", problems)
    if bound is not None and (problem := bound.problem(value)) is not None:
        return _wrong(at, problem, problems)
    return value


def _union(choices: tuple[Any, ...], value: Any, at: str, problems: _Problems) -> Any:
    if types.NoneType in choices:
        if value is None:
            return None
        rest = tuple(choice for choice in choices if choice is not types.NoneType)
        if len(rest) == 1:
            return _value(rest[0], value, at, problems)
        choices = rest
    kinds = {get_args(_hints(choice)["kind"])[0]: choice for choice in choices}
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        return _wrong(f"{at}.kind", f"must be one of {', '.join(kinds)}", problems)
    return _dataclass(kinds[kind], value, at, problems)


def _dataclass(cls: type, value: Any, at: str, problems: _Problems) -> Any:
    if not isinstance(value, dict):
        return _wrong(at, "must be an object", problems)
    if at.count(".") > _DEPTH:
        return _wrong(at, "is nested too deep", problems)
    before = len(problems)
    hints = _hints(cls)
    found: dict[str, Any] = {}
    for field in fields(cls):
        place = f"{at}.{field.name}"
        if field.name in value:
            found[field.name] = _value(hints[field.name], value[field.name], place, problems)
        elif field.default is MISSING and field.default_factory is MISSING:
            _wrong(place, "is missing", problems)
    for name in () if problems.allow_unknown else value.keys() - hints.keys():
        _wrong(f"{at}.{name}"[:200], "is not known", problems)
    return None if len(problems) > before else cls(**found)


def _wrong(at: str, what: str, problems: list[str]) -> None:
    problems.append(f"{at.lstrip('.') or 'it'}: {what}")
