"""Detection of documents that servers send instead of an image: log-in pages, errors, directory listings."""

from __future__ import annotations

import re
from typing import Final

_SNIFF_BYTES: Final = 4096
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_TAG: Final = re.compile(r"<(?:!doctype|!--|\?xml|/?[a-z][a-z0-9:-]*[\s/>])", re.IGNORECASE)
_HTML: Final = re.compile(r"<!doctype html|<html|<head[\s>]|<body[\s>]|<title[\s>]", re.IGNORECASE)
_TITLE: Final = re.compile(r"<title[^>]{0,200}>([^<]{1,200})", re.IGNORECASE)
_JSON: Final = re.compile(r'(?:\{\s*(?:"|\})|\[\s*(?:["\[{\]]|-?\d|true|false|null))')


def sniff_document(head: bytes, content_type: str | None) -> str | None:
    """Return a description, with its article, of the document that `head` begins; None if it may be an image.

    The content decides, because servers label everything alike. Only for plain text, which a small raw image may
    resemble, `content_type` must agree.
    """
    text = _text(head[:_SNIFF_BYTES])
    if text is None:
        return None
    begin = text.lstrip()
    if not begin:
        return None
    media = (content_type or "").partition(";")[0].strip().lower()
    if _TAG.match(begin):
        if _HTML.search(begin) or media in ("text/html", "application/xhtml+xml"):
            return _html(begin)
        return "an XML document"
    if _JSON.match(begin):
        return "a JSON document"
    if begin.startswith("-----BEGIN "):
        return "a PEM or OpenPGP text"
    if media.startswith("text/"):
        return "an HTML page" if media == "text/html" else "a text document"
    return None


def _html(text: str) -> str:
    title = _TITLE.search(text)
    words = " ".join(title[1].split())[:80] if title else ""
    return f"an HTML page titled {words!a}" if words else "an HTML page"


def _text(head: bytes) -> str | None:
    """Return the decoded text, or None if a byte rules out that it is text."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) and len(head) >= 4:
        try:
            return head[: len(head) & ~1].decode("utf-16")
        except UnicodeDecodeError:
            return None
    head = head.removeprefix(b"\xef\xbb\xbf")
    if _CONTROL.search(head):
        return None
    return head.decode("latin-1")
