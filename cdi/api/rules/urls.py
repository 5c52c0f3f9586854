"""Validation of source URLs, without passwords or signatures in messages."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from urllib.parse import SplitResult, urlsplit

from cdi.api.rules.problems import Problem, Problems, has_control_characters, truncate

MAX_URL = 8192
HTTP_SCHEMES = ("http", "https")
S3_SCHEMES = ("s3", "http", "https")
GCS_SCHEMES = ("gs", "http", "https")
REGISTRY_SCHEMES = ("docker", "oci-archive")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HOST = re.compile(r"[^\s/?#@\\<>\"^`{|}%]+")


def redacted(url: str) -> str:
    """Return a URL for messages, without user name, password and query."""
    return truncate(without_secrets(url))


def without_secrets(url: str) -> str:
    """Return a URL without user name, password, query and fragment."""
    return re.sub(r"//[^/?#]*@", "//", url.partition("?")[0].partition("#")[0])


def check_url(url: str | None, schemes: Collection[str], field: str, subject: str = "") -> Problems:
    """Yield the problems of a source's URL, which must have a host and one of the schemes.

    Args:
        url: The URL.
        schemes: The schemes to choose from.
        field: Path of the URL for messages.
        subject: What KubeVirt's CDI begins its messages with: the path of the source that has the URL.
    """
    yield from (
        replace(problem, message=f"{subject} {problem.message}".lstrip()) for problem in _url(url, schemes, field)
    )


def _url(url: str | None, schemes: Collection[str], field: str) -> Problems:
    parts = _split(url, field)
    if isinstance(parts, Problem):
        yield parts
        return
    assert url is not None
    if not parts.scheme:
        yield Problem(field=field, message=f"Invalid source URL: {redacted(url)} has no scheme")
        return
    if parts.scheme not in schemes:
        yield Problem(
            field=field,
            message=f"Invalid source URL scheme: {redacted(url)} does not begin with {_alternatives(schemes)}",
        )
        return
    if parts.scheme in ("s3", "gs"):
        yield from _bucket(url, parts, field)
        return
    try:
        host, _ = parts.hostname, parts.port
    except ValueError:
        yield Problem(field=field, message=f"Invalid source URL: {redacted(url)} has no valid port")
        return
    if not host or not _HOST.fullmatch(host):
        yield Problem(field=field, message=f"Invalid source URL: {redacted(url)} names no host")


def check_registry_url(url: str, field: str) -> Problems:
    """Yield the problems of ``docker://host/repository[:tag|@digest]`` or ``oci-archive:path``."""
    parts = _split(url, field)
    if isinstance(parts, Problem):
        message = parts.message.replace("Invalid source URL: ", "Illegal registry source URL ")
        yield Problem(field=field, message=message if url else f"Illegal registry source URL scheme: {message}")
        return
    rest = url.partition(":")[2]
    if parts.scheme not in REGISTRY_SCHEMES:
        yield Problem(
            field=field,
            message=f"Illegal registry source URL scheme {redacted(url)}: "
            f"it begins with {_alternatives(REGISTRY_SCHEMES)}",
        )
    elif re.search(r"\s", rest) or not rest.strip("/"):
        yield Problem(field=field, message=f"Illegal registry source URL {redacted(url)}: it names no image")
    elif parts.scheme == "docker" and not rest.startswith("//"):
        yield Problem(field=field, message=f"Illegal registry source URL {redacted(url)}: write docker://…")


def _split(url: str | None, field: str) -> SplitResult | Problem:
    if not url:
        return Problem(field=field, message="source URL is empty")
    if len(url) > MAX_URL:
        return Problem(field=field, message=f"Invalid source URL: it is longer than {MAX_URL} characters")
    # urlsplit silently removes some control characters, so they are rejected first.
    if has_control_characters(url) or url != url.strip():
        return Problem(
            field=field, message=f"Invalid source URL: {redacted(url)} holds control characters or outer spaces"
        )
    if "\\" in url:
        return Problem(field=field, message=f"Invalid source URL: {redacted(url)} holds a backslash")
    try:
        parts = urlsplit(url)
    except ValueError:
        return Problem(field=field, message=f"Invalid source URL: {redacted(url)} cannot be parsed")
    if _BAD_ESCAPE.search(parts.path):
        return Problem(
            field=field, message=f"Invalid source URL: {redacted(url)} has a percent sign that escapes nothing"
        )
    return parts


def _bucket(url: str, parts: SplitResult, field: str) -> Problems:
    if not parts.netloc or not parts.path.strip("/"):
        yield Problem(
            field=field,
            message=f"Invalid source URL: {redacted(url)} is not of the form {parts.scheme}://bucket/object",
        )


def _alternatives(schemes: Collection[str]) -> str:
    words = [f"{scheme}://" for scheme in schemes]
    return f"{', '.join(words[:-1])} or {words[-1]}"
