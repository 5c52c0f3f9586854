"""A progress bar that appears only when there is progress to show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from cdi.api.job import Progress
from cdi.cli import bars

Show = Callable[[Progress], None]


@contextmanager
def progress_command(label: str, *, always: bool) -> Iterator[Show]:
    """Yield a progress callback that opens a bar at the first call with something to show.

    Args:
        label: the bar's label.
        always: whether transferred bytes open the bar; otherwise only a note does, such as waiting for a server.
    """
    with ExitStack() as stack:
        made: list[bars.Bar] = []

        def show(progress: Progress) -> None:
            if not made and not (progress.note or (always and progress.done)):
                return
            if not made:
                made.append(stack.enter_context(bars.bar(label)))
            made[0].update("Inspecting", progress)

        yield show
