"""Validators that show whether two responses carry the same content (RFC 9110 section 8.8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from cdi.http import headers as fields
from cdi.http.message import Response


@dataclass(frozen=True, slots=True)
class Validator:
    """The ETag and modification date of a response."""

    tag: str | None = None
    """The opaque part of the ETag, with its quotes."""
    is_strong: bool = False
    modified: str | None = None

    @classmethod
    def of(cls, response: Response) -> Self:
        tag = fields.etag(response.headers)
        modified = fields.last_modified(response.headers)
        return cls(None, False, modified) if tag is None else cls(tag[0], tag[1], modified)

    @property
    def strong(self) -> str | None:
        """The ETag for If-Range; None unless it is strong."""
        return self.tag if self.is_strong else None

    @property
    def is_empty(self) -> bool:
        """True if the response has no value that would change with the content."""
        return self.tag is None and self.modified is None

    def matches(self, other: Self) -> bool:
        """Return whether no value that both have differs.

        Tags are compared weakly, because a server that compresses only some responses marks the same tag weak in those.
        Dates count only without tags, because they often differ between replicas of a file.
        """
        if self.tag is not None and other.tag is not None:
            return self.tag == other.tag
        if self.modified is not None and other.modified is not None:
            return self.modified == other.modified
        return True

    def to_token(self, length: int | None) -> str | None:
        """Return the validator for journals; None if the response has no value that would change with the content."""
        if self.is_strong:
            return self.tag
        parts = [f"W/{self.tag}" if self.tag else None, self.modified, None if length is None else str(length)]
        return None if self.tag is None and self.modified is None else "; ".join(part for part in parts if part)
