"""The page's own files, and the rules that a browser is to keep while it shows them."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from importlib import resources

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Nothing from elsewhere, nothing inline, and text never becomes markup."""
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
_FOLDERS = ("", "js/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """One file."""

    content: bytes
    content_type: str
    tag: str
    """Changes whenever the content does."""


@functools.cache
def assets() -> dict[str, Asset]:
    """By path; there is nothing else, so no path can lead astray."""
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
