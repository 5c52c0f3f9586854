"""Files of an import without a DataVolume below CDI_HOME, while it runs and until it is resumed.

    direct.lock            held while one of the others is created, released, or cleaned up after a killed import
    direct/<name>/lock     held for as long as the import runs
    direct/<name>/inputs   secrets as files, while it runs
    direct/<name>/scratch  while it runs
    direct/<name>/journal  until it is done

An import that is killed leaves all of it. The next import or supervisor removes what is not needed to resume.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from cdi import atomic_file
from cdi.api.errors import TargetBusy
from cdi.local.home import Home


@contextlib.contextmanager
def resumable_directory(home: Home, name: str) -> Iterator[Path]:
    """Create and lock the directory of the import `name`; only its journal is kept afterwards.

    Raises `TargetBusy` if another process holds it, and another `TargetError` if it cannot be created.
    """
    directory = home.direct / name
    with contextlib.ExitStack() as stack:
        with home.mapped("the files of the import"):
            home.direct.mkdir(mode=0o700, parents=True, exist_ok=True)
            with atomic_file.locked(home.direct_lock):
                _remove_stale(home.direct)
                directory.mkdir(mode=0o700, exist_ok=True)
                lock = stack.enter_context(atomic_file.locked(directory / "lock", wait=False))
        if lock is None:
            raise TargetBusy("the same import is already running", where=str(directory), remedy="wait until it ends")
        try:
            with home.mapped("the files of the import"):
                for each in (directory / "inputs", directory / "scratch"):
                    each.mkdir(mode=0o700, exist_ok=True)
            yield directory
        finally:
            with home.mapped("the files of the import"), atomic_file.locked(home.direct_lock):
                _empty(directory)
                if not (directory / "journal").exists():
                    shutil.rmtree(directory, ignore_errors=True)


def remove_stale(home: Home) -> None:
    """Remove secrets and scratch space of killed imports; what is needed to resume is kept."""
    with contextlib.suppress(OSError):
        if home.direct.is_dir():
            with atomic_file.locked(home.direct_lock, wait=False) as lock:
                if lock is not None:
                    _remove_stale(home.direct)


def _remove_stale(direct: Path) -> None:
    for directory in direct.iterdir():
        with contextlib.suppress(OSError):
            if directory.is_dir() and not atomic_file.is_locked(directory / "lock"):
                _empty(directory)


def _empty(directory: Path) -> None:
    for name in ("inputs", "scratch"):
        shutil.rmtree(directory / name, ignore_errors=True)
