"""The two halves of serving a request: what is answered at once, and what may wait and takes a turn for that."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

from cdi.source.inbound.visit import Visit


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What is left to do for a request, and may wait: it is done in a thread of its own, one of a bounded number."""

    run: Callable[[Visit], bool]
    """Answers; whether the connection may carry another request."""
    verified: bool
    """The client has shown a token or certificate that is good."""


def in_turns(serve: Callable[[Visit], bool], *, at_once: Container[str] = ()) -> Callable[[Visit], Turn | bool]:
    """Have `serve` answer every request in a turn, except those of the paths of `at_once`, which must not wait."""
    turn = Turn(run=serve, verified=True)
    return lambda visit: serve(visit) if visit.head.path in at_once else turn
