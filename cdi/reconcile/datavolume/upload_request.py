"""Upload request of a client on this machine, stored in an annotation of the PVC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from cdi.api.annotations import UPLOAD_REQUEST

ANNOTATION = UPLOAD_REQUEST.key


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRequest:
    """A request for one upload; each has a unique id."""

    id: str
    path: str | None = None
    """The file to upload; None for a stream, which only the process that holds it can pass to a worker."""
    length: int | None = None
    """Length of a stream in bytes, if known."""
    attempt: int | None = None
    """Number of the attempt that reads the stream.

    The client that starts it records it, because the supervisor follows a worker only after a change of an object.
    """

    @classmethod
    def read(cls, text: str | None) -> Self | None:
        """Parse the annotation; return None if it is missing or invalid."""
        return UPLOAD_REQUEST.parse(cls, text)

    def write(self) -> str:
        return UPLOAD_REQUEST.format(self)
