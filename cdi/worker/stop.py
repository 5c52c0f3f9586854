"""SIGTERM and SIGINT: the transfer stops where it is, and what was done is kept for the next attempt."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from cdi.transfer.control import Control


class Stop:
    """Takes the two signals from now on; one that comes before there is a transfer stops it as it begins.

    In a pod the worker is the first process of its container, for which the kernel drops a signal without a handler.
    """

    def __init__(self) -> None:
        self._control: Control | None = None
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def watch(self, control: Control) -> None:
        """Stop this transfer when asked."""
        self._control = control
        if self._asked:
            control.cancel()

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self._asked = True
        if self._control is not None:
            # A handler runs between any two lines of the main thread: everything else is left to a thread.
            threading.Thread(target=self._control.cancel, daemon=True).start()
