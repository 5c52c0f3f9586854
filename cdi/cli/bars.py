"""Progress on standard error: bars on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, Self

import click

from cdi.api.job import Progress
from cdi.api.phases import Phase
from cdi.cli.show import duration, paint, printable, rate
from cdi.client.backend import Advance, Fraction
from cdi.image.sizes import format_size

QUIET = 10.0
"""Seconds between lines of one import that only report progress."""
_SHARE = "{l_bar}{bar}| [{elapsed}<{remaining}{postfix}]"


class Bar(Protocol):
    """The progress of one import."""

    def update(self, phase: str, progress: Advance | None, note: str = "") -> None:
        """Show the phase and the progress; `note` is why the import is not advancing, if it is not."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


def bar(label: str, *, position: int = 0) -> Bar:
    """Return a tqdm bar on a terminal, else a line printer; `position` is the bar's row among several."""
    return TerminalBar(label, position) if sys.stderr.isatty() else LineBar(label)


class TerminalBar:
    """A tqdm bar: ``golden  45%|████▌     | 450M/1.00G [00:05<00:06, 90.1MB/s] TransferInProgress``."""

    def __init__(self, label: str, position: int) -> None:
        from tqdm import tqdm

        self._bar: tqdm[Any] = tqdm(
            desc=printable(label),
            total=None,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            position=position,
            dynamic_ncols=True,
            leave=position == 0,
            mininterval=0.1,
            file=sys.stderr,
        )

    def update(self, phase: str, progress: Advance | None, note: str = "") -> None:
        shown = self._bar
        if isinstance(progress, Fraction):
            # Only the percentage is known: show no bytes and no rate.
            shown.bar_format = _SHARE
            shown.total, shown.n = 1.0, progress.fraction
        elif progress is not None:
            shown.total = progress.total
            if shown.n == 0 and progress.done:
                # Bytes that an earlier attempt fetched do not count towards the rate.
                shown.initial = progress.done - progress.fetched if progress.done > progress.fetched else 0
            shown.n = progress.done
        words = [phase, note or _own_note(progress)]
        shown.set_postfix_str(printable(" ".join(word for word in words if word)), refresh=False)
        shown.refresh()

    def close(self) -> None:
        self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class LineBar:
    """A printer of lines: one per change of phase or reason, and one every ten seconds while bytes flow."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._said: tuple[str, str] | None = None
        self._when = 0.0
        self._percent = ""

    def update(self, phase: str, progress: Advance | None, note: str = "") -> None:
        note = note or _own_note(progress)
        now = time.monotonic()
        state, percent = (phase, note), _amount(progress)
        if phase == Phase.SUCCEEDED:
            return  # `done` prints the final line, with the summary.
        if state == self._said and (now - self._when < QUIET or percent == self._percent):
            return
        self._said, self._when, self._percent = state, now, percent
        words = [f"{self._label}:", phase, percent, f"({note})" if note else ""]
        click.echo(printable(" ".join(word for word in words if word)), err=True)

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _own_note(progress: Advance | None) -> str:
    return progress.note if isinstance(progress, Progress) else ""


def _amount(progress: Advance | None) -> str:
    if isinstance(progress, Fraction):
        return f"{100 * progress.fraction:.0f}%"
    if progress is None or not (progress.done or progress.total):
        return ""
    text = format_size(progress.done)
    if progress.total:
        text += f" of {format_size(progress.total)}, {100 * (progress.fraction or 0):.0f}%"
    if progress.rate:
        text += f", {rate(progress.rate)}"
    if progress.eta:
        text += f", {duration(progress.eta)} left"
    return text


def done(label: str, text: str) -> None:
    """Print the final line of a finished import."""
    click.echo(f"{paint(label, 'green', err=True)}: {printable(text)}", err=True)


@contextmanager
def progress_command(label: str, *, always: bool) -> Iterator[Callable[[Progress], None]]:
    """Yield a progress callback that opens a bar at the first call with something to show.

    Args:
        label: The bar's label.
        always: Whether transferred bytes open the bar; otherwise only a note does, such as waiting for a server.
    """
    with ExitStack() as stack:
        made: list[Bar] = []

        def show(progress: Progress) -> None:
            if not made and not (progress.note or (always and progress.done)):
                return
            if not made:
                made.append(stack.enter_context(bar(label)))
            made[0].update("Inspecting", progress)

        yield show
