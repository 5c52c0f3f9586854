"""A manifest as it was read, with its place, so that what is wrong with it can be found in its file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cdi.api.errors import InvalidManifest, NotFound


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document of a file."""

    origin: str
    """The file, ``-`` for standard input."""
    line: int
    """Of the file, where the document begins; the first is 1."""
    body: Any

    @property
    def place(self) -> str:
        """Where it is, for messages: ``dv.yaml:12``."""
        return f"{'standard input' if self.origin == '-' else self.origin}:{self.line}"


Manifest = Mapping[str, Any] | Document
"""What is applied: the body alone where it is from no file."""


@contextlib.contextmanager
def located(place: str) -> Iterator[None]:
    """Put `place` before the field or object that an error names; nothing changes where it is empty."""
    try:
        yield
    except (InvalidManifest, NotFound) as error:
        if not place:
            raise
        where = f"{place}: {error.where}" if error.where else place
        raise type(error)(error.what, where=where, remedy=error.remedy) from error
