"""What a client that uploads on this machine asks for: an annotation of the claim."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Self

from cdi.api.decode import DecodeError, decode
from cdi.api.names import GROUP

ANNOTATION = f"{GROUP}/storage.upload.request"


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRequest:
    """One upload.  Another one has another id."""

    id: str
    path: str | None = None
    """The file that is uploaded; None for a stream, which only the process that has it can give to a worker."""
    length: int | None = None
    """Bytes of a stream, where known."""

    @classmethod
    def read(cls, text: str | None) -> Self | None:
        """None where there is none, or none that can be read."""
        if not text:
            return None
        try:
            return decode(cls, text)
        except DecodeError:
            return None

    def write(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))
