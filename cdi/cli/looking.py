"""A bar for work that is usually over before anybody would look at one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from cdi.api.job import Progress
from cdi.cli import bars

Show = Callable[[Progress], None]


@contextmanager
def looking(label: str, *, always: bool) -> Iterator[Show]:
    """Gives what is called with progress; the bar appears with the first call that has something to say.

    Unless `always`, that is only a note: it waits for a server, for instance.
    """
    with ExitStack() as stack:
        made: list[bars.Bar] = []

        def show(progress: Progress) -> None:
            if not made and not (progress.note or (always and progress.done)):
                return
            if not made:
                made.append(stack.enter_context(bars.bar(label)))
            made[0].update("Looking", progress)

        yield show
