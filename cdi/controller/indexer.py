"""Secondary index that is updated with every change.

Without it, each change would need a scan of all objects, which is too slow with thousands of them.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
M = TypeVar("M", bound=Hashable)


class Indexer(Generic[K, M]):
    """Members by key; a member has at most one key."""

    def __init__(self) -> None:
        self._members: dict[K, set[M]] = {}
        self._keys: dict[M, K] = {}

    def update(self, member: M, key: K | None) -> None:
        """Set the key of a member; None removes the member."""
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

    def by_index(self, key: K) -> tuple[M, ...]:
        """Return the members with this key, in any order."""
        return tuple(self._members.get(key, ()))

    def indexed(self) -> tuple[K, ...]:
        """Return the keys that have members, in any order."""
        return tuple(self._members)
