"""What keeps a supervisor from working on objects: logged once, and tried again after growing pauses."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from cdi.api.errors import CdiError
from cdi.store.base import Key

SHORTEST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
"""Seconds until it is tried again."""

log = logging.getLogger("cdi.supervisor")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trouble:
    error: CdiError
    pause: float


Subject = Key | str
"""What cannot be worked on: an object, or something else by its name."""


class Troubles:
    """Of one supervisor, by what they hinder."""

    def __init__(self) -> None:
        self._troubles: dict[Subject, _Trouble] = {}

    def get(self, key: Subject) -> CdiError | None:
        """Why it could not be worked on the last time."""
        trouble = self._troubles.get(key)
        return None if trouble is None else trouble.error

    def note(self, key: Subject, error: CdiError) -> float:
        """Remember the error, log it unless it is the same as before; return the seconds until the next try."""
        before = self._troubles.get(key)
        pause = SHORTEST_PAUSE if before is None else min(before.pause * 2, LONGEST_PAUSE)
        if before is None or str(before.error) != str(error):
            log.error("%s: %s", key, error)
        self._troubles[key] = _Trouble(error=error, pause=pause)
        return pause

    def clear(self, key: Subject) -> bool:
        """Forget it; True where there was any."""
        return self._troubles.pop(key, None) is not None
