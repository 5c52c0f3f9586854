"""The file by which a running transfer's limits are changed."""

from __future__ import annotations

import os

from cdi.api.job import Limits
from cdi.transfer.control import Control
from cdi.worker import log

_LARGEST = 4096


class LimitsFile:
    """Tells a transfer what the file at `path` says, whenever it says something else.

    It may be missing or empty: then nothing is changed, or, after it said something, what the job began with counts
    again.  It may be written in place or replaced, also by way of links, as a kubelet does it.
    """

    def __init__(self, path: str, unchanged: Limits) -> None:
        self._path = path
        self._unchanged = unchanged
        self._seen: tuple[int, int] | None = None
        self._counts = unchanged

    def look(self, control: Control) -> None:
        """Read the file if it is another than at the last look.  A file that makes no sense is told in the log."""
        try:
            found = os.stat(self._path)
            stamp = (found.st_mtime_ns, found.st_ino)
            if stamp == self._seen:
                return
            self._seen = stamp
            with open(self._path, "rb") as file:
                content = file.read(_LARGEST)
            limits = Limits.from_json(content) if content.strip() else self._unchanged
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            log.say(f"{os.path.basename(self._path)} is not read: {error}")
            return
        if limits != self._counts:
            self._counts = limits
            control.limit(limits)
            log.limited(limits)
