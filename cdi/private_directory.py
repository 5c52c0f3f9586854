"""Temporary directories of a command, for secrets that are needed as files and other data that must not be left behind.

    $TMPDIR/cdi-<uid>/            mode 0700, one for each user
        lock                      held while a directory is created, and while stale ones are removed
        <random>/                 locked for as long as its command lives

A command that is killed cannot remove its directory. The next command that creates one, or the next supervisor, removes
those whose lock is not held. They are outside CDI_HOME, since inspecting an image does not need one.
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

from cdi import atomic_file


@contextlib.contextmanager
def private_directory(parent: str | None = None) -> Iterator[Path]:
    """Create a directory with mode 0700, and remove it when the context ends.

    If `parent` is given, the directory is created there, and is not removed after a kill. Raises a `TargetError`.
    """
    with contextlib.ExitStack() as stack:
        with _mapped(parent):
            base = _base() if parent is None else None
            if base is None:
                made = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cdi-", dir=parent)))
            else:
                with atomic_file.locked(base / "lock"):
                    _remove_stale(base)
                    made = Path(tempfile.mkdtemp(prefix="", dir=base))
                    hold = _open(made)
                    stack.callback(os.close, hold)
                    stack.callback(shutil.rmtree, made, ignore_errors=True)
                    fcntl.flock(hold, fcntl.LOCK_EX)
        yield made


def _mapped(parent: str | None) -> contextlib.AbstractContextManager[None]:
    # `tempfile` is not asked for the directory, because that may be what fails.
    place = parent or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108  named in a message, not used
    return atomic_file.mapped("temporary files", place, elsewhere="set TMPDIR to another directory")


def remove_stale() -> None:
    """Remove what killed commands of this user left behind, unless another process does so already."""
    with contextlib.suppress(OSError):
        base = _base()
        if base is not None:
            with atomic_file.locked(base / "lock", wait=False) as lock:
                if lock is not None:
                    _remove_stale(base)


def _base() -> Path | None:
    """Return the base directory, or None if the name is taken by another user or file and so not safe."""
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
