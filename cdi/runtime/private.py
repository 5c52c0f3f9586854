"""Directories of a command's own, for secrets that are needed as files and for what else nobody should find later.

    $TMPDIR/cdi-<uid>/            mode 0700, one for each user
        lock                      held while a directory is made, and while stale ones are removed
        <random>/                 locked for as long as its command lives

A command that is killed cannot remove its own, so whoever makes the next one, or the next supervisor, removes those
that nobody holds the lock of.  They are no part of CDI_HOME: to look at an image needs none.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cdi import durable


@contextlib.contextmanager
def private_directory(parent: str | None = None) -> Iterator[Path]:
    """A new directory with mode 0700, gone when the context ends; in `parent`, if it is named, nobody looks for it
    later.  Raises a `TargetError` where none can be made.
    """
    with contextlib.ExitStack() as stack:
        with _mapped(parent):
            base = _base() if parent is None else None
            if base is None:
                made = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cdi-", dir=parent)))
            else:
                with durable.locked(base / "lock"):
                    _remove_stale(base)
                    made = Path(tempfile.mkdtemp(prefix="", dir=base))
                    hold = _open(made)
                    stack.callback(os.close, hold)
                    stack.callback(shutil.rmtree, made, ignore_errors=True)
                    fcntl.flock(hold, fcntl.LOCK_EX)
        yield made


def _mapped(parent: str | None) -> contextlib.AbstractContextManager[None]:
    # What `tempfile` would say it looked at is not to be asked for: that may be what fails.
    place = parent or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108  named in a message, not used
    return durable.mapped("temporary files", place, elsewhere="set TMPDIR to another directory")


def remove_stale() -> None:
    """Remove what killed commands of this user left behind, unless somebody is at it already."""
    with contextlib.suppress(OSError):
        base = _base()
        if base is not None:
            with durable.locked(base / "lock", wait=False) as lock:
                if lock is not None:
                    _remove_stale(base)


def _base() -> Path | None:
    """None where the name is taken by somebody or something else, who could see or replace what is in there."""
    path = Path(tempfile.gettempdir()) / f"cdi-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    is_mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return path if is_mine else None


def _open(directory: Path) -> int:
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _remove_stale(base: Path) -> None:
    with os.scandir(base) as found:
        entries = list(found)
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False):
            continue
        with contextlib.suppress(FileNotFoundError):
            hold = _open(Path(entry.path))
            try:
                fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                shutil.rmtree(entry.path, ignore_errors=True)
            finally:
                os.close(hold)
