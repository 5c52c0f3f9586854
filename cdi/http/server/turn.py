"""The division of a request into a non-blocking part and a part that runs in a thread."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

from cdi.http.server.request import ServerRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The part of a request that may block; it runs in its own thread, one of a limited number."""

    run: Callable[[ServerRequest], bool]
    """Sends the response; returns whether the connection may carry another request."""
    verified: bool
    """Whether the client has presented a valid token or certificate."""


def in_turns(
    serve: Callable[[ServerRequest], bool], *, at_once: Container[str] = ()
) -> Callable[[ServerRequest], Turn | bool]:
    """Return a `begin` that runs `serve` in a turn, or at once for the paths in `at_once`, which must not block."""
    turn = Turn(run=serve, verified=True)
    return lambda request: serve(request) if request.head.path in at_once else turn
