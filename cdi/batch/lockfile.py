r"""Lock file of a batch: the exact version of every image that was imported.

    {
      "version": 1,
      "images": {
        "debian": {
          "url": "https://mirror.example.org/debian-12.qcow2",
          "validator": "\"65f1-6f2a\"",
          "length": 443023360,
          "digest": "sha256:…",
          "virtualSize": 2147483648,
          "format": "qcow2"
        }
      }
    }

Keys are image names, or ``namespace/name`` if the batch itself names a namespace, in alphabetical order. The same
images give the same file, so it can be kept in version control with the batch. No URL in it contains a password, token
or signature.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

from cdi import atomic_file
from cdi.api.digest import Digest
from cdi.api.errors import CdiError, InvalidManifest, TargetPermission, UsageError
from cdi.api.json_document import json_type, parse_json

NAME = "cdi.lock"
VERSION = 1
MAX_SIZE = 32 << 20
"""Bytes."""
_MODE = 0o644
_ELSEWHERE = "name another one with --lockfile"
_FIELDS = {
    "url": "url",
    "validator": "validator",
    "length": "length",
    "digest": "digest",
    "virtualSize": "virtual_size",
    "format": "format",
}
_SECRET = frozenset(
    {"signature", "token", "access_token", "auth", "apikey", "api_key", "awsaccesskeyid", "googleaccessid"}
)
_SIGNED = frozenset({"sig", "hdnea", "hdnts", *_SECRET})
_SIGNED_WITH = frozenset(
    {
        "expires",
        "policy",
        "key-pair-id",
        "se",
        "sp",
        "sv",
        "sr",
        "st",
        "spr",
        "sip",
        "skoid",
        "sktid",
        "skt",
        "ske",
        "skv",
    }
)
"""Parameters that belong to a signature if there is one, and have another meaning otherwise."""
_PREFIXES = ("x-amz-", "x-goog-", "x-oss-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The recorded version of one image."""

    url: str
    """The URL in the batch, without secrets."""
    validator: str | None = None
    """The ETag or Last-Modified, generation, or manifest digest."""
    length: int | None = None
    """Size of the source's content in bytes; of all layers for a container image."""
    digest: str | None = None
    """The digest of the content, ``algorithm:hex``; of the layer with the disk for a container image."""
    virtual_size: int | None = None
    """Size of the image's disk in bytes."""
    format: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as it is written to the file."""
        return {name: getattr(self, attribute) for name, attribute in _FIELDS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """The content of a lock file."""

    images: Mapping[str, Entry] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: bytes | str, *, where: str) -> Self:
        """Parse a lock file; raise `InvalidManifest` with all problems."""
        remedy = "restore the file, or delete it and run cdi batch without --locked"
        try:
            # A wrong merge can leave a name twice.
            body = parse_json(text, unique_fields=True)
        except ValueError as error:
            raise InvalidManifest(f"the lock file cannot be read: {error}"[:200], where=where, remedy=remedy) from error
        problems: list[str] = []
        images: dict[str, Entry] = {}
        if not isinstance(body, dict) or not isinstance(body.get("images"), dict):
            problems.append("it must be an object with images")
        elif body.get("version") != VERSION:
            problems.append(f"version: {str(body.get('version'))[:20]!r} is not {VERSION}")
        else:
            for name, entry in body["images"].items():
                problems += _wrong(entry, f"images.{name[:80]}")
                if not problems:
                    images[name] = Entry(**{_FIELDS[key]: value for key, value in entry.items()})
        if problems:
            raise InvalidManifest(f"the lock file: {'; '.join(problems[:20])}", where=where, remedy=remedy)
        return cls(images=images)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read a lock file, None if there is none; raise `InvalidManifest`, or `UsageError` if it is unreadable."""
        try:
            with open(path, "rb") as file:
                content = file.read(MAX_SIZE + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(
                f"the lock file cannot be read: {error.strerror}", where=str(path), remedy="check the path"
            ) from error
        if len(content) > MAX_SIZE:
            raise InvalidManifest(f"the lock file is larger than {MAX_SIZE >> 20} MiB", where=str(path))
        return cls.parse(content, where=str(path))

    def text(self) -> str:
        """Return the content of the file, which is the same for the same images."""
        images = {name: self.images[name].to_dict() for name in sorted(self.images)}
        return json.dumps({"version": VERSION, "images": images}, indent=2, ensure_ascii=False) + "\n"


def record(path: Path, entries: Mapping[str, Entry]) -> bool:
    """Merge `entries` into the file atomically; return False if nothing changes.

    Two batches that write the same file at the same time both have their entries in it. Raises a `TargetError` if the
    file cannot be written, and the errors of `Lock.read`.
    """
    path = Path(os.path.realpath(path))
    with atomic_file.mapped("the lock file", path, elsewhere=_ELSEWHERE), _locked(path.parent):
        before = Lock.read(path)
        after = Lock(images={**(before.images if before is not None else {}), **entries})
        if before is not None and before.images == after.images:
            return False
        mode = None if before is None else path.stat().st_mode & 0o777
        atomic_file.write(path, after.text().encode("utf-8", "surrogatepass"), mode=_MODE)
        if mode is not None:
            path.chmod(mode)
    return True


def check_writable(path: Path) -> None:
    """Raise `TargetPermission` if the lock file cannot be written, so that it is known before hours of imports."""
    directory = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path) or not os.path.isdir(directory) or not os.access(directory, os.W_OK | os.X_OK):
        raise TargetPermission("the lock file cannot be written", where=str(path), remedy=_ELSEWHERE)


def without_secrets(url: str) -> str:
    """Return a URL without user, password, tokens and signatures.

    The rest of the query is kept, since it may identify the image.
    """
    if "://" not in url or url.startswith(("docker://", "oci-archive:")):
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("?")[0]
    fields = [one for one in parts.query.split("&") if one]
    names = {one: one.partition("=")[0].lower() for one in fields}
    signed = any(name in _SIGNED for name in names.values())
    query = "&".join(
        one
        for one, name in ((one, names[one]) for one in fields)
        if not (name in _SIGNED or name.startswith(_PREFIXES) or (signed and name in _SIGNED_WITH))
    )
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query))


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold a lock on the directory itself: a lock file would be left behind."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # On a file system without such locks, the file is still replaced atomically.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _wrong(entry: Any, path: str) -> Iterator[str]:
    if not isinstance(entry, dict):
        yield f"{path}: must be of type object, not {json_type(entry)}"
        return
    for name in entry:
        if name not in _FIELDS:
            yield f"{path}.{name[:80]}: no such field"
    if "url" not in entry:
        yield f"{path}.url: Required value"
    elif not isinstance(entry["url"], str):
        yield f"{path}.url: must be of type string, not {json_type(entry['url'])}"
    for name in ("validator", "digest", "format"):
        if not isinstance(entry.get(name), str | None):
            yield f"{path}.{name}: must be of type string, not {json_type(entry[name])}"
    for name in ("length", "virtualSize"):
        value = entry.get(name)
        if value is None:
            continue
        if json_type(value) != "integer":
            yield f"{path}.{name}: must be of type integer, not {json_type(value)}"
        elif not 0 <= value < 1 << 63:
            yield f"{path}.{name}: must be from 0 to {(1 << 63) - 1}"
    digest = entry.get("digest")
    if isinstance(digest, str):
        try:
            Digest.parse(digest)
        except CdiError as error:
            yield f"{path}.digest: {error.what}"
