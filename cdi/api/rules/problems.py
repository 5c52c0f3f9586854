"""Validation problems, and small checks that many rules share."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from cdi.api.names import MAX_NAME, is_dns_subdomain
from cdi.api.printable import printable


class Cause(enum.StrEnum):
    """Category of a problem, with Kubernetes' names (``CauseType``)."""

    INVALID = "FieldValueInvalid"
    REQUIRED = "FieldValueRequired"
    NOT_SUPPORTED = "FieldValueNotSupported"
    DUPLICATE = "FieldValueDuplicate"
    """A value that already exists; by convention also a change of an immutable field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Problem in one field of an object."""

    field: str
    """Path of the field, such as ``spec.source.http.url``."""
    message: str
    """Description of the problem, one sentence without a full stop."""
    cause: Cause = Cause.INVALID
    detail: str = ""
    """What `message` does not say, where it must equal that of KubeVirt's CDI; not part of the cause in a response."""

    def __str__(self) -> str:
        text = f"{self.message}: {self.detail}" if self.detail else self.message
        return f"{self.field}: {text}" if self.field else text


Problems = Iterator[Problem]


def one_of(value: str | None, allowed: Collection[str], field: str) -> Problems:
    """Yield a problem unless a value is allowed or empty, which equals absent as in Go."""
    if value and value not in allowed:
        yield Problem(field=field, message=unsupported(value, allowed), cause=Cause.NOT_SUPPORTED)


def unsupported(value: str, allowed: Collection[str]) -> str:
    """Return Kubernetes' message for an unsupported value."""
    words = ", ".join(f'"{word}"' for word in sorted(allowed))
    return f'Unsupported value: "{truncate(value)}": supported values: {words}'


def object_name(name: str, field: str, what: str) -> Problems:
    """Yield a problem if a name is missing or invalid for an object; `what` names the object in the message."""
    if not name:
        yield Problem(field=field, message=f"Required value: the name of {what} is missing", cause=Cause.REQUIRED)
    elif len(name) > MAX_NAME:
        yield Problem(field=field, message=f"Name cannot be longer than {MAX_NAME} characters: name of {what}")
    elif not is_dns_subdomain(name):
        yield Problem(
            field=field,
            message=f"Name of {what} {truncate(name)!r} is not a DNS subdomain: lower case letters, digits, '-' and "
            "'.', beginning and ending with a letter or digit",
        )


def optional_name(name: str | None, field: str, what: str) -> Problems:
    """Yield the problems that `object_name` finds, or none if the name is empty or absent."""
    if name:
        yield from object_name(name, field, what)


def each(values: list[str] | None, field: str, check: Callable[[str, str], Problems]) -> Problems:
    """Apply a check to each element of a list."""
    for index, value in enumerate(values or []):
        yield from check(value, f"{field}[{index}]")


def has_control_characters(text: str) -> bool:
    """Return whether a text contains C0, DEL or C1 characters, which can break lines, headers and terminals."""
    return any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in text)


def truncate(text: str, limit: int = 80) -> str:
    """Return a value for messages: truncated, and without characters that control a terminal."""
    cut = text if len(text) <= limit else text[:limit] + "…"
    return printable(cut, len(cut), substitute="\ufffd")
