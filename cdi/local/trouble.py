"""Errors that keep a supervisor from reconciling objects: logged once, and retried with growing delays."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from cdi.api.errors import CdiError
from cdi.store.base import Key

MIN_BACKOFF: Final = 1.0
MAX_BACKOFF: Final = 60.0
"""Seconds until the next try."""

log = logging.getLogger("cdi.supervisor")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trouble:
    error: CdiError
    pause: float


Subject = Key | str
"""The key of an error: an object, or another name."""


class Troubles:
    """Errors of one supervisor by subject."""

    def __init__(self) -> None:
        self._troubles: dict[Subject, _Trouble] = {}

    def get(self, key: Subject) -> CdiError | None:
        """Return the error of the last try, if any."""
        trouble = self._troubles.get(key)
        return None if trouble is None else trouble.error

    def note(self, key: Subject, error: CdiError) -> float:
        """Record an error, and log it unless it is the same as before; return the seconds until the next try."""
        before = self._troubles.get(key)
        pause = MIN_BACKOFF if before is None else min(before.pause * 2, MAX_BACKOFF)
        if before is None or str(before.error) != str(error):
            log.error("%s: %s", key, error)
        self._troubles[key] = _Trouble(error=error, pause=pause)
        return pause

    def clear(self, key: Subject) -> bool:
        """Remove an error; return whether there was one."""
        return self._troubles.pop(key, None) is not None
