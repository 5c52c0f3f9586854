"""File that changes the limits of a running transfer."""

from __future__ import annotations

import logging
import os

from cdi.api.job import Limits
from cdi.transfer.control import TransferControl
from cdi.worker import log

LOG = logging.getLogger(__name__)

_MAX_SIZE = 4096


class LimitsFile:
    """Watcher that applies the limits in the file at `path` when the file changes.

    A missing or empty file changes nothing, or restores the initial limits if it had content before. The file may be
    written in place or replaced, also through symbolic links, as the kubelet does.
    """

    def __init__(self, path: str, unchanged: Limits) -> None:
        self._path = path
        self._unchanged = unchanged
        self._seen: tuple[int, int] | None = None
        self._current = unchanged

    def reload(self, control: TransferControl) -> None:
        """Read the file if it has changed since the last call; a file that cannot be parsed is logged and ignored."""
        try:
            found = os.stat(self._path)
            stamp = (found.st_mtime_ns, found.st_ino)
            if stamp == self._seen:
                return
            self._seen = stamp
            with open(self._path, "rb") as file:
                content = file.read(_MAX_SIZE)
            limits = Limits.from_json(content) if content.strip() else self._unchanged
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            LOG.warning(f"cannot read {os.path.basename(self._path)}: {error}")
            return
        if limits != self._current:
            self._current = limits
            control.limit(limits)
            log.limited(limits)
