"""Objects by what they name, kept as things change.

Whoever looked at every object for every change would do nothing else where there are thousands.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
M = TypeVar("M", bound=Hashable)


class Index(Generic[K, M]):
    """Members by their key, of which each has one or none."""

    def __init__(self) -> None:
        self._members: dict[K, set[M]] = {}
        self._keys: dict[M, K] = {}

    def put(self, member: M, key: K | None) -> None:
        """It has this key now; None takes it out."""
        before = self._keys.get(member)
        if key == before:
            return
        if before is not None:
            del self._keys[member]
            rest = self._members[before]
            rest.discard(member)
            if not rest:
                del self._members[before]
        if key is not None:
            self._keys[member] = key
            self._members.setdefault(key, set()).add(member)

    def of(self, key: K) -> tuple[M, ...]:
        """In no order."""
        return tuple(self._members.get(key, ()))
