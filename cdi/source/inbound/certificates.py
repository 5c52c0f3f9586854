"""TLS contexts of files that are replaced now and then, as mounted Secrets are."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable, Sequence

from cdi.api.errors import InvalidManifest


class FileContext:
    """Called for every connection; gives the context that `load` makes of the files as they are now.  Any thread."""

    def __init__(self, paths: Sequence[str], load: Callable[..., ssl.SSLContext]) -> None:
        """`load` gets all of `paths`."""
        self._paths = tuple(paths)
        self._load = load
        self._lock = threading.Lock()
        self._seen: list[tuple[int, int]] = []
        self._context: ssl.SSLContext | None = None

    def __call__(self) -> ssl.SSLContext:
        """Raises `InvalidManifest` where there never was one that can be used."""
        with self._lock:
            try:
                seen = [(found.st_mtime_ns, found.st_ino) for found in map(os.stat, self._paths)]
                if self._context is None or seen != self._seen:
                    self._context, self._seen = self._load(*self._paths), seen
            except (OSError, ValueError) as error:
                # A replacement that is seen half done is looked at again; until then the old one serves.
                if self._context is None:
                    raise InvalidManifest(
                        f"the certificates cannot be used: {error}",
                        where=os.path.dirname(self._paths[0]),
                        remedy="look at the Secret that is mounted there",
                    ) from error
            return self._context
