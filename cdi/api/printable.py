"""Foreign text in messages: without the characters that end a line or control a terminal."""

from __future__ import annotations


def printable(text: str, limit: int, *, substitute: str = " ") -> str:
    """Return at most the first `limit` characters, with `substitute` for each that cannot be printed."""
    return "".join(c if c.isprintable() else substitute for c in text[:limit])


def one_line(text: object, limit: int = 512) -> str:
    """Return the words of a text, None being empty, on one line of at most `limit` characters."""
    return " ".join(printable(str(text or ""), 4 * limit).split())[:limit]


def escaped(text: str, *, keep: str = "") -> str:
    r"""Return the text with ``\x1b`` and the like for each character that cannot be printed, except those in `keep`."""
    return "".join(c if c.isprintable() or c in keep else f"\\x{ord(c):02x}" for c in text)
