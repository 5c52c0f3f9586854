"""Whether two answers speak of the same content (RFC 9110 section 8.8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from cdi.source import headers as fields
from cdi.source.http_message import Response


@dataclass(frozen=True, slots=True)
class Validator:
    """What an answer says about which content it carries."""

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
        """For If-Range."""
        return self.tag if self.is_strong else None

    @property
    def is_empty(self) -> bool:
        """Whether nothing in the answer would tell another content from this one."""
        return self.tag is None and self.modified is None

    def agrees(self, other: Self) -> bool:
        """Nothing that both of them say differs.

        Tags are compared weakly: a server that compresses on one way and not on the other marks the same tag weak.
        Dates count only where there are no tags; replicas of one file often differ in them.
        """
        if self.tag is not None and other.tag is not None:
            return self.tag == other.tag
        if self.modified is not None and other.modified is not None:
            return self.modified == other.modified
        return True

    def text(self, length: int | None) -> str | None:
        """For journals; None where the server says nothing that would change with the content."""
        if self.is_strong:
            return self.tag
        parts = [f"W/{self.tag}" if self.tag else None, self.modified, None if length is None else str(length)]
        return None if self.tag is None and self.modified is None else "; ".join(part for part in parts if part)
