"""Record of the earlier runs of a worker's container in the same pod.

It is kept in an emptyDir volume, which survives restarts of the container but not the pod. A pod without that volume
has no record, so each run is its first.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

from cdi.api.decode import decode

_MAX_RECORD = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalRun:
    """End of a run that no restart of the container can improve."""

    message: str
    """The termination message."""
    exit_status: int


class EarlierRuns:
    """The earlier runs, from files in the directory `state`."""

    def __init__(self, state: str) -> None:
        self._begun = os.path.join(state, "begun")
        self._final = os.path.join(state, "final")

    def final(self) -> FinalRun | None:
        """Return the end of an earlier run after which no other makes sense; None if there was none."""
        try:
            with open(self._final, "rb") as file:
                return decode(FinalRun, file.read(_MAX_RECORD))
        except (OSError, ValueError):
            return None

    def begin(self) -> int:
        """Record that a run begins; return its number, which is more than 1 if an earlier one may have written."""
        try:
            with open(self._begun, "ab") as file:
                file.write(b".")
                return file.tell()
        except OSError:
            # Without the volume there is nothing to continue.
            return 1

    def end(self, run: FinalRun) -> None:
        """Record that later runs shall only repeat this one's end."""
        try:
            with open(self._final, "w", encoding="ascii") as file:
                json.dump(asdict(run), file)
        except OSError:
            # The next run repeats the work and ends in the same way.
            return
