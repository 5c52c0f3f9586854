"""A limit on how many requests of one kind are served at a time."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Hashable, Iterator

from cdi.api.errors import UploadUnderWay


class Turns:
    """At most so many turns at a time for each key.  Any thread."""

    def __init__(self, most: int, refusal: str) -> None:
        """`refusal` is what whoever gets none is told."""
        self._most = most
        self._refusal = refusal
        self._lock = threading.Lock()
        self._taken: Counter[Hashable] = Counter()

    @contextlib.contextmanager
    def take(self, key: Hashable) -> Iterator[None]:
        """Hold one as long as the context lasts.  Raises `UploadUnderWay` where there is none left."""
        with self._lock:
            if self._taken[key] >= self._most:
                raise UploadUnderWay(self._refusal, remedy="send it again later")
            self._taken[key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken[key] -= 1
                if not self._taken[key]:
                    del self._taken[key]
