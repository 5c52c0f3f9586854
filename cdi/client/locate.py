"""Parsing of image references: a URL, a path, or ``-`` for standard input.

    http://, https://      http
    s3://bucket/key        s3
    gs://bucket/object     gcs
    docker://host/name:tag registry
    oci-archive:PATH[:tag] registry
    file:///PATH, PATH     file
    -                      stdin

Neither files nor hosts are looked up.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, assert_never
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from cdi.api.errors import SourceUrlInvalid, UsageError
from cdi.api.names import MAX_LABEL
from cdi.api.rules.urls import redacted
from cdi.api.sources import SourceKind

PlaceKind = Literal["http", "s3", "gcs", "registry", "file", "stdin"]

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_KINDS: Final[dict[str, PlaceKind]] = {
    "http": "http",
    "https": "http",
    "s3": "s3",
    "gs": "gcs",
    "docker": "registry",
    "oci-archive": "registry",
}
_ARCHIVE: Final = "oci-archive:"
_DOCKER: Final = "docker:"
_SUFFIX: Final = re.compile(
    r"\.(gz|xz|zst|zstd|tgz|txz|tzst|tar|qcow2|qcow|img|raw|iso|vmdk|vdi|vhd|vpc|vhdx|bin|disk|download)$",
    re.IGNORECASE,
)
_MAX_URL: Final = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The location of an image."""

    kind: PlaceKind
    text: str
    """The URL without user and password, an absolute path, or ``-``."""
    user: str | None = None
    """The user in the URL."""
    password: str | None = field(default=None, repr=False)

    @property
    def location(self) -> str:
        """The location for messages, without user and query."""
        match self.kind:
            case "http" | "s3" | "gcs":
                return redacted(self.text)
            case "registry" | "file":
                return self.text
            case "stdin":
                return "standard input"
            case _:
                assert_never(self.kind)

    @property
    def fetched(self) -> bool:
        """Return whether a DataVolume can fetch it; anything else is uploaded."""
        return self.kind not in ("file", "stdin")

    @property
    def source(self) -> dict[str, Any]:
        """The ``spec.source`` of a DataVolume: the kind with its URL, or an upload."""
        return {self.member.value: {"url": self.text} if self.fetched else {}}

    @property
    def member(self) -> SourceKind:
        """The member of ``spec.source`` for this kind."""
        match self.kind:
            case "file" | "stdin":
                return SourceKind.UPLOAD
            case "http" | "s3" | "gcs" | "registry":
                return SourceKind(self.kind)
            case _:
                assert_never(self.kind)

    @property
    def name(self) -> str | None:
        """A DNS label (RFC 1123) from the last part of the path, without format suffixes; None if nothing remains.

        For a container image, it is made from the repository's last part and the tag.
        """
        match self.kind:
            case "stdin":
                return None
            case "registry":
                base = self._image_name()
            case "http" | "s3" | "gcs":
                base = unquote(urlsplit(self.text).path).rstrip("/").rpartition("/")[2]
            case "file":
                base = os.path.basename(self.text)
            case _:
                assert_never(self.kind)
        return label(base)

    def _image_name(self) -> str:
        if self.text.startswith(_ARCHIVE):
            path, colon, tag = self.text.removeprefix(_ARCHIVE).rpartition(":")
            base, named = os.path.basename(path if colon and "/" not in tag else self.text), tag
            base = _bare(base)
        else:
            base, _, named = self.text.partition("@")[0].rpartition("/")[2].partition(":")
        return base if named in ("", "latest") or "/" in named else f"{base}-{named}"


def locate(text: str, base: Path | None = None) -> Place:
    """Parse a URL, a path or ``-``; relative paths are resolved against `base`, by default the current directory.

    Neither files nor hosts are looked up. Raises `SourceUrlInvalid`.
    """
    if text == "-":
        return Place(kind="stdin", text=text)
    if not text.strip():
        raise SourceUrlInvalid("no URL or path is given", remedy="name an image: a URL, a path, or - for a pipe")
    if "\0" in text or len(text) > _MAX_URL:
        raise SourceUrlInvalid(f"it contains a null character or more than {_MAX_URL} characters")
    if text[: len(_ARCHIVE)].lower() == _ARCHIVE:
        return _archive(text[len(_ARCHIVE) :], base)
    if text[: len(_DOCKER)].lower() == _DOCKER:
        return Place(kind="registry", text=f"docker://{text[len(_DOCKER) :].removeprefix('//')}")
    match = _SCHEME.match(text)
    if match is None:
        return Place(kind="file", text=str(absolute(text, base)))
    scheme = match[1].lower()
    if scheme == "file":
        return _file_url(text)
    kind = _KINDS.get(scheme)
    if kind is None:
        raise SourceUrlInvalid(
            f"the URL scheme {scheme[:20]}: is not supported",
            where=redacted(text),
            remedy="use http://, https://, s3://, gs://, docker://, oci-archive:, a path, or - for a pipe",
        )
    url = scheme + text[len(match[1]) :]
    return _without_user(url) if kind == "http" else Place(kind=kind, text=url)


def label(text: str) -> str | None:
    """Return a DNS label of 1 to 63 characters for `text` without format suffixes; None if nothing remains."""
    words = re.sub(r"[^a-z0-9]+", "-", _bare(text).lower()).strip("-")
    return words[:MAX_LABEL].strip("-") or None


def _bare(text: str) -> str:
    while (shorter := _SUFFIX.sub("", text)) not in ("", text):
        text = shorter
    return text


def _archive(rest: str, base: Path | None) -> Place:
    if rest.startswith("//"):
        rest = f"/{rest.lstrip('/')}"
    if not rest.strip("/"):
        raise SourceUrlInvalid("oci-archive: requires a file", where=_ARCHIVE)
    return Place(kind="registry", text=f"{_ARCHIVE}{absolute(rest, base)}")


def _file_url(text: str) -> Place:
    """Parse a file URL (RFC 8089): ``file:///path`` or ``file://localhost/path``."""
    parts = _split(text)
    if parts.netloc not in ("", "localhost"):
        raise SourceUrlInvalid(
            f"the file is on another machine, {parts.netloc[:80]!r}", where=redacted(text), remedy="write file:///path"
        )
    path = unquote(parts.path)
    if not path.strip("/") or "\0" in path:
        raise SourceUrlInvalid("the URL names no file", where=redacted(text))
    return Place(kind="file", text=os.path.normpath(path))


def _without_user(text: str) -> Place:
    parts = _split(text)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return Place(kind="http", text=text)
    name, colon, password = user.partition(":")
    return Place(
        kind="http",
        text=urlunsplit(parts._replace(netloc=host)),
        user=unquote(name),
        password=unquote(password) if colon else None,
    )


def _split(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError as error:
        raise SourceUrlInvalid("the URL cannot be parsed", where=redacted(text)) from error


def absolute(path: str | os.PathLike[str], base: Path | None = None) -> Path:
    """Return an absolute path with ``~`` and ``..`` resolved, relative to `base` or the current directory.

    Symbolic links are not resolved, since they may change until the path is used. Raises `UsageError` if the path is
    relative and the current directory was removed.
    """
    try:
        expanded = Path(path).expanduser()
    except RuntimeError:
        expanded = Path(path)  # no such user: it is a file name
    if base is None and not expanded.is_absolute():
        try:
            base = Path.cwd()
        except FileNotFoundError as error:
            raise UsageError(
                "the current directory was removed, and the path is relative to it",
                where=str(path),
                remedy="change to another directory, or give an absolute path",
            ) from error
    return Path(os.path.normpath(os.path.join(base or "/", expanded)))
