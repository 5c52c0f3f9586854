"""Outcomes of a reconcile, by whose type the manager decides when the next one is due."""

from __future__ import annotations

from dataclasses import dataclass

from cdi.api.errors import InvalidManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Outcome of a reconcile that did not fail."""

    requeue_after: float | None = None
    """Seconds until the next reconcile if no change triggers it before; None if none is needed."""


class TerminalError(Exception):
    """Failure that persists until an object is changed, so that a retry is useless; any other error is retried."""

    def __init__(self, error: InvalidManifest) -> None:
        super().__init__(error.message)
        self.error = error

    @property
    def code(self) -> str:
        return self.error.code


def soonest(*pauses: float | None) -> Result:
    """Return the result that asks for the earliest of these reconciles."""
    return Result(requeue_after=min((pause for pause in pauses if pause is not None), default=None))
