"""A progress line with the elapsed time.

It uses the standard library alone, so that scripts can import it without the project's environment.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from types import TracebackType
from typing import ClassVar, Self

INTERVAL = 15.0
"""Seconds between two lines where standard error is no terminal."""
TERMINAL_INTERVAL = 1.0
"""Seconds between two updates of the line on a terminal."""


class Elapsed:
    """A progress line on standard error, shown while a ``with`` block runs.

    On a terminal the line is rewritten every second and removed at the end; elsewhere a new line is printed every 15
    seconds, so that work that takes less prints nothing. A nested block prints no second line: the outer one shows its
    label.
    """

    _current: ClassVar[Elapsed | None] = None

    def __init__(self, label: str, *, interval: float | None = None) -> None:
        """Report on `label` every `interval` seconds; None is the default for standard error."""
        self._label = label
        self._terminal = sys.stderr.isatty()
        self._interval = interval or (TERMINAL_INTERVAL if self._terminal else INTERVAL)
        self._detail = ""
        self._began = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._report, name="elapsed", daemon=True)

    def note(self, detail: str) -> None:
        """Append `detail`, a short printable text, to the line from now on."""
        self._detail = detail

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if Elapsed._current is None:
            Elapsed._current = self
            self._thread.start()
        else:
            Elapsed._current.note(self._label)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if Elapsed._current is self:
            Elapsed._current = None
            self._done.set()
            self._thread.join()

    def _report(self) -> None:
        while not self._done.wait(self._interval):
            seconds = time.monotonic() - self._began
            line = f"{self._label}: {seconds:.0f} s" + (f": {self._detail}" if self._detail else "")
            if self._terminal:
                width = shutil.get_terminal_size().columns
                self._write(f"\r{line[: width - 1]}\x1b[K")
            else:
                self._write(f"{line}\n")
        if self._terminal:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            # The output is closed; the work itself continues.
            self._done.set()
