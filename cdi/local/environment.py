"""Environment variables of workers: the relevant part of the environment of the user who applied the DataVolume.

A supervisor outlives the command that started it, and serves many. AWS_PROFILE or https_proxy in the shell that started
it must not affect the others. A worker's variables are therefore stored when its DataVolume is applied, are the same
for every attempt, and are removed when the DataVolume is done. Of the other variables, a process gets only those that
Python itself may need.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from cdi import atomic_file
from cdi.api.json_document import parse_json
from cdi.local.home import Home
from cdi.store.base import Key

_INTERPRETER = frozenset({"LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH"})
"""Variables that the running Python may need to be started again."""
_MACHINE = frozenset({"HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER"})
_PROXIES = frozenset({"http_proxy", "https_proxy", "no_proxy"})
_FILES = frozenset(
    {
        "AWS_CA_BUNDLE",
        "AWS_CONFIG_FILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
    }
)
"""Paths; relative ones refer to the user's working directory, which is not the worker's."""
_GOOGLE = frozenset(
    {
        "CLOUDSDK_CONFIG",
        "GCE_METADATA_HOST",
        "GCE_METADATA_IP",
        "GCE_METADATA_ROOT",
        "GOOGLE_CLOUD_PROJECT",
        "GOOGLE_CLOUD_QUOTA_PROJECT",
        "GOOGLE_CLOUD_UNIVERSE_DOMAIN",
        "NO_GCE_CHECK",
        "STORAGE_EMULATOR_HOST",
    }
)
_USED = _MACHINE | _FILES | _GOOGLE
_PREFIXES = ("AWS_", "LC_")
_CRONS = ".crons"
"""Directory of the environments of DataImportCrons; no namespace has such a name."""


def of_user(environment: Mapping[str, str], directory: str) -> dict[str, str]:
    """Return the part of a user's environment that imports use; `directory` is the user's working directory."""
    found = {
        name: text
        for name, text in environment.items()
        if name in _USED or name.startswith(_PREFIXES) or name.lower() in _PROXIES
    }
    for name in _FILES & found.keys():
        if found[name]:
            found[name] = os.path.join(directory, os.path.expanduser(found[name]))
    return found


def of_process(environment: Mapping[str, str], given: Mapping[str, str] | None) -> dict[str, str]:
    """Return the environment of a new process: the variables `given` for it, and those that Python needs.

    If none are given, it gets the parent's basic variables, such as HOME, PATH and the locale.
    """
    own = {
        name: text
        for name, text in environment.items()
        if name in _INTERPRETER or (given is None and (name in _MACHINE or name.startswith("LC_")))
    }
    return {**own, **(given or {})}


class Environments:
    """Stored environments of one CDI_HOME, by DataVolume and DataImportCron; methods may be called by any process.

    They may contain secrets: files are readable only by this user, and never shown.
    """

    def __init__(self, home: Home) -> None:
        self._root = home.environments
        self._mapped = partial(home.mapped, "the environments of workers")

    @contextlib.contextmanager
    def kept(self) -> Iterator[Callable[[Key], None]]:
        """Yield a function that stores this process's environment for an object that is about to be written.

        Until the context ends, `collect` removes nothing. Raises a `TargetError` if nothing can be written.
        """
        try:
            directory = os.getcwd()
        except FileNotFoundError:
            directory = "/"
        content = json.dumps(of_user(os.environ, directory), sort_keys=True).encode("utf-8", "surrogateescape")
        with contextlib.ExitStack() as stack:
            with self._mapped():
                self._root.mkdir(mode=0o700, exist_ok=True)
                stack.enter_context(atomic_file.locked(self._lock))
            yield lambda key: self._keep(key, content)

    def of(self, key: Key) -> dict[str, str] | None:
        """Return the stored environment of an object, or None if there is none."""
        with self._mapped():
            content = atomic_file.read(self._path(key))
        if content is None:
            return None
        try:
            found = parse_json(content.decode("utf-8", "surrogateescape"))
        except ValueError:
            return None
        return {str(name): str(text) for name, text in found.items()} if isinstance(found, dict) else None

    def inherit(self, origin: Key, key: Key) -> None:
        """Store the environment of `origin` for an object that is created on its behalf; raise a `TargetError`."""
        with self._mapped():
            content = atomic_file.read(self._path(origin))
        if content is not None:
            with self._mapped():
                self._root.mkdir(mode=0o700, exist_ok=True)
                with atomic_file.locked(self._lock):
                    self._keep(key, content)

    def collect(self, wanted: Callable[[Key], bool]) -> bool:
        """Remove the environments of objects that are not `wanted`; return whether it has to be called again."""
        with self._mapped():
            if not self._root.is_dir():
                return False
            with atomic_file.locked(self._lock, wait=False) as lock:
                if lock is None:
                    return True
                for plural, pattern in (("datavolumes", "*/*.json"), ("dataimportcrons", f"{_CRONS}/*/*.json")):
                    for path in self._root.glob(pattern):
                        if not wanted(Key.of(plural, path.parent.name, path.stem)):
                            path.unlink(missing_ok=True)
        return False

    @property
    def _lock(self) -> Path:
        return self._root / ".lock"

    def _path(self, key: Key) -> Path:
        root = self._root / _CRONS if key.plural == "dataimportcrons" else self._root
        return root / key.namespace / f"{key.name}.json"

    def _keep(self, key: Key, content: bytes) -> None:
        if key.plural not in ("datavolumes", "dataimportcrons"):
            return
        path = self._path(key)
        with self._mapped():
            if atomic_file.read(path) != content:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                atomic_file.write(path, content)
