"""TLS contexts from files that are replaced at times, such as mounted Secrets."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable, Sequence

from cdi.api.errors import InvalidManifest


class ReloadingSSLContext:
    """A callable that returns the context `load` creates from the current files; thread-safe.

    It is called for every connection.
    """

    def __init__(self, paths: Sequence[str], load: Callable[..., ssl.SSLContext]) -> None:
        """Store the paths, all of which are passed to `load`."""
        self._paths = tuple(paths)
        self._load = load
        self._lock = threading.Lock()
        self._seen: list[tuple[int, int]] = []
        self._context: ssl.SSLContext | None = None

    def __call__(self) -> ssl.SSLContext:
        """Return the context; raise `InvalidManifest` if there never was a usable one."""
        with self._lock:
            try:
                seen = [(found.st_mtime_ns, found.st_ino) for found in map(os.stat, self._paths)]
                if self._context is None or seen != self._seen:
                    self._context, self._seen = self._load(*self._paths), seen
            except (OSError, ValueError) as error:
                # A half-written replacement is loaded again on the next call; until then the old context is used.
                if self._context is None:
                    raise InvalidManifest(
                        f"cannot load the certificate: {error}",
                        where=os.path.dirname(self._paths[0]),
                        remedy="check the Secret that is mounted there",
                    ) from error
            return self._context
