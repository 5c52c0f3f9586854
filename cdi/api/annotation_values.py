"""Parsers for the values of annotations that configure features beyond the fields of KubeVirt's CDI."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cdi.api.errors import ChecksumInvalid, InvalidManifest
from cdi.api.rules.problems import Cause, Problem, unsupported

Parser = Callable[[str], Any]
"""Return the value of a text, or raise ValueError, InvalidManifest or ChecksumInvalid with the cause."""


def select(annotations: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Return the annotations whose names begin with `prefix`."""
    return {name: text for name, text in annotations.items() if name.startswith(prefix)}


def parse_annotations(
    annotations: Mapping[str, str], prefix: str, parsers: Mapping[str, Parser]
) -> tuple[dict[str, Any], list[tuple[str, Problem]]]:
    """Parse the annotations that begin with `prefix`.

    Args:
        annotations: All annotations of an object.
        prefix: Common beginning of the names.
        parsers: By the part of the name after the prefix.

    Returns:
        Values by the part of the name after the prefix, and a problem for each invalid or unknown annotation, by its
        full name.
    """
    values: dict[str, Any] = {}
    problems: list[tuple[str, Problem]] = []
    for name, text in sorted(select(annotations, prefix).items()):
        short = name.removeprefix(prefix)
        parse = parsers.get(short)
        if parse is None:
            message = unsupported(short, parsers)
            problems.append((name, Problem(field=name, message=message, cause=Cause.NOT_SUPPORTED)))
            continue
        try:
            values[short] = parse(text.strip())
        except (ValueError, InvalidManifest, ChecksumInvalid) as error:
            message = str(error) if isinstance(error, ValueError) else error.what
            problems.append((name, Problem(field=name, message=f"Invalid value: {message}")))
    return values, problems


def one_of(*words: str) -> Parser:
    """Return a parser that accepts only these words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text[:40]!r} is not one of {', '.join(words)}")
        return text

    return parse


def boolean(text: str) -> bool:
    """Parse ``true`` or ``false``."""
    return bool(one_of("true", "false")(text) == "true")


def whole_number(lowest: int, highest: int) -> Parser:
    """Return a parser for a decimal number in a range."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or len(text) > len(str(highest)):
            raise ValueError(f"{text[:40]!r} is not a whole number from {lowest} to {highest}")
        number = int(text)
        if not lowest <= number <= highest:
            raise ValueError(f"{number} is not from {lowest} to {highest}")
        return number

    return parse


def printable(text: str) -> str:
    """Return a text that is neither empty nor contains control characters."""
    if not text or not text.isprintable():
        raise ValueError("is empty or holds control characters")
    return text
