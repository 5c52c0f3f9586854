"""Conversion of command-line paths to absolute ones."""

from __future__ import annotations

import os
from pathlib import Path

from cdi.api.errors import UsageError


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
