"""Manifest with its position in a file, for error messages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cdi.api.errors import InvalidManifest, NotFound


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A document of a file."""

    origin: str
    """The file, ``-`` for standard input."""
    line: int
    """The line of the file where the document begins; the first is 1."""
    body: Any

    @property
    def place(self) -> str:
        """The position for messages: ``dv.yaml:12``."""
        return f"{'standard input' if self.origin == '-' else self.origin}:{self.line}"


Manifest = Mapping[str, Any] | Document
"""A manifest to apply; only its body if it does not come from a file."""


@contextlib.contextmanager
def located(place: str) -> Iterator[None]:
    """Prefix the location in errors with `place`, unless it is empty."""
    try:
        yield
    except (InvalidManifest, NotFound) as error:
        if not place:
            raise
        where = f"{place}: {error.where}" if error.where else place
        raise type(error)(error.what, where=where, remedy=error.remedy) from error
