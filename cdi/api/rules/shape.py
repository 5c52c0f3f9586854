"""Conversion of Pydantic's validation errors to problems with Kubernetes' messages.

A field of a wrong type "must be of type string, not boolean", with OpenAPI's type names. The message shows the value as
parsed: an unquoted ``yes`` or ``1.0`` in YAML is a boolean or a number, and only quotes make it a string.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import ValidationError

from cdi.api.json_document import json_type
from cdi.api.rules.problems import Cause, Problem, truncate

_WANTED: Final = {
    "bool_type": "boolean",
    "dict_type": "object",
    "float_type": "number",
    "int_type": "integer",
    "list_type": "array",
    "model_attributes_type": "object",
    "model_type": "object",
    "string_type": "string",
}
_MEMBERS: Final = {"str": "string_type", "bool": "bool_type", "int": "int_type"}
"""Pydantic's names of union members in a path, and the error of each for a value of another type."""
_MAX_QUOTED: Final = 200


def shape_problems(error: ValidationError, *, hides_values: bool = False) -> tuple[Problem, ...]:
    """Return one problem for each field; with `hides_values` no value is repeated, because it may be a secret."""
    by_place: dict[tuple[int | str, ...], list[Mapping[str, Any]]] = {}
    for one in error.errors(include_url=False):
        place = one["loc"]
        if place and _MEMBERS.get(str(place[-1])) == one["type"]:
            place = place[:-1]
        by_place.setdefault(place, []).append(one)
    return tuple(_problem(_path(place), found, hide=hides_values) for place, found in by_place.items())


def _problem(field: str, found: list[Mapping[str, Any]], *, hide: bool) -> Problem:
    first = found[0]
    if first["type"] in _WANTED:
        wanted = [_WANTED[one["type"]] for one in found if one["type"] in _WANTED]
        return Problem(field=field, message=_wrong_type(wanted, first["input"], hide=hide))
    if first["type"] == "missing":
        return Problem(field=field, message="Required value", cause=Cause.REQUIRED)
    message = str(first["msg"]).removeprefix("Value error, ").replace("Input should be", "must be", 1)
    return Problem(field=field, message=f"Invalid value: {truncate(message, _MAX_QUOTED)}")


def _path(place: Iterable[int | str]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{truncate(part)}" for part in place).lstrip(".")


def _wrong_type(wanted: list[str], value: object, *, hide: bool) -> str:
    read = json_type(value)
    text = "" if hide or read in ("array", "object") else f"{truncate(json.dumps(value, ensure_ascii=False))}: "
    return f"Invalid value: {text}must be of type {' or '.join(dict.fromkeys(wanted))}, not {read}{_hint(wanted, read)}"


def _hint(wanted: list[str], read: str) -> str:
    if "string" in wanted and read == "boolean":
        return " (put it in quotes; YAML reads a bare yes, no, on or off as a boolean)"
    if "string" in wanted and read in ("integer", "number"):
        return " (put it in quotes)"
    if "object" in wanted and read in ("boolean", "null"):
        return " (an empty object is {})"
    return ""
