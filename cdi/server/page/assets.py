"""Static files of the page, and the security headers that they are served with."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from importlib import resources

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""The Content-Security-Policy: nothing from other origins, nothing inline, and text never becomes markup."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_FOLDERS = ("", "js/", "js/vendor/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """A static file."""

    content: bytes
    content_type: str
    tag: str
    """The ETag, which changes with the content."""


@functools.cache
def assets() -> dict[str, Asset]:
    """Return the files by path; nothing else is served, so path traversal is impossible."""
    found: dict[str, Asset] = {}
    root = resources.files("cdi.server.page") / "static"
    for folder in _FOLDERS:
        for file in (root / folder if folder else root).iterdir():
            kind = _TYPES.get(file.name.rpartition(".")[2])
            if kind is None or not file.is_file():
                continue
            content = file.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[f"/page/{folder}{file.name}"] = Asset(content=content, content_type=kind, tag=tag)
    found["/"] = found.pop("/page/index.html")
    return found
