"""Errors for a registry's error responses.

Follows the OCI distribution specification 1.1, section "Error codes": a JSON object with a list of errors, each with a
code, a message and details. For any other body, the status alone determines the error.
"""

from __future__ import annotations

from collections.abc import Mapping

from cdi.api.errors import (
    CdiError,
    SourceForbidden,
    SourceNotFound,
    SourceRefused,
    SourceUnauthorized,
    SourceUnavailable,
)
from cdi.api.json_document import parse_json
from cdi.api.printable import printable
from cdi.http import headers as fields
from cdi.http.status import is_retryable

_LISTED = 10
_MISSING = frozenset({"MANIFEST_UNKNOWN", "NAME_UNKNOWN", "BLOB_UNKNOWN", "NOT_FOUND", "NAME_INVALID", "TAG_INVALID"})
_PRIVATE = "check the image name and the secret: the image is private or, with some registries, does not exist"


def error_from_document(status: int, headers: Mapping[str, str], body: bytes, where: str) -> CdiError | None:
    """Return the error for a registry's error document; None if there is none with a known code.

    `headers` have lower-case names.
    """
    for code, message in _errors(body):
        text = f"the registry reported {code}" + (f": {message}" if message else "")
        if code in _MISSING and status in (400, 404, 410):
            return SourceNotFound(text, where=where, remedy="check the image's repository and tag")
        if code == "UNAUTHORIZED" and status in (401, 403):
            return SourceUnauthorized(text, where=where, remedy=_PRIVATE)
        if code == "DENIED" and status in (401, 403):
            return SourceForbidden(text, where=where, remedy=_PRIVATE)
        if code == "TOOMANYREQUESTS" and status in (403, 429, 503):
            return _later(text, headers, where)
    return None


def error_for_response(status: int, headers: Mapping[str, str], body: bytes, where: str) -> CdiError:
    """Return the error for any unexpected response."""
    explained = error_from_document(status, headers, body, where)
    if explained is not None:
        return explained
    said = next((f": {code} {message}".rstrip() for code, message in _errors(body)), "")
    text = f"the registry answered {status}{said}"
    if status == 401:
        return SourceUnauthorized(text, where=where, remedy=_PRIVATE)
    if status == 403:
        return SourceForbidden(text, where=where, remedy=_PRIVATE)
    if status in (404, 410):
        return SourceNotFound(text, where=where, remedy="check the image's repository and tag")
    if is_retryable(status):
        return _later(text, headers, where)
    return SourceRefused(text, where=where)


def _later(text: str, headers: Mapping[str, str], where: str) -> SourceUnavailable:
    remedy = "log in to the registry for a higher limit, or wait" if "TOOMANY" in text or "429" in text else None
    return SourceUnavailable(
        text, where=where, remedy=remedy, retry_after=fields.parse_retry_after(headers.get("retry-after"))
    )


def _errors(body: bytes) -> list[tuple[str, str]]:
    """Return the code and message of each entry, sanitised for display."""
    try:
        document = parse_json(body)
    except ValueError:
        return []
    entries = document.get("errors") if isinstance(document, dict) else None
    found = []
    for entry in entries[:_LISTED] if isinstance(entries, list) else ():
        code = entry.get("code") if isinstance(entry, dict) else None
        message = entry.get("message") if isinstance(entry, dict) else None
        if isinstance(code, str):
            found.append((_shown(code).upper()[:40], _shown(message)[:200] if isinstance(message, str) else ""))
    return found


def _shown(text: str) -> str:
    return printable(text, 400).strip().rstrip(".")
