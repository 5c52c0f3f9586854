r"""The lock file of a batch: what every image was when it was imported.

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

Images stand under their names, or ``namespace/name`` where the batch itself names a namespace, in alphabetical order:
the same images give the same file, so it can be kept beside the batch under version control.  No URL in it holds a
password, token or signature.
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

from cdi import durable
from cdi.api.digest import Digest
from cdi.api.document import json_type, parse_json
from cdi.api.errors import CdiError, InvalidManifest, TargetPermission, UsageError

NAME = "cdi.lock"
VERSION = 1
LARGEST = 32 << 20
"""Bytes."""
_MODE = 0o644
_ELSEWHERE = "name another with --lockfile"
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
"""They belong to a signature where there is one, and mean something else where there is none."""
_PREFIXES = ("x-amz-", "x-goog-", "x-oss-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One image as it was."""

    url: str
    """As the batch names it, without secrets."""
    validator: str | None = None
    """The ETag or Last-Modified, generation, or manifest digest."""
    length: int | None = None
    """Bytes of the source's content; of a container image, of its layers together."""
    digest: str | None = None
    """Of those bytes, ``algorithm:hex``; of a container image, of the layer with the disk."""
    virtual_size: int | None = None
    """Bytes of the disk that the image holds."""
    format: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the file."""
        return {name: getattr(self, attribute) for name, attribute in _FIELDS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """The content of a lock file."""

    images: Mapping[str, Entry] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: bytes | str, *, where: str) -> Self:
        """Raises `InvalidManifest` naming all that is wrong."""
        remedy = "restore the file, or delete it and run cdi batch without --locked"
        try:
            # A merge that went wrong leaves a name twice.
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
        """None where there is no such file; raises `InvalidManifest`, and `UsageError` where it cannot be read."""
        try:
            with open(path, "rb") as file:
                content = file.read(LARGEST + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(
                f"the lock file cannot be read: {error.strerror}", where=str(path), remedy="check the path"
            ) from error
        if len(content) > LARGEST:
            raise InvalidManifest(f"the lock file is larger than {LARGEST >> 20} MiB", where=str(path))
        return cls.parse(content, where=str(path))

    def text(self) -> str:
        """The same images give the same text."""
        images = {name: self.images[name].to_dict() for name in sorted(self.images)}
        return json.dumps({"version": VERSION, "images": images}, indent=2, ensure_ascii=False) + "\n"


def record(path: Path, entries: Mapping[str, Entry]) -> bool:
    """Put `entries` into the file in one step, beside those that it has; False where that changes nothing.

    Two batches that write the same file at the same time both find their entries in it.  Raises a `TargetError` where
    it cannot be written, and as `Lock.read` does.
    """
    path = Path(os.path.realpath(path))
    with durable.mapped("the lock file", path, elsewhere=_ELSEWHERE), _locked(path.parent):
        before = Lock.read(path)
        after = Lock(images={**(before.images if before is not None else {}), **entries})
        if before is not None and before.images == after.images:
            return False
        mode = None if before is None else path.stat().st_mode & 0o777
        durable.write(path, after.text().encode("utf-8", "surrogatepass"), mode=_MODE)
        if mode is not None:
            path.chmod(mode)
    return True


def check_writable(path: Path) -> None:
    """Raise `TargetPermission` where the lock file could not be written: better before hours of imports than after."""
    directory = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path) or not os.path.isdir(directory) or not os.access(directory, os.W_OK | os.X_OK):
        raise TargetPermission("the lock file cannot be written there", where=str(path), remedy=_ELSEWHERE)


def without_secrets(url: str) -> str:
    """A URL as it may be kept: without user, password, tokens and signatures; the rest of the query stays, it may tell
    which image is meant.
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
    """On the directory itself: a file of its own would lie about afterwards."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Where a file system knows no such locks, the file is still replaced in one step.
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
