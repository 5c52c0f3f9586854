"""Upload request of a client on this machine, stored in an annotation of the PVC."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Self

from cdi.api.decode import DecodeError, decode
from cdi.api.names import GROUP

ANNOTATION = f"{GROUP}/storage.upload.request"


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRequest:
    """A request for one upload; each has a unique id."""

    id: str
    path: str | None = None
    """The file to upload; None for a stream, which only the process that holds it can pass to a worker."""
    length: int | None = None
    """Length of a stream in bytes, if known."""

    @classmethod
    def read(cls, text: str | None) -> Self | None:
        """Parse the annotation; return None if it is missing or invalid."""
        if not text:
            return None
        try:
            return decode(cls, text)
        except DecodeError:
            return None

    def write(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))
