"""A limit on how many requests of one kind are served at a time."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Hashable, Iterator

from cdi.api.errors import UploadUnderWay


class ConcurrencyLimiter:
    """A limit of concurrent requests per key; safe to use from any thread."""

    def __init__(self, most: int, refusal: str) -> None:
        """Allow `most` at a time; `refusal` is the message of the error for any more."""
        self._most = most
        self._refusal = refusal
        self._lock = threading.Lock()
        self._taken: Counter[Hashable] = Counter()

    @contextlib.contextmanager
    def take(self, key: Hashable) -> Iterator[None]:
        """Hold one slot for as long as the context lasts; raise `UploadUnderWay` if none is free."""
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
