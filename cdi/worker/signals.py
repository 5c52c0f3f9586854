"""Signal handler of the worker: SIGTERM and SIGINT stop the transfer, whose progress is kept for the next attempt."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Protocol


class Cancellable(Protocol):
    """Work that can be stopped, such as a `cdi.transfer.control.TransferControl`."""

    def cancel(self) -> None: ...


class SignalHandler:
    """Handler of both signals from its creation on; a signal before `watch` stops the transfer when it starts.

    In a pod the worker is PID 1 of its container, for which the kernel ignores signals without a handler.
    """

    def __init__(self) -> None:
        self._control: Cancellable | None = None
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def watch(self, control: Cancellable) -> None:
        """Cancel this work when a signal arrives, or at once if one has already arrived."""
        self._control = control
        if self._asked:
            control.cancel()

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self._asked = True
        if self._control is not None:
            # A handler may interrupt the main thread while it holds a lock that `cancel` needs, so another thread
            # cancels.
            threading.Thread(target=self._control.cancel, daemon=True).start()
