"""Paths of a command line, made independent of the directory that it was typed in."""

from __future__ import annotations

import os
from pathlib import Path

from cdi.api.errors import UsageError


def absolute(path: str | os.PathLike[str], base: Path | None = None) -> Path:
    """Return `path` from the root on, with ``~`` and ``..`` resolved, beginning at `base` or the current directory.

    Nothing is looked up: what a symbolic link leads to may change until the path is used.  Raises `UsageError` where
    the path is relative and the current directory was removed.
    """
    try:
        expanded = Path(path).expanduser()
    except RuntimeError:
        expanded = Path(path)  # there is no such user, so it is a name
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
