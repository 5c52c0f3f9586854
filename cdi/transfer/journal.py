"""Journal of an unfinished transfer: its position, the identity of the content, and the state of its digest.

A journal is written only after the target was flushed up to its watermark, and is replaced atomically, so after a crash
it still describes the volume correctly.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from dataclasses import asdict, dataclass
from typing import Annotated, Self

from cdi import atomic_file
from cdi.api.decode import Range, decode

VERSION = 1
_SIZE_LIMIT = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """The state of an unfinished transfer at its watermark.  Offsets and sizes are bytes."""

    job: str
    """`Job.id`."""
    path: str
    """Name of the pipeline (`cdi.image.plan`); pipelines divide the content differently."""
    validator: str | None
    length: Annotated[int, Range(at_least=0)] | None
    watermark: Annotated[int, Range(at_least=0)]
    """Offset in the source before which everything is decoded, written and flushed."""
    disk_size: Annotated[int, Range(at_least=0)]
    algorithm: str | None
    """Algorithm of the digest."""
    digest_state: str | None
    """Base64 of the digest's state at the watermark; None if it cannot be saved."""
    version: Annotated[int, Range(at_least=VERSION, at_most=VERSION)] = VERSION

    @property
    def state(self) -> bytes | None:
        return None if self.digest_state is None else base64.b64decode(self.digest_state, validate=True)

    @classmethod
    def load(cls, path: str) -> Self | None:
        """Return the journal at `path`; None if there is none, or it is invalid."""
        try:
            with open(path, "rb") as file:
                journal = decode(cls, file.read(_SIZE_LIMIT))
            _ = journal.state
        except (OSError, ValueError):
            return None
        return journal

    def save(self, path: str) -> None:
        """Replace the journal at `path`; raise `OSError` if that fails."""
        atomic_file.write(path, json.dumps(asdict(self)).encode(), single_writer=True)


def mark_dirty(path: str) -> None:
    """Record in a file beside the journal that the volume was modified, and remove the journal.

    Raises:
        OSError: The file cannot be written.
    """
    try:
        descriptor = _create(f"{path}.begun")
    except FileNotFoundError:
        # A force-deleted pod may still be shutting down, and its directory is removed with it.
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.dirname(path), 0o700)
        descriptor = _create(f"{path}.begun")
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _remove(path)


def _create(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)


def is_dirty(path: str | None) -> bool:
    """Return whether an unfinished attempt has written to the volume."""
    return path is not None and (os.path.exists(f"{path}.begun") or os.path.exists(path))


def remove(path: str | None) -> None:
    """Remove the journal and the mark, if they exist."""
    if path is not None:
        for name in (path, f"{path}.new", f"{path}.begun"):
            _remove(name)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def encode_state(state: bytes | None) -> str | None:
    return None if state is None else base64.b64encode(state).decode()
