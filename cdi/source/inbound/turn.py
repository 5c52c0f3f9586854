"""The division of a request into a non-blocking part and a part that runs in a thread."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

from cdi.source.inbound.visit import Visit


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The part of a request that may block; it runs in its own thread, one of a limited number."""

    run: Callable[[Visit], bool]
    """Sends the response; returns whether the connection may carry another request."""
    verified: bool
    """Whether the client has presented a valid token or certificate."""


def in_turns(serve: Callable[[Visit], bool], *, at_once: Container[str] = ()) -> Callable[[Visit], Turn | bool]:
    """Return a `begin` that runs `serve` in a turn, or at once for the paths in `at_once`, which must not block."""
    turn = Turn(run=serve, verified=True)
    return lambda visit: serve(visit) if visit.head.path in at_once else turn
